"""Light: too much of it, too little contrast, too much or too little colour, and light that falls unevenly."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.natural.contract import Parameters, Size, like_images, natural, spread
from hauberk.robustness.natural.draws import Draws

MINDSPORE = "MindSpore Armour, natural robustness; the levels are ours"
PATTERNS = ("circle", "horizontal", "vertical")


@natural(
    question="Does strong light change the answer?", family="light", preset="quick",
    small=(0.05, 0.10, 0.15, 0.20, 0.30), large=(0.1, 0.2, 0.3, 0.4, 0.5),
)
def brightness(x: Tensor, extra: float, draws: Draws) -> Tensor:
    """Add light while hue and saturation stay; the levels are added to the value of HSV."""
    value = x.amax(1, keepdim=True)  # (n, 1, h, w)
    brighter = (value + extra).clamp_(max=1)
    # A black pixel has no hue: it turns gray.
    return torch.where(value > 0, x * (brighter / value.clamp(min=torch.finfo(x.dtype).tiny)), brighter)


@natural(
    question="Do faded or garish colours change the answer?", family="light", ordered=False,
    small=((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    large=((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
)
def saturate(x: Tensor, level: tuple[float, float], draws: Draws) -> Tensor:
    """Change the saturation of HSV; the levels are a factor and what is added, first of less and then of more colour.

    As published, a gray pixel counts as red without saturation, and reddens where saturation is added. Images that do not have
    three channels stay as they are.
    """
    if x.shape[1] != 3:
        return x.clone()
    factor, extra = level
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - least
    tiny = torch.finfo(x.dtype).tiny
    wanted = (chroma / value.clamp(min=tiny)).mul_(factor).add_(extra).clamp_(0, 1).mul_(value)  # the chroma to reach
    done = value - (value - x) * (wanted / chroma.clamp(min=tiny))
    if extra == 0:
        return torch.where(chroma > 0, done, x)
    red = torch.cat([value, value - wanted, value - wanted], 1)
    return torch.where(chroma > 0, done, red)


def _kept(kept: float, draws: Draws, size: Size) -> Parameters:
    each = draws.full(kept)
    return {"kept": each, "shift": torch.zeros_like(each)}


@natural(
    question="Does haze or a cheap display change the answer?", family="light", preset="quick", sample=_kept,
    small=(0.75, 0.5, 0.4, 0.3, 0.15), large=(0.4, 0.3, 0.2, 0.1, 0.05),
)
def contrast(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Draw every value towards the mean of its image and channel; the levels are the share of contrast kept."""
    return contrast_by(x, parameters["kept"], parameters["shift"])


def contrast_by(x: Tensor, kept: Tensor | float, shift: Tensor | float = 0.0) -> Tensor:
    """Scale images in [0, 1] about the mean of each channel, and shift them.

    Arguments:
        x: images, shape (n, c, h, w).
        kept: share of the contrast kept, above 1 for more; one for all images or shape (n,).
        shift: what is added; one for all images or shape (n,).

    Returns:
        The images, not clipped.
    """
    factor = like_images(spread(kept, x, "kept"), x)
    mean = x.mean((2, 3), keepdim=True)
    return torch.addcmul(mean * (1 - factor) + like_images(spread(shift, x, "shift"), x), x, factor)


def _stops(stops: float, draws: Draws, size: Size) -> Parameters:
    return {"stops": draws.full(stops)}


@natural(
    question="Does a picture exposed for too long change the answer?", family="light", paper=MINDSPORE, sample=_stops,
    small=(0.25, 0.5, 0.75, 1.0, 1.5), large=(0.4, 0.8, 1.2, 1.6, 2.0),
)
def overexposure(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Expose each image longer, so that bright parts burn out; the levels are stops, each a factor of two."""
    return overexposure_by(x, parameters["stops"])


def overexposure_by(x: Tensor, stops: Tensor | float) -> Tensor:
    """Expose images in [0, 1] longer.

    Arguments:
        x: images, shape (n, c, h, w).
        stops: each doubles the light; negative for too short; one for all images or shape (n,).

    Returns:
        The images, burnt out at 1.
    """
    return (x * like_images(spread(stops, x, "stops").exp2(), x)).clamp(max=1)


def _gradient(strength: float, draws: Draws, size: Size) -> Parameters:
    draw = draws.uniform(4)  # (n, 4)
    light = strength * torch.where(draw[:, 0] < 0.5, -1.0, 1.0).to(draw)
    centres = 0.25 + 0.5 * draw[:, 1:3]
    return {
        "strength": light, "across": centres[:, 0], "down": centres[:, 1], "pattern": (3 * draw[:, 3]).floor(),
        "scope": torch.full_like(light, 0.75),
    }


@natural(
    question="Does a glaring lamp or a shadow across the picture change the answer?", family="light", paper=MINDSPORE,
    sample=_gradient, small=(0.15, 0.3, 0.45, 0.6, 0.8), large=(0.15, 0.3, 0.45, 0.6, 0.8),
)
def gradient_luminance(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Lighten or darken each image around a spot, a row or a column, drawn at random; the levels are the share at its middle."""
    return gradient_luminance_by(x, **parameters)


def gradient_luminance_by(
    x: Tensor, strength: Tensor | float, across: Tensor | float = 0.5, down: Tensor | float = 0.5,
    pattern: Tensor | float = 0.0, scope: Tensor | float = 0.75,
) -> Tensor:
    """Blend images in [0, 1] with white or black, less and less away from a place. Each argument is one or shape (n,).

    Arguments:
        x: images, shape (n, c, h, w).
        strength: share of the blend at the place, in [-1, 1]: above 0 towards white, below 0 towards black.
        across, down: the place, as shares of width and height.
        pattern: 0 a circle around the place, 1 a horizontal band through it, 2 a vertical band.
        scope: distance at which nothing is left, as a share of the longer side.

    Returns:
        The images.
    """
    height, width = x.shape[2:]
    light, left, top, kind, reach = (like_images(spread(one, x), x) for one in (strength, across, down, pattern, scope))
    rows = torch.arange(height, device=x.device, dtype=x.dtype).view(-1, 1) + 0.5
    columns = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5
    away_down, away_across = rows - top * height, columns - left * width  # (n, 1, h, 1), (n, 1, 1, w)
    # A band minds one axis alone.
    squared = (kind != 2) * away_down.square() + (kind != 1) * away_across.square()  # (n, 1, h, w)
    near = (1 - squared.sqrt() / (reach * max(height, width))).clamp(min=0) * light
    return x + torch.where(near > 0, near * (1 - x), near * x)
