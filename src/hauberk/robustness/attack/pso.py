"""Particle swarm: points that fly through the ball, each drawn to the best it saw and to the best that any saw."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, normal, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.searching import Search, portions


@attack(
    question="Can an adversary whose candidates swarm towards good scores change the answer?",
    access=Access.SCORE,
    paper="Mosli et al. 2020, arXiv:1909.07490, after Kennedy and Eberhart 1995",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf", "l2"),
)
def pso(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, particles: int = 10, inertia: float = 0.7,
    own: float = 1.5, shared: float = 1.5, mutation: float = 0.02, seed: int = 0,
) -> Tensor:
    """Let particles fly through the ball; a velocity keeps a part of itself and turns to the two best points known.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, any goal.
        queries: queries per sample at most, the one for the clean input included.
        particles: particles per sample.
        inertia: what a velocity keeps of itself.
        own, shared: how strongly the best point of the particle, and that of the swarm, draws.
        mutation: share of the features that stray at each step, by normal draws of about the radius; without, a swarm that has
            come together at the border of the ball stays there.
        seed: of all draws.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    if particles < 1:
        raise UsageError(f"particles is {particles}", want="1 or more")
    noise = generator(seed, "pso", device=x.device)

    def fly(x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        run = Search(target, x, y, threat, queries)
        like = run.ball.x if run.ball.x.dtype is torch.float64 else run.ball.x.float()
        # At the border, where the margin of most models is lowest.
        ends = [run.ball.maximise(normal(like, noise)) for _ in range(2 * particles)]
        run.state["place"] = torch.stack(ends[:particles], 1)
        run.state["speed"] = torch.stack(ends[particles:], 1) - run.ball.x[:, None]
        run.state["score"] = _scores(run, run.state["place"])
        run.state["best"] = run.state["place"]
        while run.settle():
            state, here = run.state, run.state["place"]
            leader = state["best"][run.rows, state["score"].argmin(1)][:, None]
            speed = inertia * state["speed"] + own * uniform(here, noise) * (state["best"] - here)
            speed = speed + shared * uniform(here, noise) * (leader - here)
            stray = (uniform(here, noise) < mutation) * normal(here, noise) * run.spread(1.0)[:, None]
            moved = here + speed + stray
            place = torch.stack([run.ball.project(moved[:, i].to(x.dtype)) for i in range(particles)], 1)
            # What the border took of a step is no speed any more.
            state["speed"], state["place"] = place - here, place
            score = _scores(run, place)
            better = score < state["score"]
            state["best"] = torch.where(better.reshape(*better.shape, *[1] * (x.ndim - 1)), place, state["best"])
            state["score"] = torch.where(better, score, state["score"])
        return run.best

    return portions(4 * particles, x, y, threat, fly)


def _scores(run: Search, place: Tensor) -> Tensor:
    """Return the scores of all particles, infinite where a sample cannot pay."""
    count = place.shape[1]
    return run.ask_all(lambda first, last: place[:, first:last], torch.full_like(run.left, count), count)
