"""What a noise mechanism is: a name and a norm for the ledger, and noise in proportion to what one example can change."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise.source import Source


class Mechanism(Protocol):
    """Noise for a sum to which each example adds at most `sensitivity` in the norm `norm`.

    Attributes:
        name: as the ledger calls it.
        norm: 1 or 2.
        noise_multiplier: scale of the noise over the sensitivity: what the ledger composes.
    """

    name: str
    norm: int

    @property
    def noise_multiplier(self) -> float:
        """Scale of the noise over the sensitivity."""
        ...

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Add the noise to `total` in place and return it."""
        ...

    def at(self, step: int) -> Mechanism:
        """Return the mechanism of that step, counted from 0."""
        ...


def checked_multiplier(value: float) -> float:
    """Return the noise multiplier. Raises UsageError when it is negative or not finite."""
    if not 0 <= value < math.inf:
        raise UsageError(f"the noise multiplier is {value}", want="a finite number, at least 0 (0 is no privacy at all)")
    return float(value)


def checked_sensitivity(value: float) -> float:
    """Return the sensitivity. Raises UsageError when it is not a finite number above 0."""
    if not 0 < value < math.inf:
        raise UsageError(f"the sensitivity is {value}", want="a finite number above 0: what one example can change at most")
    return float(value)
