"""Random noise: the attack that knows nothing, which every other must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat


@attack(
    question="Does noise of the same size change the answer by chance?", access=Access.LABEL, goals=LABEL_GOALS,
    tags=("aisec:digital-adversarial-attacks", "owasp:ML01", "nist:NISTAML.022"), preset="quick", baseline=True,
)
def random_noise(target: Target, x: Tensor, y: Tensor, threat: Threat, *, draws: int = 16, seed: int = 0) -> Tensor:
    """Draw points uniformly in the ball until one reaches the goal.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm; untargeted or targeted.
        draws: points tried per sample at most, one query each.
        seed: of the draws.

    Returns:
        Points in the ball, shape (n, ...): the first that reached the goal, else the last drawn.
    """
    noise = generator(seed, "random noise", device=x.device)
    best, ball = x.clone(), threat.around(x)
    alive = torch.arange(len(x), device=x.device)
    for _ in range(draws):
        z = ball.possible(ball.random_start(noise))
        best[alive] = z
        going = ~threat.reached(target.labels(z), y)
        alive, y, ball = alive[going], y[going], ball.subset(going)
        if not len(alive):
            break
    return best
