"""Noise of the sensor and of the line."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.robustness.natural.contract import Parameters, Size, like_images, natural, spread
from hauberk.robustness.natural.draws import Draws

MINDSPORE = "MindSpore Armour, natural robustness; the levels are ours"
SIGMAS = (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
SHARES = (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)


def _sigma(sigma: float, draws: Draws, size: Size) -> Parameters:
    return {"sigma": draws.full(sigma)}


def _reach(reach: float, draws: Draws, size: Size) -> Parameters:
    return {"reach": draws.full(reach)}


def _share(share: float, draws: Draws, size: Size) -> Parameters:
    return {"share": draws.full(share)}


@natural(
    question="Does sensor noise in poor light change the answer?", family="noise", preset="quick", sample=_sigma,
    small=SIGMAS[0], large=SIGMAS[1],
)
def gaussian_noise(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Add normal noise to every pixel; the levels are standard deviations, those of CIFAR-10-C and ImageNet-C."""
    return gaussian_noise_by(x, parameters["sigma"], draws)


def gaussian_noise_by(x: Tensor, sigma: Tensor | float, source: Draws | torch.Generator) -> Tensor:
    """Add normal noise to images in [0, 1].

    Arguments:
        x: images, shape (n, c, h, w).
        sigma: standard deviation, one for all images or shape (n,).
        source: of the draws.

    Returns:
        The noisy images, not clipped; `applied("gaussian-noise", ...)` keeps them inside any bounds.
    """
    noise = Draws.of(source, x).normal(*x.shape[1:])
    return _added(x, noise, spread(sigma, x, "sigma", least=0))


@natural(
    question="Does noise without outliers, as quantisation leaves it, change the answer?", family="noise", sample=_reach,
    paper="levels of our own: the variances of gaussian-noise",
    small=tuple(math.sqrt(3) * sigma for sigma in SIGMAS[0]), large=tuple(math.sqrt(3) * sigma for sigma in SIGMAS[1]),
)
def uniform_noise(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Add noise spread evenly over ± the level to every pixel."""
    return uniform_noise_by(x, parameters["reach"], draws)


def uniform_noise_by(x: Tensor, reach: Tensor | float, source: Draws | torch.Generator) -> Tensor:
    """Add noise spread evenly to images in [0, 1].

    Arguments:
        x: images, shape (n, c, h, w).
        reach: the largest change, one for all images or shape (n,).
        source: of the draws.

    Returns:
        The noisy images, not clipped.
    """
    noise = Draws.of(source, x).even(*x.shape[1:])
    return _added(x, noise, spread(reach, x, "reach", least=0))


@natural(
    question="Does the graininess of few photons change the answer?", family="noise",
    small=(500, 250, 100, 75, 50), large=(60, 25, 12, 5, 3),
)
def shot_noise(x: Tensor, photons: float, draws: Draws) -> Tensor:
    """Draw every pixel from the Poisson law of its brightness; the levels are photons at full brightness."""
    return draws.poisson(x * photons) / photons


@natural(
    question="Do values struck to black or white in transmission change the answer?", family="noise",
    small=SHARES[0], large=SHARES[1],
)
def impulse_noise(x: Tensor, share: float, draws: Draws) -> Tensor:
    """Turn a share of all values black or white, half each, every channel by itself."""
    return _struck(x, draws.uniform(*x.shape[1:]), torch.full((len(x), 1, 1, 1), share).to(x))


@natural(
    question="Do dead and stuck pixels change the answer?", family="noise", preset="quick", sample=_share,
    paper="MindSpore Armour, natural robustness; the levels are those of impulse-noise", small=SHARES[0], large=SHARES[1],
)
def salt_and_pepper(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Turn a share of all pixels black or white, half each, all channels together."""
    return salt_and_pepper_by(x, parameters["share"], draws)


def salt_and_pepper_by(x: Tensor, share: Tensor | float, source: Draws | torch.Generator) -> Tensor:
    """Turn pixels of images in [0, 1] black or white, half each.

    Arguments:
        x: images, shape (n, c, h, w).
        share: of the pixels, one for all images or shape (n,).
        source: of the draws.

    Returns:
        The struck images.
    """
    draw = Draws.of(source, x).uniform(1, *x.shape[2:])
    return _struck(x, draw, like_images(spread(share, x, "share", least=0), x))


@natural(
    question="Does noise that grows with brightness, as in radar and ultrasound, change the answer?", family="noise",
    small=(0.06, 0.10, 0.12, 0.16, 0.20), large=(0.15, 0.20, 0.35, 0.45, 0.60),
)
def speckle_noise(x: Tensor, sigma: float, draws: Draws) -> Tensor:
    """Multiply every value by 1 + normal noise; the levels are standard deviations."""
    return draws.normal(*x.shape[1:]).mul_(sigma).add_(1).mul_(x)


def _spots(density: float, draws: Draws, size: Size) -> Parameters:
    height, width = size
    count = max(1, round(density * height * width))
    draw = draws.uniform(count, 6)  # (n, count, 6): the first spots stay where they are when more are drawn
    short = 1 + 2 * draw[..., 2]  # a spot is 1 to 3 pixels wide and 3 to 12 long at 224 pixels, lying or standing
    long = (3 + 9 * draw[..., 3]) * max(1.0, min(size) / 224) * min(1.0, min(size) / 64)
    lying = draw[..., 4] < 0.5
    across, down = torch.where(lying, long, short), torch.where(lying, short, long)
    left, top = draw[..., 0] * width, draw[..., 1] * height
    boxes = torch.stack([left, top, left + across.clamp(min=1), top + down.clamp(min=1)], -1)
    return {"boxes": boxes, "gray": draw[..., 5]}


@natural(
    question="Do dust, scratches and stains change the answer?", family="noise", paper=MINDSPORE, sample=_spots,
    small=(0.004, 0.008, 0.016, 0.032, 0.064), large=(0.0002, 0.0005, 0.001, 0.002, 0.004),
)
def natural_noise(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Cover small oblong spots with gray; the levels are spots per pixel."""
    return natural_noise_by(x, parameters["boxes"], parameters["gray"])


def natural_noise_by(x: Tensor, boxes: Tensor, gray: Tensor) -> Tensor:
    """Cover spots of images in [0, 1] with gray; where spots overlap, their mean is taken.

    Arguments:
        x: images, shape (n, c, h, w).
        boxes: left, top, right and bottom of the spots in pixels, shape (n, k, 4), taken to whole pixels.
        gray: of the spots, in [0, 1], shape (n, k).

    Returns:
        The stained images.
    """
    height, width = x.shape[2:]
    sides = torch.tensor([width, height, width, height], device=x.device)
    edges = torch.minimum(spread(boxes, x, "boxes").floor().clamp(min=0).long(), sides)  # (n, k, 4)
    left, top, right, bottom = edges.unbind(-1)
    # Each spot is marked at its four corners; running sums over both axes fill it, whatever its size.
    maps = torch.zeros(2, len(x), (height + 1) * (width + 1), dtype=torch.float64, device=x.device)
    weights = torch.stack([torch.ones_like(left).double(), spread(gray, x, "gray")])  # (2, n, k)
    for row, column, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        place = (row * (width + 1) + column).expand(2, -1, -1)
        maps.scatter_add_(2, place, sign * weights)
    count, total = maps.view(2, len(x), 1, height + 1, width + 1).cumsum(3).cumsum(4)[..., :height, :width]
    return torch.where(count > 0.5, (total / count.clamp(min=1)).to(x), x)


def _added(x: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
    """Return x with noise of that strength, shape (n,), in the memory of the noise where no gradient is wanted."""
    through = x.requires_grad and torch.is_grad_enabled()
    return torch.addcmul(x, noise, like_images(strength, x), out=None if through else noise)


def _struck(x: Tensor, draw: Tensor, share: Tensor) -> Tensor:
    """Return x with a share of its values black and white, where the draw is lowest and highest; the draw is overwritten."""
    middle, reach = draw.sub_(0.5), 0.5 - share / 2
    over = middle.sub_(middle.clamp(-reach, reach))  # 0 but for the share at both ends
    return torch.add(x, over, alpha=1e30).clamp_(0, 1)  # faster than to choose
