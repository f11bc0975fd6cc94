"""FMN: the fast minimum-norm attack."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import DUAL, opening
from hauberk.robustness.attack.losses import climbed, known_loss
from hauberk.robustness.attack.nearest import Nearest, cosine, unit
from hauberk.robustness.attack.polish import polish


@attack(
    question="How near is a wrong answer, in any norm, for few gradients?",
    access=Access.GRADIENT,
    paper="Pintor et al. 2021, arXiv:2102.12827",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    minimum_norm=True,
)
def fmn(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, step_size: float | None = None,
    gamma: float = 0.05, loss: str = "ce", trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Descend the margin inside a ball whose radius is drawn to the boundary: by its linear distance first, then by shares.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: gradient steps.
        step_size: Euclidean length of the first step, in widths of the box; it falls to a hundredth by a half cosine. None: 1,
            and 10 for Linf.
        gamma: share by which the radius changes at first; it falls to a fiftieth.
        loss: what is climbed after the first success: `ce` (cross-entropy) or `margin` (difference of logits, as published).
        trials: of the point found, to come nearer by the slope there, or for L0 to make do with a feature less, as the paper
            does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 begins at x.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    known_loss(loss)
    near = Nearest(target, x, y, threat)
    rows = near.start()
    delta = opening(near, rows, rivals)
    low, high, width = near.low[rows], near.high[rows], near.width[rows]
    first = step_size if step_size is not None else 10.0 if threat.norm == "linf" else 1.0
    radius = torch.full_like(width, torch.inf)
    for step in range(steps):
        if not len(rows):
            break
        z, logits, hit = near.follow(delta, rows)
        margin = threat.margin(logits, y[rows])
        found = near.found(rows)
        value = torch.where(found, climbed(logits, y[rows], threat, loss), -margin)
        slope = input_gradient(value, z).to(near.dtype).flatten(1) * (low < high)
        share = cosine(gamma, gamma / 50, step, steps)
        best = near.distance[rows].to(near.dtype)
        steep = torch.linalg.vector_norm(slope, DUAL[threat.norm], dim=1)
        linear = near.norm(delta) + margin.detach().abs().to(near.dtype) / steep
        linear = torch.where(steep > 0, linear, torch.inf)
        shorter, longer = radius * (1 - share), radius * (1 + share)
        if threat.norm == "l0":  # whole features
            shorter, longer = torch.minimum(shorter.floor(), radius - 1), torch.maximum(longer.floor(), radius + 1)
            linear = linear.ceil()
        grown = torch.where(radius.isfinite(), longer, 0)  # until the first success: a linear distance can lead nowhere
        radius = torch.where(hit, torch.minimum(shorter, best), torch.where(found, longer, torch.maximum(linear, grown)))
        delta = delta + unit(slope) * (width * cosine(first, first / 100, step, steps))[:, None]
        delta = geometry.PROJECT[threat.norm](delta, radius, low, high)
    if len(rows):
        near.ask(delta, rows)
        polish(near, rows, trials)
    return near.finish()
