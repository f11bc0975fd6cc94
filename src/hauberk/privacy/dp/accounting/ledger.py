"""PrivacyLedger: what was released so far, in few lines however long the run."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting.account import epsilon
from hauberk.privacy.dp.accounting.release import Release, Spent
from hauberk.privacy.dp.accounting.statement import PrivacyStatement, make_statement

MOST_ENTRIES = 1_000_000


class PrivacyLedger:
    """The releases of a run, equal ones in a row counted up.

    Arguments:
        releases: what was released before.
    """

    def __init__(self, releases: Iterable[Release] = ()) -> None:
        self._releases: list[Release] = []
        # Whoever writes the ledger may tell what comes: of k, the release k steps after the next; weak, and no part of the state.
        self.ahead: weakref.WeakMethod[Callable[[int], Release]] | None = None
        for one in releases:
            self.add(one)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ahead": None}

    def add(self, release: Release) -> None:
        """Record a release, made after those recorded before."""
        if not isinstance(release, Release):
            raise UsageError(f"a ledger was given a {type(release).__name__}", want="a Release")
        if release.count == 0:
            return
        last = self._releases[-1] if self._releases else None
        if last is not None and dataclasses.replace(last, count=release.count) == release:
            self._releases[-1] = dataclasses.replace(last, count=last.count + release.count)
        else:
            self._releases.append(release)

    @property
    def releases(self) -> tuple[Release, ...]:
        """What was released, in order, runs of equal releases as one."""
        return tuple(self._releases)

    @property
    def count(self) -> int:
        """How many releases there were."""
        return sum(one.count for one in self._releases)

    def __len__(self) -> int:
        return len(self._releases)

    def __iter__(self) -> Iterator[Release]:
        return iter(self.releases)

    def epsilon(self, delta: float, *, accountant: str = "pld", relation: str | None = None) -> Spent:
        """Return what was spent so far at δ; see `epsilon`."""
        return epsilon(self._releases, delta, accountant=accountant, relation=relation)

    def statement(
        self, delta: float, *, unit: str = "example", accountant: str = "pld", relation: str | None = None, seeded: bool = False,
        tuned: bool = True, warnings: Sequence[str] = (),
    ) -> PrivacyStatement:
        """Return the claim that may be published about the releases so far; see `make_statement`."""
        return make_statement(
            self._releases, delta, accountant=accountant, relation=relation, unit=unit, seeded=seeded, tuned=tuned,
            warnings=warnings,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger as plain values, for a checkpoint."""
        return {"releases": [dataclasses.asdict(one) for one in self._releases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the ledger that `state_dict` returned.

        Raises:
            UsageError: for anything else; the ledger is then as it was.
        """
        listed = state.get("releases") if isinstance(state, dict) else None
        if not isinstance(listed, list) or len(listed) > MOST_ENTRIES:
            raise UsageError("the state of a privacy ledger holds no list of releases", want="what state_dict returned")
        try:
            made = [Release(**one) for one in listed]
        except TypeError as error:
            problem = f"the state of a privacy ledger cannot be read ({error})"
            raise UsageError(problem, want="what state_dict returned") from error
        self._releases = []
        for one in made:
            self.add(one)
