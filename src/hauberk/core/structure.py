"""Structure: what an input can be at all, for tables: whole numbers, one-hot groups, features that move one way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from hauberk.core.ball import Ball

_DIRECTIONS = (-1.0, 0.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """What inputs can be at all. A model asked about points between them would answer questions that nobody can send.

    An attack walks on as if every feature were continuous, and each of its points is moved to the nearest possible one before
    the model is asked (the gradient passes straight through, Bengio et al. 2013, arXiv:1308.3432); what it returns is possible.

    Arguments:
        step: spacing of the values a feature can have, `offset + k * step`; 0 for any value. A number, or one per feature in the
            shape of a sample: 1 for whole numbers, 0.01 for whole numbers that were divided by 100.
        offset: one possible value of each feature; a number, or one per feature.
        one_hot: groups of positions in the flattened sample; in each group exactly one feature is 1 and the others are 0.
        direction: 1 where a feature can only grow, -1 where it can only fall, 0 where both; the shape of a sample. None: both.

    Raises:
        UsageError: for a negative step, a direction of another value, or groups that share a feature or have fewer than two.
    """

    step: float | Tensor = 0.0
    offset: float | Tensor = 0.0
    one_hot: Sequence[Sequence[int]] = ()
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        steps = torch.as_tensor(self.step, dtype=torch.float64)
        if not bool(((steps >= 0) & steps.isfinite()).all()):
            raise UsageError(f"step is {self.step}", want="0 for any value, else the spacing of the possible values")
        if not bool(torch.as_tensor(self.offset, dtype=torch.float64).isfinite().all()):
            raise UsageError(f"offset is {self.offset}", want="one possible value of each feature, finite")
        ways = torch.as_tensor(0.0 if self.direction is None else self.direction, dtype=torch.float64)
        if not bool(torch.isin(ways, torch.tensor(_DIRECTIONS, dtype=torch.float64, device=ways.device)).all()):
            raise UsageError("direction holds other values than -1, 0 and 1", want="-1, 0 or 1 for each feature")
        members = [one for group in self.one_hot for one in group]
        short = [tuple(group) for group in self.one_hot if len(group) < 2]
        if short or len(set(members)) < len(members) or any(one < 0 for one in members):
            raise UsageError(
                f"one_hot is {[tuple(group) for group in self.one_hot]}",
                want="groups of two or more positions in the flattened sample, no position twice",
            )

    def refuse(self, x: Tensor) -> None:
        """Raise when these parts do not fit the samples x, shape (n, ...), or a sample is not possible itself."""
        for name, part in (("step", self.step), ("offset", self.offset), ("direction", self.direction)):
            if isinstance(part, Tensor) and part.ndim and part.shape != x.shape[1:]:
                raise UsageError(f"{name} has shape {tuple(part.shape)}", want=f"a number, or {tuple(x.shape[1:])}")
        features = math.prod(x.shape[1:])
        beyond = [one for group in self.one_hot for one in group if one >= features]
        if beyond:
            raise UsageError(f"one_hot names the position {beyond[0]}", want=f"positions below {features}")
        if not len(x):
            return
        step, offset = self._grid(x)
        off = (x.double() - self._nearest(x.double(), step, offset)).abs() > _slack(x, step, x.dtype)
        off &= step > 0
        if bool(off.any()):
            row, feature = (int(one) for one in off.flatten(1).nonzero()[0])
            value, spacing = float(x.flatten(1)[row, feature]), float(step.flatten()[feature])
            raise DataError(
                f"{int(off.sum())} values lie between the possible ones: sample {row} has {value:.6g} at position {feature}, "
                f"whose step is {spacing:g}", want="clean inputs on the grid offset + k * step",
                fix="Correct step and offset, or set the step of that feature to 0",
            )
        flat = x.flatten(1)
        for group in self.one_hot:
            part = flat[:, list(group)]
            wrong = ((part != 0) & (part != 1)).any(1) | (part.sum(1) != 1)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise DataError(
                    f"sample {row} has {[round(v, 4) for v in part[row].tolist()][:8]} in the one-hot group {tuple(group)[:8]}",
                    want="one feature at 1 and the others at 0", fix="Correct the group, or leave scaled features out of it",
                )

    def snap(self, z: Tensor) -> Tensor:
        """Return the possible inputs nearest to z, shape (n, ...); the gradient passes as if nothing had moved."""
        step, offset = self._grid(z)
        fixed = self._nearest(z.detach().double(), step, offset).to(z.dtype)
        fixed = torch.where(step > 0, fixed, z.detach())
        if self.one_hot:
            flat = fixed.flatten(1).clone()
            for group in self.one_hot:
                index = torch.as_tensor(list(group), device=z.device)
                flat[:, index] = torch.nn.functional.one_hot(flat[:, index].argmax(1), len(index)).to(z.dtype)
            fixed = flat.view(z.shape)
        return fixed + (z - z.detach()) if z.requires_grad else fixed

    def box(self, clean: Tensor, low: Tensor, high: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends, float64 (n, ...), of what can change, moved inwards to possible values.

        Arguments:
            clean: the samples, shape (n, ...).
            low, high: what bounds, mask and radius leave, float64.
            room: whether the radius lets a one-hot group change at all, shape (n,), bool.
        """
        x, (step, offset) = clean.detach().double(), self._grid(clean)
        spacing, slack = torch.where(step > 0, step, 1.0), _slack(clean, step, clean.dtype)
        low = torch.where(step > 0, ((low - slack - offset) / spacing).ceil() * spacing + offset, low)
        high = torch.where(step > 0, ((high + slack - offset) / spacing).floor() * spacing + offset, high)
        if self.direction is not None:
            way = self.direction.to(x.device)
            low, high = torch.where(way > 0, x, low), torch.where(way < 0, x, high)
        low, high = torch.minimum(low, x).flatten(1), torch.maximum(high, x).flatten(1)
        for group in self.one_hot:
            index = torch.as_tensor(list(group), device=x.device)
            part = x.flatten(1)[:, index]
            # The hot feature has to fall, and another to rise, for the group to change.
            free = room & (low[:, index] <= 0).logical_and(part == 1).any(1) & (high[:, index] >= 1).logical_and(part == 0).any(1)
            # A feature that cannot be reached is held at 0, so that it never wins.
            stuck = ~free[:, None] | ((part == 0) & (high[:, index] < 1))
            low[:, index] = torch.where(stuck, part, low[:, index].clamp(min=0))
            high[:, index] = torch.where(stuck, part, high[:, index].clamp(max=1))
        return low.view(x.shape), high.view(x.shape)

    def settle(self, z: Tensor, ball: Ball) -> Tensor:
        """Return possible points inside the ball, near to z, shape (n, ...).

        Where the nearest possible point lies beyond the radius, its largest changes are kept as far as the radius goes.
        """
        x, step = ball.x.flatten(1), self._grid(z)[0].expand(z.shape).flatten(1)
        fixed = self.snap(z.detach()).to(ball.x.dtype).flatten(1)
        fixed = torch.where((step > 0) & ((fixed.double() - x.double()).abs() < step / 2), x, fixed)
        low, high = ball.low.flatten(1), ball.high.flatten(1)
        slack = _slack(x, step, x.dtype)
        outside = (fixed.double() < low.double() - slack) | (fixed.double() > high.double() + slack)
        units = torch.arange(x.shape[1], device=z.device)  # which features change together
        for group in self.one_hot:
            index = torch.as_tensor(list(group), device=z.device)
            units[index] = index[0]
            outside[:, index] = outside[:, index].any(1, keepdim=True)
        fixed = torch.where(outside, x, fixed.clamp(low, high))
        far = (~ball.contains(fixed.view(z.shape))).nonzero()[:, 0]
        if len(far):
            fixed[far] = _trimmed(fixed[far], ball.subset(far), units)
        settled = fixed.view(z.shape)
        inside = ball.contains(settled).reshape((-1,) + (1,) * (z.ndim - 1))
        return torch.where(inside, settled, ball.x)

    def describe(self) -> str:
        """Return the structure in a few plain words."""
        parts = ["features on a grid"] if bool((torch.as_tensor(self.step) > 0).any()) else []
        parts += [f"{len(self.one_hot)} one-hot groups"] if self.one_hot else []
        parts += ["features that move one way"] if self.direction is not None and bool((self.direction != 0).any()) else []
        return ", ".join(parts)

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, offset = (torch.as_tensor(one, dtype=torch.float64, device=x.device) for one in (self.step, self.offset))
        return step, offset

    @staticmethod
    def _nearest(exact: Tensor, step: Tensor, offset: Tensor) -> Tensor:
        spacing = torch.where(step > 0, step, 1.0)
        return torch.where(step > 0, ((exact - offset) / spacing).round() * spacing + offset, exact)


def _slack(x: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far from the grid rounding alone can put a value, in the shape of x."""
    return 1e-6 * step + 4 * torch.finfo(dtype).eps * x.detach().double().abs()


def _trimmed(fixed: Tensor, ball: Ball, units: Tensor) -> Tensor:
    """Return the points with their largest changes alone, as many as the radius holds; each unit of features as a whole."""
    x = ball.x.flatten(1)
    change = (fixed.double() - x.double()).abs()
    power = {"l2": change.square(), "l1": change, "l0": (change > 0).double()}.get(ball.norm)
    if power is None:  # Linf: the box holds the radius already
        return x.clone()
    limit = ball.radius.square() if ball.norm == "l2" else ball.radius
    cost = torch.zeros_like(power).index_add(1, units, power)
    order = cost.argsort(dim=1, descending=True, stable=True)
    spent, keep = torch.zeros_like(limit), torch.zeros_like(cost, dtype=torch.bool)
    for place in range(order.shape[1]):
        one = order[:, place : place + 1]
        more = cost.gather(1, one)[:, 0]
        fits = spent + more <= limit
        spent = torch.where(fits, spent + more, spent)
        keep.scatter_(1, one, fits[:, None])
    return torch.where(keep[:, units], fixed, x)
