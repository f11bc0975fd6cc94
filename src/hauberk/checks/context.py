"""Context: what a check is given, and how it answers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.access import Access, Ledger
from hauberk.core.card import Card
from hauberk.core.data import Data, Split
from hauberk.core.finding import Evidence, Finding, Interval, Status
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.core.threat import Linf, Threat

Made = TypeVar("Made")


class NotRun(Exception):
    """A check cannot answer here; the message says why and what would let it."""


@dataclasses.dataclass(frozen=True)
class Trusted:
    """Whose signature a model's files must have, and which software is known to be unsafe; empty where the plan names none.

    Arguments:
        keys, policy: public keys, or a policy file in their place.
        signed, signature: what the signature covers, and where it lies.
        unsafe: the list of unsafe versions.
    """

    keys: tuple[str, ...] = ()
    policy: str = ""
    signed: str = ""
    signature: str = ""
    unsafe: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How thoroughly, and against which threats, a model is assessed.

    Arguments:
        preset: quick, standard or thorough.
        seed: all randomness is derived from it by name.
        threats: the threats assumed, the first of them the main one.
        radii: the radii of the main threat's curve, in its norm.
        gates: by check id, `{"min": ...}` or `{"max": ...}` in place of the card's limits; `{"run": true}` makes not run fail.
        queries: queries that a black-box adversary may spend per sample.
        trust: whether files that run code may be opened.
        statement: the file with the privacy statement of the model's training; empty where none was named.
        trusted: whose signature is asked for, and which software is unsafe.
    """

    preset: str = "quick"
    seed: int = 0
    threats: tuple[Threat, ...] = (Linf(0.1),)
    radii: tuple[float, ...] = ()
    gates: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    queries: int | None = None
    trust: bool = False
    statement: str = ""
    trusted: Trusted = Trusted()

    def scaled(self, quick: int, standard: int, thorough: int) -> int:
        """Return the count that belongs to the preset."""
        return {"quick": quick, "standard": standard, "thorough": thorough}[self.preset]


@dataclasses.dataclass
class Memo:
    """A shared result and what it cost, so that every finding that rests on it states the whole price."""

    value: Any = None
    cost: Ledger = dataclasses.field(default_factory=Ledger)
    seconds: float = 0.0
    needs: set[Any] = dataclasses.field(default_factory=set)


class Context:
    """What a check sees: the target, the data, the settings, and results other checks have already paid for.

    Arguments:
        target: the model, at the access granted.
        data: with the roles that are at hand.
        settings: preset, seed, threats, gates.
        card: of the check that runs.
        memos: shared between the checks of one assessment.
    """

    def __init__(
        self, target: Target, data: Data, settings: Settings, card: Card, memos: dict[Any, Memo] | None = None
    ) -> None:
        self.target, self.data, self.settings, self.card = target.fresh(), data, settings, card
        self.memos: dict[Any, Memo] = {} if memos is None else memos
        self.notes: list[str] = []
        self._started = time.monotonic()
        self._used: set[Any] = set()
        self._made: set[Any] = set()
        self._making: list[Memo] = []

    @property
    def seed(self) -> int:
        """The seed of the assessment; derive from it by name."""
        return self.settings.seed

    @property
    def threat(self) -> Threat:
        """The main threat, with the data's bounds."""
        return self.settings.threats[0].within(self.data.bounds)

    def threat_in(self, norm: str) -> Threat:
        """Return the threat assumed in `norm`; where none was named, one derived from the main threat, which a note tells.

        L2 takes a quarter, and L1 an eighth, of the radius at which its ball would hold the whole Linf ball; L0 takes 2 % of
        the features: close to the pairs of radii that the field's benchmarks use. From a number of features (L0) no size of a
        change follows: a tenth of the input range is taken. An adversary without a radius (a patch) has none in any norm.
        """
        for threat in self.settings.threats:
            if threat.norm == norm:
                return threat.within(self.data.bounds)
        main, width = self.threat, math.prod(self.data.test.shape)
        base = float(torch.as_tensor(main.eps, dtype=torch.float64).mean())
        if math.isinf(base) and main.norm != "l0":
            self.note(f"no {norm} threat was named; as in the main threat, nothing but bounds and mask limits the change")
            return dataclasses.replace(main, norm=norm)
        per_unit = {"linf": 1.0, "l2": 0.25 * math.sqrt(width), "l1": 0.125 * width}
        if main.norm == "l0":
            low, high = (torch.as_tensor(end, dtype=torch.float64) for end in self.data.bounds)
            unit, source = 0.1 * float((high - low).mean()), "a tenth of the input range"
        else:
            unit, source = base / per_unit[main.norm], "the main threat"
        eps = max(1.0, round(0.02 * width)) if norm == "l0" else unit * per_unit[norm]
        self.note(f"no {norm} threat was named; its radius {eps:.4g} is derived from {source}")
        return dataclasses.replace(main, norm=norm, eps=eps)

    def note(self, text: str) -> None:
        """Add a note to the finding, once."""
        if text not in self.notes:
            self.notes.append(text)

    def split(self, role: str) -> Split:
        """Return the split of that role, or end the check as not run."""
        found = self.data.splits().get(role)
        if found is None or not len(found):
            raise NotRun(f"no {role} data was given (plan: data.{role})")
        return found

    def need_classes(self) -> int:
        """Return the number of classes, or end the check as not run for regression and for a model of several labels."""
        if self.target.multi_label:
            raise NotRun("the model answers several yes-or-no labels per sample, and this check is about one class per sample")
        if not self.data.is_classification or self.data.classes is None:
            raise NotRun("the labels are not classes")
        return self.data.classes

    def need_radius(self, threat: Threat) -> float:
        """Return the radius of the threat, the mean where there are several; end the check as not run where it is 0."""
        radius = float(torch.as_tensor(threat.eps, dtype=torch.float64).mean())
        if radius == 0:
            raise NotRun("the threat has the radius 0: it lets nothing change, so there is nothing to attack")
        return radius

    def need_images(self) -> None:
        """End the check as not run where samples are not images."""
        if self.data.modality != "image":
            raise NotRun(f"the data is {self.data.modality}, not images")

    def sample(self, quick: int = 256, standard: int = 1000, thorough: int = 10_000) -> tuple[Tensor, Tensor]:
        """Return the test samples of this preset, drawn once by seed: smaller draws are the beginning of larger ones."""
        return self.data.test.take(self.positions(quick, standard, thorough))

    def positions(self, quick: int = 256, standard: int = 1000, thorough: int = 10_000) -> Tensor:
        """Return where in the test split the samples of `sample` stand, shape (n,); their groups are found by it."""
        n = self.settings.scaled(quick, standard, thorough)
        return torch.randperm(len(self.data.test), generator=_order(self.seed))[:n]

    def shared(self, key: object, make: Callable[[Target], Made]) -> Made:
        """Return what `make(target)` returned when first asked under `key`; its cost is charged to every check that uses it.

        `key` must name all that the result depends on. `make` must spend through the target it is given. Its randomness must be
        derived from the seed alone, so that an assessment that is resumed finds the same.
        """
        (self._making[-1].needs if self._making else self._used).add(key)
        if key not in self.memos:
            view, memo, began, before = self.target.fresh(), Memo(), time.monotonic(), self._seconds_made()
            self._making.append(memo)
            try:
                # Its own random stream: a model that draws gives the same, whichever check asked for this first.
                with rng.isolated(rng.derive_seed(self.seed, "shared", repr(key))):
                    memo.value = make(view)
            finally:
                self._making.pop()
            memo.cost = view.ledger.copy()
            memo.seconds = time.monotonic() - began - (self._seconds_made() - before)
            self.memos[key] = memo
            self._made.add(key)
            # The view has charged this check's own ledger already; the memo's cost is added to it at the end.
            self._refund(view.ledger)
        made: Made = self.memos[key].value
        return made

    def rate(self, hits: Tensor) -> dict[str, Any]:
        """Return value, n and interval of a share, from booleans of shape (n,), for `finding(**...)`."""
        count, n = int(hits.sum()), len(hits)
        return {"value": count / max(n, 1), "n": n, "interval": wilson(count, n)}

    def finding(
        self, summary: str, *, value: float | None = None, n: int | None = None, interval: Interval | None = None,
        threat: Threat | str = "", evidence: Sequence[Evidence] = (), status: Status | None = None,
    ) -> Finding:
        """Return the finding of this check: id, question, limits, cost and tags come from its card and the context.

        Arguments:
            summary: the answer in one sentence, with the figure.
            value, n, interval: the figure, the samples behind it, and its interval.
            threat: what it was measured under.
            evidence: tables, curves, heat maps, pictures.
            status: None grades the value by the card's limits. Either way a limit in the plan's gate has the last word.
        """
        facts = self.card.facts
        gate = self.settings.gates.get(self.card.name, {})
        by_limits = status is None or "min" in gate or "max" in gate
        graded, why = grade(value, interval, facts, gate) if by_limits else (status or Status.PASS, "")
        if why:
            self.note(why)
        cost = self._cost()
        return Finding(
            id=self.card.name, pillar=facts["pillar"], question=self.card.question,
            status=graded, value=value, unit=facts["unit"], n=n, interval=interval, better=facts["better"],
            threat=threat.describe() if isinstance(threat, Threat) else threat,
            access=self.card.access.name if isinstance(self.card.access, Access) else "",
            queries=cost.queries, gradients=cost.gradients, seconds=self.seconds(), summary=summary,
            evidence=tuple(evidence), tags=self.card.tags, advice=() if graded is Status.PASS else facts["advice"],
            notes=tuple(self.notes),
        )

    def seconds(self) -> float:
        """Return the time spent, with results that an earlier check paid for counted in full."""
        reused = self._rests_on() - self._made
        return time.monotonic() - self._started + sum(self.memos[key].seconds for key in reused)

    def _seconds_made(self) -> float:
        return sum(self.memos[key].seconds for key in self._made)

    def _rests_on(self) -> set[Any]:
        """Return the keys of all shared results this check rests on, directly or through another."""
        found: set[Any] = set()
        left = list(self._used)
        while left:
            key = left.pop()
            if key not in found:
                found.add(key)
                left += self.memos[key].needs
        return found

    def _cost(self) -> Ledger:
        total = self.target.ledger.copy()
        for key in self._rests_on():
            cost = self.memos[key].cost
            total.queries += cost.queries
            total.gradients += cost.gradients
            total.calls += cost.calls
        return total

    def _refund(self, spent: Ledger) -> None:
        own = self.target.ledger
        own.queries -= spent.queries
        own.gradients -= spent.gradients
        own.calls -= spent.calls


def grade(
    value: float | None, interval: Interval | None, facts: Mapping[str, Any], gate: Mapping[str, Any]
) -> tuple[Status, str]:
    """Return the status of a value, and a note where its interval leaves the verdict open.

    Beyond the `fail` limit it fails; beyond `warn`, or with an interval that crosses the `fail` limit, it warns. A gate's `min`
    or `max` replaces the `fail` limit.
    """
    if value is None or not math.isfinite(value):
        return Status.WARN if facts.get("fail") is not None else Status.PASS, ""
    failing = [(facts["better"], facts["fail"])] if facts.get("fail") is not None else []
    if "min" in gate or "max" in gate:
        failing = [(side, gate[key]) for key, side in (("min", "higher"), ("max", "lower")) if key in gate]
    if any(_beyond(value, limit, better) for better, limit in failing):
        return Status.FAIL, ""
    if interval is not None:
        for better, limit in failing:
            worst = interval.low if better == "higher" else interval.high
            if _beyond(worst, limit, better):
                return Status.WARN, f"the interval crosses the limit {limit:g}: more samples would decide it"
    warn = facts.get("warn")
    if warn is not None and not ("min" in gate or "max" in gate) and _beyond(value, warn, facts["better"]):
        return Status.WARN, ""
    return Status.PASS, ""


def _beyond(value: float, limit: float, better: str) -> bool:
    return value < limit if better == "higher" else value > limit


def _order(seed: int) -> torch.Generator:
    from hauberk.core.rng import generator

    return generator(seed, "evaluation sample")
