"""Differential privacy: training with bounded, noised contributions, and what it costs."""
