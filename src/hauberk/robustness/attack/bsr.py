"""Block shuffle and rotate: gradients over copies whose blocks change places and are turned a little."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, View, lowest, unchanged, with_momentum
from hauberk.robustness.attack.pieces import amount, cuts, pick, rotated


@attack(
    question="Do gradients over copies with blocks shuffled and turned change the answer, and transfer?",
    access=Access.GRADIENT,
    paper="Wang et al. 2024, arXiv:2308.10299",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def bsr(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    copies: int = 20, blocks: int = 2, angle: float = 24.0, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Take steps with momentum (decay 1) along the mean gradient over copies whose blocks are shuffled and rotated.

    The first copy is the image itself. Inputs that are not images (n, channels, height, width) are not cut.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        copies: copies per step, one query and one gradient each; 1 is MI-FGSM.
        blocks: pieces along each side, cut at random places; 1 with an angle of 0 is MI-FGSM.
        angle: the farthest a block is turned, in degrees, below 90.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of cuts, places and angles, which a whole batch shares.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    if blocks < 1:
        raise UsageError(f"blocks is {blocks}", want="1 or more pieces along each side")
    if not 0 <= angle < 90:
        raise UsageError(f"angle is {angle}", want="degrees from 0 to below 90")
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    low, noise = lowest(run), generator(seed, "bsr")
    if x.ndim != 4:
        target.notice("inputs that are not images are not cut into blocks: BSR is MI-FGSM here")
    changed: list[View] = [lambda z: low + shuffled(z - low, blocks, angle, noise)] * (copies - 1 if x.ndim == 4 else 0)
    run.ascend(x, lambda run, z: with_momentum(run, run.gradient(z, [unchanged, *changed]), 1.0))
    return run.best


def shuffled(z: Tensor, blocks: int, angle: float, noise: torch.Generator) -> Tensor:
    """Return images z, shape (n, c, h, w), zero where black: strips change places, and in each its blocks, which are turned.

    Strips are cut across or along at random, so that blocks of any size fit where they go.
    """
    axis = 2 + pick(2, noise)
    strips = []
    for strip in _mixed_up(z, blocks, axis, noise):
        parts = _mixed_up(strip, blocks, 5 - axis, noise)
        strips.append(torch.cat([rotated(part, amount(-angle, angle, noise)) if angle else part for part in parts], 5 - axis))
    return torch.cat(strips, axis)


def _mixed_up(z: Tensor, blocks: int, axis: int, noise: torch.Generator) -> list[Tensor]:
    parts = z.split(cuts(z.shape[axis], blocks, noise), axis)
    return [parts[place] for place in torch.randperm(len(parts), generator=noise).tolist()]
