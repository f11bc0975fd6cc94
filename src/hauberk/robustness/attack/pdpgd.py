"""PDPGD: the distance and the answer as two players, one step each at a time."""

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
from hauberk.robustness.attack.nearest import Nearest, cosine, unit
from hauberk.robustness.attack.polish import polish

_STEEP = 3.0  # the price changes at its full rate from a third of the size of the change on
_PRICES = (1e-9, 1e9)


@attack(
    question="How near is a wrong answer, with the weight of the distance found on the way?",
    access=Access.GRADIENT,
    paper="Matyasko and Chau 2021, arXiv:2106.01538",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    minimum_norm=True,
)
def pdpgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, step_size: float = 0.1, ratio: float = 1.0,
    dual_rate: float = 1.0, trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Step towards the goal and, by the proximal step of the norm, back towards x.

    The price of distance rises while a sample is beyond the boundary, and falls while it is before it.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: gradient steps.
        step_size: Euclidean length of the first step, in widths of the box; it falls to a hundredth by a half cosine.
        ratio: the first price of distance, against a gradient of length 1.
        dual_rate: by what power of e the price changes in a step at most, at first; it falls to a tenth.
        trials: of the point found, to come nearer by the slope there, as the paper does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 begins at x.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    opening(near, rows, rivals)
    delta = near.delta(rows)
    low, high, width = near.low[rows], near.high[rows], near.width[rows]
    price = torch.full_like(width, ratio)  # of distance, against a gradient of length 1
    unit_of = width if threat.norm == "l0" else torch.ones_like(width)  # a feature changed by its whole width counts 1
    for step in range(steps if len(rows) else 0):
        z, logits, _ = near.follow(delta, rows)
        margin = threat.margin(logits, y[rows])
        slope = -input_gradient(margin, z).to(near.dtype).flatten(1) * (low < high)
        # By how much of its size the change is too long or too short, if the model is linear from here to the boundary.
        steep = torch.linalg.vector_norm(slope, DUAL[threat.norm], dim=1) * unit_of * near.norm(delta)
        excess = (-margin.detach().to(near.dtype) / steep.clamp(min=torch.finfo(near.dtype).tiny)).clamp(-1 / _STEEP, 1 / _STEEP)
        rate = cosine(dual_rate, dual_rate / 10, step, steps)
        price = (price * (rate * _STEEP * excess).exp()).clamp(*_PRICES)
        length = width * cosine(step_size, step_size / 100, step, steps)
        moved = delta + length[:, None] * unit(slope)
        delta = nearer(threat.norm, moved, length * price).clamp(low, high)
    if len(rows):
        near.ask(delta, rows)
        polish(near, rows, trials)
    return near.finish()


def nearer(norm: str, delta: Tensor, pull: Tensor) -> Tensor:
    """Return the changes, shape (n, features), that minimise pull |d| + |d - delta|_2^2 / 2: the proximal step of the norm."""
    if norm == "l0":
        return torch.where(delta.square() > 2 * pull[:, None], delta, 0)
    if norm == "l1":
        return delta.sign() * (delta.abs() - pull[:, None]).clamp(min=0)
    if norm == "l2":
        return delta * (1 - pull / delta.norm(dim=1).clamp(min=1e-30)).clamp(min=0)[:, None]
    # Linf: what remains is what the projection onto the ball of the dual norm takes away.
    free = torch.full_like(delta, torch.inf)
    return delta - geometry.project_l1(delta, pull, -free, free)
