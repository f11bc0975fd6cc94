"""Rényi differential privacy (Mironov 2017, arXiv:1702.07476), by dp-accounting, and zero-concentrated privacy."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting.pld import distance, pure_epsilon, spread, thinned
from hauberk.privacy.dp.accounting.release import Release

Array = npt.NDArray[np.float64]
# Whole and half orders everywhere, tenths where the best order of a large ε lies.
ORDERS = tuple(sorted({
    1.01, *(1 + k / 10 for k in range(1, 100)), *(k / 2 for k in range(22, 128)), *range(64, 132, 4), 160, 192, 256, 384, 512,
    768, 1024, 2048, 4096,
}))


def rdp_epsilon(releases: Sequence[Release], delta: float, relation: str) -> float:
    """Return an ε that holds at δ, from the Rényi divergences of all releases together.

    Raises:
        UsageError: for Poisson sampling under replace-one, of which no Rényi bound is offered.
    """
    total = np.zeros(len(ORDERS))
    for one in thinned(releases):
        total += one.count * divergences(_one(one), relation) if not _whole(one) else divergences(one, relation)
    return _to_epsilon(total, delta)


def naive_epsilon(releases: Sequence[Release], delta: float, relation: str) -> float:
    """Return ε by the first conversion, RDP + ln(1/δ)/(α − 1): looser, and what early tables were made with."""
    total = sum((one.count * divergences(_one(one), relation) for one in releases), np.zeros(len(ORDERS)))
    return float(np.min(total + math.log(1 / delta) / (np.array(ORDERS) - 1)))


@functools.lru_cache(maxsize=256)
def divergences(release: Release, relation: str) -> Array:
    """Return the Rényi divergences of a release at `ORDERS`, infinite where an order is not known."""
    orders, away, q = np.array(ORDERS), distance(relation), release.rate
    pure = pure_epsilon(release, relation)
    if pure < math.inf:
        bounds = _pure(pure, orders)
        if release.sampling == "full" and release.mechanism == "laplace":
            bounds = np.minimum(bounds, _event("LaplaceDpEvent", release.noise / away, "ADD_OR_REMOVE_ONE"))
        return bounds
    plain = orders * spread(release) * (away / release.noise) ** 2 / 2
    if _whole(release) or q == 1 or release.mechanism == "discrete-gaussian":
        return plain
    if release.sampling == "without-replacement":
        return np.minimum(plain, _event("SampledWithoutReplacementDpEvent", release.noise / away, "REPLACE_ONE", q))
    if relation == "replace-one":
        raise UsageError(
            "the Rényi accountant was asked about Poisson sampling under replace-one", want="add-remove, or accountant 'pld'",
            fix="PLD covers both",
        )
    return np.minimum(plain, _event("PoissonSampledDpEvent", release.noise, "ADD_OR_REMOVE_ONE", q))


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


def _to_epsilon(total: Array, delta: float) -> float:
    """Proposition 12 of Canonne, Kamath and Steinke 2020, arXiv:2004.00010, at the best order."""
    orders = np.array(ORDERS)
    if delta <= 0:
        return 0.0 if not total.any() else math.inf
    if np.any(np.expm1(-total) + delta**2 > 0):  # by way of Kullback and Leibler: δ ≤ √(1 − e^−KL)
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        found = total + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(np.min(np.where(np.isnan(found), np.inf, found))))


def _pure(epsilon: float, orders: Array) -> Array:
    """The answer to a yes-or-no question: the most that any ε-private one diverges."""
    up, down = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    both = np.logaddexp(orders * up + (1 - orders) * down, orders * down + (1 - orders) * up)
    return np.minimum(epsilon, np.maximum(both, 0.0) / (orders - 1))


def _whole(release: Release) -> bool:
    return release.mechanism == "tree" or release.sampling == "shuffled"


def _one(release: Release) -> Release:
    if _whole(release):
        return release
    return Release(release.mechanism, release.noise, release.sampling, release.rate, 1, release.population)


def _event(kind: str, noise: float, relation: str, rate: float | None = None) -> Array:
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
    accountant = RdpAccountant(list(ORDERS), getattr(dp.NeighboringRelation, relation))
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
