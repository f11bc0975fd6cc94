"""Variance tuning: the gradient is steadied by those of the neighbourhood, with momentum (VMI-, VNI-FGSM)."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, View, ahead, vicinity, with_momentum

_PAPER = "Wang and He 2021, arXiv:2103.15571"
_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022")


@attack(
    question="Does a gradient steadied by its neighbourhood change the answer, and transfer?", access=Access.GRADIENT,
    paper=_PAPER, tags=_TAGS, preset="thorough",
)
def vmi_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    neighbours: int = 20, spread: float = 1.5, decay: float = 1.0, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Take steps with momentum along the gradient plus its last deviation from the mean over random neighbours.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        neighbours: random points per step, one query and one gradient each; 0 is MI-FGSM.
        spread: radius of the neighbourhood in eps; neighbours stay in the bounds.
        decay: weight of the earlier gradients at each step.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of the neighbours.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    noise = generator(seed, "vmi-fgsm", device=x.device)

    def way(run: Climb, z: Tensor) -> Tensor:
        return with_momentum(run, _tuned(run, z, run.gradient(z), neighbours, spread, noise), decay)

    run.ascend(x, way)
    return run.best


@attack(
    question="Does a steadied gradient, taken ahead, change the answer, and transfer?", access=Access.GRADIENT,
    paper=_PAPER, tags=_TAGS, preset="thorough",
)
def vni_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    neighbours: int = 20, spread: float = 1.5, decay: float = 1.0, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Do as VMI-FGSM, with the gradients taken where the momentum alone would lead; every iterate is looked at as well.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        neighbours: random points per step, one query and one gradient each; 0 is NI-FGSM.
        spread: radius of the neighbourhood in eps; neighbours stay in the bounds.
        decay: weight of the earlier gradients at each step.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of the neighbours.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    noise = generator(seed, "vni-fgsm", device=x.device)

    def way(run: Climb, z: Tensor) -> Tensor:
        point = ahead(run, z, decay)
        return with_momentum(run, _tuned(run, point, run.gradient(point), neighbours, spread, noise), decay)

    run.ascend(x, way, sees=False)
    return run.best


def _tuned(run: Climb, z: Tensor, gradient: Tensor, neighbours: int, spread: float, noise: torch.Generator) -> Tensor:
    """Return the gradient at z plus the variance of the step before, and remember that of this step for the next."""
    variance = run.memory.get("variance", torch.zeros_like(gradient))
    if neighbours:
        near = vicinity(run, z, spread)

        def moved() -> View:
            delta = near.random_start(noise) - z.detach()
            return lambda point: point + delta

        run.memory["variance"] = run.gradient(z, [moved() for _ in range(neighbours)]) - gradient
    return gradient + variance
