"""The Gaussian mechanism, exactly (Balle and Wang 2018, arXiv:1805.06530), and the central-limit estimate built on it."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import log_ndtr

LARGEST_EPSILON = 1e6


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the δ of a Gaussian mechanism.

    Arguments:
        epsilon: of 0 or more.
        mu: the distance of neighbouring answers over the standard deviation.

    Returns:
        Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), the exact value.
    """
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    # In logarithms: e^ε overflows, and for a small δ both terms are tiny.
    first, second = float(log_ndtr(mu / 2 - epsilon / mu)), epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(first) * -math.expm1(min(0.0, second - first)) if math.isfinite(second) else math.exp(first)


def gaussian_epsilon(delta: float, mu: float) -> float:
    """Return the least ε that a Gaussian mechanism has at δ, rounded upward.

    Arguments:
        delta: above 0, below 1.
        mu: the distance of neighbouring answers over the standard deviation.
    """
    if mu == 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    if math.isinf(mu) or delta <= 0:
        return math.inf
    return smallest(lambda epsilon: gaussian_delta(epsilon, mu) <= delta, 0.0, 1.0, LARGEST_EPSILON)


def gaussian_noise(epsilon: float, delta: float) -> float:
    """Return the least standard deviation over sensitivity with which one Gaussian release is (ε, δ)-private."""
    return smallest(lambda sigma: gaussian_delta(epsilon, 1 / sigma) <= delta, 0.0, 1.0, 1e12)


def clt_mu(rate: float, noise: float, count: int) -> float:
    """Return the μ that composed Poisson-sampled Gaussian steps tend to (Bu et al. 2019, arXiv:1911.11607): an estimate."""
    if rate == 1:
        return math.sqrt(count) / noise
    power = 1 / noise**2
    return rate * math.sqrt(count) * (math.sqrt(math.expm1(power)) if power < 700 else math.inf)


def smallest(holds: Callable[[float], bool], low: float, guess: float, most: float, *, relative: float = 1e-12) -> float:
    """Return a value at which `holds` is true and, a relative step below, no longer is; infinity where none up to `most` does.

    Arguments:
        holds: false below some value, true above.
        low: a value at which it is not asked: nothing is looked for below.
        guess: where the search begins.
        most: the end of the search.
    """
    high = guess
    while not holds(high):
        low, high = high, high * 2
        if high > most:
            return math.inf
    while high - low > relative * high and high > 1e-12:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
