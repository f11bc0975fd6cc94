"""What is proven, and what a detector would notice."""

from __future__ import annotations

import dataclasses
import math

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
from hauberk.core.threat import Threat
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
            "from hauberk.robustness.defend import adversarial; hauberk.fit(model, data.train, loss=adversarial(threat))",
            "AML.M0003",
        ),
    ),
)
def certified_ibp(context: Context) -> Finding:
    """Certified accuracy by interval bounds, with accuracy under PGD as the ceiling."""
    classes = context.need_classes()
    threat = _drawn(context, _linf(context))
    x, y = context.sample()
    module = context.target.module
    if context.target.outputs == "auto":
        context.target.probe(x)
    if context.target.outputs == "auto":
        raise NotRun(f"{len(x)} samples do not tell logits from probabilities: state it, outputs='logits'")
    if context.target.outputs != "logits":
        raise NotRun(f"the model returns {context.target.outputs}; interval bounds need logits")
    shares = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    size = torch.as_tensor(threat.eps, dtype=torch.float64)
    # No share of an infinite radius is of use: the shares are those of the widest distance between the bounds.
    reach = size.clamp(max=_extent(threat))
    scale = float(reach.mean())
    if not math.isfinite(scale):
        raise NotRun("the threat has no limit: neither its radius nor the bounds of the data are finite")
    proven = []
    for share in shares:
        eps = size if share == 1 else reach * share
        proven.append(certified(_bounds(module, x, y, threat.with_eps(eps), classes), y))
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
    threat = _drawn(context, _linf(context))
    x, y = context.sample()
    half = len(x) // 2
    later = threat.subset(torch.arange(half, len(x)), x)
    detector = FeatureSqueezing(bounds=context.data.bounds)
    try:
        detector.fit(Split(x[:half], y[:half]), context.target)
    except DataError as reason:
        raise NotRun(str(reason)) from reason
    z = pgd(context.target, x[half:], y[half:], later, steps=20, seed=context.seed)
    # Only examples that turn a right answer wrong: the others do no harm, or the adversary had nothing to do.
    fooled = (context.target.labels(z) != y[half:]) & (context.target.labels(x[half:]) == y[half:])
    if int(fooled.sum()) < 10:
        raise NotRun(f"PGD found {int(fooled.sum())} adversarial examples among {len(z)}; at least 10 are needed")
    # In float64: NumPy knows no bfloat16.
    clean, adversarial = detector.score(x[half:]).double(), detector.score(z[fooled]).double()
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


def _linf(context: Context) -> Threat:
    """Return the Linf threat named, or one derived from the main threat; not run where none can be derived."""
    main = context.threat
    named = any(threat.norm == "linf" for threat in context.settings.threats)
    if not named and bool(torch.as_tensor(main.eps).isinf().all()):
        return dataclasses.replace(main, norm="linf")  # without a radius every norm allows the same: all within the bounds
    if not named and main.norm == "l0":
        raise NotRun("a number of changed features says nothing of how far each goes: name an Linf threat as well")
    return context.threat_in("linf")


def _drawn(context: Context, threat: Threat) -> Threat:
    """Return the threat of the samples drawn, where it has a radius or a mask for each sample of the test data."""
    index, total = context.positions(), len(context.data.test)
    eps, mask = threat.eps, threat.mask
    if isinstance(eps, Tensor) and eps.ndim:
        if len(eps) not in (1, total):
            raise NotRun(f"the threat has {len(eps)} radii for {total} test samples")
        eps = eps[index.to(eps.device)] if len(eps) == total else eps.reshape(())
    if mask is not None and mask.ndim == len(context.data.test.shape) + 1:
        if len(mask) not in (1, total):
            raise NotRun(f"the threat has {len(mask)} masks for {total} test samples")
        mask = mask[index.to(mask.device)] if len(mask) == total else mask[0]
    return dataclasses.replace(threat, eps=eps, mask=mask)


def _extent(threat: Threat) -> float:
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in threat.bounds or (0.0, 1.0))
    return float((high - low).max())


def _bounds(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, classes: int) -> Tensor:
    try:
        margins = ibp(module, x, threat, labels=y)
    except (DataError, ModelError) as reason:
        raise NotRun(str(reason)) from reason
    if margins.shape[1] != classes:
        raise NotRun(f"the model has {margins.shape[1]} outputs for {classes} classes")
    return margins


def _span(figure: dict[str, object]) -> str:
    interval = figure["interval"]
    return f"{getattr(interval, 'low', 0):.1%} to {getattr(interval, 'high', 1):.1%}"
