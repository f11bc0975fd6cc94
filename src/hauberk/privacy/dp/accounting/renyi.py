"""Rényi differential privacy (Mironov 2017, arXiv:1702.07476), by dp-accounting, and zero-concentrated privacy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, logsumexp

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting.pld import distance, pure_epsilon, spread, thinned
from hauberk.privacy.dp.accounting.release import Release

MOST_DISTINCT = 64
FEW = 6  # kinds up to which orders between the whole ones are computed and not interpolated
Array = npt.NDArray[np.float64]
# Whole orders have a closed form. Tenths and halves matter where ε is large, for the best order is then a small one.
WHOLE = (*range(2, 64), *range(64, 132, 4), 160, 192, 256, 384, 512, 768, 1024, 2048, 4096)
ORDERS = tuple(sorted({*WHOLE, *((10 + k) / 10 for k in range(1, 100)), *(k / 2 for k in range(22, 66))}))


def rdp_epsilon(releases: Sequence[Release], delta: float, relation: str, *, quick: bool = False) -> float:
    """Return an ε that holds at δ, from the Rényi divergences of all releases together.

    Arguments:
        releases: private ones that give something away.
        delta: from 0 up to 1.
        relation: `add-remove` or `replace-one`.
        quick: whole orders alone: looser.

    Raises:
        UsageError: for Poisson sampling under replace-one, of which no Rényi bound is offered.
    """
    orders = WHOLE if quick else ORDERS
    few = thinned(releases, most=16 if quick else MOST_DISTINCT)
    return _to_epsilon(_total(few, relation, orders, quick), np.array(orders), delta)


def naive_epsilon(releases: Sequence[Release], delta: float, relation: str) -> float:
    """Return ε by the first conversion, RDP + ln(1/δ)/(α − 1): looser, and what early tables were made with."""
    total = _total(releases, relation, ORDERS, False)
    return float(np.min(total + math.log(1 / delta) / (np.array(ORDERS) - 1)))


def _total(releases: Sequence[Release], relation: str, orders: tuple[float, ...], quick: bool) -> Array:
    total = np.zeros(len(orders))
    for one in releases:
        single = one if _whole(one) else dataclasses.replace(one, count=1)
        part = divergences(single, relation, orders, quick, rough=len(releases) > FEW)
        total += part if _whole(one) else one.count * part
    return total


@functools.lru_cache(maxsize=1024)
def divergences(
    release: Release, relation: str, orders: tuple[float, ...] = ORDERS, quick: bool = False, rough: bool = False
) -> Array:
    """Return the Rényi divergences of a release at `orders`, infinite where an order is not known; `rough`: interpolated."""
    alphas, away, q = np.array(orders), distance(relation), release.rate
    pure = pure_epsilon(release, relation)
    if pure < math.inf:
        bounds = _pure(pure, alphas)
        if release.sampling == "full" and release.mechanism == "laplace":
            bounds = np.minimum(bounds, _event("LaplaceDpEvent", release.noise / away, "ADD_OR_REMOVE_ONE", orders))
        return bounds
    plain = alphas * spread(release) * (away / release.noise) ** 2 / 2
    if _whole(release) or q == 1:
        return plain
    if release.sampling == "without-replacement":
        asked = tuple(alpha for alpha in orders if alpha <= (32 if quick else 1024))
        known = _event("SampledWithoutReplacementDpEvent", release.noise / away, "REPLACE_ONE", asked, q)
        return np.minimum(plain, np.concatenate([known, plain[len(asked):]]))
    if relation == "replace-one" and release.mechanism == "discrete-gaussian":
        return plain  # sampling never adds to a divergence, which is quasi-convex; no tighter bound is known here
    if relation == "replace-one":
        raise UsageError(
            "the Rényi accountant was asked about Poisson sampling under replace-one", want="add-remove, or accountant 'pld'",
            fix="PLD covers both",
        )
    if release.mechanism == "discrete-gaussian":
        return np.minimum(plain, [_sampled(q, release.noise, alpha) for alpha in orders])
    closed = {alpha: (alpha - 1) * sampled_gaussian(q, release.noise, int(alpha)) for alpha in orders if alpha % 1 == 0}
    closed |= {1: 0.0}
    # (α − 1) D is convex in α, so that a line between whole orders lies above it.
    known = np.interp(alphas, sorted(closed), [closed[alpha] for alpha in sorted(closed)]) / (alphas - 1)
    between = alphas % 1 != 0
    if between.any() and not rough:
        exact = _event("PoissonSampledDpEvent", release.noise, "ADD_OR_REMOVE_ONE", tuple(alphas[between]), q)
        # Rounding is no longer small beside a tiny divergence, and the line is taken.
        exact = np.where((alphas[between] - 1) * exact > 1e-8, exact, np.inf)
        known[between] = np.minimum(known[between], exact)
    return np.minimum(plain, known)


def sampled_gaussian(rate: float, noise: float, order: int) -> float:
    """Return the Rényi divergence of a Poisson-sampled Gaussian at a whole order (Mironov et al. 2019, arXiv:1908.10530)."""
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    # The binomial weights add up to 1, which is taken out: what is left has no sign and no cancellation, however small the rate.
    terms = binomial + k * math.log(rate) + (order - k) * math.log1p(-rate) + _log_expm1(k * (k - 1) / (2 * noise**2))
    return float(np.logaddexp(0.0, logsumexp(terms[2:]))) / (order - 1)


def _log_expm1(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        found: Array = x + np.log(-np.expm1(-x))
    return found


def _sampled(rate: float, noise: float, order: float) -> float:
    """The divergence of any sampled mechanism that diverges as a Gaussian does (Zhu and Wang 2019, Theorem 5, PMLR 97)."""
    if not float(order).is_integer():
        return math.inf
    top = int(order)
    k = np.arange(2, top + 1)
    binomial = gammaln(top + 1) - gammaln(k + 1) - gammaln(top - k + 1)
    power = k * (k - 1) / (2 * noise**2)
    power[1:] += math.log(3)
    terms = binomial + k * math.log(rate) + (top - k) * math.log1p(-rate) + _log_expm1(power)
    return float(np.logaddexp(0.0, logsumexp(terms))) / (top - 1)


def zcdp_rho(releases: Sequence[Release], relation: str) -> float:
    """Return the ρ of all releases together (Bun and Steinke 2016, arXiv:1605.02065).

    Raises:
        UsageError: for sampled releases: their noise is not concentrated, and ρ·q² would under-report.
    """
    rho = 0.0
    for one in releases:
        pure = pure_epsilon(one, relation)
        if one.sampling in ("poisson", "without-replacement") and one.rate < 1:
            raise UsageError(
                f"zCDP was asked about sampling '{one.sampling}' at a rate of {one.rate:g}", want="releases that use all records",
                fix="Use the accountant 'pld' or 'rdp': no ρ holds for sampled noise",
            )
        rho += one.count * pure**2 / 2 if pure < math.inf else spread(one) * (distance(relation) / one.noise) ** 2 / 2
    return rho


def zcdp_epsilon(rho: float, delta: float) -> float:
    """Return ρ + 2√(ρ ln 1/δ)."""
    return rho + 2 * math.sqrt(rho * math.log(1 / delta)) if delta > 0 else (math.inf if rho else 0.0)


def advanced_composition(epsilon: float, count: int, delta: float) -> float:
    """Return what `count` answers of a plain ε add up to at δ (Dwork, Rothblum and Vadhan 2010), or their sum where less."""
    growth = math.expm1(epsilon) if epsilon < 700 else math.inf
    advanced = epsilon * math.sqrt(2 * count * math.log(1 / delta)) + count * epsilon * growth if delta > 0 else math.inf
    return min(count * epsilon, advanced)


def _to_epsilon(total: Array, orders: Array, delta: float) -> float:
    """Proposition 12 of Canonne, Kamath and Steinke 2020, arXiv:2004.00010, at the best order."""
    if delta <= 0:
        return 0.0 if not total.any() else math.inf
    if np.any(np.expm1(-total) + delta**2 > 0):  # by way of Kullback and Leibler: δ ≤ √(1 − e^−KL)
        return 0.0
    found = total + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(np.min(np.where(np.isnan(found), np.inf, found))))


def _pure(epsilon: float, orders: Array) -> Array:
    """The answer to a yes-or-no question: the most that any ε-private one diverges."""
    if epsilon < 1e-3:
        return np.minimum(epsilon, orders * epsilon**2 / 2)  # Bun and Steinke 2016: no cancellation, and hardly looser
    up, down = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    both = np.logaddexp(orders * up + (1 - orders) * down, orders * down + (1 - orders) * up)
    return np.minimum(epsilon, np.maximum(both, 0.0) / (orders - 1))


def _whole(release: Release) -> bool:
    return release.mechanism == "tree" or release.sampling == "shuffled"


def _event(kind: str, noise: float, relation: str, orders: tuple[float, ...], rate: float | None = None) -> Array:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    if kind == "LaplaceDpEvent":
        event: Any = dp.LaplaceDpEvent(noise)
    elif kind == "PoissonSampledDpEvent":
        event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))
    else:
        assert rate is not None
        whole = 1 << 40  # the accountant only takes the ratio, and rounding it up is the safe side
        event = dp.SampledWithoutReplacementDpEvent(whole, math.ceil(rate * whole), dp.GaussianDpEvent(noise))
    accountant = RdpAccountant(list(orders), getattr(dp.NeighboringRelation, relation))
    with _quiet(), np.errstate(all="ignore"):
        accountant.compose(event)
    found: Array = accountant.rdp
    return np.where(np.isnan(found) | (found < 0), np.inf, found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orders that do not converge come back infinite, which is the safe side: no warning is needed for each."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
