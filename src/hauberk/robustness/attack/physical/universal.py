"""Universal perturbations: one change, added to any input, that turns most answers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.gradients import input_gradient
from hauberk.core.kinds import Universal
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.deepfool import deepfool
from hauberk.robustness.attack.losses import known_loss
from hauberk.robustness.attack.pgd import ascent
from hauberk.robustness.attack.physical.contract import universal
from hauberk.robustness.attack.physical.pattern import (
    LOOKS,
    Best,
    allowed,
    at_least_one,
    batches,
    changeable,
    height_of,
    limits,
    within,
)

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")


def add(pattern: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return x with the pattern added."""
    return x + pattern


@universal(
    question="Does one small change, the same for every input, turn most answers?", access=Access.GRADIENT,
    paper="Shafahi et al. 2020, arXiv:1811.11304", norms=("linf", "l2"), tags=TAGS,
)
def universal_pgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 200, batch: int = 64, loss: str = "ce", seed: int = 0
) -> Universal:
    """Climb the mean loss of small batches with one change for all inputs; the best of ten looks at all of them is returned.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs it is made on, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,). With the model's own labels the rate is the
            "fooling rate" of the field.
        threat: Linf or L2, any goal, one radius for all.
        steps: gradient steps of a batch each; their length starts at 20 eps / steps and falls to zero by a half cosine.
        batch: inputs per step.
        loss: `ce` (cross-entropy, cut off at 9) or `margin` (difference of logits; not blinded by their scale).
        seed: of the order of the inputs.

    Returns:
        The perturbation; on an input it is added and the sum is clipped to the bounds.
    """
    known_loss(loss)
    at_least_one(batch=batch)
    ball, (low, high) = allowed(x, threat), limits(x, threat)
    best = Best(target, y, threat, lambda change: threat.around(x).seal(x + change), loss)
    change, noise, every = torch.zeros_like(low), generator(seed, "universal-pgd", device=x.device), max(steps // LOOKS, 1)
    order = batches(len(x), min(batch, target.batch_size), steps, noise)
    for step, index in enumerate(progress.track(order, "universal-pgd", steps)):
        if step % every == 0:
            best.look(change[0])
        z = torch.minimum(torch.maximum(x[index] + change, low), high).requires_grad_()
        gradient = input_gradient(height_of(target.logits(z), y[index], threat, loss), z)
        # A push against the bounds moves nothing: only what can still give way has a say.
        stuck = ((z >= high) & (gradient > 0)) | ((z <= low) & (gradient < 0))
        slope = gradient.masked_fill(stuck, 0).sum(0, keepdim=True)
        length = 20 * ball.size / steps * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        change = ball.project(change + ascent(ball, change, slope, length.to(x.dtype)))
    best.look(change[0])
    return Universal(best.found, threat, changeable(x, threat), best.fooled, add)


@universal(
    question="Do the least changes of single inputs add up to one change that turns most answers?", access=Access.GRADIENT,
    paper="Moosavi-Dezfooli et al. 2017, arXiv:1610.08401", norms=("l2", "linf"), tags=TAGS,
    goals=(Goal.UNTARGETED, Goal.TARGETED),
)
def universal_deepfool(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, rounds: int = 5, wanted: float = 0.8, steps: int = 10,
    rivals: int = 9, overshoot: float = 0.02, seed: int = 0,
) -> Universal:
    """Go through the inputs one by one, and add to the change what DeepFool needs where it does not yet turn the answer.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs it is made on, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2 or Linf, untargeted or targeted, one radius for all.
        rounds: passes over the inputs, each in an order of its own.
        wanted: share of the inputs at which it stops.
        steps, rivals, overshoot: of DeepFool for each input.
        seed: of the order of the inputs.

    Returns:
        The perturbation of the round after which most inputs reached the goal.
    """
    within(0, 1, wanted=wanted)
    ball, noise = allowed(x, threat), generator(seed, "universal-deepfool", device=x.device)
    best = Best(target, y, threat, lambda change: threat.around(x).seal(x + change), "margin")
    change = ball.x
    best.look(change[0])
    # The steps of single inputs may be longer than the radius: the change is brought back after each.
    far = threat.with_eps(math.inf if bool(torch.stack(limits(x, threat)).isfinite().all()) else 1e6 * float(threat.eps))
    for round_ in range(rounds if len(x) and float(threat.eps) else 0):
        if float(best.fooled.double().mean()) >= wanted:
            break
        order = torch.randperm(len(x), generator=noise, device=noise.device)
        for at in progress.track(order, f"universal-deepfool, round {round_ + 1}", len(order)):
            clean, label = x[at][None], y[at][None]
            z = threat.around(clean).seal(clean + change)
            if bool(threat.reached(target.labels(z), label)):
                continue
            moved = deepfool(target, z, label, far, steps=steps, rivals=rivals, overshoot=overshoot, halvings=0)
            change = ball.project(change + (moved - z))
        best.look(change[0])
    return Universal(best.found, threat, changeable(x, threat), best.fooled, add)
