"""Noise of the sensor and of the line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core.rng import normal, uniform
from hauberk.robustness.natural.contract import natural


@natural(
    question="Does sensor noise in poor light change the answer?", family="noise", preset="quick",
    small=(0.04, 0.06, 0.08, 0.09, 0.10), large=(0.08, 0.12, 0.18, 0.26, 0.38),
)
def gaussian_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add normal noise to every pixel; the levels are standard deviations, those of CIFAR-10-C and ImageNet-C."""
    return x + sigma * normal(x, generator)


@natural(
    question="Does noise without outliers, as quantisation leaves it, change the answer?", family="noise",
    paper="levels of our own: the variances of gaussian-noise",
    small=tuple(math.sqrt(3) * sigma for sigma in (0.04, 0.06, 0.08, 0.09, 0.10)),
    large=tuple(math.sqrt(3) * sigma for sigma in (0.08, 0.12, 0.18, 0.26, 0.38)),
)
def uniform_noise(x: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Add noise spread evenly over ± the level to every pixel."""
    return x + reach * (2 * uniform(x, generator) - 1)


@natural(
    question="Does the graininess of few photons change the answer?", family="noise",
    small=(500, 250, 100, 75, 50), large=(60, 25, 12, 5, 3),
)
def shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Draw every pixel from the Poisson law of its brightness; the levels are photons at full brightness."""
    # Poisson draws live on the device of their generator.
    counts = torch.poisson((x.detach() * photons).to(generator.device), generator=generator)
    return counts.to(x) / photons


@natural(
    question="Do dead and stuck pixels change the answer?", family="noise", preset="quick",
    small=(0.01, 0.02, 0.03, 0.05, 0.07), large=(0.03, 0.06, 0.09, 0.17, 0.27),
)
def salt_and_pepper(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Turn a share of all values black or white, half each (the impulse noise of CIFAR-10-C and ImageNet-C)."""
    draw = uniform(x, generator)
    peppered = torch.where(draw < share / 2, torch.zeros_like(x), x)
    return torch.where(draw >= 1 - share / 2, torch.ones_like(x), peppered)
