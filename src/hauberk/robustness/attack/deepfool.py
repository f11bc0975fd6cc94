"""DeepFool: the nearest plane of the linearised model, again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import step_across
from hauberk.robustness.attack.nearest import Nearest, interpolate


@attack(
    question="How near is a wrong answer, by the cheapest search along gradients?",
    access=Access.GRADIENT,
    paper="Moosavi-Dezfooli et al. 2016, arXiv:1511.04599",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2", "linf"),
    minimum_norm=True,
)
def deepfool(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 50, rivals: int = 9, overshoot: float = 0.02,
    halvings: int = 6,
) -> Tensor:
    """Step over the nearest plane between two classes of the linearised model, inside the box, until the answer changes.

    A sample leaves the batch at its first success, or where no gradient is left to follow.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2 or Linf, any goal; `eps` is the farthest that counts, `math.inf` gives whatever was found.
        steps: linearisations at most.
        rivals: other classes looked at, those of the largest logits; each costs a gradient per step.
        overshoot: share by which every step is longer than the linear model asks for.
        halvings: queries per sample by which the step that succeeded is shortened at the end, as the paper does not.

    Returns:
        The first adversarial point of each sample, shape (n, ...), which is near and not the nearest there is.
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    delta = torch.zeros_like(near.clean[rows])
    short, full = torch.zeros_like(near.clean), torch.zeros_like(near.clean)  # the ends of each sample's last step
    crossed = rows[:0]
    for _ in range(steps):
        if not len(rows):
            break
        step = step_across(near, delta, rows, rivals)
        moved = (delta + (1 + overshoot) * step).clamp(near.low[rows], near.high[rows])
        going = (moved != delta).any(1)
        rows, delta, moved = rows[going], delta[going], moved[going]
        if not len(rows):
            break
        # Asked without a graph: whoever is done then costs no gradients any more.
        hit = near.ask(moved, rows)[1]
        short[rows[hit]], full[rows[hit]] = delta[hit], moved[hit]
        crossed = torch.cat([crossed, rows[hit]])
        rows, delta = rows[~hit], moved[~hit]
    interpolate(near, short[crossed], full[crossed], crossed, halvings)
    return near.finish()
