"""Threat: the set of inputs an adversary may send, and what it wants of them. Ball: that set around given samples."""

from __future__ import annotations

import dataclasses
import enum
import math
from fractions import Fraction

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import normal, uniform

Bounds = tuple[float | Tensor, float | Tensor]
NORMS = ("linf", "l2", "l1", "l0")
_HAIR = 1e-12


class Goal(enum.Enum):
    """What the adversary wants: any other label, one label (then `y` names it), or less confidence in the true one."""

    UNTARGETED = "untargeted"
    TARGETED = "targeted"
    CONFIDENCE = "confidence"


@dataclasses.dataclass(frozen=True, eq=False)
class Threat:
    """The inputs an adversary may send: all within `eps` of the clean one in `norm`, inside `bounds`, changed only in `mask`.

    Arguments:
        norm: `linf`, `l2`, `l1` or `l0` (number of changed features).
        eps: radius in input units; a number, or one per sample, shape (n,). `math.inf` leaves only the bounds.
        bounds: lowest and highest input; numbers, or one per feature in the shape of a sample. None: those of the target,
            else (0, 1).
        mask: True where a feature may change; the shape of a sample, or of the batch (n, ...). None: everywhere.
        goal: what counts as success. For `Goal.TARGETED` an attack's `y` holds the labels to reach.
        confidence: for `Goal.CONFIDENCE`, the probability of the true label to fall below.

    Raises:
        UsageError: for an unknown norm, a negative radius, or bounds that cross.
    """

    norm: str
    eps: float | Tensor
    bounds: Bounds | None = None
    mask: Tensor | None = None
    goal: Goal = Goal.UNTARGETED
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm is '{self.norm}'", want=" | ".join(NORMS), fix=nearest(self.norm, NORMS))
        sizes = torch.as_tensor(self.eps)
        if not bool((sizes >= 0).all()):
            raise UsageError(f"eps is {self.eps}", want="a radius of 0 or more", fix="Give eps in input units, e.g. 8/255")
        if self.bounds is not None:
            low, high = (torch.as_tensor(end) for end in self.bounds)
            if not bool((low <= high).all()):
                raise UsageError(f"bounds are {self.bounds}", want="(lowest, highest)", fix="Swap the two ends")
        if not 0 < self.confidence <= 1:
            raise UsageError(f"confidence is {self.confidence}", want="a probability in (0, 1]")

    @classmethod
    def parse(cls, text: str) -> Threat:
        """Return the threat written as `norm:eps`, such as `linf:8/255` or `l2:0.5`."""
        norm, _, size = text.partition(":")
        try:
            eps = math.inf if size.strip() == "inf" else float(Fraction(size.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"threat is '{text}'", want="norm:eps, e.g. linf:8/255 or l2:0.5") from None
        return cls(norm.strip().lower(), eps)

    def within(self, bounds: Bounds) -> Threat:
        """Return the same threat with these bounds where it had none of its own."""
        return self if self.bounds is not None else dataclasses.replace(self, bounds=bounds)

    def with_eps(self, eps: float | Tensor) -> Threat:
        """Return the same threat at another radius."""
        return dataclasses.replace(self, eps=eps)

    def targeted(self) -> Threat:
        """Return the same threat with a targeted goal: the attack's `y` then holds the labels to reach."""
        return dataclasses.replace(self, goal=Goal.TARGETED)

    def subset(self, index: Tensor, x: Tensor) -> Threat:
        """Return the threat for the samples at `index` of the batch x: per-sample parts are cut, shared parts kept."""
        eps, mask = self.eps, self.mask
        if isinstance(eps, Tensor) and eps.ndim == 1:
            eps = eps[index.to(eps.device)]
        if mask is not None and mask.ndim == x.ndim and len(mask) == len(x):
            mask = mask[index.to(mask.device)]
        return dataclasses.replace(self, eps=eps, mask=mask)

    def around(self, x: Tensor) -> Ball:
        """Return the ball of this threat around the samples x, shape (n, ...)."""
        return Ball(self, x)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the points nearest to z, shape (n, ...), that this threat allows around x."""
        return self.around(x).project(z)

    def random_start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return one random allowed point per sample, uniform in the ball and then clamped to the bounds."""
        return self.around(x).random_start(generator)

    def distance(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the distance of each z from its x in this threat's norm, shape (n,), float64."""
        return geometry.norms((z.double() - x.double()).flatten(1), self.norm)

    def contains(self, z: Tensor, x: Tensor) -> Tensor:
        """Return which z are allowed around their x, shape (n,), bool; no tolerance."""
        return self.around(x).contains(z)

    def margin(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return how far each sample is from the goal, shape (n,), differentiable: below zero means reached.

        Untargeted: z_y - max other. Targeted: max other - z_target. Confidence: log p_y - log threshold. Never NaN: where the
        logits hold NaN it is a very large number of the sign that `success` gives, and 0 where two of them are infinite alike.
        """
        if self.goal is Goal.CONFIDENCE:
            value = logits.log_softmax(1).gather(1, y[:, None])[:, 0] - math.log(self.confidence)
        else:
            own = logits.gather(1, y[:, None])[:, 0]
            # scatter and not a subtraction of one-hot rows: exact for any logits, two classes included.
            other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
            value = other - own if self.goal is Goal.TARGETED else own - other
        # A quarter, so that the difference of two margins stays finite.
        far = torch.finfo(value.dtype).max / 4 * (1 if self.goal is Goal.TARGETED else -1)
        return torch.where(value.isnan(), logits.detach().isnan().any(1).to(value.dtype) * far, value)

    def success(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return which samples reach the goal, shape (n,), bool; agrees with the arg-max label on ties.

        A model that answers NaN has failed: it does not give the right answer, so that an untargeted and a confidence goal are
        reached, and it does not give the wanted one, so that a targeted goal is not.
        """
        if self.goal is Goal.CONFIDENCE:
            return self.margin(logits, y) < 0
        return self.reached(labels_of(logits), y)

    def reached(self, labels: Tensor, y: Tensor) -> Tensor:
        """Return which predicted labels reach the goal, shape (n,), bool. For LABEL access; not for confidence goals."""
        if self.goal is Goal.CONFIDENCE:
            raise UsageError(
                "a label-only method was given a confidence goal", want="an untargeted or targeted goal",
                fix="Grant SCORE access, or change the goal",
            )
        return labels == y if self.goal is Goal.TARGETED else labels != y

    def describe(self) -> str:
        """Return the threat in one line of plain words."""
        name = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}[self.norm]
        if isinstance(self.eps, Tensor) and self.eps.ndim:
            size = f"ε per sample in [{float(self.eps.min()):.4g}, {float(self.eps.max()):.4g}]"
        else:
            size = f"ε = {float(self.eps):.4g}"
        mask = "" if self.mask is None else f", {float(self.mask.double().mean()):.0%} of the features changeable"
        return f"{name}, {size}, {self.goal.value}{_range(self.bounds)}{mask}"


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


def labels_of(logits: Tensor) -> Tensor:
    """Return the label of each row of logits, shape (n,), int64: the arg-max, or -1, which is no label, where a row holds NaN."""
    labels = logits.argmax(1)
    return labels.masked_fill(logits.isnan().any(1), -1)


def Linf(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of changing every feature by at most eps; see `Threat` for the options."""
    return Threat("linf", eps, bounds, mask, goal)


def L2(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of a change of Euclidean length at most eps; see `Threat` for the options."""
    return Threat("l2", eps, bounds, mask, goal)


def L1(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of changes that add up to at most eps in absolute value; see `Threat` for the options."""
    return Threat("l1", eps, bounds, mask, goal)


def L0(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of changing at most eps features, each as far as the bounds allow; see `Threat` for the options."""
    return Threat("l0", eps, bounds, mask, goal)


def Patch(mask: Tensor, *, bounds: Bounds | None = None, goal: Goal = Goal.UNTARGETED) -> Threat:
    """Return the threat of changing the features in `mask` freely within the bounds, and no others."""
    return Threat("linf", math.inf, bounds, mask, goal)


def _range(bounds: Bounds | None) -> str:
    if bounds is None:
        return ""
    low, high = bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return ", bounds per feature"
    return f", inputs in [{low:g}, {high:g}]"


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
