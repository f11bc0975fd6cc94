"""GeoDA: as if the boundary were a plane, whose normal is estimated from labels."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import Walk, begin, starts

_GROWTH = 1.4  # near the paper's best ratio, 0.6 ** (-2 / 3)
_WIDENINGS = 3  # in so many equal factors the way is followed up to twice the distance known
_PROBE = 0.1  # of the distance: how far from the boundary labels are asked for
_RESERVE = 14  # queries kept to find the boundary along a new direction


@attack(
    question="How near does an adversary come by labels alone if the boundary is nearly flat?",
    access=Access.LABEL,
    paper="Rahmati et al. 2020, arXiv:2003.06468",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l2", "linf", "l1"),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def geoda(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, directions: int = 40, draws: int = 50,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Estimate the normal of the boundary from labels and go from x in the direction that reaches that plane soonest.

    Each estimate spends 1.4 times the queries of the one before. The way to the plane is the threat's own: along the normal for
    L2, its signs for Linf, its largest features for L1, each turning aside where the box ends.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, Linf or L1, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        directions: labels spent on the first estimate.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of starts and directions.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "geoda", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, delta = starts(walk, start, draws, noise)
    delta = walk.bisect(delta, 10)
    step = 0
    while True:
        count = walk.affordable(torch.full_like(walk.left, int(directions * _GROWTH**step)), _RESERVE)
        going = count > 0
        walk, delta, count = walk.at(going), delta[going], count[going]
        if not len(walk):
            return record.best
        delta = _meet(walk, delta, walk.direction(delta, delta.norm(dim=1) * _PROBE, count, noise))
        step += 1


def _meet(walk: Walk, delta: Tensor, normal: Tensor) -> Tensor:
    """Return where the way to the plane leaves the clean region, (n, features); delta where that is beyond twice its size."""
    def path(radius: Tensor) -> Tensor:
        return geometry.MAXIMISE[walk.norm](normal, radius, walk.low, walk.high)

    reach, met = walk.size(delta), torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
    for _ in range(_WIDENINGS + 1):
        rows = (~met & (walk.left > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        met[rows[walk.ask(path(reach)[rows], rows)]] = True
        reach = torch.where(met, reach, reach * 2 ** (1 / _WIDENINGS))
    return torch.where(met[:, None], path(walk.pull(path, reach, met)), delta)
