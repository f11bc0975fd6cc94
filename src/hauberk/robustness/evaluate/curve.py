"""Robust accuracy as a curve over the radius: from the least distance at which each sample breaks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.card import Card, registry
from hauberk.core.errors import UsageError
from hauberk.core.finding import Interval, Series
from hauberk.core.stats import wilson
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.evaluate.figure import Figure, median

_START, _GALLOP = 1 / 64, 4.0


@dataclasses.dataclass(frozen=True)
class RobustCurve:
    """Accuracy left by radius; it never rises.

    Arguments:
        radii: in rising order.
        accuracy: the share of all samples whose least distance found is beyond the radius; NaN where there are none.
        bands: Wilson's 95 % interval at each radius, pointwise.
        distance: of each sample, shape (n,), float64: 0 where the answer was wrong already, infinite where no example was found.
        how: how the distances were found.
    """

    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    bands: tuple[Interval, ...]
    distance: Tensor
    how: str

    @property
    def n(self) -> int:
        """Samples behind the curve."""
        return len(self.distance)

    @property
    def median(self) -> Figure:
        """The median distance of the samples that were right undisturbed."""
        return median(self.distance[self.distance > 0])

    def at(self, eps: float) -> Figure:
        """Return the accuracy left at any radius, listed or not."""
        held, n = int((self.distance > eps).sum()), self.n
        return Figure(held / n, n, wilson(held, n)) if n else Figure()

    def series(self, name: str) -> Series:
        """Return the curve as evidence of a finding."""
        return Series(name, self.radii, self.accuracy, [one.low for one in self.bands], [one.high for one in self.bands])


def robust_curve(
    target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, *, attack: str = "fmn",
    radii: Sequence[float] | None = None, rounds: int = 12, seed: int = 0,
) -> RobustCurve:
    """Return accuracy over the radius from the least distance per sample, every radius at once.

    Arguments:
        target, x, y: the model, inputs of shape (n, ...), and true labels (n,).
        threat: untargeted; `eps` is the farthest radius that counts, `math.inf` leaves the bounds alone.
        attack: a minimum-norm attack is run once; any other in a bisection of each sample's own radius, in rounds of one batch.
        radii: of the curve; None takes 0 and 24 steps to the farthest finite distance.
        rounds: of the bisection.
        seed: of the attack.
    """
    if threat.goal is not Goal.UNTARGETED:
        raise UsageError(f"the goal is {threat.goal.value}", want="an untargeted threat: accuracy is about the true label")
    card = registry.get(attack, "attack")
    distance = least_distances(target, x, y, threat, attack=attack, rounds=rounds, seed=seed)
    how = f"the nearest example {attack} found" if card.facts["minimum_norm"] else f"bisection with {attack}, {rounds} rounds"
    return curve_of(distance, radii=radii, how=how)


def curve_of(distance: Tensor, *, radii: Sequence[float] | None = None, how: str = "") -> RobustCurve:
    """Return the curve of distances found by any means, shape (n,): their pointwise minimum over attacks, for example."""
    finite = distance[distance.isfinite()]
    last = float(finite.max()) if len(finite) else 1.0
    grid = [last * step / 24 for step in range(25)] if radii is None else sorted(float(one) for one in radii)
    held = [int((distance > eps).sum()) for eps in grid]
    n = len(distance)
    bands = tuple(wilson(count, n) for count in held)
    return RobustCurve(tuple(grid), tuple(count / n if n else math.nan for count in held), bands, distance.double(), how)


def least_distances(
    target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, *, attack: str, rounds: int = 12, seed: int = 0,
    **options: Any,
) -> Tensor:
    """Return how far each sample is from the nearest example the attack finds, shape (n,), float64.

    It is 0 where the goal is reached undisturbed, and infinite where no example was found within `threat.eps`.

    Arguments:
        target, x, y, threat: as the attack takes them; any norm and goal it knows.
        attack: a minimum-norm attack is run once. Any other is run round by round, each sample at a radius of its own: from a
            64th of the farthest by fours until it succeeds, then halfway between the last failure and the nearest example.
        rounds: runs of an attack that has no minimum norm.
        seed: of the attack, where it takes one.
        options: of the attack.
    """
    target, card = as_target(target), registry.get(attack, "attack")
    threat = threat.within(target.bounds if target.bounds is not None else (0.0, 1.0))
    distance = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    distance[_reached(target, x, y, threat)] = 0.0
    if card.facts["minimum_norm"]:
        return _once(card, target, x, y, threat, distance, _seeded(card, seed, options))
    reach = threat.around(x).size if len(x) else distance
    whole = threat.norm == "l0"
    low, eps = torch.zeros_like(distance), reach * _START
    for number in range(rounds):
        eps = eps.round().clamp(min=1) if whole else eps
        # Nothing lies between: a failure at the very end, or no room left for halving.
        going = ((distance > 0) & (low < reach) & ((distance - low > 1) if whole else (distance > low))).nonzero()[:, 0]
        if not len(going):
            break
        tried, part = eps[going].clamp(max=reach[going]), threat.subset(going, x).with_eps(eps[going].clamp(max=reach[going]))
        given = _seeded(card, rng.derive_seed(seed, "round", number), options)
        z = card.function(target, x[going], y[going], part, **given)
        hit = _reached(target, z, y[going], part)
        distance[going[hit]] = torch.minimum(distance[going[hit]], part.distance(z[hit], x[going[hit]]))
        low[going[~hit]] = tried[~hit]
        found = distance.isfinite()
        # A farther failure than the nearest example says nothing of the room below that.
        low = torch.where(low < distance, low, 0.0)
        eps = torch.where(found, (low + distance) / 2, (low * _GALLOP).clamp(min=0).minimum(reach))
        eps = torch.where(eps > 0, eps, reach * _START)
    return distance


def _once(
    card: Card, target: Target, x: Tensor, y: Tensor, threat: Threat, distance: Tensor, options: dict[str, Any]
) -> Tensor:
    going = (distance > 0).nonzero()[:, 0]
    if not len(going):
        return distance
    part = threat.subset(going, x)
    z = card.function(target, x[going], y[going], part, **options)
    hit = _reached(target, z, y[going], part)
    distance[going[hit]] = part.distance(z, x[going])[hit]
    return distance


def _reached(target: Target, z: Tensor, y: Tensor, threat: Threat) -> Tensor:
    if threat.goal is Goal.CONFIDENCE:
        return threat.success(target.logits(z), y)
    return threat.reached(target.labels(z), y)


def _seeded(card: Card, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    return {"seed": seed, **options} if "seed" in card.options else dict(options)
