"""Filters that corruptions share: correlation, Gaussians as matrices, and the kernels of a lens and of a moving camera."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

LARGE = 2**15  # values of an image from which on few weights are added up one by one
EDGES = {"nearest": "replicate", "mirror": "reflect"}  # SciPy's names, for how an image goes on beyond its border


def correlate(x: Tensor, kernels: Tensor, edge: str = "nearest") -> Tensor:
    """Return images correlated with odd square kernels, by Fourier transform: every kernel size costs about the same.

    Arguments:
        x: shape (n, c, h, w).
        kernels: shape (n or 1, k, k), or (n or 1, c or 1, k, k) for kernels by channel.
        edge: `nearest` repeats the last pixel beyond the border, `mirror` reflects the image about it.

    Returns:
        Shape (n, c, h, w).
    """
    from scipy.fft import next_fast_len

    kernels = kernels if kernels.ndim == 4 else kernels[:, None]
    height, width = x.shape[2:]
    reach = kernels.shape[-1] // 2
    padded = pad(x, reach, edge)
    size = [next_fast_len(side + 2 * reach, real=True) for side in (height, width)]
    # Kernels are small: their transform is two products, cheaper than the transform of a padded kernel.
    kind = torch.complex64 if x.dtype == torch.float32 else torch.complex128
    rows, columns = (_waves(kernels.shape[-1], side).to(x.device, kind) for side in size)
    response = rows @ kernels.to(kind) @ columns[: size[1] // 2 + 1].T  # (n or 1, c or 1, *size as rfft2 has it)
    whole = torch.fft.irfft2(torch.fft.rfft2(padded, s=size).mul_(response), s=size)
    return whole[:, :, :height, :width]


def smear(x: Tensor, lines: Tensor) -> Tensor:
    """Return images, shape (n, c, h, w), correlated with kernels of few weights, shape (n, k, k); beyond the border as `nearest`.

    On large images, to add up shifted copies costs less than two Fourier transforms.
    """
    if x[0].numel() < LARGE or x.device.type != "cpu":
        return correlate(x, lines)
    height, width = x.shape[2:]
    padded, done = pad(x, lines.shape[-1] // 2, "nearest"), []
    for image, line in zip(padded, lines, strict=True):
        total = torch.zeros_like(x[0])
        for row, column in line.nonzero().tolist():
            total.add_(image[:, row : row + height, column : column + width], alpha=float(line[row, column]))
        done.append(total)
    return torch.stack(done)


@functools.lru_cache(maxsize=64)
def _waves(taps: int, side: int) -> Tensor:
    """Return the conjugated Fourier transform of so many taps of a line of that length, shape (side, taps), complex128."""
    turns = torch.arange(side)[:, None] * torch.arange(taps) % side
    return torch.polar(torch.ones(side, taps, dtype=torch.float64), turns.double() * (2 * math.pi / side))


def pad(x: Tensor, reach: int, edge: str) -> Tensor:
    """Return images, shape (n, c, h, w), continued by so many pixels on all sides; images may be smaller than the reach."""
    if edge == "nearest" or reach < min(x.shape[2:]):
        return functional.pad(x, (reach,) * 4, mode=EDGES[edge])
    for axis in (2, 3):
        side = x.shape[axis]
        x = x.index_select(axis, folded(torch.arange(-reach, side + reach), side, edge).to(x.device))
    return x


def folded(index: Tensor, side: int, edge: str) -> Tensor:
    """Return positions beyond the border as the positions inside that stand for them: `nearest`, `mirror` or `reflect`."""
    if edge == "nearest" or side == 1:
        return index.clamp(0, side - 1)
    period = 2 * side - 2 if edge == "mirror" else 2 * side
    index = index.remainder(period)
    return torch.minimum(index, period - index - int(edge == "reflect"))


@functools.lru_cache(maxsize=64)
def blur_matrix(side: int, sigma: float, truncate: float = 4.0, edge: str = "nearest") -> Tensor:
    """Return the Gaussian blur of one axis, its border folded in, as a float64 matrix: two products blur an image."""
    reach = int(truncate * sigma + 0.5)
    if sigma == 0 or reach == 0:
        return torch.eye(side, dtype=torch.float64)
    offsets = torch.arange(-reach, reach + 1)
    taps = torch.exp(-offsets.double().square() / (2 * sigma**2))
    source = folded(torch.arange(side)[:, None] + offsets, side, edge)  # (side, taps)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, source, (taps / taps.sum()).expand(side, -1))


def gaussian(x: Tensor, sigma: float, truncate: float = 4.0, edge: str = "nearest") -> Tensor:
    """Return images, shape (n, c, h, w), blurred by a Gaussian cut off at `truncate` standard deviations."""
    rows, columns = (blur_matrix(side, sigma, truncate, edge).to(x) for side in x.shape[2:])
    return rows @ x @ columns.T  # (n, c, h, w)


@functools.lru_cache(maxsize=32)
def disk(radius: float, rim: float) -> Tensor:
    """Return a disk of that radius, smoothed by a Gaussian of deviation `rim`, as a float64 kernel of odd side.

    As published, the disk is cut off at 8 pixels, or at the radius where that is more, and reflected there when it is smoothed.
    """
    most, soft = (8, 1) if radius <= 8 else (math.floor(radius), 2)
    line = torch.arange(-most, most + 1, dtype=torch.float64)
    solid = (line[:, None].square() + line.square() <= radius**2).double()
    taps = torch.exp(-torch.arange(-soft, soft + 1).double().square() / (2 * rim**2))
    taps = taps / taps.sum()
    padded = pad((solid / solid.sum())[None, None], soft, "mirror")
    smooth = functional.conv2d(padded, taps.outer(taps)[None, None])[0, 0]
    spare = max(0, most - math.floor(radius) - soft)  # nothing but zeros there
    return smooth[spare : 2 * most + 1 - spare, spare : 2 * most + 1 - spare]


def motion_kernels(angles: Tensor, radius: Tensor, sigma: Tensor) -> Tensor:
    """Return half Gaussians along a line from the centre, as kernels that sum to 1.

    Arguments:
        angles: of the lines in radians, clockwise from the right, shape (n,).
        radius: half the length of each line in pixels, shape (n,).
        sigma: deviation of each half Gaussian in pixels, shape (n,).

    Returns:
        Shape (n, k, k). As published, each step falls on the one pixel nearest to it.
    """
    sigma = sigma.clamp(min=1e-3)  # of none, all the weight is at the centre
    # Beyond six deviations less than a millionth of the weight is left.
    reach = int(torch.minimum(2 * radius.floor(), (6 * sigma).ceil()).max()) if len(angles) else 0
    steps = torch.arange(reach + 1, dtype=torch.float64, device=angles.device)  # (t,)
    weight = torch.exp(-steps.square() / (2 * sigma.double()[:, None].square()))
    weight = torch.where(steps <= 2 * radius.floor()[:, None], weight, 0.0)
    down, across = ((turn.double()[:, None] * steps - 0.5).ceil().long() for turn in (angles.sin(), angles.cos()))  # (n, t)
    size = 2 * reach + 1
    kernels = torch.zeros(len(angles), size * size, dtype=torch.float64, device=angles.device)
    kernels.scatter_add_(1, (down + reach) * size + across + reach, weight)
    return (kernels / weight.sum(1, keepdim=True)).view(-1, size, size)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Return the middle of images, shape (n, c, h, w), enlarged linearly to their size; the corners of the crop stay corners."""
    height, width = x.shape[2:]
    crop = [math.ceil(side / factor) for side in (height, width)]
    top, left = ((side - few) // 2 for side, few in zip((height, width), crop, strict=True))
    part = x[:, :, top : top + crop[0], left : left + crop[1]]
    size = [max(side, round(few * factor)) for side, few in zip((height, width), crop, strict=True)]
    large = functional.interpolate(part, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, :, top : top + height, left : left + width]
