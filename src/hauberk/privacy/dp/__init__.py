"""Differential privacy: noise, accounting, clipping and private training."""
