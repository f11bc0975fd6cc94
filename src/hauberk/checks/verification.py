"""What is proven, and what a detector would notice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import DataError, ModelError
from hauberk.core.finding import Advice, Curve, Finding, Series, Table
from hauberk.core.kinds import check
from hauberk.core.roc import auc_interval, roc
from hauberk.core.stats import wilson
from hauberk.robustness.attack.pgd import pgd
from hauberk.robustness.detect import FeatureSqueezing
from hauberk.robustness.verify import certified, ibp


@check(
    "robustness/certified-ibp", pillar="robustness", unit="accuracy", access=Access.GRADIENT, warn=0.1,
    question="For how many samples is it proven that no allowed change alters the right answer?",
    paper="Gowal et al. 2018, arXiv:1810.12715",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    advice=(
        Advice(
            "Nothing is proven where the bounds are loose; train against the threat, and the bounds tighten as well",
            "fit(model, data.train, loss=hauberk.robustness.defend.adversarial(threat))", "AML.M0003",
        ),
    ),
)
def certified_ibp(context: Context) -> Finding:
    """Certified accuracy by interval bounds, with accuracy under PGD as the ceiling."""
    classes = context.need_classes()
    threat = context.threat_in("linf")
    x, y = context.sample()
    module = context.target.module
    if context.target.outputs == "auto":
        context.target.probe(x[:2])
    if context.target.outputs != "logits":
        raise NotRun(f"the model returns {context.target.outputs}; interval bounds need logits")
    scale = float(torch.as_tensor(threat.eps, dtype=torch.float64).mean())
    shares = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    proven = []
    for share in shares:
        proven.append(certified(_bounds(module, x, y, threat.eps * share, context, classes), y))
    resisted = context.target.labels(pgd(context.target, x, y, threat, steps=20, seed=context.seed)) == y
    figure = context.rate(proven[-1])
    ceiling = float(resisted.double().mean())
    bands = [wilson(int(one.sum()), len(y)) for one in proven]
    curve = Curve(
        "Certified accuracy by radius", "radius (Linf)", "accuracy",
        [
            Series(
                "proven by interval bounds", [share * scale for share in shares], [float(one.double().mean()) for one in proven],
                [band.low for band in bands], [band.high for band in bands],
            ),
            Series("left by PGD", [0.0, scale], [float((context.target.labels(x) == y).double().mean()), ceiling]),
        ],
    )
    context.note("a sample that is not proven need not be broken: interval bounds are loose on nets not trained for them")
    return context.finding(
        f"{figure['value']:.1%} of {figure['n']} samples are proven right; PGD leaves {ceiling:.1%}: the truth lies between",
        threat=threat, evidence=[curve], **figure,
    )


@check(
    "robustness/detection-feature-squeezing", pillar="robustness", unit="rate", access=Access.GRADIENT,
    question="Would feature squeezing notice adversarial examples at 5 % false alarms?",
    paper="Xu et al. 2018, arXiv:1704.01155", warn=0.5,
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0015", "owasp:ML01", "nist:NISTAML.022"),
    advice=(Advice("Do not rely on this detector for this model: harden the model instead", mitigation="AML.M0003"),),
)
def detection(context: Context) -> Finding:
    """Detection rate of successful PGD examples, with the threshold set on other clean samples."""
    context.need_classes()
    threat = context.threat_in("linf")
    x, y = context.sample()
    half = len(x) // 2
    detector = FeatureSqueezing(bounds=context.data.bounds)
    try:
        detector.fit(Split(x[:half], y[:half]), context.target)
    except DataError as reason:
        raise NotRun(str(reason)) from reason
    z = pgd(context.target, x[half:], y[half:], threat, steps=20, seed=context.seed)
    # Only examples that turn a right answer wrong: the others do no harm, or the adversary had nothing to do.
    fooled = (context.target.labels(z) != y[half:]) & (context.target.labels(x[half:]) == y[half:])
    if int(fooled.sum()) < 10:
        raise NotRun(f"PGD found {int(fooled.sum())} adversarial examples among {len(z)}; at least 10 are needed")
    clean, adversarial = detector.score(x[half:]), detector.score(z[fooled])
    figure = context.rate(adversarial > detector.threshold)
    alarms = context.rate(clean > detector.threshold)
    curve = roc(adversarial.numpy(), clean.numpy())
    area = auc_interval(adversarial.numpy(), clean.numpy())
    table = Table(
        "Detector", ("figure", "value", "95 % interval", "n"),
        [
            ["adversarial examples flagged", f"{figure['value']:.1%}", _span(figure), figure["n"]],
            ["clean samples flagged", f"{alarms['value']:.1%}", _span(alarms), alarms["n"]],
            ["area under the ROC", f"{curve.auc:.3f}", f"{area.low:.3f} to {area.high:.3f}", len(clean) + len(adversarial)],
        ],
    )
    context.note("the adversary did not know of the detector; one who does can evade it (Carlini and Wagner, arXiv:1705.07263)")
    return context.finding(
        f"{figure['value']:.1%} of {figure['n']} adversarial examples are noticed at {alarms['value']:.1%} false alarms",
        threat=threat, evidence=[table, curve.curve("Detection of adversarial examples", "feature squeezing")], **figure,
    )


def _bounds(module: nn.Module, x: Tensor, y: Tensor, eps: float | Tensor, context: Context, classes: int) -> Tensor:
    try:
        margins = ibp(module, x, context.threat_in("linf").with_eps(eps), labels=y)
    except ModelError as reason:
        raise NotRun(str(reason)) from reason
    if margins.shape[1] != classes:
        raise NotRun(f"the model has {margins.shape[1]} outputs for {classes} classes")
    return margins


def _span(figure: dict[str, object]) -> str:
    interval = figure["interval"]
    return f"{getattr(interval, 'low', 0):.1%} to {getattr(interval, 'high', 1):.1%}"
