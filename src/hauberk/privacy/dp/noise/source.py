"""What a source of randomness for privacy gives, whether secure or seeded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Source(Protocol):
    """Randomness for a mechanism.

    Attributes:
        secure: whether nobody, knowing all that the program prints, stores and releases, can foretell a draw.
    """

    secure: bool

    def bits(self, n: int) -> Tensor:
        """Return n uniform integers over all of int64, shape (n,), on the CPU."""
        ...

    def normal(self, like: Tensor, out: Tensor | None = None) -> Tensor:
        """Return standard normal values with the shape, dtype and device of `like`, in `out` where that is given."""
        ...

    def uniform(self, like: Tensor) -> Tensor:
        """Return values uniform over [0, 1) with the shape, dtype and device of `like`."""
        ...

    def laplace(self, like: Tensor) -> Tensor:
        """Return Laplace values of scale 1 (variance 2) with the shape, dtype and device of `like`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on from here; empty for a secure source, which has no state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        ...
