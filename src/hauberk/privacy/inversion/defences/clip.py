"""A gradient scaled down to a largest norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.core.errors import UsageError


def norm_of(gradients: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of all entries together."""
    return math.sqrt(sum(float(one.double().square().sum()) for one in gradients.values()))


def clip(
    gradients: Mapping[str, Tensor], strength: float = 1.0, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the gradients scaled so that their norm is at most 1 / strength.

    Against an attack on the direction of the gradient this does nothing: it stands here to show that.

    Arguments:
        gradients: by parameter name.
        strength: reciprocal of the largest L2 norm; 0 clips nothing.
        generator: unused: nothing is drawn.

    Raises:
        UsageError: for a strength below 0.
    """
    if not strength >= 0:
        raise UsageError(f"strength is {strength}", want="0 or more")
    factor = 1 / max(1.0, strength * norm_of(gradients))
    return {name: one * factor for name, one in gradients.items()}
