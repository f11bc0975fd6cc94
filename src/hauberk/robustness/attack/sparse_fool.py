"""SparseFool: DeepFool finds the boundary, and few features are moved over it."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import crossing, step_across
from hauberk.robustness.attack.nearest import Nearest, bisect
from hauberk.robustness.attack.polish import polish

_OVERSHOOT = 0.02  # of DeepFool's steps, as published


@attack(
    question="How small a sum of changes, of few features, brings a wrong answer by a cheap search?",
    access=Access.GRADIENT,
    paper="Modas et al. 2019, arXiv:1811.02248",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l1",),
    minimum_norm=True,
)
def sparse_fool(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 20, inner: int = 10, reach: float = 1.0,
    rivals: int = 9, halvings: int = 6, trials: int = 3,
) -> Tensor:
    """Find the boundary by DeepFool, see it as a plane, and move the steepest features to their ends until it is crossed; again.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L1, any goal; `eps` is the farthest that counts, `math.inf` gives whatever was found.
        steps: planes crossed at most.
        inner: linearisations of DeepFool at most for each.
        reach: how far the plane is put, in lengths of DeepFool's step; the paper takes 1 to 3: more succeeds sooner and farther.
        rivals: other classes looked at, those of the largest logits; each costs a gradient per linearisation.
        halvings: queries per sample by which the last step is shortened, as the paper does not.
        trials: of the point found, to come nearer by the slope there, as the paper does not.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    everybody = rows = near.start()
    delta = torch.zeros_like(near.clean[rows])
    short, full, crossed = torch.zeros_like(near.clean), torch.zeros_like(near.clean), rows[:0]
    for _ in range(steps):
        if not len(rows):
            break
        end = _boundary(near, delta, rows, inner, rivals)
        z, logits, _ = near.follow(end, rows)
        normal = -input_gradient(threat.margin(logits, y[rows]), z).to(near.dtype).flatten(1)
        far = (normal * (end - delta)).sum(1).clamp(min=0) * reach
        step = crossing("l1", normal, far, near.low[rows] - delta, near.high[rows] - delta)
        moved = (delta + step).clamp(near.low[rows], near.high[rows])
        going = (moved != delta).any(1)
        rows, delta, moved = rows[going], delta[going], moved[going]
        if not len(rows):
            break
        hit = near.ask(moved, rows)[1]
        short[rows[hit]], full[rows[hit]] = delta[hit], moved[hit]
        crossed = torch.cat([crossed, rows[hit]])
        rows, delta = rows[~hit], moved[~hit]
    bisect(near, short[crossed], full[crossed], crossed, halvings)
    polish(near, everybody, trials)
    return near.finish()


def _boundary(near: Nearest, delta: Tensor, rows: Tensor, steps: int, rivals: int) -> Tensor:
    """Return changes just behind the boundary, by DeepFool in L2 from `delta`; where it did not get there, its last ones."""
    end, alive = delta.clone(), torch.arange(len(rows), device=rows.device)
    for _ in range(steps):
        here, part = end[alive], rows[alive]
        step = step_across(near, here, part, rivals, norm="l2")
        moved = (here + (1 + _OVERSHOOT) * step).clamp(near.low[part], near.high[part])
        end[alive] = moved
        going = ~near.ask(moved, part)[1] & (moved != here).any(1)
        alive = alive[going]
        if not len(alive):
            break
    return end
