"""SurFree: circles through the clean input and random directions instead of estimates of a slope, by labels alone."""

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

_ANGLES = (1.0, -1.0, 0.5, -0.5)  # of the widest angle, in the order they are tried
_HALVINGS = 5
_WIDEST = 0.5  # radians, at the beginning
_FRESH = -1
_PACE = 1.1  # by how much a success or a failure changes the widest angle


@attack(
    question="How near does an adversary come by labels alone in a few hundred queries, with no slope estimated?",
    access=Access.LABEL,
    paper="Maho et al. 2021, arXiv:2011.12807",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l2",),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def surfree(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, draws: int = 50,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Follow the boundary on circles: each leads from the nearest point known, in a random plane, towards x.

    On such a circle the distance falls with the cosine of the angle, so that every angle at which the point is adversarial gains.
    A few angles of both signs are tried, and the largest that succeeds is refined by bisection.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, nearest first, one query each until one reaches the goal;
            targeted attacks need some of the wanted labels. None: random points alone.
        seed: of starts and directions.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "surfree", device=x.device)
    walk = begin(target, x, y, threat, queries)
    record = walk.record
    walk, delta = starts(walk, start, draws, noise)
    delta = walk.bisect(delta, 10)
    going = walk.left > 0
    walk, delta = walk.at(going), delta[going]
    fresh = torch.full_like(walk.samples, _FRESH)
    none = delta.new_zeros(len(delta))
    state = _State(delta, delta, none + _WIDEST, none.clone(), none.clone(), fresh)
    angles = delta.new_tensor(_ANGLES)
    tries = len(_ANGLES)
    while len(walk):
        fresh = state.turn == _FRESH
        if bool(fresh.any()):
            state.across = torch.where(fresh[:, None], _across(walk, state.delta, noise), state.across)
            state.turn = torch.where(fresh, 0, state.turn)
        searching = state.turn < tries
        share = angles[state.turn.clamp(max=tries - 1)]
        angle = torch.where(searching, state.widest * share, (state.low + state.high) / 2)
        hit = walk.ask(walk.clamp(_on_circle(state, angle)))
        # A first success is bracketed by the next larger angle: one that failed, or one beyond the widest.
        beyond = torch.where(share.abs() == 1, angle * 1.5, state.widest * share.sign()).clamp(-1.57, 1.57)
        state.low = torch.where(hit, angle, state.low)
        state.high = torch.where(searching, beyond, torch.where(hit, state.high, angle))
        state.turn = torch.where(searching & hit, tries, state.turn + 1)
        failed, refined = searching & (state.turn == tries) & ~hit, ~searching & (state.turn == tries + _HALVINGS)
        state.widest = state.widest * torch.where(failed, 1 / _PACE, torch.where(refined, _PACE, 1.0)).to(angle)
        state.widest = state.widest.clamp(1e-4, 1.5)
        state.delta = torch.where(refined[:, None], walk.clamp(_on_circle(state, state.low)), state.delta)
        state.turn = torch.where(failed | refined, _FRESH, state.turn)
        if bool((walk.left <= 0).any()):
            going = walk.left > 0
            walk, state = walk.at(going), cut(state, going)
    return record.best


@dataclasses.dataclass
class _State:
    delta: Tensor  # adversarial, (n, features)
    across: Tensor  # the other direction of the plane, of length 1
    widest: Tensor  # angle tried at most, (n,)
    low: Tensor  # angles between which the boundary lies
    high: Tensor
    turn: Tensor  # which angle is tried next; then which halving


def _across(walk: Walk, delta: Tensor, noise: torch.Generator) -> Tensor:
    """Return random directions at right angles to delta, of length 1."""
    drawn = normal(delta, noise) * walk.free
    unit = delta / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)
    drawn = drawn - (drawn * unit).sum(1, keepdim=True) * unit
    return drawn / drawn.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _on_circle(state: _State, angle: Tensor) -> Tensor:
    """Return the points at these angles, seen from x, of the circles that have the way from x to delta as their diameter."""
    size = state.delta.norm(dim=1)
    along, aside = angle.cos().square(), (size * angle.cos() * angle.sin())
    return along[:, None] * state.delta + aside[:, None] * state.across
