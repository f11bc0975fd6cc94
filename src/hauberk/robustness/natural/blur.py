"""Blur of the lens and of motion, and glass in front of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hauberk.robustness.natural.contract import Parameters, Size, like_images, natural, spread
from hauberk.robustness.natural.draws import Draws
from hauberk.robustness.natural.filters import blur_matrix, correlate, disk, gaussian, motion_kernels, smear, zoomed

STAGES = 4  # blurred copies that gradient-blur blends


def _sigma(sigma: float, draws: Draws, size: Size) -> Parameters:
    return {"sigma": draws.full(sigma)}


@natural(
    question="Does an image slightly out of focus change the answer?", family="blur", preset="quick", sample=_sigma,
    small=(0.4, 0.6, 0.7, 0.8, 1.0), large=(1.0, 2.0, 3.0, 4.0, 6.0),
)
def gaussian_blur(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Blur by a Gaussian cut off at four standard deviations; the levels are those deviations in pixels."""
    return gaussian_blur_by(x, parameters["sigma"])


def gaussian_blur_by(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Blur images by a Gaussian cut off at four standard deviations; beyond the border the last pixel is repeated.

    Arguments:
        x: images, shape (n, c, h, w).
        sigma: standard deviation in pixels, one for all images or shape (n,).

    Returns:
        The blurred images.
    """
    found, which = spread(sigma, x, "sigma", least=0).unique(return_inverse=True)
    if len(found) <= 1:
        return gaussian(x, float(found)) if len(found) else x.clone()
    rows, columns = (
        torch.stack([blur_matrix(side, float(one)) for one in found]).to(x)[which][:, None] for side in x.shape[2:]
    )
    return rows @ x @ columns.mT  # (n, c, h, w)


@natural(
    question="Does a lens out of focus change the answer?", family="blur",
    small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
)
def defocus_blur(x: Tensor, lens: tuple[float, float], draws: Draws) -> Tensor:
    """Blur by a disk; the levels are its radius and the deviation of the Gaussian that smooths its rim, in pixels."""
    return correlate(x, disk(*lens)[None].to(x), "mirror")


def _path(path: tuple[int, float], draws: Draws, size: Size) -> Parameters:
    degrees = 90 * draws.uniform() - 45  # (n,)
    return {"degrees": degrees, "radius": torch.full_like(degrees, path[0]), "sigma": torch.full_like(degrees, path[1])}


@natural(
    question="Does a moving camera change the answer?", family="blur", preset="quick", sample=_path,
    small=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)), large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
)
def motion_blur(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Blur along a line, each image in a random direction within 45° of the horizontal.

    The levels are the radius and the deviation, in pixels, of a half Gaussian along the line. For small images the fourth only
    adds weights of a few millionths to the third.
    """
    return motion_blur_by(x, **parameters)


def motion_blur_by(x: Tensor, degrees: Tensor | float, radius: Tensor | float, sigma: Tensor | float) -> Tensor:
    """Blur images along a line; beyond the border the last pixel is repeated. Each argument is one number or shape (n,).

    Arguments:
        x: images, shape (n, c, h, w).
        degrees: direction that pixels are taken from, clockwise from the right.
        radius: half the length of the line in pixels.
        sigma: deviation in pixels of the half Gaussian that weights it.

    Returns:
        The blurred images.
    """
    angle = spread(degrees, x, "degrees")
    half, deviation = spread(radius, x, "radius", least=0), spread(sigma, x, "sigma", least=0)
    return smear(x, motion_kernels(angle.deg2rad(), half, deviation).to(x))


def _focus(sigma: float, draws: Draws, size: Size) -> Parameters:
    places = 0.25 + 0.5 * draws.uniform(2)  # (n, 2)
    return {"sigma": torch.full_like(places[:, 0], sigma), "across": places[:, 0], "down": places[:, 1]}


@natural(
    question="Does a narrow depth of field change the answer?", family="blur", sample=_focus,
    paper="MindSpore Armour, natural robustness; the levels are ours", small=(0.6, 0.9, 1.2, 1.6, 2.0),
    large=(1.5, 3.0, 4.5, 6.0, 9.0),
)
def gradient_blur(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Keep a random spot sharp and blur more and more away from it; the levels are the deviation in the far corner."""
    return gradient_blur_by(x, **parameters)


def gradient_blur_by(
    x: Tensor, sigma: Tensor | float, across: Tensor | float = 0.5, down: Tensor | float = 0.5
) -> Tensor:
    """Blur images by a Gaussian that widens away from a spot. Each argument is one number or shape (n,).

    Arguments:
        x: images, shape (n, c, h, w).
        sigma: standard deviation in pixels in the corner farthest from the spot.
        across, down: the sharp spot, as shares of width and height.

    Returns:
        The blurred images: between five copies, sharp to blurred, values are interpolated.
    """
    height, width = x.shape[2:]
    deviation = spread(sigma, x, "sigma", least=0)
    left, top = (like_images(spread(one, x), x) for one in (across, down))
    rows = (torch.arange(height, device=x.device, dtype=x.dtype).view(-1, 1) + 0.5 - top * height).square()
    columns = (torch.arange(width, device=x.device, dtype=x.dtype) + 0.5 - left * width).square()
    away = (rows + columns).sqrt()  # (n, 1, h, w)
    place = STAGES * away / away.amax((2, 3), keepdim=True).clamp(min=1e-12)  # nothing is away from the spot in one pixel
    done = torch.zeros_like(x)
    for stage in range(STAGES + 1):
        copy = gaussian_blur_by(x, deviation * stage / STAGES)
        done = done + copy * (1 - (place - stage).abs()).clamp(min=0)
    return done


@natural(
    question="Does a camera that zooms while the shutter is open change the answer?", family="blur",
    small=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    large=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
)
def zoom_blur(x: Tensor, zoom: tuple[float, float], draws: Draws) -> Tensor:
    """Take the mean of an image and of its enlargements; the levels are where they end and the step between them."""
    factors = np.arange(1, *zoom)  # NumPy's count of steps is part of the definition: 1.11 itself is reached, by rounding
    done = 2 * x if factors[0] == 1 else x.clone()  # the image itself, and its enlargement by 1
    for factor in factors[1:].tolist():
        done += zoomed(x, factor)
    return done.div_(len(factors) + 1)


@natural(
    question="Does frosted glass before the camera change the answer?", family="blur",
    small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), ordered=False,
    large=((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
def glass_blur(x: Tensor, glass: tuple[float, int, int], draws: Draws) -> Tensor:
    """Blur, let every pixel take the place of a random neighbour, blur again.

    The levels are the deviation of the blur, how far pixels move, and how often. As in the published arithmetic, pixels change
    one after the other, from the bottom right to the top left, and each becomes a copy of its neighbour as that is by then.
    """
    sigma, far, times = glass
    height, width = x.shape[2:]
    done = gaussian(x, sigma)
    if min(height, width) > 2 * far:
        steps = (draws.uniform(times, 2, height, width) * (2 * far)).long() - far  # (n, times, 2, h, w)
        flat = done.flatten(2)
        for turn in range(times):
            origin = copied_from(steps[:, turn], far)
            flat = flat.gather(2, origin[:, None].expand_as(flat))
        done = flat.view_as(x)
    return gaussian(done, sigma)


def copied_from(steps: Tensor, far: int) -> Tensor:
    """Return for every pixel which pixel its value comes from, when pixels copy their neighbours one after the other.

    Arguments:
        steps: down and across to the neighbour, shape (n, 2, h, w).
        far: pixels closer than this to the top or left edge stay, and those closer than one less to the others.

    Returns:
        Positions in the flattened image, shape (n, h * w).
    """
    height, width = steps.shape[2:]
    place = torch.arange(height * width, device=steps.device)
    row, column = place // width, place % width
    active = (row > far) & (row <= height - far) & (column > far) & (column <= width - far)
    neighbour = torch.where(active, place + steps[:, 0].flatten(1) * width + steps[:, 1].flatten(1), place)  # (n, h*w)
    # A neighbour further on has been changed before, and hands on what it copied itself: follow such chains to their ends, in
    # doubling steps. A chain only ever goes forwards, so that it ends.
    handed = active & active[neighbour] & (neighbour > place)
    ahead = torch.where(handed, neighbour, place)
    for _ in range(math.ceil(math.log2(height * width))):
        further = ahead.gather(1, ahead)
        if torch.equal(further, ahead):
            break
        ahead = further
    return neighbour.gather(1, ahead)
