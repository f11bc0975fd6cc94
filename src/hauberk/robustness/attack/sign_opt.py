"""Sign-OPT: the direction whose boundary is nearest, by the signs of its slope, from labels alone."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import TIGHT, Walk, begin, starts

_PROBE = 0.01  # length of the changes of direction that are tried, for directions of length 1
_SHORTEST, _FINEST = 0.005, 1e-5  # step length, and relative precision of a radius
_TRIALS = 4  # step lengths tried before a new slope is estimated


@attack(
    question="How near does gradient descent on the distance itself come, by labels alone?",
    access=Access.LABEL,
    paper="Cheng et al. 2020, arXiv:1909.10773",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l2",),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def sign_opt(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, directions: int = 40, draws: int = 50,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Descend on the distance of the boundary as a function of the direction, with one label for the sign of each slope.

    Every sample keeps its own budget and step length: its result does not depend on the others in the batch.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        directions: changes of direction tried for one slope.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of starts and directions.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "sign opt", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, delta = starts(walk, start, draws, noise)
    radius = walk.size(delta)
    way, everybody = _unit(delta), torch.ones_like(radius, dtype=torch.bool)
    radius = walk.pull(lambda r: walk.clamp(way * r[:, None]), radius, everybody)
    length, tight = torch.full_like(radius, 0.2), torch.full_like(radius, TIGHT)
    while True:
        count = walk.affordable(torch.full_like(walk.left, directions), _TRIALS + 8)
        going = count > 0
        walk, way, radius, length, count = walk.at(going), way[going], radius[going], length[going], count[going]
        tight = tight[going]
        if not len(walk):
            return record.best
        # All on one sphere around x: an adversarial answer says that the boundary lies nearer that way.
        slope = -walk.direction(walk.clamp(way * radius[:, None]), _PROBE * radius, count, noise, equidistant=True)
        way, radius, length, tight = _descend(walk, way, radius, slope, length, tight)


def _unit(way: Tensor) -> Tensor:
    return way / way.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _descend(
    walk: Walk, way: Tensor, radius: Tensor, slope: Tensor, length: Tensor, tight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return directions, radii, step lengths and precision after a few steps down the slope: longer ones while they gain."""
    base, before, gained = way, length, torch.zeros_like(radius, dtype=torch.bool)
    searching = torch.ones_like(gained)
    for _ in range(_TRIALS):
        rows = (searching & (walk.left > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        tried = _unit(base - length[:, None] * slope)
        nearer, hit = radius * (1 - 2 * tight), torch.zeros_like(gained)
        hit[rows] = walk.ask(walk.clamp(tried * nearer[:, None])[rows], rows)
        way, radius = torch.where(hit[:, None], tried, way), torch.where(hit, nearer, radius)
        line = way  # bound now: the path is asked about within this turn alone
        radius = walk.pull(lambda r, line=line: walk.clamp(line * r[:, None]), radius, hit, tight)  # type: ignore[misc]
        searching &= hit | ~gained
        length = torch.where(hit, length * 1.5, torch.where(searching, length / 3, length))
        gained |= hit
    # A slope that led nowhere may have been a poor one: the next gets a fair chance. Near the end gains become small: they are
    # looked for with more precision.
    tight = torch.where(gained, tight, tight / 2).clamp(min=_FINEST)
    return way, radius, torch.where(gained, length, before / 1.5).clamp(_SHORTEST, 2.0), tight
