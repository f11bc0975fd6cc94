"""Adding noise: on a grid, so that the lowest bits of a sum tell nothing of what went in, or plainly, for tests."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hauberk.privacy.dp.noise.mechanism import checked_sensitivity
from hauberk.privacy.dp.noise.secure import in_parts
from hauberk.privacy.dp.noise.ziggurat import scratch

BITS = 36  # the grid is finer than the noise by 2^36: exact below 2^17 times the noise
COARSE = 30  # of normal noise, so that a grid step holds a million of the values that are drawn
# More noise than is accounted for, as the rounding lets an example move the total further: enough for 4e9 / z^2 entries under
# normal noise, 4e6 / z under Laplace noise, where z is the noise multiplier.
ROOM = 1 + 2.0**-14

PORTION = 1 << 16  # values at a time: fresh pages cost as much as a fifth of the noise
Draw = Callable[[Tensor, Tensor], Tensor]


def add_(total: Tensor, multiplier: float, sensitivity: float, draw: Draw, secure: bool, bits: int = BITS) -> Tensor:
    """Add noise in proportion to the sensitivity to `total` in place: on a grid where it protects, plainly where it is seeded.

    Arguments:
        total: any shape, floating point; changed.
        multiplier: scale of the noise over the sensitivity.
        sensitivity: how far one example can move the total.
        draw, bits: as for `add_on_grid_`.
        secure: whether the draws are to protect.

    Returns:
        `total`.
    """
    scale = multiplier * checked_sensitivity(sensitivity)
    if secure:
        return add_on_grid_(total, ROOM * scale, draw, bits)
    if total.device.type != "cpu" or total.dtype != torch.float32 or not total.is_contiguous():
        return total.add_(draw(total, torch.empty_like(total)), alpha=scale)
    for part in total.detach().view(-1).split(PORTION):
        part.add_(draw(part, torch.from_numpy(scratch("plain", len(part), np.float32))), alpha=scale)
    return total


def add_on_grid_(total: Tensor, scale: float, draw: Draw, bits: int = BITS) -> Tensor:
    """Add `scale` times the noise of `draw` to `total`, in place, on a grid finer than the scale by 2^`bits`.

    Both summands are brought to the grid, whose step is a power of two, in float64, the noise downwards (ties would favour even
    steps), and their sum there is exact: a function of the ideal sum on the grid alone. The cast to the dtype of `total` comes
    after. By the rounding one example may move a total of d entries by sqrt(d) grid steps more than its clip (d in the L1 norm).

    Arguments:
        total: what is to be made private, any shape, floating point; changed.
        scale: of the noise, in units of `total`, at least 0.
        draw: of a tensor and room for the result: noise of scale 1 for a tensor like it.
        bits: of the noise, below its scale.

    Returns:
        `total`.

    Paper: Mironov 2012, "On significance of the least significant bits for differential privacy", CCS.
    """
    if scale == 0 or not total.numel():
        return total
    step = 2.0 ** (math.floor(math.log2(scale)) - bits)
    flat = total.detach().reshape(-1)  # a view where it can be one

    def add(place: slice) -> None:
        part = flat[place]
        exact = _held("exact", part).copy_(part).mul_(1 / step).round_()
        noise = draw(exact, _held("noise", part)).mul_(scale / step).floor_()
        part.copy_(exact.add_(noise).mul_(step))

    if flat.device.type == "cpu":
        in_parts(len(flat), add)
    else:
        add(slice(0, len(flat)))
    return total if flat.data_ptr() == total.data_ptr() else total.copy_(flat.reshape(total.shape))


def _held(name: str, like: Tensor) -> Tensor:
    """Return room for as many values in float64: working memory of this thread, on the CPU."""
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.float64)
    return torch.from_numpy(scratch(name, len(like), np.float64))
