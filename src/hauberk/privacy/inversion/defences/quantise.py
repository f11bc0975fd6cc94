"""Gradient entries rounded to a few levels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.core.rng import given, uniform


def quantise(
    gradients: Mapping[str, Tensor], strength: float = 0.5, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the gradients rounded at random to the nearest levels, right on average (Alistarh et al. 2017, arXiv:1610.02132).

    Arguments:
        gradients: by parameter name.
        strength: distance of two levels over the parameter's largest entry: 1 keeps the signs and zero, 1/127 is eight bits, 0
            leaves all as it is.
        generator: of the rounding; None is seeded alike at every call.

    Raises:
        UsageError: for a step outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength is {strength}", want="a step from 0 to 1")
    drawn, found = given(generator, 0, "quantise"), {}
    for name, one in gradients.items():
        step = strength * one.detach().abs().max()
        level = one.detach() / step.clamp_min(torch.finfo(one.dtype).tiny)
        found[name] = (level + uniform(one, drawn)).floor() * step if float(step) > 0 else one.detach().clone()
    return found
