"""What images look like: penalties that steer a search among inputs whose gradients agree."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.privacy.inversion.client import ClientUpdate

LOUD = 0.03


def total_variation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean absolute difference of neighbours down and across, shape (n,), and its slope, shape of x.

    Zero for inputs that are no images: fewer than three axes (channels, height, width), or sides of one pixel.
    """
    slope = torch.zeros_like(x)
    if x.ndim < 4 or min(x.shape[-2:]) < 2:
        return x.new_zeros(len(x)), slope
    value = x.new_zeros(len(x))
    for axis in (-2, -1):
        steps = x.diff(dim=axis)
        count = steps[0].numel()
        value += steps.abs().flatten(1).sum(1) / count
        signs = steps.sign() / count
        length = x.shape[axis] - 1
        slope.narrow(axis, 1, length).add_(signs)
        slope.narrow(axis, 0, length).sub_(signs)
    return value, slope


def weight_of(tv: float, update: ClientUpdate) -> float:
    """Return the weight of the total variation against a gradient that is noisy, as far as is known; 0 stays 0.

    What the gradient leaves open the prior has to tell: LOUD more for as much noise as signal, found on other images than those
    whose figures are told.
    """
    return tv + LOUD * update.known.loudness(update.gradients) if tv and update.known is not None else tv


def size(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean square of each input, shape (n,), and its slope, shape of x."""
    count = x[0].numel()
    return x.square().flatten(1).mean(1), 2 * x / count
