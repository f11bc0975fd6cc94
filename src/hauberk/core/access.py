"""What an adversary is granted, and what it has spent. Knows nothing of torch, so that the command line answers at once."""

from __future__ import annotations

import dataclasses
import enum
import time

from hauberk.core.errors import BudgetExceeded


class Access(enum.IntEnum):
    """What one adversary may see of a model, in rising order."""

    LABEL = 1
    SCORE = 2
    GRADIENT = 3

    @classmethod
    def parse(cls, name: str | Access) -> Access:
        """Return the access of that name (`label`, `score`, `gradient`; case does not matter)."""
        from hauberk.core.errors import UsageError, nearest

        if isinstance(name, Access):
            return name
        try:
            return cls[name.strip().upper()]
        except KeyError:
            known = [one.name.lower() for one in cls]
            raise UsageError(f"access is '{name}'", want=" | ".join(known), fix=nearest(name.lower(), known)) from None


@dataclasses.dataclass
class Ledger:
    """What was spent on a model: samples sent forward, samples differentiated, and calls made."""

    queries: int = 0
    gradients: int = 0
    calls: int = 0

    def copy(self) -> Ledger:
        """Return a copy that later spending does not change."""
        return dataclasses.replace(self)

    def since(self, before: Ledger) -> Ledger:
        """Return what was spent after `before` was copied."""
        return Ledger(
            self.queries - before.queries, self.gradients - before.gradients, self.calls - before.calls
        )


@dataclasses.dataclass
class Budget:
    """Limits on spending; `None` means no limit. `seconds` counts from the moment the budget is made."""

    queries: int | None = None
    gradients: int | None = None
    seconds: float | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)

    def check(self, ledger: Ledger, *, queries: int = 0, gradients: int = 0) -> None:
        """Raise BudgetExceeded when spending that much more would pass a limit.

        Raises:
            BudgetExceeded: before anything is spent.
        """
        if self.queries is not None and ledger.queries + queries > self.queries:
            raise BudgetExceeded(
                f"{ledger.queries} queries are spent and {queries} more were asked for",
                want=f"at most {self.queries} queries",
                fix="Raise the query budget, or give fewer samples",
            )
        if self.gradients is not None and ledger.gradients + gradients > self.gradients:
            raise BudgetExceeded(
                f"{ledger.gradients} gradients are spent and {gradients} more were asked for",
                want=f"at most {self.gradients} gradients",
                fix="Raise the gradient budget, or give fewer samples",
            )
        if self.seconds is not None and self.left() <= 0:
            raise BudgetExceeded(
                f"{time.monotonic() - self.started:.1f} s have passed",
                want=f"at most {self.seconds:.1f} s",
                fix="Raise the time budget, or choose a quicker preset",
            )

    def left(self) -> float:
        """Return the seconds left (infinite when there is no limit)."""
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self.started)
