"""The model seen as linear: gradients of all classes, and the least change that crosses a plane inside a box."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.nearest import Nearest, interpolate

DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf, "l0": torch.inf}
_HAIR = 1e-9  # above zero: on the very plane the answer has not changed yet
_QUERIES = 4  # that shorten the opening's step


def rival_margins(logits: Tensor, y: Tensor, threat: Threat, rivals: int) -> Tensor:
    """Return how far each sample is from reaching its goal by each of its nearest rivals, shape (n, rivals), differentiable.

    Untargeted: the true logit above that of each of the `rivals` largest others. Any other goal has one way alone.
    """
    if threat.goal is not Goal.UNTARGETED:
        return threat.margin(logits, y)[:, None]
    if y.ndim == 2:  # each label of a multi-label model is a plane of its own
        return _sureness(logits, y).gather(1, likeliest_rivals(logits.detach(), y, rivals))
    return logits.gather(1, y[:, None]) - logits.gather(1, likeliest_rivals(logits.detach(), y, rivals))


def likeliest_rivals(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """Return the other classes of the highest logits, or of a multi-label model the least sure labels, shape (n, rivals)."""
    if y.ndim == 2:
        return _sureness(logits, y).topk(min(count, y.shape[1]), dim=1, largest=False).indices
    return logits.scatter(1, y[:, None], -torch.inf).topk(min(count, logits.shape[1] - 1), dim=1).indices


def side_of(logits: Tensor, y: Tensor, rival: Tensor) -> Tensor:
    """Return how far each sample is from the plane towards its `rival`, shape (n,), differentiable: below zero is beyond it."""
    if y.ndim == 2:
        return _sureness(logits, y).gather(1, rival[:, None])[:, 0]
    return (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None]))[:, 0]


def _sureness(logits: Tensor, y: Tensor) -> Tensor:
    """Return how far each label of a multi-label model is from turning, (n, labels); those marked -1 never turn."""
    return (logits * (2 * y.clamp(min=0) - 1)).masked_fill(y < 0, torch.inf)


def slopes(values: Tensor, z: Tensor) -> Tensor:
    """Return the gradients of `values`, shape (n, k), towards z, shape (n, k, features); zero where none gets through."""
    if not values.requires_grad:
        return z.new_zeros(*values.shape, z[0].numel())
    columns = range(values.shape[1])
    # One backward pass per column: on a CPU faster than a vectorised Jacobian.
    found = [torch.autograd.grad(values[:, k].sum(), z, retain_graph=k < columns[-1], materialize_grads=True)[0] for k in columns]
    return torch.stack([one.flatten(1) for one in found], 1).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def step_across(near: Nearest, delta: Tensor, rows: Tensor, rivals: int, norm: str = "") -> Tensor:
    """Return the least steps, shape (rows, features), from `delta` over the nearest plane of the model linearised there.

    Least in the threat's norm, unless another is named.
    """
    z, logits, _ = near.follow(delta, rows)
    margins = rival_margins(logits, near.y[rows], near.threat, rivals)  # (rows, rivals)
    slope = -slopes(margins, z).to(near.dtype)  # (rows, rivals, features)
    need = (margins.detach().to(near.dtype) + _HAIR).clamp(min=_HAIR)
    return nearest_crossing(norm or near.threat.norm, slope, need, near.low[rows] - delta, near.high[rows] - delta)


def opening(near: Nearest, rows: Tensor, rivals: int) -> Tensor:
    """Return the changes with which the model linearised at the clean samples gives way to its nearest rival, and take note.

    A descent of the margin heads for the rival of the largest logit, which need not be the nearest: this puts it on its way.
    """
    if not len(rows) or not rivals:
        return torch.zeros_like(near.clean[rows])
    clean = torch.zeros_like(near.clean[rows])
    delta = (1.02 * step_across(near, clean, rows, rivals)).clamp(near.low[rows], near.high[rows])
    hit = near.ask(delta, rows)[1]
    if near.threat.norm != "l0":
        interpolate(near, clean[hit], delta[hit], rows[hit], _QUERIES)
    return torch.where(hit[:, None], near.delta(rows), delta)


def crossing(norm: str, slope: Tensor, need: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the least change with <slope, delta> >= need inside the box; the corner that comes nearest where none reaches it.

    Arguments:
        norm: in which the change is least.
        slope: shape (n, features).
        need: shape (n,).
        low, high: room around each feature, low <= 0 <= high, shape (n, features).
    """
    size, room = slope.abs(), torch.where(slope > 0, high, -low)
    if norm == "l0":
        return _most_gain_first(slope, size * room, room, need)
    if norm == "l1":
        return _steepest_first(slope, size, room, need)
    # delta_i = min(s |w_i|, room_i) for L2, min(s, room_i) for Linf: its gain, sum_i rate_i min(s, stop_i), is concave in s.
    rate = size.square() if norm == "l2" else size
    stop = room / size.clamp(min=torch.finfo(size.dtype).tiny) if norm == "l2" else room
    length = torch.zeros_like(need)
    free = (stop > 0) & (rate > 0)
    for _ in range(200):  # Newton's method from below: it passes a stop in every round, and ends exactly
        fixed = torch.where(free, torch.zeros_like(rate), rate * stop).nan_to_num_(nan=0.0).sum(1)
        loose = torch.where(free, rate, torch.zeros_like(rate)).sum(1)
        wanted = (need - fixed).clamp(min=0) / loose.clamp(min=torch.finfo(rate.dtype).tiny)
        length = torch.where(loose > 0, torch.maximum(wanted, length), length)
        before, free = free, (stop > length[:, None]) & (rate > 0)
        if bool((free == before).all()):
            break
    spent = length[:, None] * size if norm == "l2" else length[:, None]
    return torch.minimum(spent, room) * slope.sign()


def nearest_crossing(norm: str, slope: Tensor, need: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the least of the changes that cross any of k planes inside the box; shapes as in `crossing`, (n, k, features)."""
    return nearest_plane(norm, slope, need, low, high)[0]


def nearest_plane(norm: str, slope: Tensor, need: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least of the changes that cross any of k planes inside the box, and which plane that is, shape (n,)."""
    slope = slope * (low < high)[:, None]
    length = torch.linalg.vector_norm(slope, DUAL[norm], dim=2)
    least = torch.ones_like(need) if norm == "l0" else need.clamp(min=0) / length
    bound = torch.where(length > 0, least, torch.inf)  # of the distance without the box, from below
    first = bound.argmin(1)
    every = torch.arange(len(slope), device=slope.device)
    best = crossing(norm, slope[every, first], need[every, first], low, high)
    distance = _distance(norm, best, slope[every, first], need[every, first])
    rest = bound < distance[:, None]
    rest[every, first] = False
    row, plane = rest.nonzero(as_tuple=True)  # few: where the box stands in the way
    if len(row):
        more = crossing(norm, slope[row, plane], need[row, plane], low[row], high[row])
        size = torch.full_like(bound, torch.inf)
        size[row, plane] = _distance(norm, more, slope[row, plane], need[row, plane])
        nearer = (size.amin(1) < distance)[row] & (size.argmin(1)[row] == plane)
        best[row[nearer]], first[row[nearer]] = more[nearer], plane[nearer]
    return best, first


def _distance(norm: str, delta: Tensor, slope: Tensor, need: Tensor) -> Tensor:
    """Return the sizes, infinite where the change does not get there."""
    short = (slope * delta).sum(1) < need - 1e-6 * need.abs()
    return torch.where(short, torch.inf, geometry.norms(delta, norm).to(delta.dtype))


def _steepest_first(slope: Tensor, size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    steep, order = size.sort(1, descending=True)
    gain = steep * room.gather(1, order)
    before = torch.cat([torch.zeros_like(gain[:, :1]), gain[:, :-1].cumsum(1)], 1)
    left = (need[:, None] - before).clamp(min=0) / steep.clamp(min=torch.finfo(steep.dtype).tiny)
    return torch.zeros_like(slope).scatter(1, order, torch.minimum(left, room.gather(1, order))) * slope.sign()


def _most_gain_first(slope: Tensor, gain: Tensor, room: Tensor, need: Tensor) -> Tensor:
    sorted_gain, order = gain.sort(1, descending=True)
    before = torch.cat([torch.zeros_like(gain[:, :1]), sorted_gain[:, :-1].cumsum(1)], 1)
    wanted = (before < need[:, None]) & (sorted_gain > 0)
    return torch.zeros_like(slope).scatter(1, order, torch.where(wanted, room.gather(1, order), 0)) * slope.sign()
