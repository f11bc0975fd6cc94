"""FAB: the fast adaptive boundary attack, and its targeted form for untargeted goals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.linear import crossing, likeliest_rivals, nearest_plane, rival_margins, side_of, slopes
from hauberk.robustness.attack.nearest import Nearest, bisect

_PAPER = "Croce and Hein 2020, arXiv:1907.02044"
_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")
_NORMS = ("linf", "l2", "l1")
_BACK = 0.1  # the largest share of the way that leads from the clean sample, not from where the search stands
_BEYOND = 1.05  # a step goes that much farther than to the plane
_INWARD = 0.9  # share of the change that is kept after a success
_HALVINGS = 4

Sides = Callable[[Tensor, Tensor], Tensor]


@attack(
    question="How near is a wrong answer, by steps along the boundary between classes?", access=Access.GRADIENT, paper=_PAPER,
    tags=_TAGS, preset="thorough", norms=_NORMS, minimum_norm=True,
)
def fab(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, restarts: int = 1, rivals: int = 9,
    early_stop: bool = False, seed: int = 0,
) -> Tensor:
    """Step to the nearest plane of the linearised model, drawn towards the clean sample, and fall back after every success.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, L2 or L1, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: linearisations of each restart.
        restarts: the first begins at x, later ones at random points half as far away as the nearest found.
        rivals: other classes looked at, those of the largest logits; each costs a gradient per step.
        early_stop: samples leave at their first adversarial point within eps, which is then not the nearest.
        seed: of the later starts.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near, noise = Nearest(target, x, y, threat), generator(seed, "fab", device=x.device)
    rows = near.start()

    def sides(logits: Tensor, rows: Tensor) -> Tensor:
        return rival_margins(logits, y[rows], threat, rivals)

    for restart in range(max(restarts, 1)):
        rows = _left(near, rows, early_stop)
        if len(rows):
            delta = _random_start(near, rows, noise) if restart else torch.zeros_like(near.clean[rows])
            _search(near, rows, delta, steps, sides, early_stop)
    return _finish(near, rows, early_stop)


@attack(
    question="How near is the boundary to each of the likeliest other classes?", access=Access.GRADIENT, paper=_PAPER,
    tags=_TAGS, preset="thorough", norms=_NORMS, goals=(Goal.UNTARGETED,), minimum_norm=True,
)
def fab_t(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, classes: int = 9, early_stop: bool = False
) -> Tensor:
    """Run FAB towards each of the likeliest other classes in turn, at one gradient per step (targeted FAB).

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, shape (n,).
        threat: Linf, L2 or L1, untargeted, for the attack chooses the classes; `eps` is the farthest that counts.
        steps: linearisations towards each class.
        classes: classes tried at most, from the highest logit at x down, the true one left out.
        early_stop: samples leave at their first adversarial point within eps, which is then not the nearest.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near, everybody = Nearest(target, x, y, threat), torch.arange(len(x), device=x.device)
    clean, right = near.ask(torch.zeros_like(near.clean), everybody)
    rows = everybody[~right]
    order = likeliest_rivals(clean, y, classes)

    for rank in range(order.shape[1]):
        rows = _left(near, rows, early_stop)
        if not len(rows):
            break

        def sides(logits: Tensor, rows: Tensor, rank: int = rank) -> Tensor:
            return side_of(logits, y[rows], order[rows, rank])[:, None]

        _search(near, rows, torch.zeros_like(near.clean[rows]), steps, sides, early_stop)
    return _finish(near, rows, early_stop)


def _search(near: Nearest, rows: Tensor, delta: Tensor, steps: int, sides: Sides, early_stop: bool) -> None:
    """Go `steps` steps from the changes `delta`, shape (rows, features), and take note of what succeeds.

    Arguments:
        sides: how far logits (rows, classes) are from each plane, shape (rows, k): zero on it.
    """
    for _ in range(steps):
        if not len(rows):
            return
        moved = _step(near, rows, delta, sides).clamp(near.low[rows], near.high[rows])
        going = (moved != delta).any(1)  # no gradient is left to follow where it stands still
        rows, moved = rows[going], moved[going]
        if not len(rows):
            return
        # Asked without a graph: after a success the search linearises at a point farther in, not here.
        hit = near.ask(moved, rows)[1]
        delta = torch.where(hit[:, None], _INWARD * moved, moved)
        if early_stop:
            going = ~_inside(near, rows)
            rows, delta = rows[going], delta[going]


def _step(near: Nearest, rows: Tensor, delta: Tensor, sides: Sides) -> Tensor:
    """Return where the step from `delta` leads: between the planes' nearest points to it and to the clean sample."""
    z, logits, _ = near.follow(delta, rows)
    margins = sides(logits, rows)  # (rows, k)
    slope = -slopes(margins, z).to(near.dtype)  # (rows, k, features)
    margin = margins.detach().to(near.dtype)
    # From beyond a plane the way leads back to it: the same crossing, mirrored.
    mirror = torch.where(margin < 0, -1.0, 1.0).to(near.dtype)
    low, high, norm = near.low[rows], near.high[rows], near.threat.norm
    from_here, plane = nearest_plane(norm, slope * mirror[:, :, None], margin.abs(), low - delta, high - delta)
    every = torch.arange(len(rows), device=rows.device)
    slope, need = slope[every, plane] * (low < high), margin[every, plane]
    need = need + (slope * delta).sum(1)
    from_clean = crossing(norm, slope * torch.where(need < 0, -1.0, 1.0).to(need)[:, None], need.abs(), low, high)
    here, there = near.norm(from_here), near.norm(from_clean)
    share = (here / (here + there).clamp(min=torch.finfo(here.dtype).tiny)).clamp(max=_BACK)[:, None]
    return (1 - share) * (delta + _BEYOND * from_here) + share * _BEYOND * from_clean


def _inside(near: Nearest, rows: Tensor) -> Tensor:
    """Return for which of `rows` an adversarial point within eps was seen."""
    return near.distance[rows] <= torch.as_tensor(near.threat.eps, device=rows.device).expand(len(near.x))[rows]


def _left(near: Nearest, rows: Tensor, early_stop: bool) -> Tensor:
    return rows[~_inside(near, rows)] if early_stop else rows


def _random_start(near: Nearest, rows: Tensor, noise: torch.Generator) -> Tensor:
    eps = torch.as_tensor(near.threat.eps, dtype=torch.float64, device=rows.device).expand(len(near.x))
    half = near.threat.with_eps(torch.minimum(eps, near.distance) / 2).subset(rows, near.x)
    start = half.around(near.x[rows]).random_start(noise)
    return start.to(near.dtype).flatten(1) - near.clean[rows]


def _finish(near: Nearest, rows: Tensor, early_stop: bool) -> Tensor:
    """Return the nearest points, after a last look between each and the point to which the search fell back from it."""
    rows = _left(near, rows, early_stop)
    rows = rows[near.found(rows)]
    delta = near.delta(rows)
    bisect(near, _INWARD * delta, delta, rows, _HALVINGS)
    return near.finish()
