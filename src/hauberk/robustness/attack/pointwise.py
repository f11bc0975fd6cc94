"""Pointwise: changed features go back to their clean values as long as the answer stays wrong."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import Walk, begin, cut, speckles, starts


@attack(
    question="How few features need to change, found by labels alone?",
    access=Access.LABEL,
    paper="Schott et al. 2019, arXiv:1805.09190",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l0",),
    goals=LABEL_GOALS,
)
def pointwise(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, draws: int = 50, start: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Start from a point far away and reset features to their clean values, in random order, while the label stays wrong.

    Features are first reset by halves, then by ever smaller groups, one by one at last: a pass over many features costs few
    queries. Where no single feature can be reset any more, the search starts again from another random point.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of starts and orders.

    Returns:
        The adversarial point with the fewest changed features seen for each sample, shape (n, ...). Samples that reach the goal
        undisturbed come back as they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "pointwise", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, delta = starts(walk, start, draws, noise, _speckled)
    none = torch.zeros_like(walk.samples)
    state = _State(delta, delta.long(), none, none, none, none.bool(), none.bool())
    state = _pass(state, none == 0, none == 0, noise)
    while len(walk):
        end = state.place + state.size
        window = (state.rank >= state.place[:, None]) & (state.rank < end[:, None])
        tried = torch.where(window, 0, state.delta)
        if bool(state.starting.any()):
            tried = torch.where(state.starting[:, None], _speckled(walk, 1, noise), tried)
        hit = walk.ask(tried)
        state.delta = torch.where(hit[:, None], tried, state.delta)
        begun, pruning = state.starting & hit, ~state.starting
        state.reset, state.place = state.reset | (pruning & hit), torch.where(pruning, end, state.place)
        over = pruning & (state.place >= state.count)
        again = begun | (over & ((state.size > 1) | state.reset))
        state.starting = (state.starting & ~hit) | (over & ~again)
        if bool(again.any()):
            state = _pass(state, again, begun, noise)
        going = (walk.left > 0) & (record.distance[walk.samples] > 1)
        if not bool(going.all()):
            walk, state = walk.at(going), cut(state, going)
    return record.best


@dataclasses.dataclass
class _State:
    delta: Tensor  # adversarial, (n, features)
    rank: Tensor  # the order in which changed features are reset
    count: Tensor  # how many there are in this pass, (n,)
    place: Tensor  # how far the pass has come
    size: Tensor  # how many are reset at once
    reset: Tensor  # whether this pass has reset any
    starting: Tensor  # whether another start is due


def _pass(state: _State, again: Tensor, begun: Tensor, noise: torch.Generator) -> _State:
    """Return the state at a new pass over what is still changed, where one is due `again`; by halves where just `begun`."""
    changed = state.delta != 0
    rank = torch.where(changed, uniform(state.delta, noise), 2).argsort(1).argsort(1)
    count = torch.where(again, changed.sum(1), state.count)
    return dataclasses.replace(
        state, rank=torch.where(again[:, None], rank, state.rank), count=count, place=state.place * ~again,
        size=torch.where(again, (torch.where(begun, count, state.size) + 1) // 2, state.size), reset=state.reset & ~again,
    )


def _speckled(walk: Walk, turn: int, noise: torch.Generator) -> Tensor:
    """Return samples with a random share of their features at random ends of their range; the whole of them at first."""
    rank, ends = speckles(walk, noise)
    share = uniform(walk.low[:, :1], noise) if turn else torch.ones_like(walk.low[:, :1])
    return torch.where(rank < (share * walk.free.sum(1, keepdim=True)).ceil(), ends, 0)
