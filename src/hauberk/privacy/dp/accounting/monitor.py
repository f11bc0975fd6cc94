"""PrivacyMonitor: tells ε while a model is trained, and stops before the step that would pass the budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from hauberk.core import progress
from hauberk.core.errors import BudgetExceeded, UsageError
from hauberk.core.train import Callback, State
from hauberk.privacy.dp.accounting.account import check_delta, epsilon
from hauberk.privacy.dp.accounting.calibrate import check_budget, most_steps
from hauberk.privacy.dp.accounting.ledger import PrivacyLedger
from hauberk.privacy.dp.accounting.release import Release, Spent

Step = Release | Callable[[int], Release]


class PrivacyMonitor(Callback):
    """A callback for `fit`, and an account for the user's own loop.

    In the own loop, `while monitor.allows(): ...; monitor.step()`.

    Arguments:
        step: what one training step releases, or `(step) -> Release` where that changes; its count is not looked at. None
            where `ledger` is written by the trainer, who tells what comes next; else the next step is taken to be like the last.
        delta: the δ at which ε is told.
        budget: the ε that must not be passed; None only tells.
        accountants: the first is the one of the budget; the others are told beside it.
        ledger: where the releases are, or are to be, recorded; None makes one.
        relation: as for `epsilon`.
        tell: is given one line after every epoch, such as `print`; None tells whoever listens to `fit`.

    Attributes: `ledger`; `history`, one `{"step": ..., accountant: ε}` per epoch told.

    Raises:
        UsageError: for a budget or δ that is none, an accountant that does not cover the step, or neither step nor ledger.
    """

    def __init__(
        self, step: Step | None = None, *, delta: float, budget: float | None = None, accountants: Sequence[str] = ("pld",),
        ledger: PrivacyLedger | None = None, relation: str | None = None, tell: Callable[[str], None] | None = None,
    ) -> None:
        check_delta(delta)
        if budget is not None:
            check_budget(budget, delta)
        if step is None and ledger is None:
            raise UsageError("the monitor has neither a step nor a ledger", want="what a step releases, or the trainer's ledger")
        if not accountants:
            raise UsageError("the monitor has no accountant", want="pld, or several")
        self.delta, self.budget, self.relation, self.tell = delta, budget, relation, tell
        self.accountants, self.ledger = tuple(accountants), ledger if ledger is not None else PrivacyLedger()
        self.history: list[dict[str, float]] = []
        self._step = step
        self._room: float = 0.0
        self._known: tuple[int, int] | None = None  # the ledger's length and count when `_room` was found
        if step is not None:
            first = dataclasses.replace(self._at(0), count=1)
            for one in self.accountants:
                epsilon([first], delta, accountant=one, relation=relation)

    def allows(self) -> bool:
        """Return whether one more step stays within the budget."""
        return self.budget is None or self.remaining() >= 1

    def remaining(self) -> float:
        """Return how many more steps surely stay within the budget; infinite without one, or where none ends it."""
        if self.budget is None:
            return math.inf
        now = (len(self.ledger), self.ledger.count)
        if self._known is None or now[0] != self._known[0] or self._room - (now[1] - self._known[1]) < 1:
            self._known, self._room = now, self._ahead()
        return self._room - (now[1] - self._known[1])

    def step(self) -> None:
        """Record that a step was made.

        Raises:
            BudgetExceeded: where it passes the budget: it is recorded all the same.
        """
        if self._step is None:
            return  # the trainer writes the ledger
        allowed = self.allows()
        self.ledger.add(dataclasses.replace(self._at(self.ledger.count), count=1))
        if not allowed:
            raise BudgetExceeded(
                f"step {self.ledger.count} passes the budget of ε = {self.budget} at δ = {self.delta:g}",
                want="a stop before it", fix="Ask monitor.allows() before every step",
            )

    def spent(self) -> dict[str, Spent]:
        """Return what was spent so far, by accountant."""
        return {one: self.ledger.epsilon(self.delta, accountant=one, relation=self.relation) for one in self.accountants}

    def report(self) -> str:
        """Return what was spent so far in one line, and keep it in the history."""
        found = self.spent()
        self.history.append({"step": float(self.ledger.count), **{name: one.epsilon for name, one in found.items()}})
        budget = "" if self.budget is None else f" (budget {self.budget:g})"
        return f"after {self.ledger.count} steps{budget}: " + "; ".join(one.describe() for one in found.values())

    def before_batch(self, state: State) -> None:
        """Stop before the gradients of a step that would pass the budget are made."""
        state.stop = state.stop or not self.allows()

    def before_step(self, state: State) -> None:
        """Stop before a step that would pass the budget."""
        if self._step is not None and not self.allows():
            state.stop = True

    def after_step(self, state: State) -> None:
        """Record the step, and stop where the next one would pass the budget."""
        self.step()
        state.stop = state.stop or not self.allows()

    def after_epoch(self, state: State) -> None:
        """Tell what was spent."""
        line = self.report()
        (self.tell or progress.say)(line)

    def state_dict(self) -> dict[str, Any]:
        """Return the account, for a checkpoint; `fit` keeps it."""
        return {"ledger": self.ledger.state_dict(), "history": [dict(one) for one in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        if not isinstance(state, dict) or not {"ledger", "history"} <= state.keys():
            raise UsageError("the state of a privacy monitor holds no ledger", want="what state_dict returned")
        self.ledger.load_state_dict(state["ledger"])
        self.history, self._known = [dict(one) for one in state["history"]], None

    def _at(self, step: int) -> Release:
        assert self._step is not None
        return self._step(step) if callable(self._step) else self._step

    def _ahead(self) -> float:
        """Return how many further steps stay within the budget."""
        assert self.budget is not None
        made, count = self.ledger.releases, self.ledger.count
        if self._step is None:
            told = self.ledger.ahead() if self.ledger.ahead is not None else None
            if told is None and not made:
                return 1.0  # nothing is known of the first step until it is made
            following: Step = (lambda k: told(k - count)) if told is not None else (lambda _: made[-1])
        else:
            following = self._step
        return most_steps(
            self.budget, self.delta, following, before=made, begin=count, accountant=self.accountants[0], relation=self.relation
        )
