"""Light: too much of it, too little contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.natural.contract import natural


@natural(
    question="Does overexposure change the answer?", family="light", preset="quick",
    small=(0.05, 0.10, 0.15, 0.20, 0.30), large=(0.1, 0.2, 0.3, 0.4, 0.5),
)
def brightness(x: Tensor, extra: float, generator: torch.Generator) -> Tensor:
    """Add light while hue and saturation stay; the levels are added to the value of HSV."""
    value = x.amax(1, keepdim=True)  # (n, 1, h, w)
    brighter = (value + extra).clamp(max=1)
    # A black pixel has no hue: it turns gray.
    return torch.where(value > 0, x * (brighter / value.clamp(min=torch.finfo(x.dtype).tiny)), brighter)


@natural(
    question="Does haze or a cheap display change the answer?", family="light", preset="quick",
    small=(0.75, 0.5, 0.4, 0.3, 0.15), large=(0.4, 0.3, 0.2, 0.1, 0.05),
)
def contrast(x: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Draw every value towards the mean of its image and channel; the levels are the share of contrast kept."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * kept
