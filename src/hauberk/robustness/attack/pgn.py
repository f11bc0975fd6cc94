"""PGN: steps towards maxima that are flat, by gradients near the point and a little down from there."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.climb import Climb, vicinity, with_momentum
from hauberk.robustness.attack.pgd import ascent


@attack(
    question="Do examples in flat parts of the loss change the answer, and transfer?",
    access=Access.GRADIENT,
    paper="Ge et al. 2023, arXiv:2306.05225",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def pgn(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, neighbours: int = 20, spread: float = 3.0,
    balance: float = 0.5, decay: float = 1.0, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Take steps with momentum along the gradient of the loss less a penalty on the norm of its gradient.

    The penalty's gradient is the difference of two gradients: one at a random neighbour, one a step down the slope from there.
    Every iterate is looked at as well: a query more per step, without a gradient. Steps are as long as those of MI-FGSM.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        neighbours: random points per step, two queries and two gradients each; 0 is MI-FGSM.
        spread: radius of the neighbourhood in eps; neighbours stay in the bounds.
        balance: weight of the gradient down the slope against that at the neighbour; 0 penalises nothing.
        decay: weight of the earlier gradients at each step.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of the neighbours.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    if not 0 <= balance <= 1:
        raise UsageError(f"balance is {balance}", want="a weight in [0, 1]")
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=None, early_stop=early_stop)
    noise = generator(seed, "pgn", device=x.device)

    def way(run: Climb, z: Tensor) -> Tensor:
        if not neighbours:
            return with_momentum(run, run.gradient(z), decay)
        near, total = vicinity(run, z, spread), torch.zeros_like(z)
        for _ in range(neighbours):
            point = near.random_start(noise)
            slope = run.gradient(point)
            total += (1 - balance) * slope
            if balance:
                total += balance * run.gradient(_below(run, near, point, slope))
        return with_momentum(run, total / neighbours, decay)

    run.ascend(x, way, sees=neighbours == 0)
    return run.best


def _below(run: Climb, near: Ball, point: Tensor, slope: Tensor) -> Tensor:
    """Return the point a step down the slope: in Linf of a mean absolute value of one step, as the paper has it."""
    if run.ball.norm != "linf":
        return near.project(point - ascent(run.ball, point, slope, run.length))
    size = slope.flatten(1).abs().mean(1).clamp(min=torch.finfo(slope.dtype).tiny)
    return point - slope * (run.length / size).reshape((-1,) + (1,) * (slope.ndim - 1))
