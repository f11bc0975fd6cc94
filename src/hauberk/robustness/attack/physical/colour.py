"""Colour attacks: another hue, more or less saturation, light and contrast, and curves that recolour a picture smoothly."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.robustness.attack.physical.contract import semantic
from hauberk.robustness.attack.physical.pattern import at_least_one, within
from hauberk.robustness.attack.physical.spatial import TAGS, goal_of, worst_of
from hauberk.robustness.attack.physical.transformations import draws


@semantic(
    question="Does another hue, saturation, brightness or contrast of the picture change the answer?", access=Access.SCORE,
    paper="Hosseini and Poovendran 2018, arXiv:1804.00499", tags=TAGS,
)
def colour_shift(
    target: Target, x: Tensor, y: Tensor, bounds: tuple[Tensor, Tensor], *, hue: float = 0.5, saturation: float = 1.0,
    brightness: float = 0.0, contrast: float = 0.0, tries: int = 100, targeted: bool = False, seed: int = 0,
) -> Tensor:
    """Draw shifts of the whole picture, mild ones first, growing with every try; an image leaves at its first success.

    Arguments:
        target: with SCORE access.
        x: clean images, shape (n, channels, height, width): three channels, or any other number, which have light and contrast
            but no hue and no saturation.
        y: true labels, or with `targeted` the labels to reach, shape (n,).
        hue: the largest turn of the colour circle, 0.5 for the whole of it; drawn in full from the first try on, as in the paper.
        saturation: the largest change of saturation in the last try, as a share of the full scale.
        brightness: the largest change of light in the last try, as a share of the bounds.
        contrast: the largest stretch or shrink around the picture's mean in the last try, as a share.
        tries: draws per image.
        targeted: success is the label y, not any other.
        seed: of the draws.

    Returns:
        The first image that reaches the goal, else that of the lowest margin seen, the clean one included.
    """
    within(0, 0.5, hue=hue)
    within(0, 1, saturation=saturation, brightness=brightness, contrast=contrast)
    low, high = _finite(bounds)

    def drawn(part: Tensor, number: int, noise: torch.Generator) -> Tensor:
        grown, unit = (number + 1) / tries, (part - low) / (high - low)
        turn, fill, light, stretch = (
            draws(part, noise, (-most, most))[:, None, None, None]
            for most in (hue, grown * saturation, grown * brightness, grown * contrast)
        )
        if part.shape[1] == 3:
            unit = recoloured(unit.clamp(0, 1), turn, fill)
        mean = unit.mean((1, 2, 3), keepdim=True)
        return low + ((unit - mean) * (1 + stretch) + mean + light).clamp(0, 1) * (high - low)

    return worst_of(target, x, y, drawn, tries, goal_of(targeted), generator(seed, "colour-shift", device=x.device))


@semantic(
    question="Does a smooth recolouring, the same for equal colours, change the answer?", access=Access.GRADIENT,
    paper="after Laidlaw and Feizi 2019, arXiv:1906.00001",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
)
def colour_curve(
    target: Target, x: Tensor, y: Tensor, bounds: tuple[Tensor, Tensor], *, eps: float = 0.06, knots: int = 16, steps: int = 40,
    targeted: bool = False,
) -> Tensor:
    """Climb along one curve per channel that tells which value each value becomes; an image leaves at its first success.

    Arguments:
        target: with GRADIENT access.
        x: clean images, shape (n, channels, height, width).
        y: true labels, or with `targeted` the labels to reach, shape (n,).
        eps: the farthest that a curve moves a value, as a share of the bounds.
        knots: points of a curve, evenly spaced; between them it is straight. A curve per channel, where the paper has one
            function of all three.
        steps: gradient steps.
        targeted: success is the label y, not any other.

    Returns:
        The first image that reaches the goal, else that of the lowest margin seen.
    """
    within(0, 1, eps=eps)
    at_least_one(knots=knots - 1)
    low, high = _finite(bounds)
    unit, goal, best = ((x - low) / (high - low)).clamp(0, 1), goal_of(targeted), x.clone()
    alive, lowest = torch.arange(len(x), device=x.device), x.new_full((len(x),), torch.inf)
    curve = x.new_zeros(len(x), x.shape[1], knots)
    for step in range(steps + 1):
        leaf = curve.requires_grad_(step < steps)
        # From x itself, so that a straight curve asks about the clean image to the bit.
        z = torch.minimum(torch.maximum(x[alive] + (high - low) * bent(unit[alive], leaf), low), high)
        logits = target.logits(z)
        margin, broken = goal.margin(logits, y[alive]), goal.success(logits, y[alive])
        better = (margin.detach() < lowest[alive]) | broken
        best[alive[better]], lowest[alive[better]] = z.detach()[better], margin.detach()[better].to(lowest.dtype)
        if step == steps:
            break
        slope = -input_gradient(margin, leaf)
        curve = (leaf.detach() + 5 * eps / steps * slope.sign()).clamp(-eps, eps)[~broken]
        alive = alive[~broken]
        if not len(alive):
            break
    return best


def bent(unit: Tensor, curve: Tensor) -> Tensor:
    """Return by how much each value of `unit`, (n, c, h, w) in [0, 1], is moved by its channel's curve, (n, c, knots)."""
    place = unit.flatten(2) * (curve.shape[2] - 1)  # (n, c, h * w)
    left = place.floor().clamp(max=curve.shape[2] - 2)
    before, after = curve.gather(2, left.long()), curve.gather(2, left.long() + 1)
    return (before + (after - before) * (place - left)).view_as(unit)


def recoloured(unit: Tensor, turn: Tensor, fill: Tensor) -> Tensor:
    """Return colour images in [0, 1], (n, 3, h, w), with the hue turned and the saturation changed; the value is kept.

    Arguments:
        turn: turns of the colour circle, (n, 1, 1, 1).
        fill: change of saturation, (n, 1, 1, 1).
    """
    top, bottom = unit.amax(1, keepdim=True), unit.amin(1, keepdim=True)
    chroma = top - bottom
    red, green, blue = unit.split(1, 1)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        top == red, (green - blue) / safe % 6, torch.where(top == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    )
    hue = (hue + 6 * turn) % 6  # sixths of the circle
    filled = (chroma / torch.where(top > 0, top, torch.ones_like(top)) + fill).clamp(0, 1)
    filled = torch.where(chroma > 0, filled, torch.zeros_like(filled))  # gray has no hue to be filled with
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        place = (offset + hue) % 6
        channels.append(top - top * filled * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.cat(channels, 1)


def _finite(bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    low, high = bounds
    if not bool((low < high).all()):
        raise DataError("some features have no room between their bounds", want="the lowest input below the highest everywhere")
    return low, high
