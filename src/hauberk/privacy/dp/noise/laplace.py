"""The Laplace mechanism."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from hauberk.privacy.dp.noise.grid import add_
from hauberk.privacy.dp.noise.mechanism import checked_multiplier
from hauberk.privacy.dp.noise.source import Source


@dataclasses.dataclass(frozen=True)
class Laplace:
    """Laplace noise with a scale b of `noise_multiplier` times the L1 sensitivity: ε is 1 / noise_multiplier, δ is 0.

    Arguments:
        noise_multiplier: at least 0.

    Paper: Dwork, McSherry, Nissim and Smith 2006, TCC.
    """

    noise_multiplier: float
    name = "laplace"
    norm = 1

    def __post_init__(self) -> None:
        checked_multiplier(self.noise_multiplier)

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Add noise to `total` in place.

        Arguments:
            total: any shape, floating point.
            sensitivity: L1 distance that one example can move it.
            source: a secure one adds on a grid; a seeded one, for tests, plainly.

        Returns:
            `total`.
        """
        return add_(total, self.noise_multiplier, sensitivity, lambda like, _: source.laplace(like), source.secure)

    def at(self, step: int) -> Laplace:
        """Return itself: every step has the same noise."""
        return self
