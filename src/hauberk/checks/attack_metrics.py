"""What adversarial examples look like: confidence, size, likeness, and what survives blur and compression."""

from __future__ import annotations

import dataclasses

from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import TRAIN_ON_EXAMPLES, clean_labels, evasion_run, untargeted
from hauberk.core.access import Access
from hauberk.core.finding import Evidence, Finding, Outline, Radar, Table
from hauberk.core.kinds import check
from hauberk.core.target import Target
from hauberk.robustness.evaluate import AttackMetrics, Figure, attack_metrics

LEAST = 10  # examples below which their means say little


@check(
    "robustness/attack-metrics", pillar="robustness", unit="rate", better="lower", access=Access.GRADIENT, warn=0.5, fail=0.8,
    question="How sure, how visible and how lasting are the adversarial examples?",
    paper="Ling et al. 2019, IEEE S&P (DEEPSEC); Wang et al. 2004, IEEE TIP 13(4) (SSIM)",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    advice=(TRAIN_ON_EXAMPLES,),
)
def measured(context: Context) -> Finding:
    """Metrics of one-step and iterated attacks; the value is the misclassification rate of the stronger one."""
    context.need_classes()
    y, norm = context.sample()[1], context.threat.norm
    context.need_radius(untargeted(context, norm))
    if not bool((clean_labels(context) == y).any()):
        raise NotRun("no sample is classified correctly, so there is nothing to turn")
    found = {name: _metrics(context, name, norm) for name in ("fgm", "pgd")}
    strongest = max(found, key=lambda name: found[name].success.value or 0.0)
    best = found[strongest]
    confident, alike = best.acac.words(2), "" if best.ass.value is None else f", likeness {best.ass.words(2)} (SSIM)"
    context.note("all but the rate are means over the examples that succeed; the rate is over samples right undisturbed")
    if best.acac.n < LEAST:
        context.note(f"{best.acac.n} examples succeeded: their means say little")
    summary = f"{strongest} turns {best.success.value or 0.0:.1%} of {best.success.n} samples"
    if best.acac.measured:
        summary += f"; the model gives the wrong class a probability of {confident}{alike}"
    return context.finding(
        summary, value=best.success.value, n=best.success.n, interval=best.success.interval,
        threat=evasion_run(context, "pgd", norm).threat, evidence=_evidence(found),
    )


def _metrics(context: Context, name: str, norm: str) -> AttackMetrics:
    run = evasion_run(context, name, norm)

    def make(target: Target) -> AttackMetrics:
        n, cost = max(len(run.y), 1), run.cost
        metrics = attack_metrics(target, run.x, run.z, run.y)
        return dataclasses.replace(metrics, queries=Figure(cost.queries / n, n))

    return context.shared(("attack metrics", name, norm), make)


def _evidence(found: dict[str, AttackMetrics]) -> list[Evidence]:
    tables = {name: one.rows() for name, one in found.items()}
    first = next(iter(tables.values()))
    rows = [(told, *(rows[at][1] for rows in tables.values())) for at, (told, *_) in enumerate(first)]
    kept = [row for row in rows if any(cell != "not measured" for cell in row[1:])]
    # An axis on which nothing was measured would only stand for nothing.
    outlines = {name: one.outline() for name, one in found.items()}
    axes = [axis for axis in next(iter(outlines.values())) if any(one[axis] is not None for one in outlines.values())]
    radar = Radar(
        "Attacks side by side: farther out is better for the adversary", axes,
        [Outline(name, [one[axis] for axis in axes]) for name, one in outlines.items()],
    )
    return [radar, Table("Metrics of the attacks", ("metric", *found), kept)]

