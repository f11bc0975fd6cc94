"""Salt and pepper: the fewest random features at the ends of their range that change the answer."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import begin, cut, speckles


@attack(
    question="How many features at the ends of their range does it take if they are chosen at random?",
    access=Access.LABEL,
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l0",),
    goals=LABEL_GOALS,
)
def salt_and_pepper(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, seed: int = 0
) -> Tensor:
    """Set random features to random ends of their range: in every order drawn the fewest that change the answer.

    An order is first tried with one feature less than the best so far; only one that succeeds is bisected further.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        seed: of orders and ends.

    Returns:
        The adversarial point with the fewest changed features seen for each sample, shape (n, ...). Samples that reach the goal
        undisturbed come back as they are after one query, and so do those for which none was found.
    """
    noise = generator(seed, "salt and pepper", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk = walk.at(walk.rows())
    room = walk.free.sum(1)
    state = _State(walk.low.long(), walk.low, room + 1, room * 0, room + 1, torch.ones_like(room, dtype=torch.bool))
    first = True
    while len(walk):
        fresh, room = state.fresh, walk.free.sum(1)
        if bool(fresh.any()):
            rank, ends = speckles(walk, noise)
            state.rank = torch.where(fresh[:, None], rank, state.rank)
            state.ends = torch.where(fresh[:, None], ends, state.ends)
        anyhow = room if first else (room * uniform(walk.low[:, 0], noise)).long() + 1
        due = torch.where(state.best > room, anyhow, state.best - 1)
        count = torch.where(fresh, due, (state.low + state.high) // 2)
        hit = walk.ask(torch.where(state.rank < count[:, None], state.ends, 0))
        state.low = torch.where(fresh, 0, torch.where(hit, state.low, count))
        state.high = torch.where(hit, count, state.high)
        state.best = torch.where(hit, count.minimum(state.best), state.best)
        state.fresh = (fresh & ~hit) | (state.high - state.low <= 1)
        going, first = (walk.left > 0) & (state.best > 1), False
        if not bool(going.all()):
            walk, state = walk.at(going), cut(state, going)
    return record.best


@dataclasses.dataclass
class _State:
    rank: Tensor  # the order in which features are set, (n, features)
    ends: Tensor  # and to what
    best: Tensor  # fewest features that changed the answer, (n,)
    low: Tensor  # numbers between which the answer turns in this order
    high: Tensor
    fresh: Tensor  # whether another order is due
