"""Elastic deformation: the image stretched at random, as rubber is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.robustness.natural.contract import Parameters, Size, Warp, natural, spread
from hauberk.robustness.natural.draws import Draws
from hauberk.robustness.natural.filters import gaussian
from hauberk.robustness.natural.geometry import carried, positions, sampled

SIDE = 244 / 224  # the published lengths for images of 224 pixels are shares of 244


def _stretch(level: tuple[float, float, float], draws: Draws, size: Size) -> Parameters:
    force, smooth, affine = (share * min(size) for share in level)
    offsets = affine * (2 * draws.uniform(3, 2) - 1)  # (n, 3, 2)
    fields = draws.single().uniform(2, *size).mul_(2).sub_(1)  # (n, 2, h, w)
    fields = gaussian(fields, smooth, 3.0, "reflect").mul_(force) if force else torch.zeros_like(fields)
    right, down = fields.double().unbind(1)
    return {"offsets": offsets, "right": right, "down": down}


@natural(
    question="Does an image stretched and squeezed in places change the answer?", family="geometry", ordered=False,
    sample=_stretch, warp=lambda parameters, size: _warp(size, **parameters),
    small=((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    large=tuple(
        (SIDE * force, SIDE * smooth, SIDE * affine)
        for force, smooth, affine in (
            (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
        )
    ),
)
def elastic_transform(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Move three points of each image at random and all others along, then every pixel by a smooth random field.

    The levels are the force of the field, its smoothness and the reach of the three points, as shares of the shorter side. They
    go from large, smooth changes to small, abrupt ones.
    """
    return elastic_transform_by(x, **parameters)


def elastic_transform_by(x: Tensor, offsets: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Stretch images; beyond the edge they are reflected.

    Arguments:
        x: images, shape (n, c, h, w).
        offsets: how far three points around the centre move, across and down in pixels, shape (n, 3, 2).
        right, down: how far to the right and down each pixel of the result is taken from, in pixels, shape (n, h, w).

    Returns:
        The stretched images.
    """
    height, width = x.shape[2:]
    affine = _affine(spread(offsets, x, "offsets"), (height, width))
    centres = positions((height, width), x)
    # The first step reflects the image about its outer pixels, the second about its edge.
    place = carried(centres, torch.linalg.inv(affine)) - 0.5
    grid = place * place.new_tensor([2 / max(1, width - 1), 2 / max(1, height - 1)]) - 1
    moved = functional.grid_sample(
        x, grid.view(-1, height, width, 2).to(x), mode="bilinear", padding_mode="reflection", align_corners=True
    )
    field = torch.stack([spread(right, x, "right"), spread(down, x, "down")], -1).flatten(1, 2).to(x)  # (n, h * w, 2)
    return sampled(moved, centres + field, "reflection")


def _affine(offsets: Tensor, size: Size) -> Tensor:
    """Return the affine maps that move three points by offsets, shape (n, 3, 2), as matrices, shape (n, 3, 3)."""
    far = max(1, min(size) // 3)
    centre = torch.tensor([size[1] // 2 + 0.5, size[0] // 2 + 0.5]).to(offsets)
    before = centre + far * offsets.new_tensor([[1, 1], [1, -1], [-1, -1]])
    one = offsets.new_ones(3, 1)
    after = torch.cat([before + offsets, one.expand(len(offsets), -1, -1)], 2)  # (n, 3, 3)
    return (torch.linalg.inv(torch.cat([before, one], 1)) @ after).mT


def _warp(size: Size, offsets: Tensor, right: Tensor, down: Tensor) -> Warp:
    back = torch.linalg.inv(_affine(offsets, size))
    field = torch.stack([right, down], 1)  # (n, 2, h, w)

    def source(place: Tensor) -> Tensor:
        grid = place * place.new_tensor([2 / size[1], 2 / size[0]]) - 1
        far = functional.grid_sample(field.to(place), grid[:, :, None], padding_mode="border", align_corners=False)
        return carried(place + far[..., 0].mT, back)

    return Warp(source, None)
