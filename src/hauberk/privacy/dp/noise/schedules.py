"""Schedules of the noise multiplier: less noise as training goes on, each step accounted with what it had."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

from hauberk.core.errors import UsageError


class Schedule(Protocol):
    """A function from the step, counted from 0, to its noise multiplier. It must not look at the data."""

    def __call__(self, step: int, /) -> float: ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same multiplier at every step."""

    initial: float

    def __call__(self, step: int, /) -> float:
        """Return the multiplier of that step."""
        return self.initial


@dataclasses.dataclass(frozen=True)
class _Decay:
    """A multiplier that starts at `initial` and shrinks at `rate` a step.

    Arguments:
        initial: noise multiplier of step 0, above 0.
        rate: at least 0, below 1.
    """

    initial: float
    rate: float = 6e-6

    def __post_init__(self) -> None:
        if not 0 < self.initial < math.inf:
            raise UsageError(f"the initial noise multiplier is {self.initial}", want="a finite number above 0")
        if not 0 <= self.rate < 1:
            raise UsageError(f"the decay rate is {self.rate}", want="at least 0 and below 1: the share lost a step")


class TimeDecay(_Decay):
    """σ_t = σ_0 / (1 + rate t), the solution of σ_(t+1) = σ_0 / (σ_0 / σ_t + rate)."""

    def __call__(self, step: int, /) -> float:
        """Return the multiplier of that step."""
        return self.initial / (1 + self.rate * step)


class StepDecay(_Decay):
    """σ_t = σ_0 (1 - rate)^t."""

    def __call__(self, step: int, /) -> float:
        """Return the multiplier of that step."""
        return self.initial * (1 - self.rate) ** step


class ExpDecay(_Decay):
    """σ_t = σ_0 exp(-rate t)."""

    def __call__(self, step: int, /) -> float:
        """Return the multiplier of that step."""
        return self.initial * math.exp(-self.rate * step)
