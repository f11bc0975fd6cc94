"""The engine: runs checks one after another, or in worker processes, and yields each finding as it is made."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hauberk.checks.context import Context, Memo, NotRun, Settings
from hauberk.core import progress, rng
from hauberk.core.access import Budget
from hauberk.core.card import Card, registry
from hauberk.core.data import Data
from hauberk.core.errors import BudgetExceeded, HauberkError, UsageError, nearest
from hauberk.core.finding import PILLARS, Finding, Status
from hauberk.core.parallel import run_tasks
from hauberk.core.target import Target
from hauberk.core.validate import unnarrowed, validate


def select_checks(preset: str, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> list[Card]:
    """Return the checks of a preset in report order, narrowed by names, pillars or globs.

    Arguments:
        preset: quick, standard or thorough.
        select: run these alone, whatever the preset; empty runs the preset.
        ignore: leave these out.

    Raises:
        UsageError: for a pattern that names nothing.
    """
    cards = list(registry.cards("check"))
    names = [card.name for card in cards]
    for pattern in (*select, *ignore):
        if not any(_named(name, pattern) for name in names):
            pillars = sorted({name.split("/")[0] for name in names})
            raise UsageError(f"no check is named by '{pattern}'", fix=nearest(pattern, names + pillars))
    if select:
        cards = [card for card in cards if any(_named(card.name, pattern) for pattern in select)]
    else:
        cards = [card for card in cards if card.runs_at(preset)]
    kept = [card for card in cards if not any(_named(card.name, pattern) for pattern in ignore)]
    return sorted(kept, key=lambda card: PILLARS.index(card.facts["pillar"]))  # stable: within a pillar as registered


TOO_LATE = "the time budget of"


@dataclasses.dataclass
class Job:
    """All that a worker process needs to run one check: the material is made anew there, once per process and run."""

    run: str
    check: str
    material: Callable[[], tuple[Target, Data, Settings]]
    settings: Settings
    seconds: float | None = None
    until: float = math.inf  # wall clock, which processes share


@dataclasses.dataclass
class Prepared:
    """What a worker process keeps from job to job of one run."""

    target: Target
    data: Data
    settings: Settings
    memos: dict[Any, Memo] = dataclasses.field(default_factory=dict)


_PREPARED: dict[str, Prepared] = {}


def run_checks(
    cards: Sequence[Card], target: Target, data: Data, settings: Settings, *, budget: Budget | None = None,
    workers: int = 1, material: Callable[[], tuple[Target, Data, Settings]] | None = None,
) -> Iterator[Finding]:
    """Run the checks and yield each finding as it is made.

    Arguments:
        cards: from `select_checks`.
        target, data, settings: what is assessed, and how.
        budget: when its seconds are spent, the checks left are yielded as not run.
        workers: processes; more than 1 needs `material`.
        material: makes target, data and settings in a worker; picklable.
    """
    if workers > 1 and material is not None:
        limit = (None, math.inf) if budget is None else (budget.seconds, time.time() + budget.left())
        run = uuid.uuid4().hex
        jobs = [Job(run, card.name, material, settings, *limit) for card in cards]
        for outcome in run_tasks(_work, jobs, workers=workers):
            yield outcome.value if outcome.value is not None else _broken(cards[outcome.index], outcome.error, settings)
        return
    memos: dict[Any, Memo] = {}
    for card in progress.track(cards, "checks"):
        if budget is not None and budget.left() <= 0:
            yield _too_late(card, budget.seconds, settings)
            continue
        yield run_check(card, target, data, settings, memos, budget=budget)


def run_check(
    card: Card, target: Target, data: Data, settings: Settings, memos: dict[Any, Memo] | None = None, *,
    budget: Budget | None = None,
) -> Finding:
    """Run one check; whatever goes wrong in it is in the finding, never raised. A spent budget ends it at its next question."""
    granted = (unnarrowed(target) if card.facts.get("unnarrowed") else target).access
    if card.access is not None and granted < card.access:
        return _not_run(card, f"it needs {card.access.name} access, {granted.name} is granted", settings)
    limited = target if budget is None else target.seen_at(target.access, budget=budget)
    context = Context(limited, data, settings, card, memos)
    try:
        with rng.isolated(rng.derive_seed(settings.seed, card.name)):
            finding: Finding = card.function(context)
        return finding
    except NotRun as reason:
        return _not_run(card, str(reason), settings)
    except BudgetExceeded as reason:
        if budget is not None and budget.left() <= 0:
            return _too_late(card, budget.seconds, settings, "while it ran")
        return _not_run(card, str(reason), settings)
    except Exception as error:
        return _broken(card, error, settings)


def _work(job: Job) -> Finding:
    card = registry.get(job.check, "check")
    if time.time() >= job.until:
        return _too_late(card, job.seconds, job.settings)
    if job.run not in _PREPARED:
        _PREPARED.clear()
        _PREPARED[job.run] = Prepared(*job.material())
        # As in one process: what validation learns of the model decides how its answers are read.
        validate(_PREPARED[job.run].target, _PREPARED[job.run].data)
    kept = _PREPARED[job.run]
    budget = None if math.isinf(job.until) else Budget(seconds=max(0.0, job.until - time.time()))
    return run_check(card, kept.target, kept.data, kept.settings, kept.memos, budget=budget)


def _too_late(card: Card, seconds: float | None, settings: Settings, when: str = "before its turn") -> Finding:
    return _not_run(card, f"{TOO_LATE} {seconds or 0:g} s was spent {when}", settings)


def _blank(card: Card, status: Status, reason: str) -> Finding:
    return Finding(
        id=card.name, pillar=card.facts["pillar"], question=card.question, status=status, unit=card.facts["unit"],
        better=card.facts["better"], access=card.access.name if card.access is not None else "", tags=card.tags, reason=reason,
    )


def _not_run(card: Card, reason: str, settings: Settings) -> Finding:
    finding = _blank(card, Status.NOT_RUN, reason)
    if settings.gates.get(card.name, {}).get("run"):
        finding.status, finding.reason = Status.FAIL, f"the gate wants it run, but {reason}"
    return finding


def _broken(card: Card, error: BaseException | None, settings: Settings) -> Finding:
    text = str(error) if isinstance(error, HauberkError) else f"{type(error).__name__}: {error}"
    finding = _blank(card, Status.ERROR, text)
    if error is not None and not isinstance(error, HauberkError):
        frames = traceback.extract_tb(error.__traceback__)
        finding.notes = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} in {frame.name}" for frame in frames[-3:]]
    return finding


def _named(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern.rstrip("/") + "/") or fnmatch.fnmatchcase(name, pattern)
