"""Storage: what compression and thumbnails leave of an image."""

from __future__ import annotations

import functools
import io
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hauberk.robustness.natural.contract import natural
from hauberk.robustness.natural.draws import Draws


@natural(
    question="Does JPEG compression change the answer?", family="storage", preset="quick",
    small=(80, 65, 58, 50, 40), large=(25, 18, 15, 10, 7),
)
def jpeg(x: Tensor, quality: int, draws: Draws) -> Tensor:
    """Write each image as JPEG and read it back; the levels are qualities. Three channels are colour, others are gray each."""
    from PIL import Image

    n, channels, height, width = x.shape
    colour = channels == 3
    pixels = x.detach().mul(255).round_().byte().cpu()
    sheets = torch.stack(pixels.unbind(1), 3) if colour else pixels.reshape(-1, height, width)
    read = np.empty(tuple(sheets.shape), np.uint8)
    for index, sheet in enumerate(sheets.numpy()):
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer, formats=("JPEG",)) as image:
            read[index] = np.asarray(image)
    done = torch.from_numpy(read)
    done = done.permute(0, 3, 1, 2).contiguous() if colour else done.reshape(n, channels, height, width)
    return done.to(x).div_(255)


@natural(
    question="Does a thumbnail, enlarged again, change the answer?", family="storage", ordered=False,
    small=(0.95, 0.9, 0.85, 0.75, 0.65), large=(0.6, 0.5, 0.4, 0.3, 0.25),
)
def pixelate(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Shrink each image and enlarge it again; the levels are the share of the side length kept.

    Each pixel of the thumbnail is the mean of the whole pixels whose centres it covers, and each pixel of the result is the one
    of the thumbnail over its centre. Since only whole pixels count, a smaller thumbnail can fit better: 28 of 32 do than 30.
    """
    # Rows lie together in memory and columns do not: turning the image costs less than to pick columns.
    small = _shrunk(_shrunk(x, share).mT.contiguous(), share).mT  # (n, c, few rows, few columns)
    return functional.interpolate(small, size=x.shape[2:], mode="nearest-exact")


def _shrunk(x: Tensor, share: float) -> Tensor:
    """Return images whose rows are means of groups of rows, shape (n, c, few, w)."""
    rows, weights = (one.to(x.device) for one in _groups(x.shape[2], share))
    weights = weights.to(x)[..., None]  # (most, few, 1)
    total = x.index_select(2, rows[0]).mul_(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.addcmul_(x.index_select(2, row), weight)
    return total


@functools.lru_cache(maxsize=32)
def _groups(side: int, share: float) -> tuple[Tensor, Tensor]:
    """Return for each pixel of the thumbnail the pixels it is the mean of, and their weights, shape (most, few) each."""
    few = max(1, int(side * share))
    # A pixel of the thumbnail spans side / few pixels, from one rounded border to the next.
    borders = torch.tensor([math.floor(index * side / few + 0.5) for index in range(few + 1)])
    counts = borders.diff()
    place = torch.arange(int(counts.max()))[:, None]
    return torch.minimum(borders[:-1] + place, borders[1:] - 1), torch.where(place < counts, 1 / counts.double(), 0.0)
