"""A lower bound of ε from the μ of Gaussian differential privacy that two error rates show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import gaussian_epsilon
from hauberk.privacy.dp.audit.clopper_pearson import check, rate_bounds
from hauberk.privacy.dp.audit.thresholds import Scores, best


def mu_lower_bound(
    scores: Scores, *, confidence: float = 0.95, thresholds: str | float = "split", rng: np.random.Generator | None = None
) -> float:
    """Return the μ that the scores rule out up to: Φ⁻¹(TPR) - Φ⁻¹(FPR) at the ends of Clopper and Pearson (Nasr et al. 2023).

    Arguments:
        scores: one for each independent trial.
        confidence: of the bound.
        thresholds, rng: where to cut, see `thresholds.best`.
    """

    def bound(part: Scores, cuts: NDArray[np.float64], level: float) -> NDArray[np.float64]:
        right, wrong = part.counts(cuts)
        low, high = rate_bounds(right, wrong, (len(part.members), len(part.others)), level)
        return norm.ppf(low.clip(1e-300, 1 - 1e-16)) - norm.ppf(high.clip(1e-300, 1 - 1e-16))

    return best(scores, bound, confidence=confidence, strategy=thresholds, rng=rng)


def epsilon_gdp(
    scores: Scores, *, delta: float, confidence: float = 0.95, thresholds: str | float = "split",
    rng: np.random.Generator | None = None,
) -> float:
    """Return a lower bound of ε at δ for a mechanism that trades its errors as a Gaussian one does (Nasr et al. 2023).

    It is the tightest of the bounds and the one that assumes most: the errors measured in the middle are carried on to δ along
    the curve of a Gaussian mechanism. Steps on sampled batches have heavier tails than that, so that it errs on the low side.

    Arguments:
        scores: one for each independent trial.
        delta: above 0.
        confidence: of the bound.
        thresholds, rng: where to cut, see `thresholds.best`.

    Raises:
        UsageError: for a δ outside (0, 1).
    """
    refuse_pure(delta)
    return gaussian_epsilon(delta, mu_lower_bound(scores, confidence=confidence, thresholds=thresholds, rng=rng))


def refuse_pure(delta: float) -> None:
    """Raise UsageError for a δ outside (0, 1)."""
    check(delta, 0.5)
    if delta == 0:
        raise UsageError("delta is 0", want="a δ above 0: a mechanism with Gaussian noise is never (ε, 0)", fix="Say delta=1e-5")
