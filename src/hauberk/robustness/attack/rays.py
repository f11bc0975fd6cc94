"""RayS: the ray to a corner of the cube whose boundary is nearest, by labels alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import TIGHT, Walk, begin, cut, starts


@attack(
    question="How near does an adversary come in Linf by labels alone, with no slope estimated?",
    access=Access.LABEL,
    paper="Chen and Gu 2020, arXiv:2006.12792",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf",),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def rays(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, draws: int = 50, start: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Turn ever smaller blocks of a direction of signs round and keep each turn that brings the boundary nearer.

    A turn costs one query, at a radius a little below the best; only one that gains is followed by a search for its boundary.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        draws: random directions tried until one meets the boundary; the first is upwards everywhere.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of the directions tried first.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no direction met the boundary.
    """
    noise = generator(seed, "rays", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, ends = starts(walk, start, draws, noise, _corner)
    none = torch.zeros_like(walk.samples)
    high = walk.size(ends)
    # The first search goes on from the start itself: no block is being tried.
    state = _State(ends, ends, torch.zeros_like(high), high, torch.full_like(high, 0.5), none, none - 1)
    while len(walk):
        trying = state.step == 0
        state = _turned(walk, state, trying)
        radius = torch.where(state.low > 0, (state.low + state.high) / 2, state.high * (1 - state.step.clamp(min=2 * TIGHT)))
        hit = walk.ask(walk.clamp(state.tried.clamp(-radius[:, None], radius[:, None])))
        state.ends = torch.where(hit[:, None], state.tried, state.ends)
        state.high = torch.where(hit, radius, state.high)
        state.low = torch.where(hit, state.low, radius)
        # Ever larger steps inwards until one fails, then bisection: a small gain costs few queries.
        state.step = torch.where(state.step == 0, 4 * TIGHT, 2 * state.step).clamp(max=0.5)
        done = (trying & ~hit) | (state.high - state.low <= TIGHT * state.high)
        state.low, state.step = torch.where(done, 0, state.low), torch.where(done, 0, state.step)
        if bool((walk.left <= 0).any()):
            going = walk.left > 0
            walk, state = walk.at(going), cut(state, going)
    return record.best


@dataclasses.dataclass
class _State:
    ends: Tensor  # where the best ray leads, (n, features)
    tried: Tensor  # where the ray being tried leads
    low: Tensor  # radii between which its boundary lies, (n,)
    high: Tensor
    step: Tensor  # share of the radius of the next step inwards; 0: another block is due
    level: Tensor  # the features are cut into 2^level blocks
    block: Tensor  # the one being tried


def _turned(walk: Walk, state: _State, due: Tensor) -> _State:
    """Return the state with the next block turned round where one is due: towards the other end of each feature's room."""
    width = walk.free.sum(1).clamp(min=1)
    block = torch.where(due, state.block + 1, state.block)
    size = torch.div(width + (1 << state.level) - 1, 1 << state.level, rounding_mode="floor")
    over = due & (block * size >= width)
    finest = size <= 1  # there the features are gone through again and again
    level = torch.where(over & ~finest, state.level + 1, state.level)
    block = torch.where(over, 0, block)
    size = torch.div(width + (1 << level) - 1, 1 << level, rounding_mode="floor")
    place = torch.where(walk.free, walk.free.cumsum(1) - 1, -1)  # among the features that may change
    inside = (place >= (block * size)[:, None]) & (place < ((block + 1) * size)[:, None])
    other = torch.where(state.ends > 0, walk.low, walk.high)
    turned = torch.where(inside, other, state.ends)
    tried = torch.where(due[:, None], turned, state.tried)
    return dataclasses.replace(state, tried=tried, level=level, block=block)


def _corner(walk: Walk, turn: int, noise: torch.Generator) -> Tensor:
    """Return a corner of the room of each sample: the uppermost first, as in the paper, then random ones."""
    up = uniform(walk.low, noise) < 0.5
    return walk.high.clone() if turn == 0 else torch.where(up, walk.high, walk.low)
