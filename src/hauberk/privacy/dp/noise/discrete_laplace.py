"""The discrete Laplace (two-sided geometric) mechanism: noise of whole grid steps."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from torch import Tensor

from hauberk.privacy.dp.noise.discrete import sample_laplace
from hauberk.privacy.dp.noise.discrete_gaussian import add_steps_, checked_grid, rounded_up
from hauberk.privacy.dp.noise.mechanism import checked_multiplier
from hauberk.privacy.dp.noise.source import Source


@dataclasses.dataclass(frozen=True)
class DiscreteLaplace:
    """Discrete Laplace noise on a grid with `resolution` steps to the L1 sensitivity: ε is 1 / noise_multiplier, δ is 0.

    Values are rounded to the grid, which lets one example move them by up to `resolution + dimensions` steps; the scale of the
    noise is `noise_multiplier` times that.

    Arguments:
        noise_multiplier: at least 0.
        dimensions: entries of all tensors together that one example's clip bounds.
        resolution: grid steps to the sensitivity; wants to be well above `dimensions`.

    Paper: Ghosh, Roughgarden and Sundararajan 2009, STOC; the sampler of Canonne, Kamath and Steinke 2020, arXiv:2004.00010.
    """

    noise_multiplier: float
    dimensions: int
    resolution: int = 1 << 24
    name = "discrete-laplace"
    norm = 1

    def __post_init__(self) -> None:
        checked_multiplier(self.noise_multiplier)
        checked_grid(self.dimensions, self.resolution)

    @property
    def scale(self) -> Fraction:
        """Scale of the noise in grid steps, rounded up."""
        return rounded_up(self.noise_multiplier * (self.resolution + self.dimensions))

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Round `total` to the grid and add noise, in place.

        Arguments:
            total: any shape, floating point.
            sensitivity: L1 distance that one example can move it.
            source: of randomness.

        Returns:
            `total`, in multiples of `sensitivity / resolution` up to the cast to its dtype.
        """
        return add_steps_(total, self, sensitivity, lambda n: sample_laplace(n, self.scale, source))

    def at(self, step: int) -> DiscreteLaplace:
        """Return itself: every step has the same noise."""
        return self
