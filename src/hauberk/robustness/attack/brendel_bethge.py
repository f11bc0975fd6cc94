"""The attack of Brendel and Bethge: along the boundary, by the best step that a model linear around the point allows."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import opening, step_across
from hauberk.robustness.attack.nearest import Nearest, bisect, cosine
from hauberk.robustness.attack.polish import polish

_HALVINGS = 12  # in the strength of the pull

_NEAR = 1e-3  # of the trust region's radius: how near to the plane is on it


@attack(
    question="How near is a wrong answer, following the boundary itself?",
    access=Access.GRADIENT,
    paper="Brendel et al. 2019, arXiv:1907.01003",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    minimum_norm=True,
)
def brendel_bethge(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, step_size: float = 0.3, approach: int = 20,
    halvings: int = 8, trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Go from an adversarial point to the boundary, and then along it towards x.

    Each step ends at the point nearest to x on the plane that the margin gives, within the bounds and a trust region. Where the
    paper starts from a sample of another class, this goes there by linearised steps.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: gradient steps along the boundary.
        step_size: radius of the first trust region, in Euclidean lengths of the change; it falls to a hundredth by a half cosine.
        approach: linearised steps at most to the adversarial point at the start.
        halvings: queries per sample that bring that point to the boundary.
        trials: of the point found, to come nearer by the slope there, as the paper does not.
        rivals: classes whose planes are looked at on the way to the first point; each costs a gradient.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    everybody = near.start()
    _get_there(near, everybody, approach, rivals)
    rows = everybody[near.found(everybody)]
    if threat.norm != "l0":  # a point between two changes as many features
        bisect(near, torch.zeros_like(near.clean[rows]), near.delta(rows), rows, halvings)
    delta, low, high = near.delta(rows), near.low[rows], near.high[rows]
    for step in range(steps if len(rows) else 0):
        z, logits, _ = near.follow(delta, rows)
        margin = threat.margin(logits, y[rows])
        slope = -input_gradient(margin, z).to(near.dtype).flatten(1) * (low < high)
        share = cosine(step_size, step_size / 100, step, steps)
        radius = share * near.delta(rows).norm(dim=1)
        gap = margin.detach().to(near.dtype) + near.beyond(logits)
        delta = along(threat.norm, delta, slope, gap, radius, low, high)
    if len(rows):
        near.ask(delta, rows)
        polish(near, rows, trials)
    return near.finish()


def along(norm: str, delta: Tensor, slope: Tensor, gap: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the change of least norm with <slope, change - delta> = gap, |change - delta|_2 <= radius and the box.

    Where no change of the trust region gets there, the one that comes as near as it can.

    Arguments:
        norm: of the change.
        delta, slope, low, high: shape (n, features).
        gap: what is missing to the plane, shape (n,); below zero behind it.
        radius: shape (n,).
    """
    size = slope.norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
    way, need = slope / size[:, None], (slope * delta).sum(1) / size + gap / size
    need = torch.minimum(need, (way * delta).sum(1) + radius * (1 - 1e-6))  # no farther than the trust region
    # The Lagrangian falls apart by features: for a strength s of the pull the change is shrink(delta + m way, s), with the m
    # that puts it on the plane. The stronger the pull, the farther from delta: the strongest that stays in the region is sought.
    weak, strong = torch.zeros_like(gap), torch.ones_like(gap)
    best = _on_plane(norm, delta, way, need, weak, low, high)
    for _ in range(_HALVINGS):
        pull = (weak + strong) / 2
        found = _on_plane(norm, delta, way, need, pull, low, high)
        inside = ((found - delta).norm(dim=1) <= radius) & ((way * found).sum(1) >= need - _NEAR * radius)
        best = torch.where(inside[:, None], found, best)
        weak, strong = torch.where(inside, pull, weak), torch.where(inside, strong, pull)
    return best


def _on_plane(norm: str, delta: Tensor, way: Tensor, need: Tensor, pull: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return shrink(delta + m way) in the box, shape (n, features), with the m that brings it to the plane <way, change> = need.

    Its product with `way` rises with m along straight pieces, so that m is found among their ends, exactly.
    """
    base, low, high = _pieces(norm, delta, way, need, pull, low, high)
    slope = way.repeat(1, base.shape[1] // way.shape[1])
    first, last = torch.where(slope > 0, low, high), torch.where(slope > 0, high, low)
    ends = torch.cat([(first - base) / slope, (last - base) / slope], 1).nan_to_num(nan=0.0)  # a feature moves between its two
    ends, order = torch.where(slope.repeat(1, 2) == 0, 0.0, ends).sort(1)
    rate = torch.cat([slope.square(), -slope.square()], 1).gather(1, order).cumsum(1)
    risen = torch.cat([torch.zeros_like(need)[:, None], (rate[:, :-1] * (ends[:, 1:] - ends[:, :-1])).cumsum(1)], 1)
    rest = need - (slope * first).sum(1)
    place = ((risen <= rest[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    here = rate.gather(1, place)[:, 0]
    further = torch.where(here > 1e-12, (rest - risen.gather(1, place)[:, 0]) / here, 0.0)
    m = ends.gather(1, place)[:, 0] + further
    moved = torch.minimum(torch.maximum(base + m[:, None] * slope, low), high)
    return moved.view(len(moved), -1, way.shape[1]).sum(1)


def _pieces(
    norm: str, delta: Tensor, way: Tensor, need: Tensor, pull: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return base, low and high such that shrink(delta + m way) in the box is base + m way between low and high.

    A pull of 0 changes nothing and one of 1 leaves nothing. In L1 a feature has two pieces to add up: above zero and below.
    """
    share = pull[:, None]
    if norm == "l2":
        return (1 - share) * delta, low, high
    if norm == "linf":
        limit = delta.abs().amax(1, keepdim=True) * (1 - share)
        return delta, torch.maximum(low, -limit), torch.minimum(high, limit)
    if norm == "l1":
        cut, zero = delta.abs().amax(1, keepdim=True) * share, torch.zeros_like(delta)
        return torch.cat([delta - cut, delta + cut], 1), torch.cat([zero, low], 1), torch.cat([high, zero], 1)
    # L0: what is small after the plain step to the plane stays at zero.
    size = (delta + (need - (way * delta).sum(1))[:, None] * way).abs()
    kept = size >= size.amax(1, keepdim=True) * share
    return delta * kept, low * kept, high * kept


def _get_there(near: Nearest, rows: Tensor, steps: int, rivals: int) -> None:
    """Take note of an adversarial point of each sample, by linearised steps."""
    delta = opening(near, rows, max(rivals, 1))
    for _ in range(steps):
        going = ~near.found(rows)
        rows, delta = rows[going], delta[going]
        if not len(rows):
            return
        delta = delta + 1.1 * step_across(near, delta, rows, max(rivals, 1))
        delta = torch.minimum(torch.maximum(delta, near.low[rows]), near.high[rows])
        near.ask(delta, rows)
