"""A lower bound of ε from one training run: many canaries, each in by a coin of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from hauberk.core.errors import DataError
from hauberk.privacy.dp.audit.clopper_pearson import check
from hauberk.privacy.dp.audit.thresholds import Scores, best

MOST = 60.0  # the largest ε that is looked for: no audit of fewer than e^60 canaries reaches it


def one_run_p_value(canaries: int, guesses: int, correct: int, eps: float, delta: float) -> float:
    """Return the largest probability of so many correct guesses under (ε, δ) (Steinke et al. 2023, theorem 5.2).

    With W binomial(guesses, e^ε / (1 + e^ε)), P[V ≥ v] ≤ P[W ≥ v] + 2 m δ max_i P[v - i ≤ W < v] / i.

    Arguments:
        canaries: m, those guessed and those abstained from.
        guesses, correct: r and v.
        eps, delta: the claim under test.
    """
    rate = float(special.expit(eps))
    p = float(stats.binom.sf(correct - 1, guesses, rate))
    if delta > 0 and correct > 0:
        back = np.arange(1, correct + 1)
        below = stats.binom.cdf(correct - 1, guesses, rate) - stats.binom.cdf(correct - 1 - back, guesses, rate)
        p += 2 * canaries * delta * float((below / back).max())
    return min(1.0, p)


def epsilon_one_run(canaries: int, guesses: int, correct: int, *, delta: float = 0.0, confidence: float = 0.95) -> float:
    """Return the ε that so many correct guesses rule out up to (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846).

    Arguments:
        canaries: m, each trained on with probability 1/2, independently.
        guesses: r ≤ m, fixed before the run; the attack abstains from the others.
        correct: v ≤ r, guesses that were right.
        delta: δ of the claim.
        confidence: of the bound.

    Raises:
        DataError: for counts that are not possible.
        UsageError: for a δ or a confidence that is not.
    """
    check(delta, confidence)
    if not 0 <= correct <= guesses <= canaries:
        raise DataError(f"{correct} of {guesses} guesses on {canaries} canaries are right", want="correct ≤ guesses ≤ canaries")
    return _epsilon(canaries, guesses, correct, delta, 1 - confidence)


def epsilon_one_run_scores(
    scores: Scores, *, delta: float = 0.0, confidence: float = 0.95, thresholds: str | float = "grid",
    rng: np.random.Generator | None = None,
) -> float:
    """Return the bound of `epsilon_one_run` where all that score at least a cut are guessed to be members.

    Arguments:
        scores: of all canaries of one run.
        delta, confidence: of the claim, of the bound.
        thresholds, rng: where to cut, see `thresholds.best`.
    """
    check(delta, confidence)

    def bound(part: Scores, cuts: NDArray[np.float64], level: float) -> NDArray[np.float64]:
        m = len(part.members) + len(part.others)
        return largest(part, cuts, lambda r, v, floor: _epsilon(m, r, v, delta, 1 - level, floor))

    return best(scores, bound, confidence=confidence, strategy=thresholds, rng=rng)


def largest(scores: Scores, cuts: NDArray[np.float64], bound: Callable[[int, int, float], float]) -> NDArray[np.float64]:
    """Return, at each cut, the bound of (guesses, correct, floor) where it is above all before, else 0 at one test."""
    right, wrong = scores.counts(cuts)
    found, floor = np.zeros(len(cuts)), 0.0
    # The likely best first: the surest precision.
    for place in np.argsort(-stats.beta.ppf(0.001, np.maximum(right, 1), wrong + 1), kind="stable"):
        if right[place]:
            found[place] = bound(int(right[place] + wrong[place]), int(right[place]), floor)
            floor = max(floor, found[place])
    return found


def _epsilon(m: int, r: int, v: int, delta: float, error: float, floor: float = 0.0) -> float:
    if one_run_p_value(m, r, v, floor, delta) >= error:
        return 0.0
    if one_run_p_value(m, r, v, MOST, delta) < error:
        return MOST
    return float(optimize.brentq(lambda eps: one_run_p_value(m, r, v, eps, delta) - error, floor, MOST, xtol=1e-10))
