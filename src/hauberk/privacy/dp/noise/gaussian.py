"""The Gaussian mechanism, with a fixed or a scheduled noise multiplier."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from hauberk.privacy.dp.noise.grid import COARSE, add_
from hauberk.privacy.dp.noise.mechanism import checked_multiplier
from hauberk.privacy.dp.noise.schedules import Schedule
from hauberk.privacy.dp.noise.source import Source


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Normal noise with a standard deviation of `noise_multiplier` times the L2 sensitivity.

    Arguments:
        noise_multiplier: at least 0.

    Paper: Dwork and Roth 2014, appendix A; Balle and Wang 2018, arXiv:1805.06530, for its exact ε.
    """

    noise_multiplier: float
    name = "gaussian"
    norm = 2

    def __post_init__(self) -> None:
        checked_multiplier(self.noise_multiplier)

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Add noise to `total` in place.

        Arguments:
            total: any shape, floating point.
            sensitivity: L2 distance that one example can move it.
            source: a secure one adds on a grid; a seeded one, for tests, plainly.

        Returns:
            `total`.
        """
        return add_(total, self.noise_multiplier, sensitivity, source.normal, source.secure, COARSE)

    def at(self, step: int) -> Gaussian:
        """Return itself: every step has the same noise."""
        return self


@dataclasses.dataclass(frozen=True)
class AdaptiveGaussian:
    """Gaussian noise whose multiplier follows a schedule; the ledger composes what each step really had.

    Arguments:
        schedule: step, counted from 0, to noise multiplier: `TimeDecay`, `StepDecay`, `ExpDecay` or any function.
    """

    schedule: Schedule
    name = "gaussian"
    norm = 2

    @property
    def noise_multiplier(self) -> float:
        """The multiplier of the first step."""
        return self.at(0).noise_multiplier

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Add the noise of the first step; `at(step).add_` adds that of another."""
        return self.at(0).add_(total, sensitivity, source)

    def at(self, step: int) -> Gaussian:
        """Return the mechanism of that step."""
        return Gaussian(self.schedule(step))
