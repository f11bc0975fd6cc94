"""Adding noise on a grid, so that the lowest bits of a sum tell nothing of what went in."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.privacy.dp.noise.secure import CHUNK

BITS = 36  # the grid is finer than the noise by 2^36: exact below 2^17 times the noise, rounding adds 2^-36 per root of dimension


def add_on_grid_(total: Tensor, scale: float, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Add `scale` times the noise of `draw` to `total`, in place, on a grid finer than the scale by 2^36.

    Both summands are rounded to the grid, whose step is a power of two, in float64, and their sum there is exact: a function of
    the ideal sum on the grid alone. The cast to the dtype of `total` comes after. By the rounding one example may move a total
    of d entries by sqrt(d) grid steps more than its clip: a share below 1e-6 of the noise for 10^9 entries.

    Arguments:
        total: what is to be made private, any shape, floating point; changed.
        scale: of the noise, in units of `total`, at least 0.
        draw: gives noise of scale 1 in float64 for a tensor like the one given.

    Returns:
        `total`.

    Paper: Mironov 2012, "On significance of the least significant bits for differential privacy", CCS.
    """
    if scale == 0 or not total.numel():
        return total
    step = 2.0 ** (math.floor(math.log2(scale)) - BITS)
    flat = total.reshape(-1)  # a view where it can be one
    size = CHUNK if flat.device.type == "cpu" else len(flat)
    for part in flat.split(size):
        exact = part.to(torch.float64).div_(step).round_() if part.dtype != torch.float64 else part.div(step).round_()
        part.copy_(exact.add_(draw(exact).mul_(scale / step).round_()).mul_(step))
    return total if flat.data_ptr() == total.data_ptr() else total.copy_(flat.reshape(total.shape))
