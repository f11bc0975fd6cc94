"""SPSA: Adam on gradients estimated from scores along directions of random signs."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.searching import Search


@attack(
    question="Can an adversary change the answer that sees scores of a model whose gradients are useless?",
    access=Access.SCORE,
    paper="Uesato et al. 2018, arXiv:1802.05666",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf", "l2"),
    fine_steps=True,
)
def spsa(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, pairs: int = 8, probe: float = 0.1,
    learning_rate: float = 0.3, seed: int = 0,
) -> Tensor:
    """Walk down the margin by projected Adam steps; every feature moves at once by the same size in a random direction.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, any goal.
        queries: queries per sample at most, the one for the clean input and those for the iterates included.
        pairs: directions per step, two queries each.
        probe: size of a direction, as a share of the radius.
        learning_rate: of Adam: about how far a step goes, as a share of the radius.
        seed: of the directions.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    noise = generator(seed, "spsa", device=x.device)
    run = Search(target, x, y, threat, queries)
    zero = torch.zeros_like(run.ball.x, dtype=torch.float64)
    run.state.update(z=run.ball.x, mean=zero, square=zero)
    step = 0
    while run.settle(run.left > 2):  # a pair, and a look at where it leads
        step, state = step + 1, run.state
        slope = run.slope(state["z"], run.spread(probe), pairs, noise, signs=True)
        state["mean"] = 0.9 * state["mean"] + 0.1 * slope
        state["square"] = 0.99 * state["square"] + 0.01 * slope.square()
        tiny = torch.finfo(torch.float64).tiny
        way = state["mean"] / (1 - 0.9**step) / (state["square"] / (1 - 0.99**step)).sqrt().clamp(min=tiny)
        state["z"] = run.ball.project((state["z"] - way * run.spread(learning_rate)).to(x.dtype))
        going = (~run.won[run.alive]).nonzero()[:, 0]  # a direction that reached the goal ends the walk
        run.ask(state["z"][going], going)
    return run.best
