"""Ball: the inputs a threat allows around given samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.rng import normal, uniform

if TYPE_CHECKING:
    from hauberk.core.threat import Threat

_HAIR = 1e-12


class Ball:
    """The inputs a threat allows around given samples: the one place that knows ball, bounds and mask.

    For every sample a box [low, high] is rounded inwards in the samples' own dtype, so that a point clamped to it is inside the
    bounds, the mask and, for Linf, the radius *exactly*, as float64 arithmetic sees it.
    """

    def __init__(self, threat: Threat, x: Tensor) -> None:
        self.threat, self.x, self.norm = threat, x, threat.norm
        shape = (-1,) + (1,) * (x.ndim - 1)
        self.radius = torch.as_tensor(threat.eps, dtype=torch.float64, device=x.device).expand(len(x))
        low, high = threat.bounds if threat.bounds is not None else (0.0, 1.0)
        box_low = torch.as_tensor(low, dtype=torch.float64, device=x.device)
        box_high = torch.as_tensor(high, dtype=torch.float64, device=x.device)
        exact = x.detach().double()
        if self.norm == "linf":
            reach = self.radius.reshape(shape)
            box_low, box_high = torch.maximum(box_low, exact - reach), torch.minimum(box_high, exact + reach)
        if threat.mask is not None:
            free = threat.mask.to(x.device).bool()
            box_low, box_high = torch.where(free, box_low, exact), torch.where(free, box_high, exact)
        if threat.structure is not None:
            least = {"linf": 1.0, "l2": 2**0.5, "l1": 2.0, "l0": 2.0}[self.norm]  # what a change of a one-hot group costs
            low_now, high_now = box_low.expand_as(exact), box_high.expand_as(exact)
            box_low, box_high = threat.structure.box(x, low_now, high_now, self.radius >= least)
        # A clean value a rounding error outside the bounds stays allowed: the ball always holds its centre.
        self.low = torch.minimum(_round_up(torch.minimum(box_low.expand_as(exact), exact), x.dtype), x.detach())
        self.high = torch.maximum(_round_down(torch.maximum(box_high.expand_as(exact), exact), x.dtype), x.detach())
        if self.norm == "linf":  # the subtraction above has rounded as well
            beyond = exact - self.low.double() > reach
            self.low = torch.where(beyond, torch.minimum(_next(self.low, torch.inf), x.detach()), self.low)
            beyond = self.high.double() - exact > reach
            self.high = torch.where(beyond, torch.maximum(_next(self.high, -torch.inf), x.detach()), self.high)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> Tensor:
        """The radius of each sample, shape (n,); where it is infinite, the extent of the box in the norm."""
        extent = geometry.norms((self.high.double() - self.low.double()).flatten(1), self.norm)
        return torch.where(self.radius.isinf(), extent, self.radius)

    def project(self, z: Tensor) -> Tensor:
        """Return the nearest allowed points to z, shape (n, ...), strictly inside."""
        if self.norm == "linf":
            return z.clamp(self.low, self.high)
        return self.seal(self._moved(geometry.PROJECT[self.norm](*self._flat(z - self.x))))

    def maximise(self, slope: Tensor) -> Tensor:
        """Return the allowed points where <slope, z> is largest: the exact answer for a linear model."""
        if self.norm == "linf":
            return torch.where(slope > 0, self.high, torch.where(slope < 0, self.low, self.x))
        return self.seal(self._moved(geometry.MAXIMISE[self.norm](*self._flat(slope))))

    def random_start(self, generator: torch.Generator) -> Tensor:
        """Return one random point per sample: uniform in the ball (in the box where the radius is infinite), then clamped.

        Features that may not change take no part in the draw, so that a small mask gets starts of the full radius.
        """
        x = self.x if self.x.dtype in (torch.float32, torch.float64) else self.x.float()
        flat, free = x.flatten(1), (self.low < self.high).flatten(1)
        box = self.low + (self.high - self.low) * uniform(x, generator).to(self.x)
        radius = torch.where(self.radius.isinf(), torch.zeros_like(self.radius), self.radius).to(x.dtype)[:, None]
        if self.norm == "linf":
            return box.clamp(self.low, self.high)
        if self.norm == "l0":
            order = torch.where(free, uniform(flat, generator), torch.full_like(flat, 2))
            keep = order.argsort(1).argsort(1) < radius.floor()
            start = torch.where(keep.view_as(x), box, self.x)
        elif self.norm == "l2":
            noise = normal(flat, generator) * free
            power = 1 / free.sum(1, keepdim=True).clamp(min=1)
            length = uniform(flat[:, :1], generator).pow(power) * radius
            start = self._moved(noise * (length / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)))
        else:
            share = -torch.log1p(-uniform(torch.cat([flat, flat[:, :1]], 1), generator))  # exponential spacings
            rest, share = share[:, -1:], share[:, :-1] * free
            sign = uniform(flat, generator).sub_(0.5).sign()
            start = self._moved(share / (share.sum(1, keepdim=True) + rest).clamp(min=1e-12) * sign * radius)
        return self.seal(torch.where(self._column(self.radius.isinf()), box, start))

    def distance(self, z: Tensor) -> Tensor:
        """Return the distance of each z from its sample, shape (n,), float64."""
        return self.threat.distance(z, self.x)

    def contains(self, z: Tensor) -> Tensor:
        """Return which z are allowed, shape (n,), bool; no tolerance."""
        inside = ((z >= self.low) & (z <= self.high)).flatten(1).all(1)
        return inside & (self.distance(z) <= self.radius)

    def possible(self, z: Tensor) -> Tensor:
        """Return z, shape (n, ...), as inputs of this ball that can be at all; the gradient passes as if nothing had moved."""
        if self.threat.structure is None:
            return z
        settled = self.threat.structure.settle(z.detach(), self)
        return settled + (z - z.detach()) if z.requires_grad else settled

    def seal(self, z: Tensor) -> Tensor:
        """Return z moved inside the ball *strictly*, as float64 arithmetic sees it after the cast to z's dtype."""
        z = z.clamp(self.low, self.high)
        if self.norm == "linf":
            return z
        distance = self.distance(z)
        # The hair's breadth keeps the promise whatever order somebody else sums the features in.
        fits = distance * (1 + _HAIR) <= self.radius
        if bool(fits.all()):
            return z
        if self.norm == "l0":
            inner = z.clone()
            inner[~fits] = self.subset(~fits)._moved(geometry.project_l0(*self.subset(~fits)._flat((z - self.x)[~fits])))
            return inner
        ratio = self._column(self.radius / distance.clamp(min=1e-300)).clamp(max=1) * (1 - 4 * _HAIR)
        centre = self.x.double()
        exact = centre + (z.double() - centre) * ratio
        # Rounded towards the clean value: no feature grows in the cast, so no norm does.
        inner = torch.where(
            exact > centre, torch.maximum(_round_down(exact, z.dtype), self.x),
            torch.minimum(_round_up(exact, z.dtype), self.x),
        )
        inner = torch.where(self._column(fits), z, inner)
        return torch.where(self._column(self.distance(inner) <= self.radius), inner, self.x)

    def subset(self, index: Tensor) -> Ball:
        """Return the ball of the samples at `index` (a bool mask or positions), without computing it anew."""
        part = object.__new__(Ball)
        part.threat, part.norm = self.threat, self.norm
        part.x, part.radius = self.x[index], self.radius[index]
        part.low, part.high = self.low[index], self.high[index]
        return part

    def _moved(self, delta: Tensor) -> Tensor:
        delta = delta.view(self.x.shape)
        return (self.x.to(delta.dtype) + delta).to(self.x.dtype).clamp(self.low, self.high)

    def _column(self, values: Tensor) -> Tensor:
        return values.reshape((-1,) + (1,) * (self.x.ndim - 1))

    def _flat(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Half types overflow in a square: geometry is done in float32 at least.
        dtype = delta.dtype if delta.dtype in (torch.float32, torch.float64) else torch.float32
        low, high = (self.low.to(dtype) - self.x.to(dtype)), (self.high.to(dtype) - self.x.to(dtype))
        radius = self.radius
        if self.norm != "l0":
            # A few units in the last place short, so that most points need no second look after rounding.
            radius = radius * (1 - max(4 * torch.finfo(dtype).eps, 2 * _HAIR))
        return delta.to(dtype).flatten(1), radius.to(dtype), low.clamp(max=0).flatten(1), high.clamp(min=0).flatten(1)


def _round_up(exact: Tensor, dtype: torch.dtype) -> Tensor:
    cast = exact.to(dtype)
    return torch.where(cast.double() < exact, _next(cast, torch.inf), cast)


def _round_down(exact: Tensor, dtype: torch.dtype) -> Tensor:
    cast = exact.to(dtype)
    return torch.where(cast.double() > exact, _next(cast, -torch.inf), cast)


def _next(value: Tensor, towards: float) -> Tensor:
    if value.dtype in (torch.float32, torch.float64):
        return torch.nextafter(value, torch.full_like(value, towards))
    # Half types: step in float32 by one unit in the last place of the short type.
    unit = torch.finfo(value.dtype).eps * value.float().abs().clamp(min=torch.finfo(value.dtype).tiny)
    return (value.float() + math.copysign(1, towards) * unit).to(value.dtype)
