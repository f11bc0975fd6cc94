"""The δ of one sampled Gaussian release at many ε, in closed form: what a privacy loss distribution is made of."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

Array = npt.NDArray[np.float64]
FAR = 10.0  # standard deviations: less than e^−50 lies beyond


def ends(rate: float, sigma: float, replaced: bool, far: float = FAR) -> tuple[float, float]:
    """Return the least and the greatest loss that matter, in either direction, `far` standard deviations out."""
    powers = [(sign * 2 * (far * sigma + 1) - 1) / (2 * sigma**2) for sign in (-1, 1)]
    # ln(1 − q + q e^power), where q may be tiny.
    low, high = (
        math.log1p(rate * math.expm1(power)) if power < 30 and rate < 1
        else float(np.logaddexp(_log1m(rate), math.log(rate) + power))
        for power in powers
    )
    return (-(high - low), high - low) if replaced else (min(low, -high), max(high, -low))


def removed(epsilon: Array, rate: float, sigma: float) -> Array:
    """Return the δ of qN(1, σ²) + (1−q)N(0, σ²) against N(0, σ²), shape (n,): a record removed.

    Sampling turns ε into ln(1 + (e^ε − 1)/q) and the δ there into q times it (Balle et al. 2018, arXiv:1807.01647).
    """
    found = -np.expm1(np.minimum(epsilon, 0.0))  # below ln(1 − q) every answer counts
    inside = np.expm1(epsilon) > -rate
    u = _log_share(np.expm1(epsilon[inside]), rate)
    found[inside] = rate * _difference(log_ndtr(1 / (2 * sigma) - sigma * u), u + log_ndtr(-1 / (2 * sigma) - sigma * u))
    return found


def added(epsilon: Array, rate: float, sigma: float) -> Array:
    """Return the δ of N(0, σ²) against qN(1, σ²) + (1−q)N(0, σ²), shape (n,): a record added."""
    found = np.zeros_like(epsilon)  # above −ln(1 − q) no answer counts
    inside = np.expm1(-epsilon) > -rate
    v = _log_share(np.expm1(-epsilon[inside]), rate)
    gap = _difference(v + log_ndtr(sigma * v + 1 / (2 * sigma)), log_ndtr(sigma * v - 1 / (2 * sigma)))
    found[inside] = np.exp(epsilon[inside]) * rate * gap
    return found


def replaced(epsilon: Array, rate: float, sigma: float) -> Array:
    """Return the δ of qN(1, σ²) + (1−q)N(0, σ²) against qN(−1, σ²) + (1−q)N(0, σ²), shape (n,): a record replaced."""
    # The loss grows with x and equals ε where t = e^(x/σ²) solves q c t² − (1−q)(e^ε − 1) t − e^ε q c = 0, c = e^(−1/2σ²).
    size = np.abs(epsilon)
    other = _log1m(rate)
    with np.errstate(divide="ignore"):
        middle = other + size + np.log(-np.expm1(-size)) if rate < 1 else np.full_like(size, -np.inf)
    root = np.logaddexp(2 * middle, math.log(4) + 2 * math.log(rate) - 1 / sigma**2 + size) / 2
    log_t = np.logaddexp(middle, root) - math.log(2 * rate) + 1 / (2 * sigma**2)
    # The root for −ε is the mirror of the one for ε: x(−ε) = −x(ε).
    x = np.where(epsilon < 0, -1.0, 1.0) * log_t * sigma
    above = np.logaddexp(other + log_ndtr(-x), math.log(rate) + log_ndtr(1 / sigma - x))
    below = np.logaddexp(other + log_ndtr(-x), math.log(rate) + log_ndtr(-1 / sigma - x))
    return _difference(above, epsilon + below)


def _log_share(grown: Array, rate: float) -> Array:
    return np.log1p(grown / rate)


def _log1m(rate: float) -> float:
    return math.log1p(-rate) if rate < 1 else -math.inf


def _difference(first: Array, second: Array) -> Array:
    """Return e^first − e^second where the first is the greater, else 0."""
    return np.exp(first) * -np.expm1(np.minimum(second - first, 0.0))
