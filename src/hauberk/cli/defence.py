"""hauberk membership --defence: a change of answers tried on a model, against adversaries who know it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hauberk.cli.console import remark
from hauberk.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from hauberk.core.target import Target
    from hauberk.privacy.defence import DefenceVerdict
    from hauberk.privacy.defence.outputs import Protect
    from hauberk.privacy.membership.matching import Like
    from hauberk.privacy.membership.signals import Records

# What each takes where nothing is said, and the least and most.
NAMES = {"labels": (0.0, 0, 0), "rounding": (1.0, 1, 15), "top-k": (1.0, 1, 10**6), "memguard": (0.5, 0, 2)}
WANT = "labels | rounding=DIGITS | top-k=K | memguard=DISTORTION"


def parse(text: str) -> tuple[str, float]:
    """Return the name and the amount of `NAME` or `NAME=AMOUNT`.

    Raises:
        UsageError: for another name, or an amount that the defence does not take.
    """
    name, given, amount = text.partition("=")
    if name not in NAMES or (given and name == "labels"):
        raise UsageError(f"--defence is '{text}'", want=WANT, fix=nearest(name, list(NAMES)))
    usual, least, most = NAMES[name]
    try:
        value = float(amount) if given else usual
    except ValueError:
        value = math.nan
    if not least <= value <= most or (name != "memguard" and not value.is_integer()):
        whole = "" if name == "memguard" else "a whole number "
        raise UsageError(f"--defence is '{text}'", want=f"{name}= {whole}from {least} to {most}")
    return name, value


def protect(name: str, amount: float) -> Protect:
    """Return what puts the defence around a target: `(target, members, non_members) -> target`."""
    from hauberk.privacy.defence import labels_alone, memguard, rounded, top_scores

    made: dict[str, Protect] = {
        "labels": lambda target, *_: labels_alone(target),
        "rounding": lambda target, *_: rounded(target, digits=int(amount)),
        "top-k": lambda target, *_: top_scores(target, k=int(amount)),
        "memguard": lambda target, inside, outside: memguard(target, inside, outside, distortion=amount),
    }
    return made[name]


def judged(text: str, target: Target, sides: tuple[Records, Records], wanted: Like) -> DefenceVerdict:
    """Return the verdict on the defence, by adversaries who train models behind the same one."""
    from hauberk.privacy.defence import Repeated, judge_defence
    from hauberk.privacy.membership.matching import references_like

    around = protect(*parse(text))
    defended = around(target, *sides)
    repeated = None
    if wanted.count:
        made, said = references_like(target, *sides, wanted)
        if said:
            remark(said)
        repeated = Repeated(made, around)
    return judge_defence(target, defended, *sides, references=repeated, copies=8, seed=wanted.seed)


def told(verdict: DefenceVerdict) -> dict[str, Any]:
    """Return the verdict as plain JSON values."""
    import dataclasses

    from hauberk.core.finding import plain_values

    attacks = {
        row.attack: {
            side: None if found is None else {
                "fpr": found.fpr, "tpr": found.tpr, "auc": found.roc.auc, "auc_interval": dataclasses.asdict(found.auc_interval),
            } for side, found in (("plain", row.plain), ("defended", row.defended))
        } for row in verdict.rows
    }
    plain = plain_values({
        "summary": verdict.summary, "helps": verdict.helps, "strongest": verdict.strongest().attack,
        "change": {**dataclasses.asdict(verdict.change), "value": verdict.change.value},
        "accuracy": [verdict.plain.accuracy, verdict.defended.accuracy], "accuracy_given_up": dataclasses.asdict(verdict.loss),
        "calibration": [verdict.plain.calibration, verdict.defended.calibration], "notes": list(verdict.notes),
        "attacks": attacks,
    })
    assert isinstance(plain, dict)
    return plain
