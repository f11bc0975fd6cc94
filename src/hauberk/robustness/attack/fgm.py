"""The fast gradient method: one step, to the point of the ball that is best for the loss as its gradient predicts it."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.losses import climbed, known_loss

_PAPER = "Goodfellow et al. 2015, arXiv:1412.6572"
_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")


@attack(
    question="Does one step along the gradient change the answer?", access=Access.GRADIENT, paper=_PAPER, tags=_TAGS,
    preset="quick",
)
def fgm(target: Target, x: Tensor, y: Tensor, threat: Threat, *, loss: str = "ce") -> Tensor:
    """Take one step to the point of the ball and box where the linearised loss is largest; for any norm.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).

    Returns:
        Points in the ball, shape (n, ...); samples that reach the goal undisturbed are returned as they are.
    """
    return _one_step(target, x, y, threat, loss)


@attack(
    question="Does one step along the sign of the gradient change the answer?", access=Access.GRADIENT, paper=_PAPER, tags=_TAGS,
    preset="quick", norms=("linf",),
)
def fgsm(target: Target, x: Tensor, y: Tensor, threat: Threat, *, loss: str = "ce") -> Tensor:
    """Move every feature by eps along the sign of its gradient: `fgm` under the name it has for Linf.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).

    Returns:
        Points in the ball, shape (n, ...); samples that reach the goal undisturbed are returned as they are.
    """
    return _one_step(target, x, y, threat, loss)


def _one_step(target: Target, x: Tensor, y: Tensor, threat: Threat, loss: str) -> Tensor:
    known_loss(loss)
    start = x.clone().requires_grad_()
    logits = target.logits(start)
    gradient = input_gradient(climbed(logits, y, threat, loss), start)
    broken = threat.success(logits, y).reshape((-1,) + (1,) * (x.ndim - 1))
    return torch.where(broken, x, threat.around(x).maximise(gradient))
