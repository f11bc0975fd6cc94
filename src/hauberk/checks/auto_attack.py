"""AutoAttack, by which the field compares defences: what is left under it, and what each of its members did."""

from __future__ import annotations

import torch

from hauberk.checks.context import Context
from hauberk.checks.evasion_runs import TRAIN_ON_EXAMPLES, main_norm, untargeted
from hauberk.core.access import Access
from hauberk.core.finding import Finding, Table
from hauberk.core.kinds import check
from hauberk.core.rng import derive_seed
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.auto_attack import auto_attack_report
from hauberk.robustness.attack.union import UnionReport

_COLUMNS = ("member", "samples it was given", "broken", "accuracy left after it", "queries per sample", "gradients per sample")
_PROBED = 32  # samples asked about twice, to find out whether the model answers at random
_NEAR = 1e-4  # logits may differ by that share of their size without the model being random


@check(
    "robustness/auto-attack", pillar="robustness", unit="accuracy", access=Access.GRADIENT, preset="thorough", warn=0.5, fail=0.2,
    question="What accuracy is left under AutoAttack, by which published defences are compared?",
    paper="Croce and Hein 2020, arXiv:2003.01690; for L1 2021, arXiv:2103.01208",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    advice=(TRAIN_ON_EXAMPLES,),
)
def auto_attack(context: Context) -> Finding:
    """Accuracy under the standard version, or under the one for random models where the same question gets two answers."""
    context.need_classes()
    threat = untargeted(context, main_norm(context, ("linf", "l2", "l1")))
    x, _ = context.sample(64, 128, 500)
    version, report = context.shared(("auto-attack", threat.norm, len(x)), lambda target: _run(context, target, threat))
    figure = context.rate(~report.broken)
    n, left, rows = len(report.broken), len(report.broken), []
    for member in report.members:
        broken = int(member.broken.sum())
        left -= broken
        rows.append((
            member.name, member.asked, broken, f"{left / max(n, 1):.1%}", round(member.queries / max(member.asked, 1), 1),
            round(member.gradients / max(member.asked, 1), 1),
        ))
    if version == "rand":
        context.note("the model answers the same question in two ways: the version for random models was run")
    clean = int(report.members[0].broken.sum())
    summary = (
        f"{figure['value']:.1%} of {n} samples hold against AutoAttack ({version}); "
        f"{clean} were wrong undisturbed, {int(report.broken.sum()) - clean} are broken"
    )
    table = Table(f"AutoAttack ({version}), member by member, {threat.describe()}, n = {n}", _COLUMNS, rows)
    return context.finding(summary, threat=threat, evidence=[table], **figure)


def _run(context: Context, target: Target, threat: Threat) -> tuple[str, UnionReport]:
    x, y = context.sample(64, 128, 500)
    version = "rand" if _random(target, x[:_PROBED]) else "standard"
    return version, auto_attack_report(
        target, x, y, threat, version=version, seed=derive_seed(context.seed, "evasion", "auto-attack")
    )


def _random(target: Target, x: torch.Tensor) -> bool:
    """Whether the target gives two answers to the same question."""
    first, second = target.logits(x), target.logits(x)
    return bool(((first - second).abs() > _NEAR * first.abs().amax(1, keepdim=True).clamp(min=1)).any()) if len(x) else False
