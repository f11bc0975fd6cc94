"""CLEVER: how far every change must go at least, as sampled slopes suggest."""

from __future__ import annotations

import math

from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import TRAIN_ON_EXAMPLES, clean_labels, untargeted
from hauberk.core.access import Access
from hauberk.core.finding import Finding, Status, Table
from hauberk.core.kinds import check
from hauberk.core.rng import derive_seed
from hauberk.robustness.evaluate import clever as estimate
from hauberk.robustness.evaluate import least_distances
from hauberk.robustness.evaluate.clever import NORMS
from hauberk.robustness.evaluate.figure import median

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")
SEARCH = {"linf": "fmn", "l2": "ddn", "l1": "fmn"}


@check(
    "robustness/clever", pillar="robustness", unit="distance", access=Access.GRADIENT, preset="standard", tags=TAGS,
    question="How large must a change be at least, judged without any attack?", paper="Weng et al. 2018, arXiv:1801.10578",
    advice=(TRAIN_ON_EXAMPLES,),
)
def clever(context: Context) -> Finding:
    """Median CLEVER score of samples that are right, beside the nearest examples an attack finds for them."""
    classes = context.need_classes()
    norm = context.threat.norm if context.threat.norm in NORMS else "l2"
    threat = untargeted(context, norm)
    context.need_radius(context.threat)  # the radius in another norm may be derived from it
    eps = context.need_radius(threat)
    if not math.isfinite(eps):
        raise NotRun("the threat has no radius that the score could be compared with: name one, such as l2:0.5")
    x, y = context.sample()
    right = (clean_labels(context) == y).nonzero()[:, 0][: context.settings.scaled(8, 16, 64)]
    if len(right) < 2:
        raise NotRun(f"{len(right)} samples are classified correctly: a median needs 2 at least")
    if classes > 100:
        raise NotRun(f"a slope is needed for each of {classes} classes at every point: 100 classes are the most")
    if context.threat.mask is not None:
        raise NotRun("the score is of changes anywhere, and the threat lets some features alone change")
    x, y = x[right], y[right]
    seed, batches = derive_seed(context.seed, "clever"), context.settings.scaled(20, 30, 100)
    nearest = context.shared(
        ("clever nearest", norm, len(right)),
        lambda target: least_distances(target, x, y, threat.with_eps(math.inf), attack=SEARCH[norm], seed=seed),
    )
    finite = nearest[nearest.isfinite()]
    if not len(finite):
        raise NotRun("no adversarial example was found at any distance, so that no radius for the score suggests itself")
    # Slopes are sampled where examples are: farther out they say nothing of the way there.
    radius = float(finite.max())
    score = context.shared(
        ("clever", norm, len(right), batches),
        lambda target: estimate(target, x, y, norm=norm, radius=radius, batches=batches, points=48, seed=seed),
    ).untargeted
    measured = score.isfinite()
    if int(measured.sum()) < 2:
        raise NotRun(f"the slopes of {int((~measured).sum())} of {len(score)} samples are not finite: no score can be taken")
    if not bool(measured.all()):
        context.note(f"{int((~measured).sum())} of {len(score)} samples are left out: their slopes are not finite")
    score, nearest = score[measured], nearest[measured]
    finite = nearest[nearest.isfinite()]
    middle, reached = median(score), median(nearest)
    assert middle.value is not None
    above = int((score > nearest * (1 + 1e-6)).sum())
    context.note("an estimate from sampled slopes and no proof: the search beside it tells how far off it can be")
    if above:
        context.note(f"{above} scores lie above the distance of an example found: there the estimate is wrong")
    sure = middle.interval is not None and middle.interval.low > eps
    status = Status.PASS if sure and not above else Status.WARN
    rows = [
        ("CLEVER score", f"{middle.value:.4g}", f"{float(score.min()):.4g}", f"{float(score.max()):.4g}"),
        ("nearest example found", f"{reached.words(4)}", *_ends(finite)),
    ]
    return context.finding(
        f"half of {len(score)} samples need a change of {middle.value:.3g} in {norm} or more by this estimate; the nearest "
        f"examples found are at {reached.words()}",
        value=middle.value, n=len(score), interval=middle.interval, threat=threat, status=status,
        evidence=(Table(f"Distances in {norm}, n = {len(score)}", ("figure", "median", "least", "greatest"), rows),),
    )


def _ends(values: Tensor) -> tuple[str, str]:
    return (f"{float(values.min()):.4g}", f"{float(values.max()):.4g}") if len(values) else ("–", "–")
