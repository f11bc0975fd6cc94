"""Spatial attacks: the image turned and moved a little, by an exhaustive grid or by the worst of a few random draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.physical.contract import semantic
from hauberk.robustness.attack.physical.pattern import at_least_one, within
from hauberk.robustness.attack.physical.transformations import Pose, draws, view

ENGSTROM = "Engstrom et al. 2019, arXiv:1712.02779"
TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025")
BORDERS = ("black", "edge")


@semantic(question="Does any small turn or shift of the image change the answer?", access=Access.LABEL, paper=ENGSTROM, tags=TAGS)
def spatial_grid(
    target: Target, x: Tensor, y: Tensor, bounds: tuple[Tensor, Tensor], *, degrees: float = 30.0, shift: float = 0.1,
    angles: int = 31, shifts: int = 5, border: str = "black", targeted: bool = False,
) -> Tensor:
    """Try every combination of turns and shifts of a grid, the smallest first; an image leaves at its first success.

    Where it returns the clean image, no point of the grid changes the answer: the search is exhaustive, and needs labels alone.

    Arguments:
        target: with LABEL access.
        x: clean images, shape (n, channels, height, width).
        y: true labels, or with `targeted` the labels to reach, shape (n,).
        degrees: the largest turn to either side.
        shift: the largest shift along each side, as a share of it.
        angles: turns tried, evenly spaced.
        shifts: shifts tried along each side, evenly spaced; so angles x shifts x shifts queries per image at most, and one.
        border: what comes in from outside: `black`, the lowest value, or `edge`, the pixels of the border repeated.
        targeted: success is the label y, not any other.

    Returns:
        The image with the smallest change of the grid that reaches the goal, or the clean image.
    """
    known_border(border)
    at_least_one(angles=angles, shifts=shifts)
    within(0, 180, degrees=degrees)
    within(0, 1, shift=shift)
    best, goal = x.clone(), goal_of(targeted)
    alive = (~goal.reached(target.labels(x), y)).nonzero()[:, 0]
    for turn, down, right in progress.track(poses(degrees, shift, angles, shifts), "spatial-grid"):
        if not len(alive):
            break
        part = x[alive]
        pose = Pose.of(part, degrees=turn, down=down * x.shape[2], right=right * x.shape[3])
        z = seen(part, pose, bounds, border)
        broken = goal.reached(target.labels(z), y[alive])
        best[alive[broken]], alive = z[broken], alive[~broken]
    return best


@semantic(
    question="Does the worst of a few random turns and shifts of the image change the answer?", access=Access.SCORE,
    paper=ENGSTROM, tags=TAGS,
)
def spatial_random(
    target: Target, x: Tensor, y: Tensor, bounds: tuple[Tensor, Tensor], *, tries: int = 10, degrees: float = 30.0,
    shift: float = 0.1, border: str = "black", targeted: bool = False, seed: int = 0,
) -> Tensor:
    """Draw turns and shifts at random and keep the worst; an image leaves at its first success.

    Arguments:
        target: with SCORE access.
        x: clean images, shape (n, channels, height, width).
        y: true labels, or with `targeted` the labels to reach, shape (n,).
        tries: draws per image.
        degrees: the largest turn to either side.
        shift: the largest shift along each side, as a share of it.
        border: what comes in from outside: `black`, the lowest value, or `edge`, the pixels of the border repeated.
        targeted: success is the label y, not any other.
        seed: of the draws.

    Returns:
        The first image that reaches the goal, else that of the lowest margin seen, the clean one included.
    """
    known_border(border)
    within(0, 180, degrees=degrees)
    within(0, 1, shift=shift)

    def drawn(part: Tensor, number: int, noise: torch.Generator) -> Tensor:
        turn = draws(part, noise, (-degrees, degrees))
        down, right = (size * draws(part, noise, (-shift, shift)) for size in part.shape[2:])
        return seen(part, Pose.of(part, degrees=turn, down=down, right=right), bounds, border)

    return worst_of(target, x, y, drawn, tries, goal_of(targeted), generator(seed, "spatial-random", device=x.device))


def worst_of(
    target: Target, x: Tensor, y: Tensor, drawn: Callable[[Tensor, int, torch.Generator], Tensor], tries: int, goal: Threat,
    noise: torch.Generator,
) -> Tensor:
    """Return, of each image and what `drawn(images, number of the try, noise)` makes of it, the first that reaches the goal.

    Where none does, the one of the lowest margin.
    """
    best, logits = x.clone(), target.logits(x)
    margin = goal.margin(logits, y)
    alive = (~goal.success(logits, y)).nonzero()[:, 0]
    for number in range(tries):
        if not len(alive):
            break
        z = drawn(x[alive], number, noise)
        logits = target.logits(z)
        height, broken = goal.margin(logits, y[alive]), goal.success(logits, y[alive])
        better = (height < margin[alive]) | broken
        best[alive[better]], margin[alive[better]] = z[better], height[better]
        alive = alive[~broken]
    return best


def poses(degrees: float, shift: float, angles: int, shifts: int) -> list[tuple[float, float, float]]:
    """Return the grid of (degrees, share down, share right), without the pose that changes nothing, the smallest first.

    A turn counts as its share of the largest turn, a shift as its share of the largest shift.
    """
    turns = _even(angles)
    moves = _even(shifts)
    every = [one for one in itertools.product(turns, moves, moves) if any(one)]
    every.sort(key=lambda one: (sum(part * part for part in one), one))
    grid = [(turn * degrees, down * shift, right * shift) for turn, down, right in every]
    return list(dict.fromkeys(one for one in grid if any(one)))


def seen(x: Tensor, pose: Pose, bounds: tuple[Tensor, Tensor], border: str) -> Tensor:
    """Return the images in that pose, inside the bounds."""
    low, high = bounds
    return torch.minimum(torch.maximum(view(x, pose, low, edge=border == "edge"), low), high)


def goal_of(targeted: bool) -> Threat:
    """Return the goal, as a threat without a limit on the change."""
    return Threat("linf", torch.inf, goal=Goal.TARGETED if targeted else Goal.UNTARGETED)


def known_border(border: str) -> None:
    """Raise UsageError for a border of another name."""
    if border not in BORDERS:
        raise UsageError(f"border is '{border}'", want=" | ".join(BORDERS), fix=nearest(border, BORDERS))


def _even(count: int) -> list[float]:
    return [0.0] if count == 1 else [-1 + 2 * index / (count - 1) for index in range(count)]
