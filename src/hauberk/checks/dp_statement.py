"""The privacy that a model's maker claims: is it what the stated training gives?"""

from __future__ import annotations

import math
from pathlib import Path

from hauberk.checks.context import Context, NotRun
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.accounting.account import large_delta
from hauberk.privacy.dp.accounting.statement import NAME, SEEDED, read_statement
from hauberk.privacy.membership.loss import TAGS

ADJACENT = {"add-remove": "added or removed", "replace-one": "replaced by any other"}


@check(
    "privacy/dp-statement", pillar="privacy", unit="ε", better="lower", warn=10.0, tags=TAGS,
    question="How much may one record change what the training gives away, by the maker's own account?",
    paper="Dwork and Roth 2014, The Algorithmic Foundations of Differential Privacy",
    advice=(
        Advice("Train with differential privacy and keep the statement beside the model",
               "hauberk calibrate --epsilon 3 --delta 1e-5 --n 60000 --batch 256 --epochs 20", "AML.M0007"),
        Advice("State what was released: the claim is then computed again at every assessment",
               "hauberk account --noise 1.1 --n 60000 --batch 256 --epochs 20 --delta 1e-5 --output privacy.json"),
    ),
)
def dp_statement(context: Context) -> Finding:
    """The ε claimed, computed again from the releases stated; a claim below them fails, an estimate warns."""
    place = _place(context)
    statement = read_statement(place)
    again = statement.recompute()
    claimed = math.inf if statement.epsilon is None else statement.epsilon
    for note in (*again.notes, *statement.warnings):
        context.note(note)
    context.note("the statement says what was released; whether the training did so is what an audit measures")
    train = context.data.splits().get("train")
    status: Status | None = None
    if train is not None and len(train) and statement.delta > 1 / len(train):
        context.note(f"δ = {statement.delta:g} is above 1 / {len(train)} training records: it lets one be given away whole")
        status = Status.WARN
    releases = [Release(**one.model_dump()) for one in statement.releases]
    if large_delta(releases, statement.delta):
        status = Status.WARN  # the note is among those of the account
    if all(one.empty for one in releases):
        context.note("the statement names no release of anything: no training on records is accounted for")
        status = Status.WARN
    if SEEDED in statement.warnings:  # the note is among its warnings
        status = Status.WARN
    known = [one.population for one in releases if one.population is not None and one.mechanism != "tree"]
    if known and train is not None and len(train) < min(known):
        context.note(f"the statement is about {min(known)} records, and there are {len(train)} for training here: where these "
                     "are all, the sampling rate stated is too small")
    if not statement.bound:
        context.note("the figure claimed is an estimate, not a bound; the one computed again is a bound")
        status = Status.WARN
    if not statement.holds(again) or math.isinf(claimed):
        status = Status.FAIL
    table = Table("What was released", ("mechanism", "noise", "sampling", "rate", "releases"), [
        (one.mechanism, f"{one.noise:.6g}", one.sampling, f"{one.rate:.6g}", one.count) for one in statement.releases[:50]
    ])
    if len(statement.releases) > 50:
        context.note(f"{len(statement.releases) - 50} further kinds of release are not shown")
    figures = Table("ε claimed and computed again", ("", "ε", "accountant"), [
        ("claimed", _number(claimed), statement.accountant), ("computed again", _number(again.epsilon), again.accountant),
    ])
    verdict = (
        "nothing bounds the loss" if math.isinf(claimed) else "the releases stated give no more"
        if statement.holds(again) else f"but the releases stated give {_number(again.epsilon)}"
    )
    return context.finding(
        f"ε {_number(claimed)} is claimed at δ = {statement.delta:g} per {statement.unit}: {verdict}",
        value=max(claimed, again.epsilon) if math.isfinite(claimed) else None, status=status,
        threat=f"an adversary who knows all but one {statement.unit}, {ADJACENT[statement.relation]}, and sees all releases",
        evidence=(figures, table),
    )


def _place(context: Context) -> Path:
    """Return the statement that the plan names, or the one that lies beside the model's files."""
    if context.settings.statement:
        return Path(context.settings.statement)
    for file in context.target.files:
        beside = Path(file).parent / NAME
        if beside.is_file():
            context.note(f"the statement was found beside the model: {beside.name}")
            return beside
    raise NotRun(
        f'no privacy statement was given: name one in the plan ([privacy] statement = "{NAME}"), or keep it beside the model; '
        "hauberk account writes one"
    )


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.4g}"
