"""Weather: fog, frost and snow, and drops on the lens. All textures are synthesised; no photograph is needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.robustness.natural.contract import natural
from hauberk.robustness.natural.draws import Draws
from hauberk.robustness.natural.filters import correlate, gaussian, motion_kernels, smear, zoomed
from hauberk.robustness.natural.water import sheen

LUMA = (0.299, 0.587, 0.114)
ICE, WATER, MUD = (0.86, 0.94, 1.0), (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)


@natural(
    question="Does fog change the answer?", family="weather",
    ordered=False, small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
)
def fog(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """Lay a plasma fractal over each image; the levels are its weight and how fast its roughness falls with scale.

    The texture is synthesised by the diamond-square algorithm, as the published one is.
    """
    weight, decay = level
    side = 1 << (max(x.shape[2:]) - 1).bit_length()
    haze = diamond_square(draws.uniform(side, side).mul_(2).sub_(1), decay)[:, None, : x.shape[2], : x.shape[3]]
    most = x.amax((1, 2, 3), keepdim=True)
    return torch.addcmul(x, haze, torch.full_like(most, weight)).mul_(most / (most + weight))


def diamond_square(noise: Tensor, decay: float) -> Tensor:
    """Return plasma fractals from 0 to 1, by the diamond-square algorithm on a torus.

    Arguments:
        noise: in [-1, 1], shape (n, s, s), s a power of two; each point is displaced by the noise at its place.
        decay: the squared ratio of the displacements of one scale to those of the next finer one.

    Returns:
        Shape (n, s, s).
    """
    side, reach = noise.shape[-1], 1.0
    coarse = torch.zeros_like(noise[:, :1, :1])
    while side > 1:
        half, few = side // 2, coarse.shape[-1]
        rows = coarse + coarse.roll(-1, 1)
        middle = torch.add((rows + rows.roll(-1, 2)).mul_(0.25), noise[:, half::side, half::side], alpha=reach)
        columns = coarse + coarse.roll(-1, 2)
        right = torch.add((columns + middle).add_(middle.roll(1, 1)).mul_(0.25), noise[:, ::side, half::side], alpha=reach)
        below = torch.add((rows + middle).add_(middle.roll(1, 2)).mul_(0.25), noise[:, half::side, ::side], alpha=reach)
        fine = noise.new_empty(len(noise), 2 * few, 2 * few)
        for row, column, part in ((0, 0, coarse), (0, 1, right), (1, 0, below), (1, 1, middle)):
            fine[:, row::2, column::2] = part
        coarse = fine
        side, reach = half, reach / decay**2
    low, high = coarse.flatten(1).aminmax(dim=1)
    span = (high - low).clamp(min=torch.finfo(coarse.dtype).tiny)
    return (coarse - low.view(-1, 1, 1)) / span.view(-1, 1, 1)


@natural(
    question="Does a frosted window change the answer?", family="weather",
    small=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), ordered=False,
    large=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
def frost(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """Lay ice crystals over each image; the levels are the weights of image and ice.

    The published corruption takes crops of photographs of ice. Here the crystals are synthesised: ridges of a plasma fractal, and
    needles that grow in three directions from seeds drawn at random.
    """
    kept, weight = level
    return torch.add(x * kept, _tinted(ice(x, draws), ICE, x.shape[1]), alpha=weight)


def ice(x: Tensor, draws: Draws) -> Tensor:
    """Return a texture of ice crystals in [0, 1] for images x, shape (n, 1, h, w)."""
    height, width = x.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    plasma = diamond_square(draws.uniform(side, side).mul_(2).sub_(1), 1.5)[:, None, :height, :width]
    ridges = (1 - (2 * plasma - 1).abs()).square()
    length = max(2, min(height, width) // 12)
    # Seeds are so many that the needles of each direction cover the same share of a small and of a large image.
    seeds = (draws.uniform(3, height, width) < 0.12 / length).to(x)
    turn = math.pi * draws.uniform()  # (n,)
    angles = (turn[:, None] + torch.arange(3, device=x.device) * (math.pi / 3)).flatten()
    reach = torch.full_like(angles, length / 2)
    kernels = motion_kernels(angles, reach, reach)
    needles = kernels / kernels.amax((1, 2), keepdim=True)
    grown = correlate(seeds, needles.view(len(x), 3, *needles.shape[1:]).to(x)).clamp(0, 1).amax(1, keepdim=True)
    return (0.2 + 0.5 * ridges + 0.5 * grown * plasma).clamp_(0, 1)


@natural(
    question="Does falling snow change the answer?", family="weather", ordered=False,
    small=(
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    large=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
def snow(x: Tensor, level: tuple[float, float, float, float, int, float, float], draws: Draws) -> Tensor:
    """Whiten each image and let flakes fall over it, blurred by their fall.

    The flakes are synthesised, as the published ones are. The levels are the mean, deviation, enlargement and threshold of the
    noise they are cut from, the radius and deviation of their blur, and the share of the image kept.
    """
    mean, deviation, zoom, threshold, radius, sigma, kept = level
    angles = torch.deg2rad(-135 + 90 * draws.uniform().double())  # (n,)
    flakes = mean + deviation * draws.normal(1, *x.shape[2:])
    flakes = zoomed(flakes, zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp_(0, 1)
    lines = motion_kernels(angles, torch.full_like(angles, radius), torch.full_like(angles, sigma))
    fallen = smear(flakes, lines.to(x)).mul(255).round_().div_(255)  # (n, 1, h, w)
    white = torch.maximum(x, luma(x) * 1.5 + 0.5)
    return torch.lerp(white, x, kept) + (fallen + fallen.rot90(2, (2, 3)))


@natural(
    question="Do drops of water or mud on the lens change the answer?", family="weather", ordered=False,
    small=(
        (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    large=(
        (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
)
def spatter(x: Tensor, level: tuple[float, float, float, float, float, int], draws: Draws) -> Tensor:
    """Put drops of water (severities 1 to 3) or mud (4 and 5) on each image.

    The drops are synthesised, as the published ones are. The levels are the mean, deviation, smoothness and threshold of the
    noise they are cut from, the strength of water or softness of mud, and which of the two.
    """
    mean, deviation, smooth, threshold, strength, mud = level
    liquid = gaussian(mean + deviation * draws.normal(1, *x.shape[2:]), smooth)
    if mud:
        cover = gaussian((liquid > threshold).to(x), strength)
        cover = torch.where(cover < 0.8, 0.0, cover)
        return x * (1 - cover) + _tinted(cover, MUD, x.shape[1])
    shine = sheen(torch.where(liquid < threshold, 0.0, liquid))
    return x + _tinted(shine * strength, WATER, x.shape[1])


def luma(x: Tensor) -> Tensor:
    """Return the brightness of colour images, shape (n, 1, h, w); images that do not have three channels are their own."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) if x.shape[1] == 3 else x


def _tinted(texture: Tensor, colour: tuple[float, float, float], channels: int) -> Tensor:
    """Return a texture, shape (n, 1, h, w), in a colour for three channels, and else in the gray of that colour."""
    tint = texture.new_tensor(colour).view(1, 3, 1, 1)
    return texture * (tint if channels == 3 else luma(tint))
