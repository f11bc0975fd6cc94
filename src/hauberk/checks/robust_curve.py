"""How far the nearest adversarial example is: the curve of every radius at once."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import TRAIN_ON_EXAMPLES, untargeted
from hauberk.core.access import Access
from hauberk.core.finding import Curve, Evidence, Finding, Status, Table
from hauberk.core.kinds import check
from hauberk.core.rng import derive_seed
from hauberk.robustness.evaluate import RobustCurve, curve_of, least_distances

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")
SEARCHES = {"linf": ("fmn", "deepfool"), "l2": ("ddn", "deepfool"), "l1": ("fmn", "ead"), "l0": ("sigma-zero", "fmn")}


@check(
    "robustness/curve", pillar="robustness", unit="distance", access=Access.GRADIENT, tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
    question="How far is the nearest input that the model gets wrong?",
    paper="Pintor et al. 2021, arXiv:2102.12827; Rony et al. 2019, arXiv:1811.09600",
)
def robust_curve(context: Context) -> Finding:
    """Median least distance over searches for the nearest example, and the accuracy they leave at every radius."""
    context.need_classes()
    threat = untargeted(context, context.threat.norm)
    main = context.need_radius(threat)
    free = dataclasses.replace(threat, eps=math.inf)  # distances answer for every radius
    count = context.settings.scaled(96, 400, 2000)
    x, y = (part[:count] for part in context.sample())
    searches = SEARCHES[threat.norm][: context.settings.scaled(1, 2, 2)]
    seed = derive_seed(context.seed, "evasion", "curve")

    def distances(name: str) -> Tensor:
        key = ("least distances", name, threat.norm, count)
        return context.shared(key, lambda target: least_distances(target, x, y, free, attack=name, seed=seed))

    found = {name: distances(name) for name in searches}
    nearest = torch.stack(list(found.values())).amin(0)
    whole = curve_of(nearest, how=f"the nearest of what {' and '.join(searches)} found")
    middle, right = whole.median, int((nearest > 0).sum())
    if not right:
        raise NotRun("no sample is classified correctly, so none can be broken")
    if middle.value is None:
        summary, status = f"for at least half of {right} samples that are right, no wrong answer was found anywhere", Status.WARN
        context.note("a model that nothing changes may mask its gradients: see robustness/gradient-masking")
        return context.finding(summary, n=right, threat=free, status=status, evidence=_evidence(whole, found, threat.norm, main))
    # Without a radius every finite distance lies within the threat: an infinite one passes nobody.
    status, within = Status.WARN, middle.interval
    if within is not None:
        status = Status.PASS if within.low > main else Status.FAIL if within.high < main else Status.WARN
    context.note(f"distances: {whole.how}; they can only be too large, so that the true curve lies at or below this one")
    summary = f"half of {right} samples that are right are broken by a change of {middle.value:.4g} in {threat.norm}"
    if math.isfinite(main):
        summary += f"; {whole.at(main).words()} of all {whole.n} hold at ε = {main:.3g}"
    else:
        reached = int((whole.distance[whole.distance > 0]).isfinite().sum())
        summary += f"; nothing limits the change, and {reached} are broken at some distance"
    return context.finding(
        summary, value=middle.value, n=right, interval=middle.interval, threat=free, status=status,
        evidence=_evidence(whole, found, threat.norm, main),
    )


def _evidence(whole: RobustCurve, found: dict[str, Tensor], norm: str, main: float) -> list[Evidence]:
    series = [whole.series("nearest of all")]
    if len(found) > 1:
        series += [curve_of(distance, radii=whole.radii).series(name) for name, distance in found.items()]
    curve = Curve(f"Accuracy against the radius, n = {whole.n}", f"ε ({norm})", "accuracy left", series)
    right = whole.distance > 0
    rows = []
    for name, distance in (*found.items(), ("nearest of all", whole.distance)):
        reached = distance[right & distance.isfinite()]
        quarters = torch.quantile(reached, torch.tensor([0.25, 0.5, 0.75], dtype=reached.dtype)) if len(reached) else None
        told = [f"{float(one):.4g}" for one in quarters] if quarters is not None else ["–", "–", "–"]
        at = curve_of(distance).at(main).words() if math.isfinite(main) else "–"
        rows.append((name, f"{len(reached) / max(int(right.sum()), 1):.1%}", *told, at))
    columns = ("search", "broken at any distance", "quarter within", "half within", "three quarters within", "left at the main ε")
    return [curve, Table("Distances of the examples found", columns, rows)]
