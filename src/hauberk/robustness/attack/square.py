"""Square attack: random search over square-shaped changes, by scores alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat

# The side of the squares halves its area at these steps, for a run of 10,000 (section 3.1 of the paper).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@attack(
    question="Can an adversary that sees scores alone change the answer?",
    access=Access.SCORE,
    paper="Andriushchenko et al. 2020, arXiv:1912.00049; for L1 Croce and Hein 2021, arXiv:2103.01208",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="quick",
    norms=("linf", "l2", "l1"),
)
def square(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, share: float = 0.8, seed: int = 0
) -> Tensor:
    """Try square-shaped changes at random places and keep those that bring the margin down.

    Arguments:
        target: with SCORE access.
        x: clean inputs: images (n, channels, height, width), or of any other shape, whose features are taken as one row of
            pixels, so that a "square" is a run of neighbouring features.
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, L2 or L1, any goal.
        queries: queries per sample at most, the one for the clean input included.
        share: share of the changeable pixels that the first square covers.
        seed: of the places and signs.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    noise = generator(seed, "square", device=x.device)
    ball, best = threat.around(x), x.clone()
    room = _room(ball)
    alive = torch.arange(len(x), device=x.device)
    margin = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    z = x
    for step in range(queries):
        if step == 1:
            z = _stripes(ball, noise) if ball.norm == "linf" else _tiles(ball, noise)
        elif step > 1:
            side = share * 0.5 ** sum((step - 2) * 10_000 > queries * limit for limit in _HALVINGS)
            change = _recoloured if ball.norm == "linf" else _moved
            z = change(ball, room, best[alive], side, noise)
        z = ball.possible(z)
        logits = target.logits(z)
        reached = threat.margin(logits, y).to(margin.dtype)  # (alive,)
        broken = threat.success(logits, y)
        better = (reached < margin[alive]) | broken
        if step == 1:
            better = torch.ones_like(better)  # the search goes on from the start, even where x itself is a little lower
        best[alive[better]], margin[alive[better]] = z[better], reached[better]
        if bool(broken.any()):
            going = ~broken
            alive, y, ball, room = alive[going], y[going], ball.subset(going), room[going]
            if not len(alive):
                break
    return best


@dataclasses.dataclass
class _Window:
    """One rectangle of pixels per sample: where each pixel stands in it, counted from its corner, and which are inside."""

    row: Tensor  # (n, height, 1)
    column: Tensor  # (n, 1, width)
    height: Tensor  # (n, 1, 1)
    width: Tensor  # (n, 1, 1)

    @property
    def inside(self) -> Tensor:
        """Shape (n, 1, height, width), bool."""
        rows = (self.row >= 0) & (self.row < self.height)
        columns = (self.column >= 0) & (self.column < self.width)
        return (rows & columns)[:, None]


def _images(x: Tensor) -> Tensor:
    return x if x.ndim == 4 else x.flatten(1)[:, None, None]


def _signs(ball: Ball, columns: bool, noise: torch.Generator) -> Tensor:
    """Return random -1 and 1 per sample and channel, and per column where asked: (n, channels, 1, 1 or width)."""
    shape = _images(ball.x).shape
    like = ball.x.new_empty((*shape[:2], 1, shape[3] if columns else 1))
    return uniform(like, noise).sub_(0.5).sign_().add_(0.5).sign_()  # never zero


def _stripes(ball: Ball, noise: torch.Generator) -> Tensor:
    """Return vertical stripes at the two ends of what is allowed."""
    signs = _signs(ball, True, noise)
    return torch.where(signs > 0, _images(ball.high), _images(ball.low)).view_as(ball.x)


def _recoloured(ball: Ball, room: Tensor, z: Tensor, share: float, noise: torch.Generator) -> Tensor:
    """Return z with one rectangle per sample moved to a random end of what is allowed, channel by channel."""
    window = _window(ball, room, share, noise)
    ends = torch.where(_signs(ball, False, noise) > 0, _images(ball.high), _images(ball.low))
    return torch.where(window.inside, ends, _images(z)).view_as(z)


def _tiles(ball: Ball, noise: torch.Generator) -> Tensor:
    """Return a start at full L2 or L1 radius: tiles of pyramids, each tile and channel with a random sign."""
    shape = _images(ball.x).shape
    count, height, width = shape[0], shape[2], shape[3]
    tall, wide = max(height // 5, 1), max(width // 5, 1)
    row = torch.arange(height, device=ball.x.device)[None, :, None]
    column = torch.arange(width, device=ball.x.device)[None, None, :]
    size = [torch.full((count, 1, 1), one, device=ball.x.device) for one in (tall, wide)]
    bump = _pyramids(_Window(row % tall, column % wide, *size), noise, ball.x.dtype)
    places = ball.x.new_empty((count, shape[1], -(-height // tall), -(-width // wide)))
    signs = uniform(places, noise).sub_(0.5).sign_().add_(0.5).sign_()
    signs = signs[:, :, (row // tall).flatten()][:, :, :, (column // wide).flatten()]
    return _at_radius(ball, bump * signs)


def _moved(ball: Ball, room: Tensor, z: Tensor, share: float, noise: torch.Generator) -> Tensor:
    """Return z with the mass of two rectangles, and what the radius has left, gathered in the first (algorithm 3).

    Mass adds up in L2 by squares and in L1 as it is.
    """
    power = 2 if ball.norm == "l2" else 1
    old = _images(z - ball.x)  # (n, channels, height, width)
    first, second = _window(ball, room, share, noise), _window(ball, room, share, noise)
    inside = first.inside
    bump = _pyramids(first, noise, z.dtype) * inside
    bump = bump / _length(bump, power) * _signs(ball, False, noise)
    here = old * inside
    shape = bump + here / _length(here, power)
    spent = old.flatten(1).abs().pow(power).sum(1)
    left = (ball.size.to(z.dtype).pow(power) - spent).clamp(min=0)[:, None, None, None]
    both = old * (inside | second.inside)
    mass = (both.abs().pow(power).sum((2, 3), keepdim=True) + left / old.shape[1]).pow(1 / power)  # (n, channels, 1, 1)
    new = torch.where(inside, shape / _length(shape, power) * mass, torch.where(second.inside, torch.zeros_like(old), old))
    return _at_radius(ball, new)


def _at_radius(ball: Ball, delta: Tensor) -> Tensor:
    """Return x + delta scaled to the full radius, inside the box."""
    size = delta.flatten(1).norm(1 if ball.norm == "l1" else 2, dim=1).clamp(min=1e-12)
    scaled = delta * (ball.size.to(delta.dtype) / size)[:, None, None, None]
    return ball.seal(ball.x + scaled.view_as(ball.x))


def _pyramids(window: _Window, noise: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return two pyramids of opposite sign, side by side in each window, (n, 1, height, width) (equation 3)."""
    count = len(window.height)
    upright = uniform(torch.empty(count, 1, 1, device=window.row.device), noise) < 0.5
    along = torch.where(upright, window.row, window.column)
    length = torch.where(upright, window.height, window.width)
    across, breadth = torch.where(upright, window.column, window.row), torch.where(upright, window.width, window.height)
    half = length // 2
    later = along >= half
    near = torch.where(later, along - half, along)
    depth = torch.where(later, length - half, half)
    distance = torch.maximum((near - depth // 2).abs(), (across - breadth // 2).abs())
    reach = torch.maximum(depth, breadth) // 2
    # The height at distance k from the peak is the sum of 1 / (j + 1)^2 for j from k to the reach.
    steps = torch.arange(int(reach.max()) + 2 if count else 2, device=window.row.device, dtype=torch.float64)
    table = torch.cat([steps.new_zeros(1), (steps + 1).pow(-2).cumsum(0)])
    value = table[reach + 1] - table[torch.minimum(distance.clamp(min=0), reach)]
    return torch.where(later, -value, value).to(dtype)[:, None]


def _length(part: Tensor, power: int) -> Tensor:
    return part.abs().pow(power).sum((2, 3), keepdim=True).pow(1 / power).clamp(min=1e-12)


def _room(ball: Ball) -> Tensor:
    """Return where each sample can change at all: top, height, left and width of the area, shape (n, 4), float."""
    free = _images(ball.low < ball.high).any(1)  # (n, height, width)
    return torch.stack([*_extent(free.any(2)), *_extent(free.any(1))], 1)


def _window(ball: Ball, room: Tensor, share: float, noise: torch.Generator) -> _Window:
    """Return one random rectangle per sample, of that share of the area that can change at all, and within it."""
    top, tall, left, wide = room.unbind(1)
    area = share * tall * wide
    height = area.sqrt().round().clamp(min=1).minimum(tall)
    width = (area / height).round().clamp(min=1).minimum(wide)
    place = uniform(torch.empty(len(room), 2, device=room.device), noise)
    top = top + (place[:, 0] * (tall - height + 1)).floor()
    left = left + (place[:, 1] * (wide - width + 1)).floor()
    shape = _images(ball.x).shape
    rows = torch.arange(shape[2], device=room.device)[None, :, None]
    columns = torch.arange(shape[3], device=room.device)[None, None, :]
    cut = [one.long()[:, None, None] for one in (top, left, height, width)]
    return _Window(rows - cut[0], columns - cut[1], cut[2], cut[3])


def _extent(used: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index in use and the length of the run to the last, each (n,), float."""
    first = used.float().argmax(1)
    last = used.shape[1] - 1 - used.flip(1).float().argmax(1)
    return first.float(), (last - first + 1).clamp(min=1).float()
