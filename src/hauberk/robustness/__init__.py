"""Robustness: natural perturbations, adversarial examples, detection, hardening, verification."""
