"""One step of gradient from a random point: R-FGM, R-FGSM and N-FGSM, which no flat spot at the clean input blinds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator, normal
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.losses import climbed, known_loss
from hauberk.robustness.attack.pgd import ascent

_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")


class Leap(NamedTuple):
    """How one step is taken: the point where the gradient is taken, how far to go from there, and up which loss."""

    start: Tensor  # (n, ...)
    step: float | None
    loss: str


@attack(
    question="Does one step along the gradient at a random point change the answer?", access=Access.GRADIENT,
    paper="Tramèr et al. 2018, arXiv:1705.07204", tags=_TAGS, preset="thorough",
)
def r_fgm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, start: float = 0.5, step: float | None = None,
    loss: str = "ce", seed: int = 0,
) -> Tensor:
    """Take one step along the gradient at a random point of the ball; for any norm.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        start: length of the random move, in eps.
        step: length of the step from there, in eps; None goes to the point of the ball that the gradient favours most. The
            paper takes what the random move has left, 1 - start; Wong et al. (arXiv:2001.03994) 1.25 from farther out.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        seed: of the random move.

    Returns:
        Points in the ball, shape (n, ...): the random one where it reaches the goal, else the end of the step.
    """
    return leap(target, x, y, threat, Leap(pushed(x, threat, start, seed), step, loss))


@attack(
    question="Does one step along the sign of the gradient at a random point change the answer?", access=Access.GRADIENT,
    paper="Tramèr et al. 2018, arXiv:1705.07204", tags=_TAGS, preset="thorough", norms=("linf",),
)
def r_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, start: float = 0.5, step: float | None = None,
    loss: str = "ce", seed: int = 0,
) -> Tensor:
    """Move by random signs, then along the sign of the gradient (R+FGSM): `r_fgm` under the name it has for Linf.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal.
        start: length of the random move, in eps.
        step: length of the step from there, in eps; None goes to the point of the ball that the gradient favours most. The
            paper takes what the random move has left, 1 - start.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        seed: of the random move.

    Returns:
        Points in the ball, shape (n, ...): the random one where it reaches the goal, else the end of the step.
    """
    return leap(target, x, y, threat, Leap(pushed(x, threat, start, seed), step, loss))


@attack(
    question="Does one step along the gradient at a point of strong noise change the answer?", access=Access.GRADIENT,
    paper="de Jorge et al. 2022, arXiv:2202.01181", tags=_TAGS, preset="thorough", norms=("linf",),
)
def n_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, spread: float = 2.0, step: float | None = None,
    loss: str = "ce", seed: int = 0,
) -> Tensor:
    """Take one step along the gradient at a point of uniform noise that may lie outside the ball, and come back into it.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal.
        spread: size of the noise, in eps; it stays in the bounds.
        step: length of the step from there, in eps; None goes to the point of the ball that the gradient favours most. The
            paper, which trains on such points and leaves them outside, takes 1.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        seed: of the noise.

    Returns:
        Points in the ball, shape (n, ...): the noisy one where it lies in the ball and reaches the goal, else the end of the
        step.
    """
    noisy = threat.with_eps(_times(threat, spread)).random_start(x, generator(seed, "n-fgsm", device=x.device))
    return leap(target, x, y, threat, Leap(noisy, step, loss))


def pushed(x: Tensor, threat: Threat, share: float, seed: int) -> Tensor:
    """Return x moved by that share of eps in a random direction: to random corners in Linf."""
    noise = normal(x, generator(seed, "random move", device=x.device))
    return threat.with_eps(_times(threat, share)).around(x).maximise(noise)


def leap(target: Target, x: Tensor, y: Tensor, threat: Threat, how: Leap, towards: Tensor | None = None) -> Tensor:
    """Return the end of one step from the start, or the start where it lies in the ball and reaches the goal.

    Arguments:
        towards: labels that the step heads for, shape (n,), whatever the goal; None follows the goal.
    """
    known_loss(how.loss)
    ball, start = threat.around(x), how.start.detach().requires_grad_()
    logits = target.logits(start)
    aim, label = (threat, y) if towards is None else (threat.targeted(), towards)
    gradient = input_gradient(climbed(logits, label, aim, how.loss), start)
    start = start.detach()
    if how.step is None:
        end = ball.maximise(gradient)
    else:
        end = ball.project(start + ascent(ball, start, gradient, (how.step * ball.size).to(x.dtype)))
    broken = threat.success(logits, y) & ball.contains(start)
    return torch.where(broken.reshape((-1,) + (1,) * (x.ndim - 1)), start, end)


def _times(threat: Threat, share: float) -> Tensor:
    return torch.as_tensor(threat.eps, dtype=torch.float64) * share
