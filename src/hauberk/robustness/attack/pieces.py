"""What the attacks share that take an image to pieces: random cuts, and linear maps of lines of pixels as matrices.

Matrices and not resampling calls: the gradient is the same bits on every run, on every device. All draws are made on the CPU and
hold for a whole batch, so that what a sample gets does not depend on the others.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def cuts(length: int, count: int, noise: torch.Generator) -> list[int]:
    """Return the lengths of up to `count` pieces, 1 or more each, of a line of `length` pixels cut at random places."""
    places = torch.randperm(max(length - 1, 0), generator=noise)[: count - 1].sort().values.add(1).tolist()
    ends = [0, *places, length]
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def pick(count: int, noise: torch.Generator) -> int:
    """Return a random whole number below `count`."""
    return int(torch.randint(count, (), generator=noise))


def amount(low: float, high: float, noise: torch.Generator) -> float:
    """Return a random number between the two."""
    return low + (high - low) * float(torch.rand((), generator=noise, dtype=torch.float64))


def resampling(length: int, size: int, like: Tensor) -> Tensor:
    """Return the matrix, shape (size, length), that stretches or shrinks a line of pixels by linear interpolation."""
    pixel = torch.arange(length, dtype=like.dtype, device=like.device)
    at = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * length / size - 0.5
    return (1 - (at.clamp(0, length - 1)[:, None] - pixel).abs()).clamp(min=0)


def cosines(length: int, like: Tensor) -> Tensor:
    """Return the orthonormal matrix of the discrete cosine transform, shape (length, length), a frequency per row."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    waves = torch.cos(math.pi / length * place[:, None] * (place + 0.5)) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves


def sheared(z: Tensor, slope: float) -> Tensor:
    """Return images z, shape (n, c, h, w), whose rows are moved by `slope` pixels for each row below the middle."""
    height, width = z.shape[2:]
    pixel = torch.arange(width, dtype=z.dtype, device=z.device)
    shift = slope * (torch.arange(height, dtype=z.dtype, device=z.device) - (height - 1) / 2)
    source = pixel[None, :, None] - shift[:, None, None]
    weight = (1 - (source - pixel).abs()).clamp(min=0)  # (h, w to, w from)
    return torch.einsum("ncrk,rdk->ncrd", z, weight)


def rotated(z: Tensor, degrees: float) -> Tensor:
    """Return images z, shape (n, c, h, w), turned about their middle, with zeros where nothing was.

    By three shears (Paeth 1986), for angles well below a right one.
    """
    angle = math.radians(degrees)
    across = sheared(z, -math.tan(angle / 2))
    down = sheared(across.mT, math.sin(angle)).mT
    return sheared(down, -math.tan(angle / 2))
