"""EAD: Carlini and Wagner's attack with an elastic net, for few changes of small sum."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import opening
from hauberk.robustness.attack.nearest import Nearest
from hauberk.robustness.attack.polish import polish


@attack(
    question="How near is a wrong answer in L1, weighed against the distance by optimisation?",
    access=Access.GRADIENT,
    paper="Chen et al. 2018, arXiv:1709.04114",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l1",),
    minimum_norm=True,
)
def ead(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, rounds: int = 5, step_size: float = 0.001,
    beta: float = 10.0, weight: float = 3.0, trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Minimise c max(margin, 0) + |d|_2^2 + beta |d|_1 by accelerated shrinkage, and search the c of each sample.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L1, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: of the descent for each c.
        rounds: values of c tried.
        step_size: of the descent, for changes in widths of the box; it falls as the square root of the steps that are left.
        beta: weight of the sum of changes against that of their squares; a larger one takes shorter steps.
        weight: the first c, as a multiple of the least one at which the steepest feature moves.
        trials: of the point found, to come nearer by the slope there, as the paper does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 begins at x.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    if not len(rows):
        return near.finish()
    opening(near, rows, rivals)
    z, logits, _ = near.follow(torch.zeros_like(near.clean[rows]), rows)
    slope = input_gradient(threat.margin(logits, y[rows]), z).to(near.dtype).flatten(1) * (near.low < near.high)[rows]
    c = weight * beta / (slope.abs().amax(1) * near.width[rows])
    c = torch.where(c.isfinite(), c, torch.ones_like(c))
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)  # what is known of the best c
    for _ in range(rounds):
        reached = _shrink(near, rows, c, steps, step_size, beta)
        low, high = torch.where(reached, low, torch.maximum(low, c)), torch.where(reached, torch.minimum(high, c), high)
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
    polish(near, rows, trials)
    return near.finish()


def _shrink(near: Nearest, rows: Tensor, c: Tensor, steps: int, step_size: float, beta: float) -> Tensor:
    """Run the descent for one c per sample; return which samples reached their goal on the way."""
    span = near.width[rows][:, None]  # changes are measured in it
    low, high = near.low[rows] / span.clamp(min=1e-30), near.high[rows] / span.clamp(min=1e-30)
    ahead = change = near.delta(rows) / span.clamp(min=1e-30)
    reached = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(steps):
        z, logits, hit = near.follow(ahead * span, rows)
        reached |= hit
        slope = input_gradient(near.threat.margin(logits, near.y[rows]).relu(), z).to(near.dtype).flatten(1) * span
        length = step_size * (1 - step / steps) ** 0.5
        moved = ahead - length * (c[:, None] * slope + 2 * ahead)
        shrunk = moved.sign() * (moved.abs() - length * beta).clamp(min=0)
        before, change = change, torch.minimum(torch.maximum(shrunk, low), high)
        ahead = torch.minimum(torch.maximum(change + step / (step + 3) * (change - before), low), high)
    return reached | near.ask(change * span, rows)[1]
