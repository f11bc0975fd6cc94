"""Empirical robustness: the size of the least change found, relative to the sample."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from hauberk.core import geometry
from hauberk.core.card import registry
from hauberk.core.errors import UsageError
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Threat
from hauberk.robustness.evaluate.figure import Figure, mean, median


@dataclasses.dataclass(frozen=True)
class EmpiricalRobustness:
    """The least changes found.

    Arguments:
        relative: mean size of the change over that of the sample, over the samples that were right and that it broke.
        absolute: median size of the change over all samples that were right; those never broken count as infinitely far.
        broken: how many were broken, of `right` that could be.
        distance: of each sample, shape (n,), float64; 0 where the answer was wrong already, infinite where none was found.
    """

    relative: Figure
    absolute: Figure
    broken: int
    right: int
    distance: Tensor


def empirical_robustness(
    target: Target | nn.Module, x: Tensor, y: Tensor, *, norm: str = "l2", attack: str = "deepfool"
) -> EmpiricalRobustness:
    """Measure how far the least adversarial change goes (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599).

    Arguments:
        target: with the access the attack needs.
        x: inputs, shape (n, ...).
        y: true labels, shape (n,).
        norm: of the change and of the sample; `l0` is relative to the number of features.
        attack: an attack of minimum norm, as the paper has it DeepFool; a stronger one gives a smaller, truer figure.

    Raises:
        UsageError: for an attack that does not seek the nearest example.
    """
    card, target = registry.get(attack, "attack"), as_target(target)
    if not card.facts["minimum_norm"]:
        known = [one.name for one in registry.cards("attack") if one.facts["minimum_norm"] and norm in one.facts["norms"]]
        raise UsageError(f"{attack} does not seek the nearest example", want=" | ".join(sorted(known)))
    bounds = target.bounds if target.bounds is not None else (0.0, 1.0)
    threat = Threat(norm, math.inf, bounds)
    z = card.function(target, x, y, threat)
    right, broken = target.labels(x) == y, target.labels(z) != y
    distance = torch.where(broken, threat.distance(z, x), math.inf)
    distance = torch.where(right, distance, 0.0)
    # A sample that is all zero has no size to be relative to; `mean` leaves the infinite ratio out.
    size = float(x[0].numel()) if norm == "l0" and len(x) else geometry.norms(x.double().flatten(1), norm)
    hit = right & broken
    return EmpiricalRobustness(mean((distance / size)[hit]), median(distance[right]), int(hit.sum()), int(right.sum()), distance)
