"""Random noise on every entry of a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.core.rng import given, normal


def gaussian_noise(
    gradients: Mapping[str, Tensor], strength: float = 1.0, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the gradients with normal noise added (Zhu et al. 2019, arXiv:1906.08935).

    Arguments:
        gradients: by parameter name.
        strength: standard deviation over the root mean square of all entries; 1 is as much noise as signal. This bounds nothing:
            `private` does.
        generator: of the noise; None is seeded alike at every call.

    Raises:
        UsageError: for a strength below 0.
    """
    return _noisy(gradients, strength, generator, "gaussian")


def laplace_noise(
    gradients: Mapping[str, Tensor], strength: float = 1.0, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the gradients with Laplace noise added; arguments as for `gaussian_noise`."""
    return _noisy(gradients, strength, generator, "laplace")


def _noisy(
    gradients: Mapping[str, Tensor], strength: float, generator: torch.Generator | None, kind: str
) -> dict[str, Tensor]:
    if not strength >= 0:
        raise UsageError(f"strength is {strength}", want="0 or more")
    drawn, found = given(generator, 0, "gradient noise"), {}
    count = sum(one.numel() for one in gradients.values())
    size = math.sqrt(sum(float(one.double().square().sum()) for one in gradients.values()) / max(count, 1))
    for name, one in gradients.items():
        if kind == "gaussian":
            noise = normal(one, drawn)
        else:
            flat = torch.rand(one.shape, generator=drawn, dtype=torch.float64, device=drawn.device) - 0.5
            # Of variance 1; 1 - 2 |u| is never 0 but for a draw of exactly -.5.
            noise = (-flat.sign() * torch.log1p(-2 * flat.abs().clamp_max(0.5 - 2**-54)) / math.sqrt(2)).to(one)
        found[name] = one + strength * size * noise
    return found
