"""Mistakes: which classes they fall on, and which of them the model is sure of."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.checks.answers import Answers, answers, scored
from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Finding, Gallery, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import wilson

_SURE = 0.9


@check(
    "trust/class-accuracy", pillar="trust", unit="recall", access=Access.LABEL, warn=0.6, fail=0.3,
    question="How often is the model right on the class it serves worst?", tags=("aisec:model-misjudgment", "trust:fairness"),
    advice=(
        Advice("Give the weak class more or cleaner training samples, and look at the pairs it is taken for", "", "AML.M0008"),
    ),
)
def class_accuracy(context: Context) -> Finding:
    """Recall of every class, the worst of them, and the pairs that are confused most."""
    classes = context.need_classes()
    found = answers(context)
    width = max(classes, int(found.labels.max()) + 1)
    wrong = ~found.correct
    count, hits = (torch.bincount(y, minlength=width) for y in (found.y, found.y[~wrong]))
    given = torch.bincount(found.labels[found.labels >= 0], minlength=width)
    present = torch.nonzero(count).reshape(-1).tolist()
    # The worst of many classes is chosen after the fact, so the interval is that of all classes at once.
    confidence = 1 - 0.05 / len(present)
    worst = min(present, key=lambda c: (float(hits[c] / count[c]), -int(count[c])))
    absent = classes - len(present)
    if absent > 0:
        context.note(f"{absent} of {classes} classes have no test sample, so nothing is known of them")
    rows: list[tuple[object, ...]] = []
    for c in sorted(present, key=lambda c: float(hits[c] / count[c]))[:20]:
        span = wilson(int(hits[c]), int(count[c]))
        precision = float(hits[c] / given[c]) if given[c] else float("nan")
        recall = float(hits[c] / count[c])
        rows.append((_name(context, c), int(count[c]), recall, f"[{span.low:.3f}, {span.high:.3f}]", precision))
    columns = ("class", "n", "recall", "95 % interval", "precision")
    evidence = [Table("Classes, worst first (recall with its own 95 % interval)", columns, rows)]
    # Counted as pairs and not as a table of classes by classes; an answer of NaN, -1, is in none of the classes.
    pairs = []
    seen, often = torch.stack([found.y[wrong], found.labels[wrong]], 1).unique(dim=0, return_counts=True)
    for at in often.argsort(descending=True, stable=True)[:8].tolist():
        (truth, answer), times = seen[at].tolist(), int(often[at])
        pairs.append((_name(context, truth), _name(context, answer), times, times / int(count[truth])))
    if pairs:
        evidence.append(Table("Confused most", ("truth", "answer", "times", "share of that truth"), pairs))
    n, right = int(count[worst]), int(hits[worst])
    context.note(f"the interval is simultaneous over {len(present)} classes (Wilson, Bonferroni)")
    return context.finding(
        f"class {_name(context, worst)} is recognised worst: {right} of {n} samples, {right / n:.1%}",
        value=right / n, n=n, interval=wilson(right, n, confidence), evidence=evidence,
    )


@check(
    "trust/confidence-errors", pillar="trust", unit="rate", better="lower", access=Access.SCORE, warn=0.05, fail=0.2,
    question="How often is the model wrong where it is at least 90 % sure?", paper="Hendrycks and Gimpel 2017, arXiv:1610.02136",
    tags=("aisec:model-misjudgment", "trust:calibration"),
    advice=(
        Advice(
            "Look at the surest errors first: wrong labels and a class that is missing show up there; then mend the confidence",
            "from hauberk.trust.calibration import Temperature, fit_temperature; "
            "Temperature(model, fit_temperature(model(x), y))",
            "AML.M0008",
        ),
    ),
)
def confidence_errors(context: Context) -> Finding:
    """Error rate among the answers of at least 90 % confidence, with the surest errors."""
    found, _ = scored(context)
    probabilities = found.probabilities
    sure = probabilities.amax(1)
    confident = sure >= _SURE
    if not bool(confident.any()):
        raise NotRun(f"no answer has a confidence of {_SURE:.0%} or more")
    figure = context.rate(~found.correct[confident])
    wrong = torch.nonzero(~found.correct).reshape(-1)
    worst = wrong[sure[wrong].argsort(descending=True, stable=True)][:8]
    rows = [
        (int(found.positions[at]), _name(context, int(found.y[at])), _name(context, int(found.labels[at])), float(sure[at]),
         float(probabilities[at, found.y[at]]))
        for at in worst.tolist()
    ]
    evidence: list[Table | Gallery] = []
    if rows:
        evidence.append(Table(
            "The surest errors", ("test sample", "truth", "answer", "confidence", "probability of the truth"), rows
        ))
        evidence.extend(_gallery(context, found, worst, sure))
    expected = float((1 - sure[confident]).mean())
    return context.finding(
        f"{figure['value']:.1%} of the {figure['n']} answers given with at least {_SURE:.0%} confidence are wrong; "
        f"their confidence promises {expected:.1%}",
        evidence=evidence, **figure,
    )


def _gallery(context: Context, found: Answers, worst: Tensor, sure: Tensor) -> list[Gallery]:
    if context.data.modality != "image" or len(context.data.test.shape) != 3:
        return []
    images = context.data.test.x.take(found.positions[worst])
    pictures = [
        picture(
            image, f"{_name(context, int(found.y[at]))} taken for {_name(context, int(found.labels[at]))}, {float(sure[at]):.1%}",
            bounds=context.data.bounds,
        )
        for image, at in zip(images, worst.tolist(), strict=True)
    ]
    return [Gallery("The surest errors", pictures)]


def _name(context: Context, label: int) -> str:
    names = context.data.class_names
    return "no label" if label < 0 else str(names[label]) if label < len(names) else str(label)
