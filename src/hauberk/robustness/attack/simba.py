"""SimBA: one orthonormal direction after another, kept where the score falls."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.searching import Search

BASES = ("pixel", "dct")


@attack(
    question="Can an adversary that sees scores and moves along one direction at a time change the answer?",
    access=Access.SCORE,
    paper="Guo et al. 2019, arXiv:1905.07121",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l2", "linf"),
    fine_steps=True,
)
def simba(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, basis: str = "pixel",
    step_size: float | None = None, frequencies: float = 1.0, seed: int = 0,
) -> Tensor:
    """Step up or down along random directions of an orthonormal basis, none twice before all were tried.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2; or Linf, by drawing each step into the cube. Any goal.
        queries: queries per sample at most, the one for the clean input included.
        basis: `pixel`, one feature at a time; or `dct`, one cosine wave: over the pixels of each channel of images
            (n, channels, height, width), along the features of anything else.
        step_size: length of a step in the threat's norm, as a share of the radius; None: 0.2 in L2; in Linf, 2 for pixels, which
            go from end to end, and 0.5 for directions.
        frequencies: share of the frequencies along each axis that are used, the lowest; the paper has 1/8 for ImageNet.
        seed: of the order of the directions.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    if basis not in BASES:
        raise UsageError(f"basis is '{basis}'", want=" | ".join(BASES), fix=nearest(basis, BASES))
    if not 0 < frequencies <= 1:
        raise UsageError(f"frequencies is {frequencies}", want="a share in (0, 1]")
    noise = generator(seed, "simba", device=x.device)
    run = Search(target, x, y, threat, queries)
    directions: _Waves | _Pixels = _Waves(x, frequencies) if basis == "dct" else _Pixels(x)
    usual = 0.2 if threat.norm == "l2" else 2.0 if basis == "pixel" else 0.25
    length = (usual if step_size is None else step_size) * threat.around(x).size
    run.state.update(z=run.ball.x, lowest=run.state.pop("clean"), order=directions.orders(run.free, noise))
    place = 0
    while run.settle():
        if place == run.state["order"].shape[1]:
            place, run.state["order"] = 0, directions.orders(run.free, noise)
        number = run.state["order"][:, place]  # (alive,)
        way = directions.at(number) * run.free
        place += 1
        if threat.norm == "linf":
            way = way / run.column(way.flatten(1).abs().amax(1).clamp(min=1e-12))
        step = way * run.column(length[run.alive])
        waiting = number >= 0
        for sign in (1, -1):
            rows = (waiting & (run.left > 0) & ~run.won[run.alive]).nonzero()[:, 0]
            tried = run.ball.subset(rows).project((run.state["z"] + sign * step)[rows].to(x.dtype))
            score = run.ask(tried, rows)
            fell = score < run.state["lowest"][rows]
            run.state["z"] = run.state["z"].index_copy(0, rows[fell], tried[fell])
            run.state["lowest"] = run.state["lowest"].index_copy(0, rows[fell], score[fell])
            waiting = waiting.index_fill(0, rows[fell], False)
    return run.best


class _Pixels:
    """The features one by one: only those that may change."""

    def __init__(self, x: Tensor) -> None:
        self.like = x

    def orders(self, free: Tensor, noise: torch.Generator) -> Tensor:
        """Return the numbers of the directions of each sample in random order, filled up with -1."""
        allowed = free.flatten(1)
        key = uniform(torch.empty(allowed.shape, device=free.device), noise).masked_fill(~allowed, 2)
        order = key.argsort(1)
        order = torch.where(allowed.gather(1, order), order, -1)
        return order[:, : int(allowed.sum(1).max()) if len(free) else 0]

    def at(self, number: Tensor) -> Tensor:
        """Return the directions of these numbers, of length 1, shape (alive, ...)."""
        unit = self.like.new_zeros((len(number), self.like[0].numel()))
        return unit.scatter_(1, number.clamp(min=0)[:, None], 1.0).view(-1, *self.like.shape[1:])


class _Waves:
    """Cosine waves, the lowest frequencies along each axis alone."""

    def __init__(self, x: Tensor, frequencies: float) -> None:
        self.like = x
        sides = x.shape[1:] if x.ndim == 4 else (1, 1, x[0].numel())
        self.axes = [_cosines(side).to(x) for side in sides[1:]]
        self.sizes = sides[0], *(math.ceil(frequencies * side) for side in sides[1:])

    def orders(self, free: Tensor, noise: torch.Generator) -> Tensor:
        """Return the numbers of the directions of each sample in random order."""
        return uniform(torch.empty(len(free), math.prod(self.sizes), device=free.device), noise).argsort(1)

    def at(self, number: Tensor) -> Tensor:
        """Return the directions of these numbers, of length 1, shape (alive, ...)."""
        channels, tall, wide = self.sizes
        rows, columns = self.axes[0][number // wide % tall], self.axes[1][number % wide]
        wave = rows[:, :, None] * columns[:, None, :]  # (alive, height, width)
        where = torch.arange(channels, device=number.device) == (number // (tall * wide))[:, None]
        return (wave[:, None] * where[:, :, None, None]).view(-1, *self.like.shape[1:])


def _cosines(side: int) -> Tensor:
    """Return the orthonormal cosine basis of a row of that many numbers (DCT-II), one wave a row, shape (side, side)."""
    place, wave = torch.arange(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64)[:, None]
    basis = (math.pi * (place + 0.5) * wave / side).cos() * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis
