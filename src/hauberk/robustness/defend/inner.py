"""The inner problem of adversarial training: the point of the ball where an objective is highest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.errors import UsageError
from hauberk.core.target import evaluating
from hauberk.core.threat import Goal, Threat
from hauberk.core.train import class_logits
from hauberk.robustness.attack.pgd import ascent

Objective = Callable[[Tensor], Tensor]


def climb(
    model: nn.Module, x: Tensor, threat: Threat, objective: Objective, *, steps: int, step_size: float | None
) -> Tensor:
    """Return allowed points around x where `objective(logits)` is high: projected gradient ascent from a random start.

    The model is in evaluation mode meanwhile: batch statistics are not moved by the points on the way, and no dropout blurs the
    gradient. Only the gradient for the inputs is computed. The start is seeded by one draw from the global stream, so that
    inside `fit`, which seeds it, a run repeats itself bit by bit.

    Arguments:
        model: gives logits, shape (n, classes).
        x: clean inputs, shape (n, ...).
        threat: any norm; an untargeted goal.
        objective: of logits (n, classes), per sample (n,), to be climbed.
        steps, step_size: number of steps, and their length in the threat's norm; None takes 2.5 eps / steps.
    """
    ball = threat.within((0.0, 1.0)).around(x)
    seed = int(torch.randint(2**62, (), dtype=torch.int64))
    z = ball.random_start(rng.generator(seed, "inner start", device=x.device))
    length = (2.5 * ball.size / max(steps, 1) if step_size is None else torch.full_like(ball.radius, step_size)).to(x.dtype)
    with evaluating(model), torch.enable_grad():
        for _ in range(steps):
            z.requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(class_logits(model(z))).sum(), z)
            with torch.no_grad():
                z = ball.project(z + ascent(ball, z, gradient, length))
    return z.detach()


def refuse_unfit(threat: Threat, steps: int) -> None:
    """Raise UsageError for a threat that training cannot be hardened against, or a number of steps below one."""
    if threat.goal is not Goal.UNTARGETED:
        raise UsageError(f"the threat has the goal '{threat.goal.value}'", want="an untargeted threat for training")
    if isinstance(threat.eps, Tensor) and threat.eps.ndim:
        raise UsageError("the threat has one radius per sample", want="one radius: batches are drawn anew in every epoch")
    if steps < 1:
        raise UsageError(f"steps is {steps}", want="1 or more")
