"""Where a camera sees a thing: rotation, scale, shift and light, differentiable, in torch alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.rng import uniform


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a picture is laid down, one entry per image, shape (n,) each.

    Arguments:
        degrees: counter-clockwise.
        scale: 1 keeps the size.
        down, right: how far its centre stands from that of the image, in pixels.
        light: share by which it is lighter, or below zero darker.
    """

    degrees: Tensor
    scale: Tensor
    down: Tensor
    right: Tensor
    light: Tensor

    @classmethod
    def of(
        cls, like: Tensor, *, degrees: Tensor | float = 0.0, scale: Tensor | float = 1.0, down: Tensor | float = 0.0,
        right: Tensor | float = 0.0, light: Tensor | float = 0.0,
    ) -> Pose:
        """Return a pose for each image of `like`, (n, ...); numbers stand for all of them alike."""
        given = (degrees, scale, down, right, light)
        return cls(*(torch.as_tensor(one, dtype=like.dtype, device=like.device).expand(len(like)) for one in given))


def draws(like: Tensor, generator: torch.Generator, ends: tuple[float, float]) -> Tensor:
    """Return one uniform draw between the two ends per image of `like`, shape (n,)."""
    return ends[0] + (ends[1] - ends[0]) * uniform(like.new_empty(len(like)), generator)


def paste(pattern: Tensor, x: Tensor, pose: Pose, low: Tensor) -> Tensor:
    """Return the images x, (n, c, h, w), covered by the pattern, (c, ph, pw), as it is posed; differentiable in both.

    A pixel is covered where its centre lies under the pattern; `low` is what black is, (n or 1, c, h, w) or a number.
    """
    grid = _grid(pose, x, (pattern.shape[1], pattern.shape[2]))
    covered = (grid.abs().amax(3) <= 1)[:, None]  # (n, 1, h, w)
    layer = functional.grid_sample(
        pattern.expand(len(x), *pattern.shape), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return torch.where(covered, low + (layer - low) * (1 + pose.light[:, None, None, None]), x)


def view(x: Tensor, pose: Pose, low: Tensor, *, edge: bool = False) -> Tensor:
    """Return the images x, (n, c, h, w), as a camera in that pose sees them; differentiable.

    Beyond the border is what black is, `low`, or with `edge` the pixels of the border repeated.
    """
    grid = _grid(pose, x, (x.shape[2], x.shape[3]))
    padding = "border" if edge else "zeros"
    seen = functional.grid_sample(x - low, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return low + seen * (1 + pose.light[:, None, None, None])


def _grid(pose: Pose, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return for every pixel of x where it lies on a picture of that size that is laid down so, (n, h, w, 2), right before down.

    Both run from -1 to 1 between the picture's borders.
    """
    height, width = x.shape[2:]
    radians = torch.deg2rad(pose.degrees)
    cos, sin = radians.cos() / pose.scale, radians.sin() / pose.scale
    # With the rows of an image counted downwards, this turns the picture counter-clockwise.
    across = torch.stack([cos * width, -sin * height, 2 * (sin * pose.down - cos * pose.right)], 1) / size[1]
    along = torch.stack([sin * width, cos * height, -2 * (sin * pose.right + cos * pose.down)], 1) / size[0]
    return functional.affine_grid(torch.stack([across, along], 1), [len(x), 1, height, width], align_corners=False)
