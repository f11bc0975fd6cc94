"""What attacks of minimum norm share: the nearest adversarial point seen of each sample, and how points are asked about."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat

_ROUNDING = 16  # units in the last place of the largest logit: what the order of a model's sums may make of it
_DETOUR = 1.01  # how much farther a point may be that is beyond rounding, where the nearest one is not
_TIE = 1e-9  # distances nearer to each other are equal: which one rounding puts first depends on the batch


class Nearest:
    """The nearest adversarial point seen of every sample of a batch, and its distance.

    A change is a flat tensor `delta`, shape (rows, features), in float32 at least; `rows` are places in the batch. `low` and
    `high`, shape (n, features), are the room that bounds and mask leave around each sample; `width`, shape (n,), is the widest.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, threat: Threat) -> None:
        self.target, self.threat, self.x, self.y = target, threat, x, y
        box = threat.with_eps(math.inf).around(x)  # eps is the farthest that counts: the way there may be longer
        self._low, self._high = box.low, box.high
        self.dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        self.clean = x.to(self.dtype).flatten(1)
        self.low = (box.low.to(self.dtype).flatten(1) - self.clean).clamp(max=0)
        self.high = (box.high.to(self.dtype).flatten(1) - self.clean).clamp(min=0)
        self.width = (self.high - self.low).amax(1)
        self._rows, self._box = torch.zeros(0, dtype=torch.long), (x, x, x)
        self.best = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.clear = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # whether the nearest point is beyond all rounding

    def start(self) -> Tensor:
        """Ask about the clean samples; return the places of those that do not reach the goal undisturbed."""
        everybody = torch.arange(len(self.x), device=self.x.device)
        return everybody[~self.ask(torch.zeros_like(self.clean), everybody)[1]]

    def point(self, delta: Tensor, rows: Tensor) -> Tensor:
        """Return the changed samples, in x's dtype and inside bounds and mask, shape (rows, ...)."""
        if rows is not self._rows:  # most attacks ask about the same samples at every step
            self._rows, self._box = rows, (self.clean[rows], self._low[rows], self._high[rows])
        clean, low, high = self._box
        return (clean + delta).to(self.x.dtype).view(-1, *self.x.shape[1:]).clamp(low, high)

    def ask(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the changed samples and which reach the goal, without a gradient."""
        z = self.point(delta, rows)
        logits = self.target.logits(z)
        return logits, self.note(z, logits, rows)

    def follow(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the changed samples as a leaf, their logits on a graph, and which reach the goal."""
        z = self.point(delta, rows).requires_grad_()
        logits = self.target.logits(z)
        return z, logits, self.note(z.detach(), logits.detach(), rows)

    def note(self, z: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Take note of points, one for each of `rows`; return which reach the goal."""
        hit = self.threat.success(logits, self.y[rows])
        place = hit.nonzero()[:, 0]
        if len(place) < len(rows):
            rows, z, logits = rows[place], z[place], logits[place]
        if not len(rows):
            return hit
        distance, best = self.threat.distance(z, self.x[rows]), self.distance[rows]
        near = distance < torch.where(self.clear[rows], best * (1 - _TIE), best * _DETOUR)
        if bool(near.any()):
            # On the very boundary another size of batch, which rounds otherwise, may answer otherwise: better a point beyond it.
            unsure = _ROUNDING * min(torch.finfo(dtype).eps for dtype in (logits.dtype, torch.float32))
            clear = self.threat.margin(logits, self.y[rows]) < -unsure * logits.abs().amax(1)
            near &= clear | best.isinf()
            kept = rows[near]
            self.best[kept], self.distance[kept], self.clear[kept] = z[near], distance[near], clear[near]
        return hit

    def beyond(self, logits: Tensor) -> Tensor:
        """Return how far below zero a margin is beyond all rounding, shape (rows,).

        On the very boundary the answer may have changed or not, as the batch has it.
        """
        return max(2 * _ROUNDING * torch.finfo(self.dtype).eps, _TIE) * logits.detach().abs().amax(1).to(self.dtype)

    def norm(self, delta: Tensor) -> Tensor:
        """Return the size of each change in the threat's norm, shape (rows,)."""
        return geometry.norms(delta, self.threat.norm).to(self.dtype)

    def delta(self, rows: Tensor) -> Tensor:
        """Return the nearest adversarial change of each of `rows`; zero where none was seen."""
        return self.best[rows].to(self.dtype).flatten(1) - self.clean[rows]

    def found(self, rows: Tensor) -> Tensor:
        """Return for which of `rows` an adversarial point was seen."""
        return self.distance[rows].isfinite()

    def finish(self) -> Tensor:
        """Return the nearest points; one beyond the radius is drawn into the ball and, since that is a new point, asked about."""
        ball = self.threat.around(self.x)
        far = (self.distance.isfinite() & (self.distance > ball.radius)).nonzero()[:, 0]
        if len(far):
            drawn = ball.subset(far).project(self.best[far])
            self.note(drawn, self.target.logits(drawn), far)
            self.best[far] = torch.where(self._column(self.distance[far] > ball.radius[far]), drawn, self.best[far])
        return self.best

    def _column(self, values: Tensor) -> Tensor:
        return values.reshape((-1,) + (1,) * (self.x.ndim - 1))


def bisect(near: Nearest, outside: Tensor, inside: Tensor, rows: Tensor, halvings: int) -> None:
    """Take note of points on the way from changes that fail to changes that succeed, shape (rows, features), by bisection."""
    for _ in range(halvings if len(rows) else 0):
        middle = (outside + inside) / 2
        hit = near.ask(middle, rows)[1][:, None]
        outside, inside = torch.where(hit, outside, middle), torch.where(hit, middle, inside)


def interpolate(near: Nearest, outside: Tensor, inside: Tensor, rows: Tensor, queries: int) -> None:
    """Do as `bisect`, by false position (the Illinois rule) on the margin: far nearer for as many queries where it is smooth.

    Two of the queries ask about the ends; a point is aimed at that lies beyond the boundary by a thousandth of the way.
    """
    if not len(rows) or queries < 3:
        return bisect(near, outside, inside, rows, queries)
    start, way = outside, inside - outside

    def margin(share: Tensor) -> tuple[Tensor, Tensor]:
        logits, hit = near.ask(start + share[:, None] * way, rows)
        return near.threat.margin(logits, near.y[rows]).to(near.dtype), hit

    out, into = torch.zeros_like(way[:, 0]), torch.ones_like(way[:, 0])
    above, below = margin(out)[0].clamp(min=0), margin(into)[0].clamp(max=0)
    aim, before = 1e-3 * above, torch.zeros_like(out)
    for _ in range(queries - 2):
        ratio = (above + aim) / (above - below)
        share = out + (into - out) * torch.where(ratio.isfinite(), ratio, 0.5).clamp(0.001, 0.999)
        value, hit = margin(share)
        # The end that stays a second time counts half, so that it moves in the end.
        above = torch.where(hit, torch.where(before == 1, above / 2, above), value)
        below = torch.where(hit, value, torch.where(before == -1, below / 2, below))
        out, into = torch.where(hit, out, share), torch.where(hit, share, into)
        before = torch.where(hit, 1.0, -1.0)


def fewer(near: Nearest, rows: Tensor, trials: int) -> None:
    """Take note of points with fewer changed features: those with most to gain by the slope at the nearest point, at their ends.

    Every trial costs a sample a gradient and two queries: first all features may take part, then those changed already.
    """
    rows = rows[near.found(rows)]
    for _ in range(trials):
        rows = rows[near.distance[rows] > 1]
        if not len(rows):
            return
        delta, count = near.delta(rows), near.distance[rows]
        z, logits, _ = near.follow(delta, rows)
        slope = -input_gradient(near.threat.margin(logits, near.y[rows]), z).to(near.dtype).flatten(1)
        for open_to in (torch.ones_like(delta, dtype=torch.bool), delta != 0):
            near.ask(geometry.maximise_l0(slope * open_to, count - 1, near.low[rows], near.high[rows]), rows)
        rows = rows[near.distance[rows] < count]


def unit(gradient: Tensor) -> Tensor:
    """Return each row of `gradient`, shape (n, features), at Euclidean length 1; rows of zeros stay zero."""
    # To a largest entry of 1 first: the square of a vanishing gradient is zero.
    scaled = gradient / gradient.abs().amax(1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    return scaled / scaled.norm(dim=1, keepdim=True).clamp(min=0.5)


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Return the value that falls from first to last by half a cosine over the steps."""
    return last + (first - last) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2
