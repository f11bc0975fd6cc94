"""Gaussian differential privacy: μ from error rates, ε from μ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.stats import norm

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.audit.clopper_pearson import check, rate_bounds
from hauberk.privacy.dp.audit.thresholds import Scores, best


def gaussian_delta(eps: float, mu: float) -> float:
    """Return δ of a Gaussian mechanism of sensitivity over noise μ at ε (Balle and Wang 2018, theorem 8).

    δ = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ), the second term in logarithms so that it does not overflow.
    """
    if mu <= 0:
        return 0.0
    first = norm.logcdf(mu / 2 - eps / mu)
    second = eps + norm.logcdf(-mu / 2 - eps / mu)
    return float(np.exp(first) * -np.expm1(min(second - first, 0.0)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least ε at which a Gaussian mechanism of sensitivity over noise μ is (ε, δ); 0 where δ alone covers it.

    Arguments:
        mu: √T / σ for T steps of noise multiplier σ on all the data.
        delta: above 0.

    Raises:
        UsageError: for a δ outside (0, 1).
    """
    if not 0 < delta < 1:
        raise UsageError(f"delta is {delta}", want="a number between 0 and 1: a Gaussian mechanism is never (ε, 0)")
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    top = mu * mu / 2 + mu * float(-norm.ppf(delta)) + 1.0
    while gaussian_delta(top, mu) > delta:
        top *= 2
    return float(optimize.brentq(lambda eps: gaussian_delta(eps, mu) - delta, 0.0, top, xtol=1e-12))


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
    check(delta, confidence)
    return gaussian_epsilon(mu_lower_bound(scores, confidence=confidence, thresholds=thresholds, rng=rng), delta)
