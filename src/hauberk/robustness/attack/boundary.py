"""Boundary attack: a random walk along the decision boundary towards the clean input, by labels alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator, normal
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.decision import Walk, begin, cut, starts

_FIRST = 0.1  # of the distance: both kinds of steps at the beginning
_PACE = 1.1  # by how much one answer changes the size of a step


@attack(
    question="Does a plain random walk along the boundary, led by labels alone, come near?",
    access=Access.LABEL,
    paper="Brendel et al. 2018, arXiv:1712.04248",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l2",),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def boundary(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, draws: int = 50,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Walk at random along the sphere around x and, wherever the point stays adversarial, take a step towards x.

    Both kinds of steps grow and shrink with their success, so that about half of the sideways steps and a quarter of those
    inwards succeed, for each sample by itself.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of starts and steps.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "boundary", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, delta = starts(walk, start, draws, noise)
    steps = delta.new_full((len(delta),), _FIRST)
    state = _State(walk.bisect(delta, 10), steps, steps, torch.zeros_like(walk.samples, dtype=torch.bool))
    going = walk.left > 0
    walk, state = walk.at(going), cut(state, going)
    while len(walk):
        tried = torch.where(state.inwards[:, None], state.delta * (1 - state.gain)[:, None], _aside(walk, state, noise))
        hit = walk.ask(tried)
        state.delta = torch.where(hit[:, None], tried, state.delta)
        pace, sideways = torch.where(hit, _PACE, 1 / _PACE).to(steps), ~state.inwards
        # Inwards one in four is to succeed: a success has to outweigh three failures.
        state.side = torch.where(sideways, state.side * pace, state.side).clamp(1e-7, 1.0)
        state.gain = torch.where(sideways, state.gain, state.gain * torch.where(hit, pace**3, pace)).clamp(1e-7, 0.5)
        state.inwards = sideways & hit  # a step inwards follows every step aside that stays adversarial
        if bool((walk.left <= 0).any()):
            going = walk.left > 0
            walk, state = walk.at(going), cut(state, going)
    return record.best


@dataclasses.dataclass
class _State:
    delta: Tensor  # adversarial, (n, features)
    side: Tensor  # length of the steps aside and inwards, in shares of the distance, (n,)
    gain: Tensor
    inwards: Tensor  # whether the next step goes inwards


def _aside(walk: Walk, state: _State, noise: torch.Generator) -> Tensor:
    """Return the points moved at random on the sphere around x that they lie on, inside the box."""
    size = state.delta.norm(dim=1, keepdim=True).clamp(min=1e-12)
    drawn = normal(state.delta, noise) * walk.free
    unit = state.delta / size
    drawn = drawn - (drawn * unit).sum(1, keepdim=True) * unit
    moved = unit + state.side[:, None] * drawn / drawn.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return walk.clamp(moved / moved.norm(dim=1, keepdim=True) * size)
