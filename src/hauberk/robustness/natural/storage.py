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
    height, width = x.shape[2:]
    # Rows lie together in memory and columns do not: turning the image costs less than to pick columns.
    sums = _summed(_summed(x, share).mT.contiguous(), share)  # (n, c, few columns, few rows)
    small = sums / (_borders(width, share).diff()[:, None] * _borders(height, share).diff()).to(x)
    wide = small.index_select(2, _covering(width, share).to(x.device)).mT.contiguous()  # (n, c, few rows, w)
    return wide.index_select(2, _covering(height, share).to(x.device))


def _summed(x: Tensor, share: float) -> Tensor:
    """Return images whose rows are sums of groups of rows, shape (n, c, few, w)."""
    n, channels, height, width = x.shape
    # A bag of embeddings is a sum of rows: one pass over the image, several times as quick as sums of indexed rows.
    index = torch.arange(n * channels * height, device=x.device)
    first = torch.arange(n * channels)[:, None] * height + _borders(height, share)[:-1]
    sums = functional.embedding_bag(index, x.reshape(-1, width), first.flatten().to(x.device), mode="sum")
    return sums.view(n, channels, -1, width)


@functools.lru_cache(maxsize=64)
def _borders(side: int, share: float) -> Tensor:
    """Return where the pixels of the thumbnail begin, and where the last one ends, shape (few + 1,)."""
    few = max(1, int(side * share))
    # A pixel of the thumbnail spans side / few pixels, from one rounded border to the next.
    return torch.tensor([math.floor(index * side / few + 0.5) for index in range(few + 1)])


@functools.lru_cache(maxsize=64)
def _covering(side: int, share: float) -> Tensor:
    """Return for each pixel of a side the pixel of the thumbnail that lies over its centre."""
    few = max(1, int(side * share))
    return torch.tensor([(2 * index + 1) * few // (2 * side) for index in range(side)])
