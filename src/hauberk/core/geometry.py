"""Projections and linear maximisation over norm balls cut by a box, row by row.

Every function takes flat tensors: `delta`, `low`, `high` of shape (n, d) and `eps` of shape (n,). `low <= 0 <= high` is the
room each feature has around its clean value, so that a change clamped to it never grows in any norm.
"""

from __future__ import annotations

import torch
from torch import Tensor


def project_linf(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the nearest point with every |delta_i| <= eps, inside the box."""
    return delta.clamp(torch.maximum(low, -eps[:, None]), torch.minimum(high, eps[:, None]))


def project_l2(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the nearest point with Euclidean norm <= eps, inside the box."""
    inside = delta.clamp(low, high)
    outside = inside.norm(dim=1) > eps
    if not outside.any():
        return inside
    return torch.where(outside[:, None], _scaled_to_l2(delta, eps, low, high), inside)


def project_l1(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the nearest point with sum |delta_i| <= eps, inside the box (Croce and Hein 2021, arXiv:2103.01208)."""
    inside = delta.clamp(low, high)
    outside = inside.abs().sum(1) > eps
    if not outside.any():
        return inside
    size = delta.abs()  # (n, d)
    room = torch.where(delta > 0, high, -low)
    # sum_i clip(size_i - t, 0, room_i) falls in t: it gains slope where t passes size_i and loses it at size_i - room_i.
    breaks = torch.cat([size, (size - room).clamp(min=0)], 1)  # (n, 2d)
    slopes = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    breaks, order = breaks.sort(1, descending=True)
    slope = slopes.gather(1, order).cumsum(1)
    step = breaks[:, :-1] - breaks[:, 1:]
    reached = torch.cat([torch.zeros_like(eps)[:, None], (slope[:, :-1] * step).cumsum(1)], 1)  # value at each break
    segment = ((reached <= eps[:, None]).sum(1, keepdim=True) - 1).clamp(min=0)
    rest = eps[:, None] - reached.gather(1, segment)
    threshold = breaks.gather(1, segment) - rest / slope.gather(1, segment).clamp(min=1)
    shrunk = delta.sign() * torch.minimum((size - threshold).clamp(min=0), room)
    return torch.where(outside[:, None], shrunk, inside)


def project_l0(delta: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the nearest point with at most eps features changed, inside the box."""
    inside = delta.clamp(low, high)
    # Keeping feature i saves delta_i^2 - (delta_i - inside_i)^2 of squared distance.
    saved = delta.square() - (delta - inside).square()
    return torch.where(_largest(saved, eps), inside, torch.zeros_like(inside))


def maximise_linf(slope: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the point of the ball in the box where <slope, delta> is largest."""
    ends = torch.where(slope > 0, torch.minimum(high, eps[:, None]), torch.maximum(low, -eps[:, None]))
    return torch.where(slope == 0, torch.zeros_like(ends), ends)


def maximise_l2(slope: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the point of the ball in the box where <slope, delta> is largest."""
    corner = maximise_linf(slope, torch.full_like(eps, torch.inf), low, high)
    reachable = corner.norm(dim=1) <= eps
    scaled = _scaled_to_l2(slope, eps, low, high)
    return torch.where(reachable[:, None], corner, scaled)


def maximise_l1(slope: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the point of the ball in the box where <slope, delta> is largest: steepest features filled first."""
    room = torch.where(slope > 0, high, -low)
    steep, order = slope.abs().sort(1, descending=True)
    sorted_room = torch.where(steep > 0, room.gather(1, order), torch.zeros_like(room))
    # Sums of what comes before, not a difference of sums: rooms and radius may be infinite.
    used = torch.cat([torch.zeros_like(sorted_room[:, :1]), sorted_room[:, :-1].cumsum(1)], 1)
    left = torch.where(used < eps[:, None], eps[:, None] - used, torch.zeros_like(used))
    spent = torch.minimum(sorted_room, left)
    return torch.zeros_like(slope).scatter(1, order, spent) * slope.sign()


def maximise_l0(slope: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the point of the ball in the box where <slope, delta> is largest: the features with most to gain."""
    corner = maximise_linf(slope, torch.full_like(eps, torch.inf), low, high)
    gain = slope * corner
    return torch.where(_largest(gain, eps) & (gain > 0), corner, torch.zeros_like(corner))


def norms(delta: Tensor, norm: str) -> Tensor:
    """Return the size of each row of `delta`, shape (n,), summed in float64."""
    exact = delta.double()
    if norm == "linf":
        return exact.abs().amax(1) if exact.shape[1] else exact.new_zeros(len(exact))
    if norm == "l2":
        return exact.norm(dim=1)
    if norm == "l1":
        return exact.abs().sum(1)
    return (exact != 0).sum(1).double()


PROJECT = {"linf": project_linf, "l2": project_l2, "l1": project_l1, "l0": project_l0}
MAXIMISE = {"linf": maximise_linf, "l2": maximise_l2, "l1": maximise_l1, "l0": maximise_l0}


def _scaled_to_l2(direction: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return clamp(s * direction) with norm eps: s only grows as features meet the box, so a few rounds find it exactly."""
    tiny = torch.finfo(direction.dtype).tiny
    # To a largest entry of 1 first: the square of a vanishing gradient is zero.
    direction = direction / direction.abs().amax(1, keepdim=True).clamp(min=tiny)
    goal = eps.square()  # (n,)
    scale = eps / direction.norm(dim=1).clamp(min=tiny)
    point = (scale[:, None] * direction).clamp(low, high)
    free = (point > low) & (point < high)
    for _ in range(100):
        fixed = torch.where(free, torch.zeros_like(point), point).square().sum(1)
        loose = torch.where(free, direction, torch.zeros_like(direction)).square().sum(1)
        wanted = ((goal - fixed).clamp(min=0) / loose.clamp(min=tiny)).sqrt()
        scale = torch.maximum(torch.where(loose > 0, wanted, scale), scale)
        point = (scale[:, None] * direction).clamp(low, high)
        before, free = free, (point > low) & (point < high)
        # A row whose free features stay the same stays where it is: other rows of the batch do not disturb it.
        if bool((free == before).all()):
            break
    # Rounding may leave the point a hair outside: draw it in.
    return point * (eps / point.norm(dim=1).clamp(min=tiny)).clamp(max=1)[:, None]


def _largest(value: Tensor, count: Tensor) -> Tensor:
    """Return a mask of the `count` largest entries of each row, ties broken by position."""
    rank = value.argsort(dim=1, descending=True, stable=True).argsort(1)
    return rank < count.floor()[:, None]
