"""SuperDeepFool: DeepFool, and then straight at the boundary."""

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


@attack(
    question="How near is a wrong answer in L2, by a search that meets the boundary at a right angle?",
    access=Access.GRADIENT,
    paper="Abroshan et al. 2024, arXiv:2303.12481",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2",),
    minimum_norm=True,
)
def superdeepfool(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 6, inner: int = 10, rivals: int = 9,
    overshoot: float = 0.02, halvings: int = 6,
) -> Tensor:
    """Step over the nearest plane until the answer changes; then take the way from x along the boundary's normal there; again.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: normals followed.
        inner: linearisations at most before each.
        rivals: other classes looked at, those of the largest logits; each costs a gradient per linearisation.
        overshoot: share by which every step over a plane is longer than the linear model asks for.
        halvings: queries per sample by which each way to the boundary is bisected.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    everybody = rows = near.start()
    delta = torch.zeros_like(near.clean[rows])
    for _ in range(steps):
        delta, rows = _over(near, delta, rows, inner, rivals, overshoot)
        if not len(rows):
            break
        bisect(near, torch.zeros_like(delta), delta, rows, halvings)
        point = near.delta(rows)  # the nearest so far, just behind the boundary
        z, logits, _ = near.follow(point, rows)
        normal = -input_gradient(threat.margin(logits, y[rows]), z).to(near.dtype).flatten(1)
        # The foot of x on the plane through that point, inside the box.
        delta = crossing("l2", normal, (normal * point).sum(1), near.low[rows], near.high[rows])
    if len(rows):
        delta, rows = _over(near, delta, rows, inner, rivals, overshoot)
        bisect(near, torch.zeros_like(delta), delta, rows, halvings)
    rows = everybody[near.found(everybody)]
    best = near.delta(rows)
    bisect(near, (1 - 2.0 ** (1 - halvings)) * best, best, rows, halvings)  # the last way, finer
    return near.finish()


def _over(
    near: Nearest, delta: Tensor, rows: Tensor, steps: int, rivals: int, overshoot: float
) -> tuple[Tensor, Tensor]:
    """Return changes that reach the goal, by DeepFool from `delta`, and the rows where it got there."""
    low, high, end, done = near.low, near.high, torch.zeros_like(near.clean), rows[:0]
    for step in range(steps + 1):
        if not len(rows):
            break
        hit = near.ask(delta, rows)[1]
        end[rows[hit]], done = delta[hit], torch.cat([done, rows[hit]])
        rows, delta = rows[~hit], delta[~hit]
        if not len(rows) or step == steps:
            break
        delta = delta + (1 + overshoot) * step_across(near, delta, rows, rivals)
        delta = torch.minimum(torch.maximum(delta, low[rows]), high[rows])
    done = done.sort().values
    return end[done], done
