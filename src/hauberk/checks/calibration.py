"""Confidence: whether the probabilities mean what they say, and what can be won by keeping silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.checks.answers import rng_of, scored
from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Curve, Finding, Interval, Series, Status, Table
from hauberk.core.kinds import check
from hauberk.core.stats import wilson
from hauberk.trust import calibration, selective

_TAGS = ("aisec:model-misjudgment", "trust:calibration")
_MEND = Advice(
    "Divide the logits by a temperature fitted on held-out data: labels stay as they are, confidence is mended",
    "from hauberk.trust.calibration import Temperature, fit_temperature; Temperature(model, fit_temperature(model(x), y))",
    "AML.M0008",
)
_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)


@check(
    "trust/calibration-ece", pillar="trust", unit="calibration error", better="lower", access=Access.SCORE, warn=0.05, fail=0.15,
    question="When the model is 80 % sure, is it right 80 % of the time?", paper="Guo et al. 2017, arXiv:1706.04599",
    tags=_TAGS, advice=(_MEND,),
)
def calibration_ece(context: Context) -> Finding:
    """Expected calibration error over 15 bins of equal width, with the reliability diagram."""
    return _calibration(context, equal_mass=False)


@check(
    "trust/calibration-adaptive-ece", pillar="trust", unit="calibration error", better="lower", access=Access.SCORE, warn=0.05,
    fail=0.15, question="Is the confidence right where most of the answers lie?", paper="Nixon et al. 2019, arXiv:1904.01685",
    tags=_TAGS, advice=(_MEND,),
)
def calibration_adaptive_ece(context: Context) -> Finding:
    """Calibration error over 15 bins that hold equally many samples."""
    return _calibration(context, equal_mass=True)


@check(
    "trust/brier", pillar="trust", unit="Brier score", better="lower", access=Access.SCORE,
    question="How far are the probabilities from the truth?", paper="Brier 1950, Monthly Weather Review 78:1",
    tags=_TAGS, advice=(_MEND,),
)
def brier(context: Context) -> Finding:
    """Brier score, against a guess of the class frequencies."""
    found, _ = scored(context)
    values = calibration.brier_scores(found.probabilities, found.y)
    shares = _frequencies(found.y)
    return _score(context, values, 1 - float((shares**2).sum()), "Brier score")


@check(
    "trust/nll", pillar="trust", unit="nats", better="lower", access=Access.SCORE,
    question="How surprised is the model by the truth?", tags=_TAGS, advice=(_MEND,),
)
def nll(context: Context) -> Finding:
    """Negative log-likelihood, against a guess of the class frequencies, and what a temperature would mend."""
    found, logits = scored(context)
    values = calibration.nll_scores(logits, found.y)
    shares = _frequencies(found.y)
    baseline = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    rows = []
    if len(found.y) >= 20:
        scaled, temperatures = _crossfit(logits, found.y)
        after = calibration.nll_scores(scaled, found.y)
        rows = [("after temperature scaling (cross-fitted)", float(after.mean())), ("temperature", float(np.mean(temperatures)))]
    return _score(context, values, baseline, "negative log-likelihood", rows)


@check(
    "trust/risk-coverage", pillar="trust", unit="accuracy", access=Access.SCORE, warn=0.85, fail=0.6,
    question="How good are the answers when the model may refuse the tenth it is least sure of?",
    paper="Geifman and El-Yaniv 2017, arXiv:1705.08500", tags=("aisec:model-misjudgment", "trust:selective"),
    advice=(
        Advice(
            "Hand samples below the threshold to a person or a stronger model",
            "from hauberk.trust.selective import threshold_for_coverage; "
            "threshold_for_coverage(model(x).softmax(1).amax(1), 0.9)",
            "AML.M0008",
        ),
    ),
)
def risk_coverage(context: Context) -> Finding:
    """Accuracy at 90 % coverage, with the curve of risk against coverage."""
    found, _ = scored(context)
    sure, right = calibration.top_label(found.probabilities, found.y)
    curve = selective.risk_coverage(sure, right)
    area = selective.aurc_interval(sure, right, rng=rng_of(context), draws=500 if len(sure) <= 5000 else 200)
    rows = []
    for coverage in _COVERAGES:
        threshold, kept, hits = selective.accuracy_at_coverage(sure, right, coverage)
        rows.append((coverage, kept / len(sure), threshold, kept, hits / kept, _words(wilson(hits, kept))))
    threshold, kept, hits = selective.accuracy_at_coverage(sure, right, 0.9)
    picked = np.unique(np.linspace(0, len(sure) - 1, 100).astype(int))
    context.note(
        f"area under the risk-coverage curve {curve.aurc:.4f} (95 % {_words(area)}), of which {curve.excess:.4f} would vanish "
        "if every error were less sure than every right answer"
    )
    return context.finding(
        f"answering the surest {kept / len(sure):.0%} (confidence {threshold:.3f} or more) gives {hits / kept:.1%} accuracy, "
        f"against {right.mean():.1%} when all are answered",
        value=hits / kept, n=kept, interval=wilson(hits, kept),
        evidence=(
            Curve(
                "Risk against coverage", "share of samples answered", "share of answers that are wrong",
                [Series("model", curve.coverage[picked].tolist(), curve.risk[picked].tolist())],
            ),
            Table(
                f"Thresholds (n = {len(sure)})",
                ("coverage wanted", "coverage reached", "confidence threshold", "answers", "accuracy", "95 % interval"), rows,
            ),
        ),
    )


def _calibration(context: Context, *, equal_mass: bool) -> Finding:
    found, logits = scored(context)
    sure, right = calibration.top_label(found.probabilities, found.y)
    n = len(sure)
    if n < 20:
        raise NotRun(f"{n} samples are too few to tell confidence from accuracy (at least 20)")
    diagram = calibration.reliability(sure, right, equal_mass=equal_mass)
    interval, chance = calibration.ece_interval(sure, right, equal_mass=equal_mass, rng=rng_of(context))
    bands = [wilson(round(rate * count), int(count)) for rate, count in zip(diagram.accuracy, diagram.count, strict=True)]
    scaled, temperatures = _crossfit(logits, found.y)
    mended = calibration.reliability(*calibration.top_label(scaled.softmax(1), found.y), equal_mass=equal_mass)
    lean = float(sure.mean() - right.mean())
    towards = "over" if lean > 0 else "under"
    context.note(
        f"a perfectly calibrated model of the same confidences shows a calibration error this large with p = {chance:.3f}"
    )
    rows = [
        ("calibration error", diagram.ece, mended.ece), ("largest gap of a bin", diagram.mce, mended.mce),
        ("mean confidence", float(sure.mean()), float(scaled.softmax(1).amax(1).mean())),
        ("accuracy", float(right.mean()), float(right.mean())), ("temperature", 1.0, float(np.mean(temperatures))),
    ]
    return context.finding(
        f"confidence and accuracy differ by {diagram.ece:.1%} on average over {n} samples; as a whole the model is "
        f"{abs(lean):.1%} {towards}confident",
        value=diagram.ece, n=n, interval=interval,
        evidence=(
            Curve(
                f"Reliability diagram (n = {n}, bins of equal {'size' if equal_mass else 'width'}, 95 % bands)",
                "confidence", "accuracy",
                [Series(
                    "model", diagram.confidence.tolist(), diagram.accuracy.tolist(),
                    [band.low for band in bands], [band.high for band in bands],
                )],
                diagonal=True,
            ),
            Table("What temperature scaling would change (cross-fitted)", ("figure", "now", "after"), rows),
        ),
    )


def _score(
    context: Context, values: np.ndarray[Any, np.dtype[np.float64]], baseline: float, name: str,
    more: list[tuple[str, float]] | None = None,
) -> Finding:
    """A mean score against that of a constant guess of the class frequencies."""
    value = float(values.mean())
    interval = calibration.bootstrap_mean(values, rng=rng_of(context))
    status = Status.FAIL if value >= baseline else Status.WARN if interval.high >= baseline else Status.PASS
    skill = 1 - value / baseline if baseline > 0 else float("nan")
    quantiles = np.quantile(values, (0.5, 0.9, 0.99))
    rows = [
        ("mean", value), ("constant guess of the class frequencies", baseline), ("skill (1 is perfect, 0 the guess)", skill),
        *(more or []),
        *((f"{at:.0%} of samples are at or below", float(one)) for at, one in zip((0.5, 0.9, 0.99), quantiles, strict=True)),
    ]
    versus = f"{skill:.0%} better than" if skill > 0 else "no better than"
    if baseline <= 0:
        versus, status = "one class only, so it cannot be compared with", Status.PASS
    return context.finding(
        f"the {name} is {value:.3f}: {versus} guessing the class frequencies", value=value, n=len(values), interval=interval,
        status=status, evidence=(Table(f"The {name} (n = {len(values)})", ("figure", "value"), rows),),
    )


def _crossfit(logits: Tensor, y: Tensor) -> tuple[Tensor, list[float]]:
    """Logits over a temperature fitted on the other half of the samples, and the two temperatures."""
    half, scaled, temperatures = len(y) // 2, logits.clone(), []
    for held, fitted in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        temperatures.append(calibration.fit_temperature(logits[fitted], y[fitted]))
        scaled[held] = logits[held] / temperatures[-1]
    return scaled, temperatures


def _frequencies(y: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(torch.bincount(y).double().numpy() / len(y))


def _words(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"
