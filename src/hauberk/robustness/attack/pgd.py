"""Projected gradient descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.losses import climbed, known_loss


@attack(
    question="Does a small change, found by following the gradient, change the answer?",
    access=Access.GRADIENT,
    paper="Madry et al. 2018, arXiv:1706.06083",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="quick",
)
def pgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 40, step_size: float | None = None,
    loss: str = "ce", random_start: bool = True, early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Climb the loss by steps along its gradient, projected onto the ball; return the best point seen, not the last.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of every step in the threat's norm; None starts at 20 eps / steps and falls to zero by a half cosine,
            which ends nearer to the best point than one length does.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        random_start: begin at a random point of the ball, else at x.
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for the highest loss.
        seed: of the random start.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    known_loss(loss)
    ball = threat.around(x)
    z = ball.random_start(generator(seed, "pgd", device=x.device)) if random_start else x.clone()
    length = (20 * ball.size / max(steps, 1) if step_size is None else torch.full_like(ball.radius, step_size)).to(x.dtype)
    best, best_loss = z.clone(), x.new_full((len(x),), -torch.inf)
    won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    alive = torch.arange(len(x), device=x.device)
    for step in range(steps + 1):
        last = step == steps  # the point the last step led to is looked at as well
        z = z.detach().requires_grad_(not last)
        asked = ball.possible(z)
        logits = target.logits(asked)  # (alive, classes)
        height = climbed(logits, y, threat, loss)  # (alive,)
        broken, before = threat.success(logits, y), won[alive]
        # A broken point outranks every unbroken one; among equals the higher loss wins.
        better = (broken & ~before) | ((broken == before) & (height > best_loss[alive]))
        if len(alive) == len(x) and bool(better.all()):  # the rule while all samples climb: nothing is copied
            best, best_loss, won = asked.detach(), height.detach().to(x.dtype), broken
        else:
            kept = alive[better]
            best[kept], best_loss[kept], won[kept] = asked.detach()[better], height.detach()[better].to(x.dtype), broken[better]
        if last:
            break
        gradient = input_gradient(height, z)
        z = z.detach()
        if early_stop and bool(broken.any()):
            going = ~broken
            if not bool(going.any()):
                break
            alive, y, ball, length = alive[going], y[going], ball.subset(going), length[going]
            z, gradient = z[going], gradient[going]
        fall = 0.5 + 0.5 * math.cos(math.pi * step / steps) if step_size is None else 1.0
        z = ball.project(ascent(ball, z, gradient, length * fall).add_(z))
    return best


def ascent(ball: Ball, z: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
    """Return the step of that length (n,) from z, shape (n, ...), along which the loss rises fastest in the ball's norm.

    For L0 the step is far longer than any range, so that the projection keeps the features that gain most, at their ends.
    """
    column = (-1,) + (1,) * (gradient.ndim - 1)
    if ball.norm == "linf":
        return gradient.sign().mul_(length.reshape(column))
    if ball.threat.mask is not None:  # features that may not move must not use up the step
        gradient = gradient * (ball.low < ball.high)
    flat = gradient.flatten(1)
    if ball.norm == "l1":
        low, high = (ball.low - z).clamp(max=0).flatten(1), (ball.high - z).clamp(min=0).flatten(1)
        return geometry.maximise_l1(flat, length, low, high).view_as(gradient)
    # To a largest entry of 1 first: the square of a vanishing gradient is zero.
    unit = gradient / flat.abs().amax(1).clamp(min=torch.finfo(flat.dtype).tiny).reshape(column)
    if ball.norm == "l0":
        return unit * (ball.high - ball.low) * (100 * length).reshape(column)
    # A unit gradient has norm 1 or more; the floor only keeps a gradient of zero from a division by zero.
    return unit * (length / unit.flatten(1).norm(dim=1).clamp(min=0.5)).reshape(column)
