"""ZOO: the Carlini-Wagner loss by Adam, one coordinate after another, with slopes from pairs of scores."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.nearest import Nearest, bisect

_ELEMENTS = 2**22  # of the probes held at once: 16 MiB in float32
_HALVINGS = 8  # of the way back to x, at the end


@attack(
    question="How near can an adversary come that measures slopes by scores, coordinate by coordinate?",
    access=Access.SCORE,
    paper="Chen et al. 2017, arXiv:1708.03999",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l2",),
    minimum_norm=True,
    fine_steps=True,
)
def zoo(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 4000, coordinates: int = 128, rounds: int = 5,
    learning_rate: float = 0.1, probe: float = 0.01, seed: int = 0,
) -> Tensor:
    """Weigh the squared length of the change against the margin, and search the weight in rounds.

    Where the goal is reached the margin has no slope to measure, so that such a step costs one query.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        queries: queries per sample at most.
        coordinates: features whose slope is measured at each step, drawn at random, two queries each.
        rounds: weights tried, with an equal share of the queries each.
        learning_rate: of Adam, as a share of the range of the inputs; half as much in each further round.
        probe: how far a coordinate is moved to measure its slope, as a share of the range of the inputs.
        seed: of the coordinates.

    Returns:
        The nearest points seen that reach the goal, shape (n, ...); x itself where none was seen.
    """
    noise = generator(seed, "zoo", device=x.device)
    near = Nearest(target, x, y, threat)
    if queries < 1:
        return near.best
    reserve = min(_HALVINGS + 1, queries // 10)
    run = _start(near, queries - reserve)
    while True:
        run.begin_rounds(near, queries - reserve, max(rounds, 1), learning_rate)
        # A pair of scores, and a look at where they lead; where the goal is reached the way is known, and the look is all.
        run = run.at(run.left > 2 * (run.margin > 0))
        if not len(run.rows):
            break
        run.step(near, *run.slopes(near, coordinates, probe, noise))
    everybody = torch.arange(len(x), device=x.device)
    found = everybody[near.found(everybody) & (near.distance > 0)]
    if reserve > 1:
        bisect(near, torch.zeros_like(near.clean[found]), near.delta(found), found, reserve - 1)
    return near.finish()


@dataclasses.dataclass
class _Descent:
    """The samples under way: `rows` are their places in the batch; all else is (alive,) or (alive, features)."""

    rows: Tensor
    left: Tensor  # queries each may still spend
    turn: Tensor  # the round each is in
    hit: Tensor  # whether the goal was reached in this round
    width: Tensor  # of the widest feature's range
    clean: Tensor  # margin of the clean sample
    margin: Tensor  # at delta
    weight: Tensor  # of the margin
    low: Tensor  # weights below which the goal was not reached,
    high: Tensor  # and above which it was
    length: Tensor  # of Adam's steps
    delta: Tensor
    mean: Tensor
    square: Tensor
    count: Tensor  # Adam's steps of each feature by itself

    def at(self, keep: Tensor) -> _Descent:
        """Return the samples of that mask."""
        if bool(keep.all()):
            return self
        return _Descent(**{field.name: getattr(self, field.name)[keep] for field in dataclasses.fields(self)})

    def begin_rounds(self, near: Nearest, queries: int, rounds: int, learning_rate: float) -> None:
        """Give those that have spent a round's share the next weight, and the nearest point found to go on from."""
        turn = ((queries - 1 - self.left) * rounds).div(max(queries - 1, 1), rounding_mode="floor")
        new = turn > self.turn
        if not bool(new.any()):
            return
        self.high = torch.where(new & self.hit, self.weight, self.high)
        self.low = torch.where(new & ~self.hit & (self.turn >= 0), self.weight, self.low)
        # On a linear model of this margin the goal at this distance takes no more than this weight.
        enough = 2 * near.distance[self.rows].square() / self.clean.clamp(min=1e-12)
        lower = torch.minimum((self.low + self.high) / 2, torch.maximum(1.2 * enough, 1.5 * self.low))
        # No distance in the box outweighs the first.
        wide = self.width.square() * (near.low < near.high)[self.rows].sum(1) / self.clean.clamp(min=1e-12)
        weight = torch.where(self.high.isfinite(), lower, torch.where(self.turn < 0, wide, 10 * self.weight))
        self.weight = torch.where(new, weight, self.weight)
        found = new & near.found(self.rows)
        self.delta = torch.where(found[:, None], near.delta(self.rows), self.delta)
        self.margin = torch.where(found, -torch.ones_like(self.margin), self.margin)
        self.mean, self.square, self.count = (
            one.masked_fill(new[:, None], 0) for one in (self.mean, self.square, self.count)
        )
        self.hit, self.turn = self.hit & ~new, torch.where(new, turn, self.turn)
        self.length = learning_rate * self.width * 0.5 ** self.turn

    def slopes(self, near: Nearest, most: int, probe: float, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the slope of the margin along coordinates drawn at random, zero elsewhere, and which were drawn.

        Where the goal is reached the loss holds no margin: nothing is asked, and every coordinate takes part.
        """
        free = (near.low < near.high)[self.rows]
        key = uniform(self.delta, noise).masked_fill(~free, 2)
        number = torch.where(self.margin > 0, (self.left - 1) // 2, 0).clamp(max=most)
        chosen = (key.argsort(1).argsort(1) < number[:, None]) & free
        slope = torch.zeros_like(self.delta)
        owner, feature = chosen.nonzero(as_tuple=True)
        for part in torch.arange(len(owner), device=owner.device).split(max(1, _ELEMENTS // max(slope.shape[1], 1))):
            at, along = owner[part], feature[part]
            ends, scores = [], []
            for way in (1, -1):
                moved = self.delta[at]
                size = probe * self.width[at].to(moved.dtype)
                place = (torch.arange(len(part), device=at.device), along)
                end = (moved[place] + way * size).clamp(near.low[self.rows[at], along], near.high[self.rows[at], along])
                ends.append(end)
                scores.append(self.ask(near, moved.index_put(place, end), at))
            change = (scores[0] - scores[1]) / (ends[0] - ends[1]).double().clamp(min=1e-12)
            slope[at, along] = torch.where(change.abs() < 1e30, change, torch.zeros_like(change)).to(slope.dtype)
        return slope, chosen | (free & (self.margin <= 0)[:, None])

    def step(self, near: Nearest, slope: Tensor, chosen: Tensor) -> None:
        """Take one step of Adam along the chosen coordinates and look at where it leads."""
        gradient = 2 * self.delta + self.weight.to(slope.dtype)[:, None] * slope
        self.count = self.count + chosen
        self.mean = torch.where(chosen, 0.9 * self.mean + 0.1 * gradient, self.mean)
        self.square = torch.where(chosen, 0.999 * self.square + 0.001 * gradient.square(), self.square)
        count = self.count.clamp(min=1)
        scale = (self.square / (1 - 0.999**count)).sqrt().clamp(min=torch.finfo(slope.dtype).tiny)
        way = self.mean / (1 - 0.9**count) / scale * self.length.to(slope.dtype)[:, None]
        moved = (self.delta - way).clamp(near.low[self.rows], near.high[self.rows])
        self.delta = torch.where(chosen, moved, self.delta)
        everybody = torch.arange(len(self.rows), device=self.rows.device)
        self.margin = self.ask(near, self.delta, everybody)
        self.hit = self.hit | (self.margin <= 0)

    def ask(self, near: Nearest, delta: Tensor, at: Tensor) -> Tensor:
        """Return the margins of changes, one for each of the samples `at`, which pay; below zero where the goal is reached."""
        self.left = self.left - torch.bincount(at, minlength=len(self.left))
        rows = self.rows[at]
        z = near.point(delta, rows)
        logits = near.target.logits(z)
        hit = near.threat.success(logits, near.y[rows])
        distance = near.threat.distance(z, near.x[rows]).masked_fill(~hit, torch.inf)
        # One point a sample is noted, the nearest: several may belong to one.
        nearest = torch.full_like(self.clean, torch.inf).scatter_reduce(0, at, distance, "amin")
        best = (hit & (distance == nearest[at])).nonzero()[:, 0]
        first = at.new_full(self.rows.shape, len(at)).scatter_reduce(0, at[best], best, "amin")
        best = best[first[at[best]] == best]
        near.note(z[best], logits[best], rows[best])
        margin = near.threat.margin(logits.double(), near.y[rows])
        return torch.where(hit, margin.clamp(max=-1e-300), margin.clamp(min=1e-300))


def _start(near: Nearest, queries: int) -> _Descent:
    """Ask about the clean samples and return those that do not reach the goal undisturbed, and may change at all."""
    rows = torch.arange(len(near.x), device=near.x.device)
    logits, hit = near.ask(torch.zeros_like(near.clean), rows)
    margin = near.threat.margin(logits.double(), near.y)
    delta, one, whole = torch.zeros_like(near.clean), torch.ones_like(margin), torch.ones_like(rows)
    radius = near.threat.around(near.x).radius
    width = torch.where(near.width.isfinite(), near.width.double(), 2 * radius)  # without bounds the radius is all there is
    run = _Descent(
        rows=rows, left=whole * (queries - 1), turn=-whole, hit=torch.zeros_like(hit), width=width, clean=margin,
        margin=margin.clamp(min=1e-300), weight=one, low=0 * one, high=torch.inf * one, length=one, delta=delta, mean=delta,
        square=delta, count=delta,
    )
    return run.at(~hit & (near.low < near.high).any(1))
