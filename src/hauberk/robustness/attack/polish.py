"""A finish for attacks of minimum norm: what lies nearer than the point they found, by the slope of the margin there."""

from __future__ import annotations

from torch import Tensor

from hauberk.core.gradients import input_gradient
from hauberk.robustness.attack.linear import crossing
from hauberk.robustness.attack.nearest import Nearest, bisect, fewer

_GAIN = 1e-4  # share of the distance below which a trial is taken to have gained nothing
_HALVINGS = 5


def polish(near: Nearest, rows: Tensor, trials: int) -> None:
    """Take note of nearer points: from the nearest one towards the foot of x on the plane that fits the boundary there.

    Exact where the model is linear between the two. Every trial costs a sample a gradient and 7 queries; those whose trial
    gained nothing are left alone. For L0 there is no way between two points: `fewer` features are tried instead.
    """
    if near.threat.norm == "l0":
        return fewer(near, rows, trials)
    rows = rows[near.found(rows)]
    for _ in range(trials):
        rows = rows[near.distance[rows] > 0]
        if not len(rows):
            return
        point, before = near.delta(rows), near.distance[rows]
        z, logits, _ = near.follow(point, rows)
        margin = near.threat.margin(logits, near.y[rows])
        slope = -input_gradient(margin, z).to(near.dtype).flatten(1) * (near.low < near.high)[rows]
        need = (slope * point).sum(1) + margin.detach().to(near.dtype)
        foot = crossing(near.threat.norm, slope, need + near.beyond(logits), near.low[rows], near.high[rows])
        hit = near.ask(foot, rows)[1]
        bisect(near, foot[~hit], point[~hit], rows[~hit], _HALVINGS)
        rows = rows[near.distance[rows] < before * (1 - _GAIN)]
