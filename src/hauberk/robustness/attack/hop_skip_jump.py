"""HopSkipJump: the nearest adversarial example, by labels alone."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.rng import generator, normal, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat

_ELEMENTS = 2**22  # of the noise held at once: 16 MiB in float32
_HALVINGS = 12


@attack(
    question="How near can an adversary come that sees labels alone?",
    access=Access.LABEL,
    paper="Chen et al. 2020, arXiv:1904.02144",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="quick",
    norms=("l2", "linf"),
    goals=LABEL_GOALS,
    minimum_norm=True,
)
def hop_skip_jump(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, directions: int = 50, draws: int = 50,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Walk along the decision boundary towards x, with the boundary's direction estimated from labels.

    Every sample keeps its own budget, steps and direction: its result does not depend on the others in the batch.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2 or Linf, untargeted or targeted; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        directions: directions tried for the first estimate; the t-th tries sqrt(t) times as many.
        draws: random points tried as the first adversarial one.
        start: inputs the adversary owns, shape (m, ...), tried first, one query each; targeted attacks need some of the wanted
            labels. None: random points alone.
        seed: of starts and directions.

    Returns:
        The nearest adversarial point seen for each sample, shape (n, ...). Samples that reach the goal undisturbed come back as
        they are after one query, and so do those for which no start was found.
    """
    noise = generator(seed, "hop skip jump", device=x.device)
    box = threat.with_eps(math.inf).around(x)  # bounds and mask alone: the walk begins far away
    record = _Record(x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device))
    everybody = torch.arange(len(x), device=x.device)
    walk = _Walk(target, threat, box, y, torch.full((len(x),), queries, device=x.device), record, everybody)
    walk = walk.at(~walk.asked(x, everybody))
    z, found = _starts(walk, start, draws, noise)
    walk, z = walk.at(found), z[found]
    z = walk.bisect(z)
    step = 1
    while True:
        going = walk.left > 0
        walk, z = walk.at(going), z[going]
        if not len(z):
            return record.best
        distance = walk.box.distance(z)
        # The paper probes at a tenth of the range at first, then at d^-1 of the distance.
        probe = 0.1 * walk.width() if step == 1 else distance / z[0].numel()
        count = torch.full_like(walk.left, int(directions * math.sqrt(step))).minimum(walk.left)
        way = walk.direction(z, probe, count, noise)
        z = walk.bisect(walk.jump(z, way, distance / math.sqrt(step)))
        step += 1


@dataclasses.dataclass
class _Record:
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
class _Walk:
    """The samples still under way, and how they ask."""

    target: Target
    threat: Threat
    box: Ball
    y: Tensor
    left: Tensor  # queries each may still spend
    record: _Record
    samples: Tensor  # their places in the whole batch

    def at(self, index: Tensor) -> _Walk:
        return _Walk(
            self.target, self.threat, self.box.subset(index), self.y[index], self.left[index], self.record, self.samples[index]
        )

    def asked(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return which z, one for each of `rows`, reach the goal; each is paid for by its sample."""
        if not len(z):
            return torch.zeros(0, dtype=torch.bool, device=z.device)
        self.left -= torch.bincount(rows, minlength=len(self.left))
        hit = self.threat.reached(self.target.labels(z), self.y[rows])
        reached = rows[hit]
        self.record.note(z[hit], self.box.subset(reached).distance(z[hit]), self.samples[reached])
        return hit

    def clamp(self, z: Tensor) -> Tensor:
        return z.clamp(self.box.low, self.box.high)

    def width(self) -> Tensor:
        """The widest range of any feature, shape (n,)."""
        return (self.box.high - self.box.low).flatten(1).amax(1).double()

    def column(self, values: Tensor) -> Tensor:
        return values.to(self.box.x.dtype).reshape((-1,) + (1,) * (self.box.x.ndim - 1))

    def between(self, z: Tensor, share: Tensor) -> Tensor:
        """Return the point at that share of the way from x to z: of the line for L2, of the cube for Linf."""
        x = self.box.x
        if self.box.norm == "l2":
            return self.clamp(x + (z - x) * self.column(share))
        reach = self.column(share * self.box.distance(z))
        return self.clamp((z - x).clamp(-reach, reach) + x)

    def bisect(self, z: Tensor) -> Tensor:
        """Return points just on the adversarial side of the boundary between x and the adversarial z."""
        width = z[0].numel() if len(z) else 1
        precision = max(width**-1.5, 1e-6) if self.box.norm == "l2" else max(width**-2.0, 1e-6)
        low, high = (torch.full((len(z),), end, dtype=torch.float64, device=z.device) for end in (0.0, 1.0))
        found = z.clone()
        for _ in range(math.ceil(-math.log2(min(precision, 0.5)))):
            rows = (self.left > 0).nonzero()[:, 0]
            if not len(rows):
                break
            middle = (low + high) / 2
            tried = self.between(z, middle)[rows]
            hit = self.asked(tried, rows)
            high[rows[hit]], low[rows[~hit]] = middle[rows[hit]], middle[rows[~hit]]
            found[rows[hit]] = tried[hit]
        return found

    def direction(self, z: Tensor, probe: Tensor, count: Tensor, noise: torch.Generator) -> Tensor:
        """Return the estimated direction into the adversarial region, shape (n, ...), from `count` (n,) labels each."""
        width = z[0].numel()
        block = max(1, _ELEMENTS // (len(z) * width))
        free = (self.box.low < self.box.high)[:, None]
        total, weighted = torch.zeros_like(z, dtype=torch.float64), torch.zeros_like(z, dtype=torch.float64)
        hits = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        for first in range(0, int(count.max()), block):
            number = min(block, int(count.max()) - first)
            like = z[:, None].expand(-1, number, *z.shape[1:])
            drawn = (normal(like, noise) if self.box.norm == "l2" else uniform(like, noise) * 2 - 1) * free
            length = drawn.flatten(2).norm(dim=2).clamp(min=1e-12)  # of each direction by itself, (n, number)
            drawn = drawn / length.reshape(*length.shape, *[1] * (z.ndim - 1))
            low, high = self.box.low[:, None], self.box.high[:, None]
            near = (z[:, None] + drawn * self.column(probe)[:, None]).clamp(low, high)
            drawn = ((near - z[:, None]) / self.column(probe.clamp(min=1e-12))[:, None]).double()
            wanted = first + torch.arange(number, device=z.device) < count[:, None]  # (n, number)
            answer = torch.zeros_like(wanted, dtype=torch.float64)
            answer[wanted] = self.asked(near[wanted], wanted.nonzero()[:, 0]).double() * 2 - 1
            spread = (-1, number, *[1] * (z.ndim - 1))
            total += (drawn * wanted.reshape(spread)).sum(1)
            weighted += (drawn * answer.reshape(spread)).sum(1)
            hits += answer.sum(1)
        share = (hits / count.clamp(min=1)).reshape((-1,) + (1,) * (z.ndim - 1))
        # Equation 16 of the paper: the mean answer is taken off, unless all answers agree.
        agreed = share.abs() >= 1 - 1e-9
        way = torch.where(agreed, weighted, weighted - share * total)
        if self.box.norm == "linf":
            return way.sign().to(z.dtype)
        return (way / way.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(share.shape)).to(z.dtype)

    def jump(self, z: Tensor, way: Tensor, length: Tensor) -> Tensor:
        """Return z moved along `way` by the longest of length, length / 2, length / 4, ... that stays adversarial."""
        moved, length = z.clone(), length.clone()
        waiting = torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(_HALVINGS):
            rows = (waiting & (self.left > 0)).nonzero()[:, 0]
            if not len(rows):
                break
            tried = self.clamp(z + way * self.column(length))[rows]
            hit = self.asked(tried, rows)
            moved[rows[hit]] = tried[hit]
            waiting[rows[hit]] = False
            length = length / 2
        return moved


def _starts(walk: _Walk, pool: Tensor | None, draws: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return one adversarial point per sample and which samples got one; the nearest of `pool`, else the first random one."""
    z, found = walk.box.x.clone(), torch.zeros_like(walk.y, dtype=torch.bool)
    own_inputs = walk.box.x[:0] if pool is None else pool.to(z)
    for row in range(len(z) if len(own_inputs) else 0):
        # Behind a mask an input of the pool is no longer itself, so every sample asks about its own version of it.
        at = torch.full((len(own_inputs),), row, device=z.device)
        box = walk.box.subset(at)
        own = own_inputs.clamp(box.low, box.high)[: int(walk.left[row])]
        hits = own[walk.asked(own, at[: len(own)])]
        if len(hits):
            z[row], found[row] = hits[(hits - walk.box.x[row]).flatten(1).norm(dim=1).argmin()], True
    for _ in range(draws):
        rows = (~found & (walk.left > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        tried = walk.box.random_start(noise)[rows]
        hit = walk.asked(tried, rows)
        z[rows[hit]], found[rows[hit]] = tried[hit], True
    return z, found
