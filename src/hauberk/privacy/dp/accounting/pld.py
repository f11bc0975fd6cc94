"""Privacy loss distributions of releases: pessimistic, so that rounding only ever adds to ε, and bounded in time and memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from hauberk.privacy.dp.accounting import profiles
from hauberk.privacy.dp.accounting.losses import Losses, TooWide, Unsound, compose, connect
from hauberk.privacy.dp.accounting.release import MOST, Release

FINEST = 1e-4  # the width of a step of the loss that dp-accounting's own default has
ROOM = 1 << 20  # points of all grids, and of all transforms, together: bounds time to about a second and memory to some 100 MB
MOST_DISTINCT = 128
Profile = Callable[[profiles.Array], profiles.Array]
LEAST_DELTA = 1e-11  # below it the rounding of the Fourier transforms is no longer small beside δ
LARGEST = 500.0  # an ε above which nothing is protected and a distribution would only fill memory
LOST = 4e-16  # of δ, per release composed: more than a power of a transform loses by rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Composed:
    """The losses of all releases, in one direction or both.

    Arguments:
        sides: a record removed, and a record added where that differs.
        slack: by how much rounding may have lowered δ.
    """

    sides: tuple[Losses, ...]
    slack: float

    def epsilon(self, delta: float) -> float:
        """Return ε at δ, upward; infinite where δ drowns in rounding."""
        return max(one.epsilon(delta - self.slack) for one in self.sides) if self.slack < delta / 2 else math.inf

    def delta(self, epsilon: float) -> float:
        """Return δ at ε, upward."""
        return min(1.0, max(one.delta(epsilon) for one in self.sides) + self.slack)


def composed(releases: Sequence[Release], relation: str, delta: float = 1e-10) -> Composed:
    """Return the privacy losses of all releases together, one after the other, each chosen in view of the others.

    Arguments:
        releases: private ones that give something away.
        relation: `add-remove` or `replace-one`.
        delta: the least δ that is asked about: far less of each loss is cut off, and counted as infinite.

    Raises:
        Unsound: where double precision does not hold the composition.
    """
    distinct = thinned(releases)
    count = sum(one.count for one in distinct)
    far = float(-ndtri(min(1e-4, max(1e-23, 1e-5 * delta / count))))
    spreads = [min(_deviation(one, relation), _width(one, relation, far) / 4) for one in distinct]
    total = math.sqrt(sum(one.count * spread**2 for one, spread in zip(distinct, spreads, strict=True)))
    # A grid adds up to step²/4 to the variance of each loss: a twentieth of the usual deviation adds a thousandth.
    step = min(FINEST, max(total / math.sqrt(count) / 20, 1e-12))
    step = max(step, 2 * sum(_width(one, relation, far) for one in distinct) / ROOM, 17 * total * 2 * len(distinct) / (2 * ROOM))
    for _ in range(40):
        try:
            return _all(tuple(distinct), relation, step, far)
        except TooWide:
            step *= 2
    raise Unsound("no grid holds the losses")


@functools.lru_cache(maxsize=8)
def _all(distinct: tuple[Release, ...], relation: str, step: float, far: float) -> Composed:
    parts = [(_single(_alone(one), relation, step, far), 1 if gathers(one) else one.count) for one in distinct]
    both = max(len(sides) for sides, _ in parts)
    most = max(1 << 15, 2 * ROOM // len(distinct))
    made = tuple(compose([(sides[min(k, len(sides) - 1)], count) for sides, count in parts], most) for k in range(both))
    for one in made:
        if not 0 <= one.delta(0.0) <= 1 + 1e-9:
            raise Unsound(f"δ(0) is {one.delta(0.0)}")
    return Composed(made, LOST * sum(count for _, count in parts))


def thinned(releases: Sequence[Release], *, most: int = MOST_DISTINCT) -> list[Release]:
    """Return releases that lose at least as much, of few distinct kinds: near ones are taken to be the one that loses the most.

    Gaussian noise without amplification adds up to one Gaussian release, exactly.
    """
    merged: dict[Release, int] = {}
    power = 0.0
    for one in releases:
        if gathers(one):
            power += spread(one) / one.noise**2
        else:
            merged[_alone(one, 0)] = merged.get(_alone(one, 0), 0) + one.count
    gathered = [Release("gaussian", 1 / math.sqrt(power))] if power > 0 else []
    room, ratio = max(1, most - len(gathered)), 1.0005
    known = merged
    while len(merged) > room and ratio < 1e6:
        merged = _rounded(known, ratio)
        ratio = 1 + 1.5 * (ratio - 1)
    return [*gathered, *(dataclasses.replace(key, count=min(count, MOST)) for key, count in merged.items())]


def _rounded(kinds: dict[Release, int], ratio: float) -> dict[Release, int]:
    """Return kinds whose noises and rates lie within a ratio as one: the least noise (the greatest ε), the greatest rate."""
    groups: dict[tuple[object, ...], tuple[float, float, int]] = {}
    scale = 1 / math.log(ratio)
    for one, count in kinds.items():
        key = (one.mechanism, one.sampling, math.floor(math.log(one.noise) * scale), math.floor(math.log(one.rate) * scale))
        noise, rate, held = groups.get(key, (one.noise, one.rate, 0))
        noise = max(noise, one.noise) if one.is_pure else min(noise, one.noise)
        groups[key] = (noise, max(rate, one.rate), held + count)
    return {Release(str(key[0]), noise, str(key[1]), rate, 0): count for key, (noise, rate, count) in groups.items()}


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
    # Randomised response answers about a replaced label; every other ε is that of a record added or removed.
    away = 1.0 if release.mechanism == "randomized-response" else distance(relation)
    if release.sampling == "full" or release.rate == 1 or epsilon > 700:
        return epsilon * away
    q = release.rate
    grown = math.log1p(q * math.expm1(epsilon))
    return grown if away == 1 else grown - math.log1p(q * math.expm1(-epsilon))


def _alone(release: Release, count: int = 1) -> Release:
    if gathers(release) and count:
        return release
    return Release(release.mechanism, release.noise, release.sampling, release.rate, count, release.population)


def gathers(release: Release) -> bool:
    """Whether all its releases together are one Gaussian: exact, and cheaper than composing."""
    return release.mechanism in ("gaussian", "tree") and (release.sampling in ("full", "shuffled") or release.rate == 1)


def spread(release: Release) -> float:
    """Return the releases of a Gaussian kind that one record is part of."""
    if release.mechanism == "tree":
        assert release.population is not None
        return release.count * release.population.bit_length()  # the nodes above a leaf, itself included
    return release.participations if release.sampling == "shuffled" else release.count


def _width(release: Release, relation: str, far: float) -> float:
    """Return how wide a range the loss of one release has, both directions together."""
    if gathers(release):
        sigma = release.noise / math.sqrt(spread(release)) / distance(relation)
        return 2 * far / sigma + 1 / sigma**2
    if pure_epsilon(release, relation) < math.inf:
        return 2 * pure_epsilon(release, relation)
    return sum(high - low for low, high in _ranges(release, relation, far))


def _deviation(release: Release, relation: str) -> float:
    """Return about how far the loss of one release strays."""
    if pure_epsilon(release, relation) < math.inf:
        return pure_epsilon(release, relation)
    if gathers(release):
        return math.sqrt(spread(release)) * distance(relation) / release.noise
    power = 1 / _sigma(release, relation) ** 2
    return release.rate * math.sqrt(math.expm1(min(power, 60.0))) * (2 if _replaced(release, relation) else 1)


def _ranges(release: Release, relation: str, far: float) -> list[tuple[float, float]]:
    """Return the least and the greatest loss that matter of a sampled Gaussian: in each direction, or in both at once."""
    low, high = profiles.ends(release.rate, _sigma(release, relation), _replaced(release, relation), far)
    if relation == "replace-one":
        return [(low, high)]
    least = math.log1p(-release.rate) if release.rate < 1 else low
    return [(max(low, least), high), (-high, min(high, -least))]


def _replaced(release: Release, relation: str) -> bool:
    return relation == "replace-one" and release.sampling == "poisson"


def _sigma(release: Release, relation: str) -> float:
    """Return the noise of a sampled Gaussian; without replacement, the records that make room for another one move as well."""
    return release.noise / distance(relation) if release.sampling == "without-replacement" else release.noise


@functools.lru_cache(maxsize=256)
def _single(release: Release, relation: str, step: float, far: float) -> tuple[Losses, ...]:
    """Return the losses of one release, a record removed and added, or one that holds both ways."""
    away = distance(relation)
    if gathers(release):
        sigma = release.noise / math.sqrt(spread(release)) / away
        reach = far / sigma + 1 / (2 * sigma**2)
        return (_dots((-reach, reach), step, lambda grid: profiles.removed(grid, 1.0, sigma)),)
    if release.mechanism in ("laplace", "discrete-laplace") and release.sampling == "full":
        return (_laplace(release, away, step),)
    if release.mechanism != "gaussian":
        # The answer to a yes-or-no question loses the most of all that are ε-private (Kairouz et al. 2015, arXiv:1311.0776).
        return (_two_points(pure_epsilon(release, relation), step),)
    return _sampled_gaussian(release, relation, step, far)


def _laplace(release: Release, away: float, step: float) -> Losses:
    from dp_accounting.pld import privacy_loss_distribution as pld

    keywords: dict[str, Any] = {"value_discretization_interval": step}
    if release.mechanism == "laplace":
        made: Any = pld.from_laplace_mechanism(release.noise / away, **keywords)
    else:
        made = pld.from_discrete_laplace_mechanism(1 / release.noise, int(away), **keywords)
    reach = away / release.noise + step

    def profile(grid: profiles.Array) -> profiles.Array:
        falling = grid[0] > grid[-1]
        found = np.array(made.get_delta_for_epsilon(grid[::-1] if falling else grid))
        return found[::-1] if falling else found

    return _dots((-reach, reach), step, profile)


def _two_points(epsilon: float, step: float) -> Losses:
    """The pair of answers e^ε to 1 and 1 to e^ε, on the grid."""
    share = 1 / (1 + math.exp(-epsilon))
    return _dots((-epsilon, epsilon), step, lambda grid: share * -np.expm1(np.minimum(grid - epsilon, 0.0)))


def _sampled_gaussian(release: Release, relation: str, step: float, far: float) -> tuple[Losses, ...]:
    """The loss in both directions, or one that holds in either.

    Without replacement, with P and Q the answers at the distance of a replaced record, qP + (1−q)Q against Q dominates for ε ≥ 0
    and its mirror for ε ≤ 0, by the joint convexity of the hockey-stick divergence (Balle et al. 2018, arXiv:1807.01647; Zhu et
    al. 2022, arXiv:2106.08567). One curve above both holds in either direction, and so may be composed.
    """
    q, sigma = release.rate, _sigma(release, relation)
    ends = _ranges(release, relation, far)

    def removed(grid: profiles.Array) -> profiles.Array:
        return profiles.removed(grid, q, sigma)

    def added(grid: profiles.Array) -> profiles.Array:
        return profiles.added(grid, q, sigma)

    if _replaced(release, relation):
        return (_dots(ends[0], step, lambda grid: profiles.replaced(grid, q, sigma)),)
    if release.sampling == "without-replacement":
        return (_dots(ends[0], step, lambda grid: np.maximum(removed(grid), added(grid))),)
    return _dots(ends[0], step, removed, added), _dots(ends[1], step, added, removed)


def _dots(ends: tuple[float, float], step: float, profile: Profile, mirror: Profile | None = None) -> Losses:
    """Return the losses of a curve of δ; `mirror` is that of the two data sets changed over, None where it is the same."""
    first, last = min(-1, math.floor(ends[0] / step)), max(1, math.ceil(ends[1] / step))
    if last - first > 4 * ROOM:
        raise TooWide(f"{last - first} points")
    down = np.arange(-first, -1, -1, dtype=np.float64) * step
    # δ of P against Q at −ε is 1 − e^−ε and e^−ε times δ of Q against P at ε.
    below = np.exp(-down) * (mirror or profile)(down)
    return connect(step, first, profile(np.arange(last + 1, dtype=np.float64) * step), below)
