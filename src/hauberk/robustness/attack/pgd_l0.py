"""PGD-L0: gradient ascent in all features, and then back to the few that may change."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.losses import climbed, known_loss


@attack(
    question="Does changing a few features, chosen anew at every gradient step, change the answer?",
    access=Access.GRADIENT,
    paper="Croce and Hein 2019, arXiv:1909.05040",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l0",),
)
def pgd_l0(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 50, rounds: int = 3, step_size: float = 10.0,
    loss: str = "ce", seed: int = 0,
) -> Tensor:
    """Step along the gradient divided by its sum of sizes, and keep the features and values nearest to that among eps features.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0, any goal; `eps` features may change.
        steps: gradient steps of each round.
        rounds: random starts; the first one is x itself. Samples leave the batch at their first success.
        step_size: mean move of a feature in the first step, in ranges; long steps choose features, short ones their values. It
            falls to a hundredth, by the same share each step; the paper keeps one of about 0.15.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        seed: of the random starts.

    Returns:
        Points of at most eps changed features, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    known_loss(loss)
    draw, whole = generator(seed, "pgd-l0", device=x.device), threat.around(x)
    best, height = x.clone(), torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
    alive = torch.arange(len(x), device=x.device)
    for number in range(rounds):
        start = whole.random_start(draw) if number else x
        ball, z = whole.subset(alive), start[alive].clone()
        for step in range(steps + 1):
            if not len(alive):
                return best
            z = z.detach().requires_grad_(step < steps)
            asked = ball.possible(z)
            logits = target.logits(asked)
            value = climbed(logits, y[alive], threat, loss)
            broken = threat.success(logits, y[alive])
            better = broken | (value.detach() > height[alive])
            best[alive[better]], height[alive[better]] = asked.detach()[better], value.detach()[better].to(x.dtype)
            if step == steps:
                alive = alive[~broken]
                break
            gradient = input_gradient(value, z)[~broken]
            alive, z, ball = alive[~broken], z.detach()[~broken], ball.subset(~broken)
            gradient = gradient * (ball.low < ball.high)
            size = gradient.flatten(1).abs().mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            length = step_size * 0.01 ** (step / max(steps, 1)) / size
            z = ball.project(z + gradient * length.reshape((-1,) + (1,) * (x.ndim - 1)) * (ball.high - ball.low))
    return best
