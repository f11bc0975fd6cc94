"""A lower bound of ε from two error rates: no assumption on the mechanism, one independent trial for each score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.audit.thresholds import Scores, best

Floats = NDArray[np.float64]


def rate_bounds(right: ArrayLike, wrong: ArrayLike, n: tuple[int, int], confidence: float) -> tuple[Floats, Floats]:
    """Return the least true-positive rate and the greatest false-positive rate that the counts allow, jointly at `confidence`.

    Arguments:
        right, wrong: members and others that were called members, shape (k,).
        n: how many members and others there are.
        confidence: that both hold; each end of Clopper and Pearson (1934) has half of the rest.
    """
    tail = (1 - confidence) / 2
    hits, alarms = np.asarray(right, dtype=float), np.asarray(wrong, dtype=float)
    low = np.where(hits > 0, stats.beta.ppf(tail, np.maximum(hits, 1), n[0] - hits + 1), 0.0)
    high = np.where(alarms < n[1], stats.beta.ppf(1 - tail, alarms + 1, np.maximum(n[1] - alarms, 1)), 1.0)
    return low, high


def epsilon_from_counts(
    right: int, wrong: int, n: tuple[int, int], *, delta: float = 0.0, confidence: float = 0.95, sides: int = 1
) -> float:
    """Return a lower bound of ε from how often an attack is right and wrong (Jagielski et al. 2020, arXiv:2006.07709).

    (ε, δ) demands TPR ≤ e^ε FPR + δ, and the same of the true and false negatives.

    Arguments:
        right, wrong: members and others that were called members.
        n: how many members and others there are; each an independent trial.
        delta: δ of the claim.
        confidence: of the bound.
        sides: 1 reads positives alone; 2 negatives as well, at half the error each.

    Raises:
        DataError: for counts that are not possible.
        UsageError: for a δ, a confidence or sides that are not.
    """
    check(delta, confidence)
    if sides not in (1, 2):
        raise UsageError(f"sides is {sides}", want="1 (positives) or 2 (negatives as well)")
    if not (0 <= right <= n[0] and 0 <= wrong <= n[1] and min(n) > 0):
        raise DataError(f"{right} of {n[0]} members and {wrong} of {n[1]} others are called members", want="counts up to n")
    pairs = [(right, wrong, n), (n[1] - wrong, n[0] - right, n[::-1])][:sides]
    return max(0.0, *(float(_bound(a, b, size, delta, 1 - (1 - confidence) / sides).max()) for a, b, size in pairs))


def epsilon_clopper_pearson(
    scores: Scores, *, delta: float = 0.0, confidence: float = 0.95, sides: int = 1, thresholds: str | float = "grid",
    rng: np.random.Generator | None = None,
) -> float:
    """Return a lower bound of ε from the scores of independent trials.

    Arguments:
        scores: one for each trial; canaries of one run share that run and are independent only where nothing else is random.
        delta, confidence, sides: as for `epsilon_from_counts`.
        thresholds, rng: where to cut, see `thresholds.best`.

    Raises:
        UsageError: for a δ, a confidence, sides or thresholds that are not.
    """
    check(delta, confidence)
    if sides not in (1, 2):
        raise UsageError(f"sides is {sides}", want="1 (positives) or 2 (negatives as well)")

    def bound(part: Scores, cuts: Floats, level: float) -> Floats:
        right, wrong = part.counts(cuts)
        n = len(part.members), len(part.others)
        found = _bound(right, wrong, n, delta, 1 - (1 - level) / sides)
        if sides == 2:
            found = np.maximum(found, _bound(n[1] - wrong, n[0] - right, n[::-1], delta, 1 - (1 - level) / 2))
        return found

    return best(scores, bound, confidence=confidence, strategy=thresholds, rng=rng)


def check(delta: float, confidence: float) -> None:
    """Raise UsageError for a δ outside [0, 1) or a confidence outside (0, 1)."""
    if not 0 <= delta < 1:
        raise UsageError(f"delta is {delta}", want="a number from 0 to below 1, such as 1e-5")
    if not 0 < confidence < 1:
        raise UsageError(f"the confidence is {confidence}", want="a number between 0 and 1, such as 0.95")


def _bound(right: ArrayLike, wrong: ArrayLike, n: tuple[int, int], delta: float, confidence: float) -> Floats:
    low, high = rate_bounds(right, wrong, n, confidence)
    return np.log(np.maximum(low - delta, 1e-300)) - np.log(high)
