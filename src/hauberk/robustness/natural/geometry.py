"""Geometry: the camera tilted or moved. Between pixels values are interpolated; beyond the edge its pixels are repeated."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.rng import uniform
from hauberk.robustness.natural.contract import natural


@natural(
    question="Does a tilted camera change the answer?", family="geometry", preset="quick",
    paper="Engstrom et al. 2019, arXiv:1712.02779; the angles are ours, up to the 30° of the paper", small=(5, 10, 15, 20, 30),
)
def rotate(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about its centre by that angle, to a side drawn at random."""
    side = torch.where(uniform(x[:, 0, 0, 0].detach(), generator) < 0.5, -1.0, 1.0).to(x)
    return turned(x, side * degrees)


@natural(
    question="Does an object off the centre change the answer?", family="geometry",
    paper="Engstrom et al. 2019, arXiv:1712.02779; the lengths are ours", small=(0.04, 0.08, 0.12, 0.16, 0.20),
)
def translate(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Move each image in a random direction by that share of its shorter side."""
    angle = 2 * math.pi * uniform(x[:, 0, 0, 0].detach(), generator)
    length = share * min(x.shape[2:])
    return moved(x, length * angle.sin(), length * angle.cos())


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Return each image of x, shape (n, c, h, w), turned counter-clockwise by its angle, shape (n,)."""
    height, width = x.shape[2:]
    radians = torch.deg2rad(degrees)
    cos, sin, none = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # Coordinates run from -1 to 1 on both axes, so that a turn of an oblong image has to mind its aspect.
    rows = [torch.stack([cos, -sin * height / width, none], 1), torch.stack([sin * width / height, cos, none], 1)]
    return _warped(x, torch.stack(rows, 1))


def moved(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return each image of x, shape (n, c, h, w), moved by so many pixels, shape (n,) each."""
    one, none = torch.ones_like(down), torch.zeros_like(down)
    rows = [torch.stack([one, none, -2 * right / x.shape[3]], 1), torch.stack([none, one, -2 * down / x.shape[2]], 1)]
    return _warped(x, torch.stack(rows, 1))


def _warped(x: Tensor, maps: Tensor) -> Tensor:
    grid = functional.affine_grid(maps.to(x), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
