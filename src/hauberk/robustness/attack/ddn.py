"""DDN: decoupled direction and norm."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import opening
from hauberk.robustness.attack.losses import climbed, known_loss
from hauberk.robustness.attack.nearest import Nearest, cosine, unit
from hauberk.robustness.attack.polish import polish

_FAST = 3  # times gamma, while the boundary was seen from one side alone: the radius may still be far off


@attack(
    question="How near is a wrong answer in L2, for few gradients?",
    access=Access.GRADIENT,
    paper="Rony et al. 2019, arXiv:1811.09600",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2",),
    minimum_norm=True,
)
def ddn(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, step_size: float = 1.0, gamma: float = 0.05,
    loss: str = "ce", trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Follow the gradient on a sphere that shrinks after every success and grows after every failure.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: gradient steps.
        step_size: length of the first step, in widths of the box; it falls to a hundredth by a half cosine.
        gamma: share by which the sphere's radius changes at first; it falls to a fiftieth.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        trials: of the point found, to come nearer by the slope there, as the paper does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 looks at none.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    known_loss(loss)
    near = Nearest(target, x, y, threat)
    rows = near.start()
    opening(near, rows, rivals)
    delta = torch.zeros_like(near.clean[rows])
    low, high, width = near.low[rows], near.high[rows], near.width[rows]
    radius = width
    won = lost = torch.zeros_like(rows, dtype=torch.bool)  # on any sphere so far
    for step in range(steps):
        if not len(rows):
            break
        z, logits, hit = near.follow(delta, rows)
        slope = input_gradient(climbed(logits, y[rows], threat, loss), z).to(near.dtype).flatten(1) * (low < high)
        if step:
            won, lost = won | hit, lost | ~hit
            share = torch.where(won & lost, cosine(gamma, gamma / 50, step, steps), _FAST * gamma)
            radius = torch.where(hit, radius * (1 - share), radius * (1 + share))
        way = unit(slope) * (width * cosine(step_size, step_size / 100, step, steps))[:, None]
        # To the sphere's point in that direction, on the box where it is in the way.
        delta = geometry.maximise_l2(delta + way, radius, low, high)
    if len(rows):
        near.ask(delta, rows)
        polish(near, rows, trials)
    return near.finish()
