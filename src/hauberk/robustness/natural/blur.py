"""Blur of the lens and of motion. Outside the image its nearest pixel is repeated."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.rng import uniform
from hauberk.robustness.natural.contract import natural


@natural(
    question="Does an image slightly out of focus change the answer?", family="blur", preset="quick",
    small=(0.4, 0.6, 0.7, 0.8, 1.0), large=(1.0, 2.0, 3.0, 4.0, 6.0),
)
def gaussian_blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian cut off at four standard deviations; the levels are those deviations in pixels."""
    rows, columns = (_blur_matrix(side, sigma).to(x) for side in x.shape[2:])
    return rows @ x @ columns.T  # (n, c, h, w)


@natural(
    question="Does a lens out of focus change the answer?", family="blur",
    small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
def defocus_blur(x: Tensor, lens: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Blur by a disk; the levels are its radius and the deviation of the Gaussian that smooths its rim, in pixels."""
    return correlate(x, disk(*lens)[None].to(x))


@natural(
    question="Does a moving camera change the answer?", family="blur", preset="quick",
    small=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.25), (9, 2.5)), large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
)
def motion_blur(x: Tensor, path: tuple[int, float], generator: torch.Generator) -> Tensor:
    """Blur along a line, each image in a random direction within 45° of the horizontal.

    The levels are the radius and the deviation, in pixels, of a half Gaussian along the line, as in CIFAR-10-C but for
    the fourth: there both its 3 and 4 deviate by 2, and the longer radius only adds weights of a few millionths.
    """
    angles = (uniform(x[:, 0, 0, 0].detach(), generator) - 0.5) * (math.pi / 2)  # (n,)
    return correlate(x, motion_kernels(angles, *path))


def correlate(x: Tensor, kernels: Tensor) -> Tensor:
    """Return x, shape (n, c, h, w), correlated with odd square kernels, shape (n or 1, k, k), by Fourier transform.

    On a CPU this costs the same for every kernel size, and beats direct convolution from about five pixels on.
    """
    height, width = x.shape[2:]
    reach = kernels.shape[-1] // 2
    padded = functional.pad(x, (reach,) * 4, mode="replicate")
    size = (height + 2 * reach, width + 2 * reach)
    response = torch.fft.rfft2(kernels, s=size).conj()[:, None]
    whole = torch.fft.irfft2(torch.fft.rfft2(padded) * response, s=size)
    return whole[:, :, :height, :width]


def disk(radius: float, rim: float) -> Tensor:
    """Return a disk of that radius, smoothed by a Gaussian of deviation `rim`, as a kernel that sums to 1, float64."""
    soft = 1 if radius <= 8 else 2
    reach = math.floor(radius) + soft
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    solid = (line[:, None].square() + line.square() <= radius**2).double()
    taps = torch.exp(-torch.arange(-soft, soft + 1).double().square() / (2 * rim**2))
    taps = taps / taps.sum()
    blurred = functional.conv2d(solid[None, None], taps.outer(taps)[None, None], padding=soft)[0, 0]
    return blurred / blurred.sum()


def motion_kernels(angles: Tensor, radius: int, sigma: float) -> Tensor:
    """Return one kernel per angle (radians, shape (n,)) that sums to 1, shape (n, k, k): a half Gaussian from the centre on."""
    reach = min(2 * radius, math.ceil(5 * sigma))
    steps = torch.arange(reach + 1, dtype=angles.dtype, device=angles.device)  # (t,)
    weight = torch.exp(-steps.square() / (2 * sigma**2))
    y, x = angles.sin()[:, None] * steps, angles.cos()[:, None] * steps  # (n, t)
    top, left = y.floor(), x.floor()
    size = 2 * reach + 1
    kernels = angles.new_zeros(len(angles), size * size)
    for down in (0, 1):
        for right in (0, 1):
            # Each step falls between four pixels and is shared out among them.
            share = (1 - (y - top - down).abs()) * (1 - (x - left - right).abs()) * weight
            place = (top + down + reach).clamp(0, size - 1) * size + (left + right + reach).clamp(0, size - 1)
            kernels.scatter_add_(1, place.long(), share)
    return (kernels / kernels.sum(1, keepdim=True)).view(-1, size, size)


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Return the blur of one axis, its border folded in, as a (side, side) matrix: two products blur an image of any size."""
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    taps = torch.exp(-offsets.double().square() / (2 * sigma**2))
    source = (torch.arange(side)[:, None] + offsets).clamp(0, side - 1)  # (side, taps)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, source, (taps / taps.sum()).expand(side, -1))
