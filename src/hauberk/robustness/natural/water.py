"""How light breaks in drops of water on a lens: brightest along one side of each drop's rim."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.robustness.natural.filters import pad

FAR = 20  # pixels from the rim at which nothing changes any more
WEAK, STRONG = 50.0, 150.0  # slopes, in 255ths, that belong to a rim beside a strong one, and by themselves
RELIEF = ((-2.0, -1.0, 0.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 2.0))  # lights the side towards the bottom right


def sheen(liquid: Tensor) -> Tensor:
    """Return the light that a film of liquid adds, from 0 to 1 in each image.

    Arguments:
        liquid: its height in [0, 1], 0 where there is none, shape (n, 1, h, w).

    Returns:
        Shape (n, 1, h, w). Distances to the rim are exact, where the published arithmetic has them within two percent.
    """
    film = (liquid.clamp(0, 1) * 255).floor()
    depth = _box(distance(rim(film))).floor()  # whole numbers up to 20
    lit = _filter(equalised(depth), RELIEF).clamp_(0, 255)
    light = film * _box(lit).round()
    return light / light.amax((2, 3), keepdim=True).clamp(min=1)


def rim(film: Tensor) -> Tensor:
    """Return where the slope of a film in 255ths, shape (n, 1, h, w), is steepest and steep enough: Canny's edges, a mask."""
    height, width = film.shape[2:]
    down = _filter(film, ((-1.0, -2.0, -1.0), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0)), "nearest")
    across = _filter(film, ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0)), "nearest")
    slope = down.abs() + across.abs()
    around = functional.pad(slope, (1, 1, 1, 1))

    def at(row: int, column: int) -> Tensor:
        return around[:, :, 1 + row : 1 + row + height, 1 + column : 1 + column + width]

    upright, flat = down.abs() > across.abs() * 2.4142136, down.abs() < across.abs() * 0.4142136  # 67.5 and 22.5 degrees
    same = down * across >= 0
    before = torch.where(flat, at(0, -1), torch.where(upright, at(-1, 0), torch.where(same, at(-1, -1), at(-1, 1))))
    after = torch.where(flat, at(0, 1), torch.where(upright, at(1, 0), torch.where(same, at(1, 1), at(1, -1))))
    diagonal = ~(flat | upright)
    steepest = (slope > before) & torch.where(diagonal, slope > after, slope >= after)
    weak, edge = steepest & (slope > WEAK), steepest & (slope > STRONG)
    while bool((weak & ~edge).any()):  # edges grow along weak ones that touch them; an image at rest is not changed by going on
        grown = edge
        for axis in (2, 3):
            side = grown.shape[axis]
            wider = grown.clone()
            wider.narrow(axis, 1, side - 1).logical_or_(grown.narrow(axis, 0, side - 1))
            wider.narrow(axis, 0, side - 1).logical_or_(grown.narrow(axis, 1, side - 1))
            grown = wider
        grown = grown & weak | edge
        if torch.equal(grown, edge):
            break
        edge = grown
    return edge


def distance(mask: Tensor) -> Tensor:
    """Return the distance in pixels of every pixel to the nearest of the mask, shape (n, 1, h, w), at most 20."""
    found = torch.where(mask, 0.0, float(FAR**2))
    for axis in (2, 3):
        side, nearer = found.shape[axis], found.clone()
        for step in range(1, min(FAR, side)):
            kept = side - step
            for to, since in ((0, step), (step, 0)):
                there = nearer.narrow(axis, to, kept)
                torch.minimum(there, found.narrow(axis, since, kept) + step**2, out=there)
        found = nearer
    return found.sqrt()


def equalised(depth: Tensor) -> Tensor:
    """Return whole numbers from 0 to 20, shape (n, 1, h, w), spread over 0 to 255 so that each is as frequent as any."""
    index = depth.flatten(1).long()  # (n, h * w)
    counts = torch.zeros(len(depth), FAR + 1, dtype=torch.float64, device=depth.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    least = counts.gather(1, (counts > 0).double().argmax(1, keepdim=True))
    rest = index.shape[1] - least  # where all are alike, they stay
    table = ((counts.cumsum(1) - least).clamp(min=0) * 255 / rest.clamp(min=1)).round()
    table = torch.where(rest > 0, table, torch.arange(FAR + 1, dtype=torch.float64, device=depth.device))
    return table.gather(1, index).view_as(depth).to(depth)


def _filter(x: Tensor, kernel: tuple[tuple[float, ...], ...], edge: str = "mirror") -> Tensor:
    """Return x, shape (n, 1, h, w), correlated with a kernel of 3 by 3, as a sum of shifted copies."""
    height, width = x.shape[2:]
    padded, done = pad(x, 1, edge), torch.zeros_like(x)
    for row, line in enumerate(kernel):
        for column, weight in enumerate(line):
            if weight:
                done.add_(padded[:, :, row : row + height, column : column + width], alpha=weight)
    return done


def _box(x: Tensor) -> Tensor:
    """Return the mean over 3 by 3 pixels."""
    x = pad(x, 1, "mirror")
    for axis in (2, 3):
        side = x.shape[axis] - 2
        x = x.narrow(axis, 0, side) + x.narrow(axis, 1, side) + x.narrow(axis, 2, side)
    return x / 9
