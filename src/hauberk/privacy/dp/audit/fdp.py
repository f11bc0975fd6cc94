"""One run again, against a whole trade-off curve instead of one (ε, δ): tighter, for mechanisms with Gaussian noise."""

from __future__ import annotations

import math
import statistics

import numpy as np
from numpy.typing import NDArray

from hauberk.core.errors import DataError
from hauberk.privacy.dp.accounting import gaussian_epsilon
from hauberk.privacy.dp.audit.clopper_pearson import check
from hauberk.privacy.dp.audit.gdp import refuse_pure
from hauberk.privacy.dp.audit.one_run import largest
from hauberk.privacy.dp.audit.thresholds import Scores, best

MOST = 40.0  # the largest μ that is looked for


def refutes(canaries: int, guesses: int, correct: int, mu: float, error: float) -> bool:
    """Whether so many correct guesses happen less often than `error` under μ-GDP (Mahloujifar et al. 2024, algorithm 3).

    The paper bounds the tail of the number of correct guesses step by step: were its probability `error`, the rates at which
    guesses are right (r) and wrong (h), passed from v down to 0 through the trade-off curve, would add up to more than the
    guesses that there are.

    Arguments:
        canaries: m, those guessed and those abstained from.
        guesses, correct: r and v.
        mu: of the trade-off curve 1 - f(x) = Φ(Φ⁻¹(x) + μ).
        error: one minus the confidence.
    """
    inverse = statistics.NormalDist().inv_cdf
    right, wrong = error * correct / canaries, error * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        if right >= 1:
            return True
        # f̄⁻¹(right) = Φ(Φ⁻¹(right) - μ), without arrays: the loop is as long as there are canaries.
        before, wrong = wrong, max(wrong, math.erfc((mu - inverse(right)) / math.sqrt(2)) / 2)
        right += i / (guesses - i) * (wrong - before)
        if right + wrong > guesses / canaries:
            return True
    return False


def mu_one_run(canaries: int, guesses: int, correct: int, *, confidence: float = 0.95, floor: float = 0.0) -> float:
    """Return the μ that so many correct guesses rule out up to.

    Arguments:
        canaries: m, each trained on with probability 1/2, independently.
        guesses: r ≤ m, fixed before the run.
        correct: v ≤ r.
        confidence: of the bound.
        floor: a bound that is known already; 0 is returned where this one is not above it.

    Raises:
        DataError: for counts that are not possible.
        UsageError: for a confidence outside (0, 1).
    """
    check(0.0, confidence)
    if not 0 <= correct <= guesses <= canaries:
        raise DataError(f"{correct} of {guesses} guesses on {canaries} canaries are right", want="correct ≤ guesses ≤ canaries")
    error = 1 - confidence
    if not refutes(canaries, guesses, correct, floor, error):
        return 0.0
    if refutes(canaries, guesses, correct, MOST, error):
        return MOST
    low, high = floor, MOST
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if refutes(canaries, guesses, correct, middle, error) else (low, middle)
    return low


def epsilon_fdp(
    scores: Scores, *, delta: float, confidence: float = 0.95, thresholds: str | float = "grid",
    rng: np.random.Generator | None = None,
) -> float:
    """Return the ε at δ of the largest Gaussian trade-off curve that one run refutes (Mahloujifar et al. 2024, arXiv:2410.22235).

    Arguments:
        scores: of all canaries of one run.
        delta: above 0.
        confidence: of the bound.
        thresholds, rng: where to cut, see `thresholds.best`.

    Raises:
        UsageError: for a δ outside (0, 1).
    """
    refuse_pure(delta)

    def bound(part: Scores, cuts: NDArray[np.float64], level: float) -> NDArray[np.float64]:
        m = len(part.members) + len(part.others)
        return largest(part, cuts, lambda r, v, floor: mu_one_run(m, r, v, confidence=level, floor=floor))

    return gaussian_epsilon(delta, best(scores, bound, confidence=confidence, strategy=thresholds, rng=rng))
