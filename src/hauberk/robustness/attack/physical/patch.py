"""Adversarial patch: a picture that turns the answer wherever, however turned and in whatever light it lies in the image."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.gradients import input_gradient
from hauberk.core.kinds import Universal
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.physical.contract import universal
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
from hauberk.robustness.attack.physical.transformations import Pose, draws, paste

PHYSICAL = ("aisec:physical-counter-attack", "atlas:AML.T0041", "owasp:ML01", "nist:NISTAML.022")


@universal(
    question="Does a printed patch turn the answer, wherever it lies in the image?", access=Access.GRADIENT,
    paper="Brown et al. 2017, arXiv:1712.09665", images=True, tags=PHYSICAL,
)
def adversarial_patch(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, share: float = 0.1, steps: int = 300, batch: int = 32,
    degrees: float = 22.5, smallest: float = 0.8, light: float = 0.1, seed: int = 0,
) -> Universal:
    """Climb the expected loss over random places, turns, sizes and light of one patch; return the best of ten looks.

    Arguments:
        target: with GRADIENT access.
        x: clean images it is made on, shape (n, channels, height, width).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal: `Linf(math.inf)` for a patch anywhere; with `Patch(mask)` it fills the mask's bounding box,
            shrinks and turns within it, and never leaves the mask. A finite eps, as in `Linf(0.1)`, is no size: the patch is then
            see-through, and changes what it covers by at most eps.
        share: of the image's area that a square patch covers; not used where there is a mask.
        steps: gradient steps of a batch each, a placement drawn for every image.
        batch: images per step.
        degrees: the most it is turned to either side.
        smallest: its smallest scale, 1 the largest.
        light: the most it is lighter or darker, as a share.
        seed: of the start, the order and the placements.

    Returns:
        The patch, (channels, side, side) where there is no mask. `apply` draws a placement for every image, and `fooled` is
        measured so.
    """
    at_least_one(batch=batch)
    within(0, 1, share=share, light=light)
    within(1e-3, 1, smallest=smallest)
    top, left, tall, wide = _area(x, threat)
    height, width = (tall, wide) if threat.mask is not None else (_side(share, tall, wide),) * 2
    low, high = (end.amin((0, 2, 3), keepdim=True)[0].expand(-1, height, width) for end in limits(x, threat))
    black = limits(x, threat)[0]

    ranges = {"degrees": degrees, "smallest": smallest, "light": light}
    put = functools.partial(_put, area=(top, left, tall, wide), ranges=ranges, black=black, seed=seed)
    noise = generator(seed, "adversarial-patch", device=x.device)
    pattern = random_colours(low, high, noise)
    best = Best(target, y, threat, lambda one: threat.around(x).seal(put(one, x, None)))
    every = max(steps // LOOKS, 1)
    first, second = torch.zeros_like(pattern), torch.zeros_like(pattern)  # the moments of Adam
    order = batches(len(x), min(batch, target.batch_size), steps, noise)
    for step, index in enumerate(progress.track(order, "adversarial-patch", steps)):
        if step % every == 0:
            best.look(pattern)
        leaf, ball = pattern.requires_grad_(), threat.around(x[index])
        z = put(leaf, x[index], noise).clamp(ball.low, ball.high)
        gradient = input_gradient(height_of(target.logits(z), y[index], threat, "ce"), leaf) / len(index)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient.square()
        slope = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
        stride = 0.05 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        pattern = torch.minimum(torch.maximum(pattern.detach() + stride * (high - low) * slope, low), high)
    best.look(pattern)
    return Universal(best.found, threat, changeable(x, threat), best.fooled, put)


def _put(
    pattern: Tensor, x: Tensor, noise: torch.Generator | None, *, area: tuple[int, int, int, int], ranges: dict[str, float],
    black: Tensor, seed: int,
) -> Tensor:
    draw = generator(seed, "placements", device=x.device) if noise is None else noise
    return paste(pattern, x, _placed(x, pattern, area, ranges, draw), black.to(x))


def _placed(
    x: Tensor, pattern: Tensor, area: tuple[int, int, int, int], ranges: dict[str, float], noise: torch.Generator
) -> Pose:
    """Return a pose for each image in which the patch, were it not turned, lies wholly in the area."""
    top, left, tall, wide = area
    scale = draws(x, noise, (ranges["smallest"], 1.0))
    down, right = (
        (room - scale * size).clamp(min=0) * draws(x, noise, (-0.5, 0.5)) + first + room / 2 - whole / 2
        for first, room, size, whole in ((top, tall, pattern.shape[1], x.shape[2]), (left, wide, pattern.shape[2], x.shape[3]))
    )
    turn = draws(x, noise, (-ranges["degrees"], ranges["degrees"]))
    return Pose(turn, scale, down, right, draws(x, noise, (-ranges["light"], ranges["light"])))


def _area(x: Tensor, threat: Threat) -> tuple[int, int, int, int]:
    """Return top, left, height and width of where the patch may lie."""
    free = changeable(x, threat).any(0)  # (h, w)
    rows, columns = free.any(1).nonzero()[:, 0], free.any(0).nonzero()[:, 0]
    if not len(rows):
        return 0, 0, 1, 1
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1


def _side(share: float, height: int, width: int) -> int:
    return max(1, min(round(math.sqrt(share * height * width)), height, width))
