"""PGD with Adam's steps: each feature at its own pace, for losses whose gradients differ widely in size or are noisy."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.climb import Climb

_FIRST, _SECOND = 0.9, 0.999  # decay of the two moments, as Adam has them


@attack(
    question="Does gradient descent with Adam's steps find what steps by sign miss?",
    access=Access.GRADIENT,
    paper="Uesato et al. 2018, arXiv:1802.05666",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("linf",),
)
def adam_pgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 40, step_size: float | None = None,
    loss: str = "ce", random_start: bool = True, early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Climb the loss by Adam's steps, projected onto the ball; return the best point seen.

    A pace of its own for every feature is at home in Linf alone: in other norms it would bend the steepest direction.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal.
        steps: gradient steps.
        step_size: Adam's learning rate, the length of the first step; None starts at 10 eps / steps and falls to zero by a half
            cosine.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        random_start: begin at a random point of the ball, else at x.
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for the highest loss.
        seed: of the random start.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    if step_size is None:
        run.set_length(10 / max(steps, 1))
    start = run.ball.random_start(generator(seed, "adam-pgd", device=x.device)) if random_start else x
    run.ascend(start, _moments, fall=step_size is None, stride=_stride)
    return run.best


def _moments(run: Climb, z: Tensor) -> Tensor:
    """Return Adam's direction at z: the mean gradient over the root of its mean square, both corrected for their start."""
    gradient = run.gradient(z)
    # To a largest entry of 1 at the first step: the square of a vanishing gradient is zero. Adam's ratio feels no scale.
    column = (-1,) + (1,) * (z.ndim - 1)
    size = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(z.dtype).tiny).reshape(column)
    gradient = gradient / run.memory.setdefault("size", size)
    zero, powers = torch.zeros_like(gradient), torch.ones_like(size)
    first = _FIRST * run.memory.get("first", zero) + (1 - _FIRST) * gradient
    second = _SECOND * run.memory.get("second", zero) + (1 - _SECOND) * gradient.square()
    kept = run.memory.get("kept first", powers) * _FIRST, run.memory.get("kept second", powers) * _SECOND
    run.memory.update({"first": first, "second": second, "kept first": kept[0], "kept second": kept[1]})
    return (first / (1 - kept[0])) / ((second / (1 - kept[1])).sqrt() + 1e-8)


def _stride(_: Ball, z: Tensor, direction: Tensor, length: Tensor) -> Tensor:
    return direction * length.reshape((-1,) + (1,) * (z.ndim - 1))
