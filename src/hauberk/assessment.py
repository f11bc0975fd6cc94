"""assess: from a model and data to a report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hauberk
import hauberk.methods  # fills the registry
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_checks, select_checks
from hauberk.checks.journal import Journal
from hauberk.checks.scope import fingerprint, scope
from hauberk.core.access import Budget
from hauberk.core.card import PRESETS
from hauberk.core.data import Data
from hauberk.core.errors import UsageError, nearest
from hauberk.core.files import cannot_write, write_whole
from hauberk.core.finding import Finding
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Linf, Threat
from hauberk.core.validate import validate
from hauberk.report.lock import LOCK, lock_toml
from hauberk.report.report import Report

Material = tuple[Target, Data, Settings]


@dataclasses.dataclass(frozen=True)
class Run:
    """How an assessment is carried out.

    Arguments:
        select, ignore: checks by name, pillar or glob.
        output: the run folder: every finding is written there as it is made; None keeps all in memory.
        resume: go on where an interrupted run in `output` stopped.
        seconds: the time budget; checks whose turn comes later are reported as not run.
        workers: processes; more than 1 needs `material`.
        material: makes target, data and settings again in a worker.
        plan: what to write to `plan.lock.toml`.
    """

    select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    output: Path | None = None
    resume: bool = False
    seconds: float | None = None
    workers: int = 1
    material: Callable[[], Material] | None = None
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)


def assess(
    model: Target | nn.Module, data: Data, threat: Threat | Sequence[Threat] | None = None, *, preset: str = "quick",
    seed: int = 0, select: str | Sequence[str] = (), ignore: str | Sequence[str] = (), output: str | Path | None = None,
) -> Report:
    """Assess a model and return the report.

    Arguments:
        model: a module, or a target made by `load_model`.
        data: test data, and whatever other roles are at hand.
        threat: what the adversary may change; several may be named, the first is the main one. None takes Linf at a tenth of
            the input range.
        preset: quick, standard or thorough.
        seed: all randomness is derived from it.
        select, ignore: checks by name, pillar or glob; one, or several.
        output: a folder to keep findings in as they are made.

    Returns:
        The report: `report.to_html("report")` writes it, a notebook shows it.

    Raises:
        DataError, ModelError, UsageError: for bad input, before any check has started.
    """
    _refuse_arguments(data, threat, preset, seed)
    select, ignore = ((given,) if isinstance(given, str) else given for given in (select, ignore))
    select_checks(preset, select, ignore)
    target = as_target(model)
    threats = default_threats(data) if threat is None else (threat,) if isinstance(threat, Threat) else tuple(threat)
    settings = Settings(preset=preset, seed=seed, threats=threats)
    run = Run(select, ignore, Path(output) if output is not None else None)
    return carry_out(target, data, settings, run)


def carry_out(
    target: Target, data: Data, settings: Settings, run: Run, *, watch: Callable[[Finding], None] | None = None,
    taken_over: Callable[[int], None] | None = None, notice: Callable[[str], None] | None = None,
) -> Report:
    """Run the checks of a prepared assessment and return the report.

    Arguments:
        target, data, settings, run: what is assessed, and how.
        watch: is told of each finding as it is made.
        taken_over: is told, when a run is resumed, how many findings of the interrupted one are kept.
        notice: is told, before any check runs, of a model or data other than those that the plan recorded.
    """
    began, seen = time.monotonic(), watch or _ignore
    for threat in settings.threats:
        if isinstance(threat.eps, torch.Tensor) and threat.eps.ndim:
            raise UsageError(
                "an assessment was given a threat with one radius per sample", want="one radius for all samples",
                fix="Give a number; radii per sample are for calling attacks directly",
            )
        if threat.structure is not None:
            for x, _ in data.test.batches(4096):
                threat.structure.refuse(x)
    cards = select_checks(settings.preset, run.select, run.ignore)
    notices = validate(target, data)
    identity = fingerprint(target, data, settings, cards)
    for one in (changes := changed_since(run.plan.get("hashes", {}), identity)):
        (notice or _ignore)(one)
    notices = [*changes, *notices]
    journal = None
    done: dict[str, Finding] = {}
    if run.output is not None:
        journal = Journal(run.output, identity, resume=run.resume)
        done = {finding.id: finding for finding in journal.findings}
        _lock(run, settings, identity)
        if run.resume and taken_over is not None:
            taken_over(len(done))
    for finding in done.values():
        seen(finding)
    left = [card for card in cards if card.name not in done]
    budget = Budget(seconds=run.seconds)
    try:
        for finding in run_checks(
            left, target, data, settings, budget=budget, workers=run.workers, material=run.material
        ):
            done[finding.id] = finding
            if journal is not None:
                journal.add(finding)
            seen(finding)
    finally:
        if journal is not None:
            journal.close()
    ordered = [done[card.name] for card in cards if card.name in done]
    about = scope(target, data, settings, notices=[*notices, *target.notices])
    about["seconds"] = round(time.monotonic() - began, 1)
    return Report(ordered, about, {"hauberk": hauberk.__version__, **run.plan})


def _refuse_arguments(data: object, threat: object, preset: object, seed: object) -> None:
    """Raise UsageError for an argument of `assess` that is not what its name asks for."""
    if not isinstance(data, Data):
        source = repr(data) if isinstance(data, (str, Path)) else "test, bounds=(0, 1)"
        raise UsageError(
            f"data is {_shown(data)}", want="a hauberk.Data", fix=f"Make one: hauberk.load_data({source})",
        )
    threats = threat if isinstance(threat, (tuple, list)) else () if threat is None else (threat,)
    wrong = next((one for one in threats if not isinstance(one, Threat)), None)
    if wrong is not None or (threat is not None and not threats):
        radius = f"{wrong}" if isinstance(wrong, (int, float)) and not isinstance(wrong, bool) else "0.1"
        raise UsageError(
            f"threat is {_shown(threat)}", want="a threat or several: Linf, L2, L1 or L0",
            fix=f"Give threat=hauberk.Linf({radius}), or leave it out",
        )
    if preset not in PRESETS:
        hint = nearest(preset, PRESETS) if isinstance(preset, str) else ""
        raise UsageError(f"preset is {_shown(preset)}", want=" | ".join(PRESETS), fix=hint if hint.startswith("Did") else "")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed is {_shown(seed)}", want="a whole number of 0 or more")


def _shown(value: object) -> str:
    if isinstance(value, (str, Path)):
        return f"'{value}'"
    return str(value) if isinstance(value, (int, float)) or value is None else f"a {type(value).__name__}"


def _lock(run: Run, settings: Settings, known: Mapping[str, Any]) -> None:
    """Write what is being run before it runs, so that a run that is killed leaves its own plan, not that of an earlier one."""
    assert run.output is not None
    place = run.output / LOCK
    if run.plan:
        began = {"preset": settings.preset, "seed": settings.seed, "model": known["model"], "data": known["data"]}
        write_whole(place, lock_toml(Report([], began, {"hauberk": hauberk.__version__, **run.plan})))
        return
    try:
        place.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(place, error) from error


def default_threats(data: Data) -> tuple[Threat, ...]:
    """Return the threat that is assumed when none is named: Linf at a tenth of the input range."""
    low, high = (torch.as_tensor(end).double() for end in data.bounds)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise UsageError(
            "no threat was named and the inputs have no finite bounds, so no radius follows from them",
            want="a threat, or finite bounds",
            fix="Give threat=Linf(...), or Data(bounds=(low, high))",
        )
    return (Linf(round(0.1 * float((high - low).mean()), 6)),)


def changed_since(recorded: Mapping[str, str], known: Mapping[str, Any]) -> list[str]:
    """Return a sentence for the model, and for the data, where it is not what a locked plan recorded.

    Arguments:
        recorded: by `model` and `data`, the SHA-256 in the plan; one that is missing is not compared.
        known: the fingerprint of what is assessed now.
    """
    told = []
    for part, verb in (("model", "is"), ("data", "are")):
        before, now = recorded.get(part, ""), known[part]["sha256"]
        if before and before != now:
            told.append(
                f"the {part} {verb} not what the plan recorded, so figures may differ from those of that run: sha256 was "
                f"{before} and is {now or 'not known'} now"
            )
    return told


def _ignore(_: Finding | str) -> None:
    return None
