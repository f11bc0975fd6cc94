"""HopSkipJump: the nearest adversarial example, by labels alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import Walk, begin, starts

_HALVINGS = 12


@attack(
    question="How near can an adversary come that sees labels alone?",
    access=Access.LABEL,
    paper="Chen et al. 2020, arXiv:1904.02144",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="quick",
    norms=("l2", "linf"),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def hop_skip_jump(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, directions: int = 50, draws: int = 50,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Walk along the decision boundary towards x, with the boundary's direction estimated from labels.

    Every sample keeps its own budget, steps and direction: its result does not depend on the others in the batch.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2 or Linf, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        directions: directions tried for the first estimate; the t-th tries sqrt(t) times as many.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of starts and directions.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "hop skip jump", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, delta = starts(walk, start, draws, noise)
    width = x[0].numel() if len(x) else 1
    precision = max(width**-1.5 if threat.norm == "l2" else width**-2.0, 1e-6)
    halvings = math.ceil(-math.log2(min(precision, 0.5)))
    delta = walk.bisect(delta, halvings)
    step = 1
    while True:
        wanted = torch.full_like(walk.left, int(directions * math.sqrt(step)))
        count = walk.affordable(wanted, halvings + 2)
        going = count > 0
        walk, delta, count = walk.at(going), delta[going], count[going]
        if not len(delta):
            return record.best
        distance = walk.size(delta)
        # The paper probes at a tenth of the range at first, then at d^-1 of the distance.
        probe = 0.1 * _extent(walk, delta) if step == 1 else distance / width
        way = walk.direction(delta, probe, count, noise)
        delta = walk.bisect(_jump(walk, delta, way, distance / math.sqrt(step)), halvings)
        step += 1


def _extent(walk: Walk, delta: Tensor) -> Tensor:
    """The widest range of any feature, (n,); never beyond the reach of the change, which matters where bounds are infinite."""
    return (walk.high - walk.low).amax(1).minimum(2 * delta.abs().amax(1))


def _jump(walk: Walk, delta: Tensor, way: Tensor, length: Tensor) -> Tensor:
    """Return changes moved along `way` by the longest of length, length / 2, length / 4, ... that stays adversarial."""
    way = way.sign() if walk.norm == "linf" else way
    moved, waiting = delta.clone(), torch.ones(len(delta), dtype=torch.bool, device=delta.device)
    for _ in range(_HALVINGS):
        rows = (waiting & (walk.left > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        tried = walk.clamp(delta + way * length[:, None])[rows]
        hit = walk.ask(tried, rows)
        moved[rows[hit]], waiting[rows[hit]] = tried[hit], False
        length = length / 2
    return moved
