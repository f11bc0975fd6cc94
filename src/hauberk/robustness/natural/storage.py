"""Storage: what compression and thumbnails leave of an image."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from hauberk.robustness.natural.contract import natural


@natural(
    question="Does JPEG compression change the answer?", family="storage", preset="quick",
    small=(80, 65, 58, 50, 40), large=(25, 18, 15, 10, 7),
)
def jpeg(x: Tensor, quality: int, generator: torch.Generator) -> Tensor:
    """Write each image as JPEG and read it back; the levels are qualities. Three channels are colour, others are gray each."""
    from PIL import Image

    n, channels, height, width = x.shape
    colour = channels == 3
    pixels = (x.detach() * 255).round().byte().cpu()
    sheets = pixels.permute(0, 2, 3, 1) if colour else pixels.reshape(-1, height, width)
    read = np.empty(tuple(sheets.shape), np.uint8)
    for index, sheet in enumerate(sheets.contiguous().numpy()):
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer, formats=("JPEG",)) as image:
            read[index] = np.asarray(image)
    done = torch.from_numpy(read)
    done = done.permute(0, 3, 1, 2) if colour else done.reshape(n, channels, height, width)
    return done.to(x) / 255


@natural(
    question="Does a thumbnail, enlarged again, change the answer?", family="storage",
    small=(0.875, 0.75, 0.625, 0.5, 0.375), large=(0.6, 0.5, 0.4, 0.3, 0.25),
)
def pixelate(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shrink each image and enlarge it again, both by area; the levels are the share of the side length kept.

    A filter that picks whole pixels, as ImageNet-C has it, is not monotone on small images: 5 pixels of 8 can fit better than 6.
    The levels for small images are ours: those of CIFAR-10-C, .95 to .65, come to the same number of pixels on an 8 by 8 image,
    and 28 pixels of 32 fit better than 30. Below 8 pixels two levels can still round to the same number.
    """
    for axis in (2, 3):
        side = x.shape[axis]
        few = max(1, int(side * share))
        through = (_area_matrix(few, side) @ _area_matrix(side, few)).to(x)  # (side, side)
        x = (through @ x) if axis == 2 else (x @ through.T)
    return x


def _area_matrix(source: int, wanted: int) -> Tensor:
    """Return the (wanted, source) matrix that resizes one axis: each new pixel is the mean of what it covers."""
    edges = torch.arange(wanted + 1, dtype=torch.float64) * (source / wanted)
    left = torch.arange(source, dtype=torch.float64)
    covered = (torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)).clamp(min=0)
    return covered / covered.sum(1, keepdim=True)
