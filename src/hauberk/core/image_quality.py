"""How far two images are from each other as an eye sees them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import DataError, UsageError
from hauberk.core.threat import Bounds


def ssim(a: Tensor, b: Tensor, *, bounds: Bounds = (0.0, 1.0), window: int = 7) -> Tensor:
    """Return the structural similarity of each pair of images (Wang et al. 2004, IEEE TIP 13(4)).

    Arguments:
        a, b: images, shape (n, channels, height, width).
        bounds: lowest and highest pixel; their distance is the range that the constants .01 and .03 are shares of, and brightness
            counts from the lowest, so that an image is as like another in any units.
        window: side of the square over which means, variances (unbiased) and the covariance are taken, each pixel weighing the
            same; on an image smaller than that, the largest odd side that fits.

    Returns:
        Shape (n,), float64, from -1 to 1: the mean over channels and over all places where the window lies inside the image.
    """
    _pair(a, b)
    side = min(window, *a.shape[2:])
    side -= 1 - side % 2
    if side < 2:
        raise UsageError(f"the window is {window} on images of {tuple(a.shape[2:])} pixels", want="a side of 3 pixels or more")
    n, channels = a.shape[:2]
    count, span = side * side, _span(bounds)
    low = torch.as_tensor(bounds[0], dtype=torch.float64, device=a.device)
    first, second = ((one.detach().double() - low).reshape(n * channels, 1, *one.shape[2:]) for one in (a, b))

    def over(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, side, stride=1)  # (n * channels, 1, rows, columns)

    mean_a, mean_b, unbiased = over(first), over(second), count / (count - 1)
    var_a = unbiased * (over(first * first) - mean_a * mean_a)
    var_b = unbiased * (over(second * second) - mean_b * mean_b)
    both = unbiased * (over(first * second) - mean_a * mean_b)
    light, structure = (0.01 * span) ** 2, (0.03 * span) ** 2
    likeness = (2 * mean_a * mean_b + light) * (2 * both + structure)
    scale = (mean_a.square() + mean_b.square() + light) * (var_a + var_b + structure)
    return (likeness / scale).reshape(n, -1).mean(1)


def psnr(a: Tensor, b: Tensor, *, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair in decibels, shape (n,), float64; infinite where both are the same.

    Arguments:
        a, b: inputs of any shape (n, ...).
        bounds: lowest and highest value; their distance is the peak.
    """
    if a.shape != b.shape:
        raise DataError(f"the inputs have shapes {tuple(a.shape)} and {tuple(b.shape)}", want="two of the same shape")
    error = (a.detach().double() - b.detach().double()).flatten(1).square().mean(1)
    return 10 * torch.log10(_span(bounds) ** 2 / error)


def _span(bounds: Bounds) -> float:
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in bounds)
    span = float((high - low).max())
    if not 0 < span < float("inf"):
        raise UsageError(f"bounds are {bounds}", want="two finite ends, the lower first", fix="State those of the pixels")
    return span


def _pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise DataError(
            f"the images have shapes {tuple(a.shape)} and {tuple(b.shape)}", want="two of (n, channels, height, width)"
        )
