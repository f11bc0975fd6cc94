"""Privacy loss distributions, by dp-accounting: pessimistic, so that rounding only ever adds to ε."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hauberk.privacy.dp.accounting import profiles
from hauberk.privacy.dp.accounting.release import Release

FINEST = 1e-4  # the width of a step of the loss that dp-accounting's own default has
MOST_STEPS = 1 << 17  # of one release; wider losses are rounded upward to a coarser grid, which holds the finer one's bound
MOST_DISTINCT = 64
KINDS = 5
LEAST_DELTA = 1e-11  # below it the rounding of the Fourier transforms is no longer small beside δ
LARGEST = 500.0  # an ε above which nothing is protected and a distribution would only fill memory


def composed(releases: Sequence[Release], relation: str) -> Any:
    """Return the privacy loss distribution of all releases together, one after the other, each chosen in view of the others.

    Arguments:
        releases: private ones that give something away.
        relation: `add-remove` or `replace-one`.
    """
    distinct = thinned(releases)
    # Kinds beyond a few make it dearer, and a grid twice as coarse makes it cheaper and errs upward, by some hundredths of 1 %.
    step = FINEST * 2 ** max(0, math.ceil(math.log2(len(distinct) / KINDS)))
    for one in distinct:
        while _width(one, relation) > step * MOST_STEPS:
            step *= 2
    total = None
    # A moment that overflows bounds no tail, and another one is taken.
    with np.errstate(all="ignore"):
        for one in distinct:
            part = _single(_alone(one), relation, step)
            part = part if one.count == 1 or _gathers(one) else part.self_compose(one.count)
            total = part if total is None else total.compose(part)
    return total


def thinned(releases: Sequence[Release], *, most: int = MOST_DISTINCT) -> list[Release]:
    """Return releases that lose at least as much, of few distinct kinds: a decaying noise is rounded down to a grid of ratios."""
    merged: dict[Release, int] = {}
    for one in releases:
        merged[_alone(one, 0)] = merged.get(_alone(one, 0), 0) + one.count
    ratio = 1.0005
    while len(merged) > most and ratio < 2:
        rounded: dict[Release, int] = {}
        for one, count in merged.items():
            # An ε is rounded up, a noise down: towards the greater loss.
            power = math.log(one.noise) / math.log(ratio)
            power = math.ceil(power - 1e-9) if one.is_pure else math.floor(power + 1e-9)
            noise = max(one.noise, ratio**power) if one.is_pure else min(one.noise, ratio**power)
            key = Release(one.mechanism, noise, one.sampling, one.rate, 0, one.population)
            rounded[key] = rounded.get(key, 0) + count
        if len(rounded) <= most:
            merged = rounded
            break
        ratio = 1 + 2 * (ratio - 1)
    return [Release(key.mechanism, key.noise, key.sampling, key.rate, count, key.population) for key, count in merged.items()]


def distance(relation: str) -> float:
    """Return how far neighbouring data sets move an answer, in units of what one record adds."""
    return 2.0 if relation == "replace-one" else 1.0


def pure_epsilon(release: Release, relation: str) -> float:
    """Return the ε of one release that is private without a δ; infinity for any other."""
    if release.is_pure:
        epsilon = release.noise
    elif release.mechanism in ("laplace", "discrete-laplace") and release.noise > 0:
        epsilon = 1 / release.noise
    else:
        return math.inf
    away = 1.0 if release.is_pure else distance(relation)
    if release.sampling == "full" or release.rate == 1 or epsilon > 700:
        return epsilon * away
    q = release.rate
    grown = math.log1p(q * math.expm1(epsilon))
    return grown if away == 1 else grown - math.log1p(q * math.expm1(-epsilon))


def _alone(release: Release, count: int = 1) -> Release:
    if _gathers(release) and count:
        return release
    return Release(release.mechanism, release.noise, release.sampling, release.rate, count, release.population)


def _gathers(release: Release) -> bool:
    """Whether all its releases together are one Gaussian: exact, and cheaper than composing."""
    return release.mechanism in ("gaussian", "tree") and (release.sampling in ("full", "shuffled") or release.rate == 1)


def spread(release: Release) -> float:
    """Return the releases of a Gaussian kind that one record is part of."""
    if release.mechanism == "tree":
        assert release.population is not None
        return release.count * release.population.bit_length()  # the nodes above a leaf, itself included
    return release.participations if release.sampling == "shuffled" else release.count


def _width(release: Release, relation: str) -> float:
    """Return how wide a range the loss of one release has."""
    away = distance(relation)
    if _gathers(release):
        sigma = release.noise / math.sqrt(spread(release)) / away
        return 20 / sigma + 1 / sigma**2
    if pure_epsilon(release, relation) < math.inf:
        return 2 * pure_epsilon(release, relation)
    low, high = profiles.ends(release.rate, _sigma(release, relation), _replaced(release, relation))
    return high - low


def _replaced(release: Release, relation: str) -> bool:
    return relation == "replace-one" and release.sampling == "poisson"


def _sigma(release: Release, relation: str) -> float:
    """Return the noise of a sampled Gaussian; without replacement, the records that make room for another one move as well."""
    return release.noise / distance(relation) if release.sampling == "without-replacement" else release.noise


@functools.lru_cache(maxsize=64)
def _single(release: Release, relation: str, step: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    away, keywords = distance(relation), {"value_discretization_interval": step}
    if _gathers(release):
        return pld.from_gaussian_mechanism(release.noise / math.sqrt(spread(release)) / away, **keywords)
    if release.mechanism == "discrete-laplace" and release.sampling == "full":
        return pld.from_discrete_laplace_mechanism(1 / release.noise, int(away), **keywords)
    if release.mechanism == "laplace" and (release.sampling == "full" or away == 1):
        return pld.from_laplace_mechanism(release.noise / away, sampling_prob=release.rate, **keywords)
    if release.mechanism != "gaussian":
        # The answer to a yes-or-no question loses the most of all that are ε-private (Kairouz et al. 2015, arXiv:1311.0776).
        return _two_points(pure_epsilon(release, relation), step)
    return _sampled_gaussian(release, relation, step)


def _two_points(epsilon: float, step: float) -> Any:
    """The pair of answers e^ε to 1 and 1 to e^ε, on the grid, connected by the dots of its δ between."""
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    ends = sorted({rounded(sign * epsilon / step) for sign in (-1, 1) for rounded in (math.floor, math.ceil)})
    grid = np.array(ends, dtype=float) * step
    inside = np.clip(np.expm1(np.minimum(grid - epsilon, 0.0)) / -(1 + math.exp(-epsilon)), 0.0, 1.0)
    deltas = np.where(grid <= -epsilon, -np.expm1(np.minimum(grid, 0.0)), inside)
    return pld.PrivacyLossDistribution(pld_pmf.create_pmf_pessimistic_connect_dots(step, ends, deltas))


def _sampled_gaussian(release: Release, relation: str, step: float) -> Any:
    """The loss in both directions, or one that holds in either.

    Without replacement, with P and Q the answers at the distance of a replaced record, qP + (1−q)Q against Q dominates for ε ≥ 0
    and its mirror for ε ≤ 0, by the joint convexity of the hockey-stick divergence (Balle et al. 2018, arXiv:1807.01647; Zhu et
    al. 2022, arXiv:2106.08567). One curve above both holds in either direction, and so may be composed.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    q, sigma = release.rate, _sigma(release, relation)
    low, high = profiles.ends(q, sigma, _replaced(release, relation))
    if _replaced(release, relation):
        return pld.PrivacyLossDistribution(_dots(low, high, step, lambda grid: profiles.replaced(grid, q, sigma)))
    if release.sampling == "without-replacement":
        return pld.PrivacyLossDistribution(_dots(
            low, high, step, lambda grid: np.maximum(profiles.removed(grid, q, sigma), profiles.added(grid, q, sigma))
        ))
    return pld.PrivacyLossDistribution(
        _dots(low, high, step, lambda grid: profiles.removed(grid, q, sigma)),
        _dots(low, high, step, lambda grid: profiles.added(grid, q, sigma)),
    )


def _dots(low: float, high: float, step: float, profile: Callable[[profiles.Array], profiles.Array]) -> Any:
    from dp_accounting.pld import pld_pmf

    first, last = math.floor(low / step), math.ceil(high / step)
    deltas = np.clip(profile(np.arange(first, last + 1, dtype=np.float64) * step), 0.0, 1.0)
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(step, first, last, np.minimum.accumulate(deltas))
