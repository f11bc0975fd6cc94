"""Gradient masking: whether the figures of the evasion section can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.checks.blackbox import transfer_run
from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import clean_labels, untargeted
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check
from hauberk.core.rng import generator
from hauberk.core.threat import Linf
from hauberk.core.validate import unnarrowed
from hauberk.robustness.diagnose import Alarm, Search, diagnose

LEAST = 30


@check(
    "robustness/gradient-masking", pillar="robustness", unit="signs", better="lower", access=Access.GRADIENT,
    question="Can the robust accuracy be believed, or are the gradients masked?", unnarrowed=True,
    paper="Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019, arXiv:1902.06705",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    advice=(
        Advice("Quote the worst case over black-box and transfer attacks until the sign is explained",
               "hauberk assess --preset thorough --select robustness"),
        Advice("Apply the remedies that the signs call for, and quote what is left under all", "hauberk diagnose --remedy"),
    ),
)
def gradient_masking(context: Context) -> Finding:
    """Alarms that tell when an attack failed for reasons other than the robustness of the model."""
    context.need_classes()
    threat = untargeted(context, context.threat.norm)
    if float(threat.eps) == 0:
        raise NotRun("the main threat has the radius 0, so nothing is attacked")
    x, y = context.sample(quick=128, standard=256, thorough=512)
    right = clean_labels(context)[: len(y)] == y
    if int(right.sum()) < LEAST:
        raise NotRun(f"{int(right.sum())} samples are classified correctly: fewer than {LEAST} cannot raise an alarm")
    if _answers_one_label(context, x):
        raise NotRun("the model gives one label to everything, so no attack can change it")
    sister = transfer_run(context).z[: len(x)]
    search = Search(sister=sister)
    narrowed = context.target.access < Access.GRADIENT
    try:
        found = context.shared(
            "diagnosis", lambda target: diagnose(unnarrowed(target), x, y, threat, search=search, seed=context.seed)
        )
    except RuntimeError as error:
        if not narrowed:
            raise
        raise NotRun(f"the model fails where gradients are asked for ({' '.join(str(error).split())[:200]})") from error
    if narrowed:
        context.note("no gradient gets through the model: the checks that follow gradients were not run, and this one says why")
    alarms, raised, warned = found.alarms, found.raised, found.warned
    looked = [alarm for alarm in alarms if alarm.level != "not run"]
    status = Status.FAIL if raised else Status.WARN if warned else Status.PASS
    if raised:
        names = "; ".join(alarm.name for alarm in raised)
        summary = f"{len(raised)} of {len(looked)} signs of masking are clear: {names}. Do not quote the white-box figures"
    elif warned:
        summary = f"{len(warned)} of {len(looked)} signs of masking show faintly: {'; '.join(alarm.name for alarm in warned)}"
    else:
        summary = f"none of {len(looked)} signs of masking shows on {alarms[0].n} samples"
    context.note("no interval: a count of signs; the shares behind them have theirs in the table")
    for alarm in (*raised, *warned):
        context.note(f"{alarm.name}: {alarm.meaning}. {alarm.remedy}")
    for alarm in alarms:
        if alarm.level == "not run":
            context.note(f"{alarm.name}: not run, {alarm.meaning}")
    return context.finding(
        summary, value=float(len(raised) + len(warned)), n=alarms[0].n, threat=threat, status=status, evidence=(_table(alarms),),
    )


def _answers_one_label(context: Context, x: Tensor) -> bool:
    anywhere = Linf(math.inf, bounds=context.data.bounds).random_start(x[:64], generator(context.seed, "one label"))
    labels = torch.cat([clean_labels(context), context.target.labels(anywhere)])
    return len(labels.unique()) == 1


def _table(alarms: Sequence[Alarm]) -> Table:
    rows = [
        (one.name, f"{one.value:.3g}" if one.n else "–", _band(one), one.limit, one.n, one.level) for one in alarms
    ]
    return Table(f"Signs of masking (n = {alarms[0].n})", ("sign", "value", "95 % interval", "limit", "n", "alarm"), rows)


def _band(alarm: Alarm) -> str:
    return "" if alarm.interval is None else f"[{alarm.interval.low:.3f}, {alarm.interval.high:.3f}]"
