"""Selective prediction: what the model is worth when it may keep silent where it is unsure."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Interval
from hauberk.trust.arrays import Floats, floats


@dataclasses.dataclass(frozen=True)
class RiskCoverage:
    """The error rate among the samples that are answered, from the surest one to all.

    Arguments:
        coverage: share answered, shape (n,): 1/n, 2/n, ... 1.
        risk: share of those that is wrong, shape (n,).
    """

    coverage: Floats
    risk: Floats

    @property
    def aurc(self) -> float:
        """Area under the curve: the mean risk over all coverages (Geifman and El-Yaniv 2017)."""
        return float(self.risk.mean())

    @property
    def excess(self) -> float:
        """The area above that of a perfect order of the same errors (Geifman et al. 2019)."""
        n = len(self.risk)
        wrong = round(float(self.risk[-1]) * n)
        best = np.maximum(np.arange(1, n + 1) - (n - wrong), 0) / np.arange(1, n + 1)
        return self.aurc - float(best.mean())


def risk_coverage(confidence: ArrayLike | Tensor, correct: ArrayLike | Tensor) -> RiskCoverage:
    """Return the risk at every coverage when the least confident samples are left out first.

    Arguments:
        confidence: any score that is higher where the model is surer, shape (n,).
        correct: 0 or 1, shape (n,).

    Returns:
        The curve. Among equal confidences every order is as good: the risk is its expectation, so the order of the samples has
        no influence.

    Raises:
        DataError: for bad shapes or scores that are not finite.
    """
    sure, right = _pair(confidence, correct)
    order = np.argsort(-sure, kind="stable")
    wrong, sorted_sure = 1 - right[order], sure[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_sure)) + 1, len(sure))
    errors = np.cumsum(wrong)[ends - 1]
    kept = np.arange(1, len(sure) + 1)
    expected = np.interp(kept, np.concatenate([[0], ends]), np.concatenate([[0.0], errors]))
    return RiskCoverage(kept / len(sure), expected / kept)


def threshold_for_coverage(confidence: ArrayLike | Tensor, coverage: float) -> float:
    """Return the highest confidence t such that at least a share `coverage` of the samples has confidence >= t.

    Arguments:
        confidence: of samples like those to come, shape (n,).
        coverage: share to be answered, in (0, 1].

    Raises:
        UsageError: for a coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise UsageError(f"coverage is {coverage}", want="a share in (0, 1]", fix="Use 1 to answer every sample")
    sure = np.sort(floats(confidence, "the confidence", 1))[::-1]
    return float(sure[math.ceil(coverage * len(sure) - 1e-9) - 1])


def accuracy_at_coverage(
    confidence: ArrayLike | Tensor, correct: ArrayLike | Tensor, coverage: float
) -> tuple[float, int, int]:
    """Return the threshold for that coverage, how many samples reach it, and how many of those are right.

    Arguments:
        confidence, correct: as in `risk_coverage`.
        coverage: share to be answered, in (0, 1].
    """
    sure, right = _pair(confidence, correct)
    threshold = threshold_for_coverage(sure, coverage)
    kept = sure >= threshold
    return threshold, int(kept.sum()), int(right[kept].sum())


def aurc_interval(
    confidence: ArrayLike | Tensor, correct: ArrayLike | Tensor, *, rng: np.random.Generator, draws: int = 500
) -> Interval:
    """Return the percentile bootstrap interval of the AURC."""
    sure, right = _pair(confidence, correct)
    order = np.argsort(-sure, kind="stable")
    sure, right = sure[order], right[order]
    drawn = []
    for _ in range(draws):
        index = rng.integers(0, len(sure), len(sure))
        index.sort()
        drawn.append(risk_coverage(sure[index], right[index]).aurc)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(low), float(high), "bootstrap")


def _pair(confidence: ArrayLike | Tensor, correct: ArrayLike | Tensor) -> tuple[Floats, Floats]:
    sure, right = floats(confidence, "the confidence", 1), floats(correct, "correct", 1)
    if len(sure) != len(right):
        raise DataError(f"{len(sure)} confidences and {len(right)} outcomes were given", want="one outcome per confidence")
    return sure, right
