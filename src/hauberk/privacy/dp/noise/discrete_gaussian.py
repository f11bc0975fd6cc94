"""The discrete Gaussian mechanism: noise of whole grid steps, free of floating-point gaps by construction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise.discrete import sample_gaussian
from hauberk.privacy.dp.noise.mechanism import checked_multiplier, checked_sensitivity
from hauberk.privacy.dp.noise.source import Source


@dataclasses.dataclass(frozen=True)
class DiscreteGaussian:
    """Discrete Gaussian noise on a grid with `resolution` steps to the L2 sensitivity.

    Values are rounded to the grid, which lets one example move them by up to `resolution + sqrt(dimensions)` steps; the noise has
    `noise_multiplier` times that as its parameter sigma. So its guarantee is that of `Gaussian(noise_multiplier)`: the same zCDP,
    and the same RDP at whole orders, sampled or not.

    Arguments:
        noise_multiplier: at least 0.
        dimensions: entries of all tensors together that one example's clip bounds.
        resolution: grid steps to the sensitivity; a finer grid needs less noise for the rounding.

    Paper: Canonne, Kamath and Steinke 2020, arXiv:2004.00010; Kairouz, Liu and Steinke 2021, arXiv:2102.06387.
    """

    noise_multiplier: float
    dimensions: int
    resolution: int = 1 << 20
    name = "discrete-gaussian"
    norm = 2

    def __post_init__(self) -> None:
        checked_multiplier(self.noise_multiplier)
        checked_grid(self.dimensions, self.resolution)

    @property
    def sigma(self) -> Fraction:
        """Parameter of the noise in grid steps, rounded up."""
        return rounded_up(self.noise_multiplier * (self.resolution + math.sqrt(self.dimensions)))

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Round `total` to the grid and add noise, in place.

        Arguments:
            total: any shape, floating point.
            sensitivity: L2 distance that one example can move it.
            source: of randomness.

        Returns:
            `total`, in multiples of `sensitivity / resolution` up to the cast to its dtype.
        """
        return add_steps_(total, self, sensitivity, lambda n: sample_gaussian(n, self.sigma**2, source))

    def at(self, step: int) -> DiscreteGaussian:
        """Return itself: every step has the same noise."""
        return self


class Stepped(Protocol):
    """A mechanism on a grid of `resolution` steps to the sensitivity, for up to `dimensions` entries."""

    @property
    def noise_multiplier(self) -> float: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def resolution(self) -> int: ...


def add_steps_(total: Tensor, mechanism: Stepped, sensitivity: float, sample: Callable[[int], Tensor]) -> Tensor:
    """Round `total` to the grid of a mechanism and add whole steps of noise, in place.

    Arguments:
        total: any shape, floating point; changed.
        mechanism: whose grid it is.
        sensitivity: how far one example can move the total, in the mechanism's norm.
        sample: so many draws of the noise, int64.

    Returns:
        `total`.
    """
    step = checked_sensitivity(sensitivity) / mechanism.resolution
    checked_size(total, mechanism.dimensions)
    if not mechanism.noise_multiplier:
        return total
    rounded = total.double().div_(step) if total.dtype != torch.float64 else total / step
    noise = sample(total.numel()).reshape(total.shape)
    return total.copy_(rounded.round_().add_(noise.to(rounded)).mul_(step))


def rounded_up(value: float) -> Fraction:
    """Return a fraction over 1024, not below the value: a little more noise, never less."""
    return Fraction(math.ceil(value * 1024), 1024)


def checked_grid(dimensions: int, resolution: int) -> None:
    """Raise UsageError for a grid that cannot be."""
    if dimensions < 1:
        raise UsageError(f"dimensions is {dimensions}", want="at least 1: the entries that one clip bounds")
    if not 1 <= resolution <= 1 << 30:
        raise UsageError(f"resolution is {resolution}", want="1 to 2^30 grid steps to the sensitivity")


def checked_size(total: Tensor, dimensions: int) -> None:
    """Raise UsageError for a tensor with more entries than the mechanism was made for."""
    if total.numel() > dimensions:
        raise UsageError(
            f"a tensor has {total.numel()} entries", want=f"at most {dimensions}, the dimensions of the mechanism",
            fix="Give the mechanism the number of entries of all tensors together",
        )
