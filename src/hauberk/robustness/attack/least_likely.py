"""One step towards the class that the model holds least likely: far from the true one, and no label leaks into the step."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.losses import climbed, known_loss
from hauberk.robustness.attack.random_fgm import Leap, leap, pushed

_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")
_GOALS = (Goal.UNTARGETED, Goal.CONFIDENCE)


@attack(
    question="Does one step towards the least likely class change the answer?", access=Access.GRADIENT,
    paper="Kurakin et al. 2017, arXiv:1611.01236", tags=_TAGS, preset="thorough", goals=_GOALS,
    classes_alone=True,
)
def step_ll(target: Target, x: Tensor, y: Tensor, threat: Threat, *, loss: str = "ce") -> Tensor:
    """Take one step towards the class of the lowest logit at x, other than the true one (Step-LL); for any norm.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, shape (n,).
        threat: any norm; untargeted or a loss of confidence, for the attack chooses the class to go for.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).

    Returns:
        Points in the ball, shape (n, ...); samples that reach the goal undisturbed are returned as they are.
    """
    known_loss(loss)
    start = x.clone().requires_grad_()
    logits = target.logits(start)
    wanted = _least_likely(logits, y)
    gradient = input_gradient(climbed(logits, wanted, threat.targeted(), loss), start)
    return torch.where(_column(threat.success(logits, y), x), x, threat.around(x).maximise(gradient))


@attack(
    question="Does one step from a random point towards the least likely class change the answer?", access=Access.GRADIENT,
    paper="Tramèr et al. 2018, arXiv:1705.07204", tags=_TAGS, preset="thorough", goals=_GOALS,
    classes_alone=True,
)
def r_step_ll(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, start: float = 0.5, step: float | None = None,
    loss: str = "ce", seed: int = 0,
) -> Tensor:
    """Move at random, then one step towards the class of the lowest logit at x (R+Step-LL); for any norm.

    Arguments:
        target: with GRADIENT access: two queries a sample, one of them for the clean logits.
        x: clean inputs, shape (n, ...).
        y: true labels, shape (n,).
        threat: any norm; untargeted or a loss of confidence, for the attack chooses the class to go for.
        start: length of the random move, in eps.
        step: length of the step from there, in eps; None goes to the point of the ball that the gradient favours most. The
            paper takes what the random move has left, 1 - start.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        seed: of the random move.

    Returns:
        Points in the ball, shape (n, ...): x where it reaches the goal, else the random point where that one does, else the
        end of the step.
    """
    known_loss(loss)
    clean = target.logits(x)
    how = Leap(pushed(x, threat, start, seed), step, loss)
    z = leap(target, x, y, threat, how, _least_likely(clean, y))
    return torch.where(_column(threat.success(clean, y), x), x, z)


def _least_likely(logits: Tensor, y: Tensor) -> Tensor:
    """Return the class of the lowest logit other than y, shape (n,)."""
    return logits.detach().scatter(1, y[:, None], torch.inf).argmin(1)


def _column(flags: Tensor, x: Tensor) -> Tensor:
    return flags.reshape((-1,) + (1,) * (x.ndim - 1))
