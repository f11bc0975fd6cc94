"""Momentum in the gradient attack: steady directions, which other models share (MI-FGSM), and a look ahead (NI-FGSM)."""

from __future__ import annotations

from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, ahead, with_momentum

_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022")


@attack(
    question="Does momentum lead the gradient attack out of poor local maxima?", access=Access.GRADIENT,
    paper="Dong et al. 2018, arXiv:1710.06081", tags=_TAGS, preset="thorough",
)
def mi_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    decay: float = 1.0, loss: str = "ce", early_stop: bool = True,
) -> Tensor:
    """Take steps along the running sum of normalised gradients; return the best point seen.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        decay: weight of the earlier gradients at each step; 0 is the basic iterative method.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    run.ascend(x, lambda run, z: with_momentum(run, run.gradient(z), decay))
    return run.best


@attack(
    question="Does a gradient taken ahead, where the momentum leads, find what the plain one misses?", access=Access.GRADIENT,
    paper="Lin et al. 2020, arXiv:1908.06281", tags=_TAGS, preset="thorough",
)
def ni_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    decay: float = 1.0, loss: str = "ce", early_stop: bool = True,
) -> Tensor:
    """Take steps with momentum, whose gradient is taken where the momentum alone would lead; return the best point seen.

    Every iterate is looked at as well: a query more per step, without a gradient.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        decay: weight of the earlier gradients at each step; 0 is the basic iterative method.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    run.ascend(x, lambda run, z: with_momentum(run, run.gradient(ahead(run, z, decay)), decay), sees=False)
    return run.best
