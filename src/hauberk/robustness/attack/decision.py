"""What attacks by labels alone share: samples that pay for themselves, the nearest point each has seen, starts, and searches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hauberk.core import geometry
from hauberk.core.rng import normal, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat

_ELEMENTS = 2**22  # of the noise held at once: 16 MiB in float32
_WIDEST = 10  # where bounds are infinite the walk keeps within 2^10 radii, and starts are drawn at 1, 2, 4, ... of them
TIGHT = 1e-3  # relative precision of a radius
_Part = TypeVar("_Part")


def cut(state: _Part, index: Tensor) -> _Part:
    """Return a dataclass of per-sample tensors for the samples at `index`; what is no tensor is shared."""
    whole = {one.name: getattr(state, one.name) for one in dataclasses.fields(state)}  # type: ignore[arg-type]
    parts = {name: value[index] for name, value in whole.items() if isinstance(value, Tensor)}
    return dataclasses.replace(state, **parts)  # type: ignore[type-var]


@dataclasses.dataclass
class Record:
    """The nearest adversarial point ever asked about, and its distance, for every sample of the batch."""

    best: Tensor
    distance: Tensor

    def note(self, z: Tensor, distance: Tensor, samples: Tensor) -> None:
        """Take note of adversarial points, several of which may belong to one sample."""
        nearest = self.distance.scatter_reduce(0, samples, distance, "amin")
        new = (distance == nearest[samples]) & (distance < self.distance[samples])
        self.best[samples[new]] = z[new]
        self.distance = nearest


@dataclasses.dataclass
class Walk:
    """The samples still under way, and how they ask. A change is flat, shape (n, features), in float32 at least."""

    target: Target
    threat: Threat
    record: Record
    x: Tensor  # (n, ...)
    y: Tensor
    floor: Tensor  # the box in the shape and dtype of x
    ceiling: Tensor
    low: Tensor  # the room around x, flat
    high: Tensor
    wide: Tensor  # features whose room only the radius limits, (n, features)
    left: Tensor  # queries each may still spend
    samples: Tensor  # their places in the whole batch

    def __len__(self) -> int:
        return len(self.x)

    @property
    def norm(self) -> str:
        """The norm distances are counted in."""
        return self.threat.norm

    @property
    def free(self) -> Tensor:
        """Which features may change, (n, features)."""
        return self.low < self.high

    def at(self, index: Tensor) -> Walk:
        """Return the walk of the samples at `index`."""
        return cut(self, index)

    def rows(self) -> Tensor:
        """Return the places of the samples that can still pay."""
        return (self.left > 0).nonzero()[:, 0]

    def clamp(self, delta: Tensor) -> Tensor:
        """Return changes cut to the room of their samples."""
        return delta.clamp(self.low, self.high)

    def size(self, delta: Tensor) -> Tensor:
        """Return the sizes of the changes in the threat's norm, in their dtype, (n,)."""
        return geometry.norms(delta, self.norm).to(delta.dtype)

    def ask(self, delta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return which changes, one for each of `rows` (or of all samples), reach the goal; each is paid for by its sample."""
        rows = torch.arange(len(self), device=delta.device) if rows is None else rows
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=delta.device)
        self.left -= torch.bincount(rows, minlength=len(self.left))
        x = self.x[rows]
        z = (x.to(delta.dtype) + delta.view(x.shape)).to(x.dtype).clamp(self.floor[rows], self.ceiling[rows])
        if self.threat.structure is not None:
            z = self.threat.structure.snap(z)
        hit = self.threat.reached(self.target.labels(z), self.y[rows])
        self.record.note(z[hit], self.threat.distance(z[hit], x[hit]), self.samples[rows[hit]])
        return hit

    def between(self, delta: Tensor, share: Tensor) -> Tensor:
        """Return the change at that share of the way from x: of the line, for Linf of the cube."""
        if self.norm != "linf":
            return delta * share[:, None]
        reach = (share * self.size(delta))[:, None]
        return delta.clamp(-reach, reach)

    def bisect(self, delta: Tensor, halvings: int) -> Tensor:
        """Return changes just on the adversarial side of the boundary between x and the adversarial ones given."""
        low, high, found = delta.new_zeros(len(delta)), delta.new_ones(len(delta)), delta.clone()
        for _ in range(halvings):
            rows = self.rows()
            if not len(rows):
                break
            middle = (low + high) / 2
            tried = self.between(delta, middle)[rows]
            hit = self.ask(tried, rows)
            high[rows[hit]], low[rows[~hit]] = middle[rows[hit]], middle[rows[~hit]]
            found[rows[hit]] = tried[hit]
        return found

    def pull(
        self, path: Callable[[Tensor], Tensor], radius: Tensor, moving: Tensor, tight: Tensor | float = TIGHT
    ) -> Tensor:
        """Return the least radii found, (n,), at which the points of `path` are adversarial, as they are at `radius`.

        Ever larger steps inwards until one fails, then bisection: a small gain costs few queries. `moving` are those to search,
        and `tight`, a number or (n,), the relative precision.
        """
        low, high = torch.zeros_like(radius), radius.clone()
        step = torch.full_like(radius, 2.0) * tight
        while True:
            rows = (moving & (self.left > 0) & (high - low > tight * high)).nonzero()[:, 0]
            if not len(rows):
                return high
            tried = torch.where(low > 0, (low + high) / 2, high * (1 - step))
            hit = self.ask(path(tried)[rows], rows)
            high[rows[hit]], low[rows[~hit]] = tried[rows[hit]], tried[rows[~hit]]
            step = (2 * step).clamp(max=0.5)

    def affordable(self, count: Tensor, reserve: int) -> Tensor:
        """Return how many of `count` queries to spend, (n,), so that `reserve` stay to use the answers, and no rest is idle."""
        most = (self.left - reserve).clamp(min=0)
        return torch.where(most < count + count // 2 + reserve, most, count)

    def direction(
        self, delta: Tensor, probe: Tensor, count: Tensor, noise: torch.Generator, *, equidistant: bool = False
    ) -> Tensor:
        """Return the estimated direction into the adversarial region, (n, features), of length 1, from `count` (n,) labels each.

        Directions are spread evenly over the sphere, for Linf as a cube's; `probe`, (n,), is how far each is tried. With
        `equidistant` the points tried are as far from x as delta is, so that only the way there differs.
        """
        width = delta.shape[1]
        block = max(1, _ELEMENTS // max(len(delta) * width, 1))
        total, weighted = torch.zeros_like(delta, dtype=torch.float64), torch.zeros_like(delta, dtype=torch.float64)
        hits = torch.zeros(len(delta), dtype=torch.float64, device=delta.device)
        low, high, reach = self.low[:, None], self.high[:, None], probe.clamp(min=1e-12)[:, None, None]
        for first in range(0, int(count.max()), block):
            number = min(block, int(count.max()) - first)
            like = delta[:, None].expand(-1, number, -1)
            drawn = (uniform(like, noise) * 2 - 1 if self.norm == "linf" else normal(like, noise)) * self.free[:, None]
            drawn = drawn / drawn.norm(dim=2, keepdim=True).clamp(min=1e-12)  # of each direction by itself
            near = delta[:, None] + drawn * reach
            if equidistant:
                near = near * (self.size(delta)[:, None] / self.size(near.flatten(0, 1)).view(-1, number))[:, :, None]
            near = near.clamp(low, high)
            drawn = ((near - delta[:, None]) / reach).double()  # (n, number, features)
            wanted = first + torch.arange(number, device=delta.device) < count[:, None]  # (n, number)
            answer = torch.zeros_like(wanted, dtype=torch.float64)
            answer[wanted] = self.ask(near[wanted], wanted.nonzero()[:, 0]).double() * 2 - 1
            total += (drawn * wanted[:, :, None]).sum(1)
            weighted += (drawn * answer[:, :, None]).sum(1)
            hits += answer.sum(1)
        share = (hits / count.clamp(min=1))[:, None]
        # Equation 16 of HopSkipJump: the mean answer is taken off, unless all answers agree.
        agreed = share.abs() >= 1 - 1e-9
        way = torch.where(agreed, weighted, weighted - share * total)
        return (way / way.norm(dim=1, keepdim=True).clamp(min=1e-300)).to(delta.dtype)


def box_noise(walk: Walk, turn: int, noise: torch.Generator) -> Tensor:
    """Return uniform random points of the box; where the bounds are infinite, of ever wider cubes around the sample."""
    delta = walk.low + (walk.high - walk.low) * uniform(walk.low, noise)
    return torch.where(walk.wide, delta * 2.0 ** (turn % (_WIDEST + 1) - _WIDEST), delta)


def speckles(walk: Walk, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the rank of each feature in a random order, frozen ones last, and a random end of its room other than x itself."""
    rank = torch.where(walk.free, uniform(walk.low, noise), 2).argsort(1).argsort(1)
    up = uniform(walk.low, noise) < 0.5
    return rank, torch.where((up & (walk.high > 0)) | (walk.low == 0), walk.high, walk.low)


def begin(target: Target, x: Tensor, y: Tensor, threat: Threat, queries: int) -> Walk:
    """Return the walk of the samples that can change and do not reach the goal undisturbed, which costs one query each."""
    box = threat.with_eps(math.inf).around(x)  # bounds and mask alone: the walk begins far away
    floor, ceiling = box.low, box.high
    wide = floor.isinf() | ceiling.isinf()
    if bool(wide.any()):  # then eps is finite: the door has seen to it
        reach = threat.around(x).radius.reshape((-1,) + (1,) * (x.ndim - 1)) * 2**_WIDEST
        ends, exact = torch.finfo(x.dtype), x.double()
        floor = torch.where(floor.isinf(), (exact - reach).clamp(min=ends.min).to(x.dtype), floor)
        ceiling = torch.where(ceiling.isinf(), (exact + reach).clamp(max=ends.max).to(x.dtype), ceiling)
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    clean = x.to(dtype).flatten(1)
    walk = Walk(
        target, threat, Record(x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)), x, y, floor,
        ceiling, (floor.to(dtype).flatten(1) - clean).clamp(max=0), (ceiling.to(dtype).flatten(1) - clean).clamp(min=0),
        wide.flatten(1), torch.full((len(x),), queries, device=x.device), torch.arange(len(x), device=x.device),
    )
    walk = walk.at(walk.rows())
    return walk.at(~walk.ask(torch.zeros_like(walk.low)) & walk.free.any(1))


def starts(
    walk: Walk, pool: Tensor | None, draws: int, noise: torch.Generator,
    draw: Callable[[Walk, int, torch.Generator], Tensor] = box_noise,
) -> tuple[Walk, Tensor]:
    """Return the samples for which an adversarial change was found and could be paid for, and those changes.

    The inputs of `pool` are tried first, nearest first, until one reaches the goal; then `draws` random ones.
    """
    delta, found = torch.zeros_like(walk.low), torch.zeros(len(walk), dtype=torch.bool, device=walk.x.device)
    if pool is not None and len(pool) and len(walk):
        own = pool.to(delta).flatten(1)
        clean = walk.x.to(delta.dtype).flatten(1)
        # Behind a mask an input of the pool is no longer itself: each sample has its own version of it, one row at a time.
        far = torch.stack([
            geometry.norms((own - one).clamp(low, high), walk.norm)
            for one, low, high in zip(clean, walk.low, walk.high, strict=True)
        ])  # (n, m)
        order = far.argsort(dim=1, stable=True)
        for turn in range(len(own)):
            rows = (~found & (walk.left > 0)).nonzero()[:, 0]
            if not len(rows):
                break
            tried = (own[order[rows, turn]] - clean[rows]).clamp(walk.low[rows], walk.high[rows])
            hit = walk.ask(tried, rows)
            delta[rows[hit]], found[rows[hit]] = tried[hit], True
    for turn in range(draws):
        rows = (~found & (walk.left > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        tried = draw(walk, turn, noise)[rows]
        hit = walk.ask(tried, rows)
        delta[rows[hit]], found[rows[hit]] = tried[hit], True
    found &= walk.left > 0
    return walk.at(found), delta[found]
