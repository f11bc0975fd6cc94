"""RP2, robust physical perturbations: a sticker of printable colours, in a given place, that holds from every angle."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.gradients import input_gradient
from hauberk.core.kinds import Universal
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.physical.contract import universal
from hauberk.robustness.attack.physical.patch import PHYSICAL
from hauberk.robustness.attack.physical.pattern import (
    LOOKS,
    Best,
    at_least_one,
    batches,
    changeable,
    height_of,
    limits,
    random_colours,
    within,
)
from hauberk.robustness.attack.physical.transformations import Pose, draws, view


@universal(
    question="Does a sticker of printable colours on the thing itself turn the answer, from every angle and in any light?",
    access=Access.GRADIENT, paper="Eykholt et al. 2018, arXiv:1707.08945", images=True, masked=True, tags=PHYSICAL,
)
def rp2(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, palette: Tensor | None = None, printable: float = 1.0,
    restraint: float = 0.0, steps: int = 300, batch: int = 32, degrees: float = 10.0, light: float = 0.2, seed: int = 0,
) -> Universal:
    """Climb the expected loss over random views of the images with the sticker on them, less what it costs to print.

    Arguments:
        target: with GRADIENT access.
        x: photographs of the thing, shape (n, channels, height, width), the sticker's place the same in all.
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal, with a mask: `Patch(mask)`.
        palette: colours that can be printed, shape (k, channels), in input units; None: any.
        printable: weight of the non-printability score, the mean over the sticker's pixels.
        restraint: weight of the mean change in the mask, as a share of the bounds.
        steps: gradient steps of a batch each, a view drawn for every image.
        batch: images per step.
        degrees, light: the most by which a view is turned and is lighter or darker; it also moves by 5 % and zooms by 10 %.
        seed: of the start, the order and the views.

    Returns:
        The sticker, in the shape of an image: of ten looks at all images, in a random view each, the one under which most turn,
        or with a price to pay the one of the highest mean loss less the price. `fooled` counts the images as `apply` returns
        them, seen straight on.
    """
    at_least_one(batch=batch)
    within(0, 1, light=light)
    within(0, math.inf, printable=printable, restraint=restraint)
    colours = None if palette is None else _colours(palette, x)
    low, high = (end[0] for end in limits(x, threat))
    mask = changeable(x, threat)
    put = functools.partial(_cover, mask=mask)
    noise = generator(seed, "rp2", device=x.device)

    def seen(pattern: Tensor, part: Tensor, draw: torch.Generator) -> Tensor:
        ball = threat.around(part)
        z = view(put(pattern, part, None).clamp(ball.low, ball.high), _camera(part, degrees, light, draw), low)
        return torch.minimum(torch.maximum(z, low), high)

    priced = restraint > 0 or (colours is not None and printable > 0)

    def price(pattern: Tensor, part: Tensor) -> Tensor:
        change = ((pattern - part).abs() / (high - low).clamp(min=1e-12) * mask).sum() / (mask.sum() * max(len(part), 1))
        cost = restraint * change
        if colours is not None:
            score = non_printability(pattern.movedim(0, -1), colours)  # (h, w)
            cost = cost + printable * score[mask.any(0)].mean()
        return cost

    pattern = random_colours(low, high, noise)
    best = Best(target, y, threat, lambda one: seen(one, x, generator(seed, "rp2", "views", device=x.device)))
    every = max(steps // LOOKS, 1)
    order = batches(len(x), min(batch, target.batch_size), steps, noise)
    for step, index in enumerate(progress.track(order, "rp2", steps)):
        if step % every == 0:
            best.look(pattern, float(price(pattern, x)) if priced else None)
        leaf, part = pattern.requires_grad_(), x[index]
        value = height_of(target.logits(seen(leaf, part, noise)), y[index], threat, "ce").mean() - price(leaf, part)
        slope = input_gradient(value, leaf).sign()
        stride = 0.05 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        pattern = torch.minimum(torch.maximum(pattern.detach() + stride * (high - low) * slope, low), high)
    best.look(pattern, float(price(pattern, x)) if priced else None)
    # Outside the mask there is no sticker: what no one sees is left at the lowest value.
    final = torch.where(mask, best.found, low)
    straight = threat.success(target.logits(threat.around(x).seal(put(final, x, None))), y) if len(x) else best.fooled
    return Universal(final, threat, mask, straight, put)


def non_printability(colours: Tensor, palette: Tensor) -> Tensor:
    """Return how far colours are from all that can be printed: the product of their distances to each colour of the palette.

    Arguments:
        colours: shape (..., channels).
        palette: shape (k, channels).

    Returns:
        Shape (...): 0 for a colour of the palette (section 4.2 of the paper, and Sharif et al. 2016).
    """
    # vector_norm has the gradient 0 at 0, so that a colour of the palette stays one.
    return torch.linalg.vector_norm(colours[..., None, :] - palette, dim=-1).prod(-1)


def _cover(pattern: Tensor, x: Tensor, generator: torch.Generator | None, *, mask: Tensor) -> Tensor:
    return torch.where(mask.to(x.device), pattern, x)


def _camera(x: Tensor, degrees: float, light: float, noise: torch.Generator) -> Pose:
    """Return a view drawn for each image."""
    down, right = (size * draws(x, noise, (-0.05, 0.05)) for size in x.shape[2:])
    turn, scale = draws(x, noise, (-degrees, degrees)), draws(x, noise, (0.9, 1.1))
    return Pose(turn, scale, down, right, draws(x, noise, (-light, light)))


def _colours(palette: Tensor, x: Tensor) -> Tensor:
    if palette.ndim != 2 or palette.shape[1] != x.shape[1] or not len(palette) or not bool(palette.isfinite().all()):
        raise UsageError(
            f"palette has shape {tuple(palette.shape)}", want=f"(k, {x.shape[1]}): finite colours, one value per channel"
        )
    return palette.to(x)
