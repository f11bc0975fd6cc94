"""DPatch: a patch beside the objects that makes a detector lose them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator
from hauberk.core.threat import Threat
from hauberk.robustness.attack.detection.boxes import Boxes, overlap
from hauberk.robustness.attack.detection.contract import detection_attack
from hauberk.robustness.attack.detection.dag import on_objects
from hauberk.robustness.attack.detection.target import Dense, DetectorTarget
from hauberk.robustness.attack.physical.patch import PHYSICAL
from hauberk.robustness.attack.physical.pattern import LOOKS, at_least_one, batches, limits, random_colours


@detection_attack(
    question="Does a patch in the image, the same for all images, make the detector lose the objects?", access=Access.GRADIENT,
    paper="after Liu et al. 2018, arXiv:1806.02299", norms=("linf",), undivided=True, tags=PHYSICAL,
)
def dpatch(
    target: DetectorTarget, x: Tensor, truth: Sequence[Boxes], threat: Threat, *, label: int | None = None, steps: int = 200,
    batch: int = 16, iou: float = 0.5, seed: int = 0,
) -> Tensor:
    """Make one patch, in the threat's mask, under which proposals on true boxes say "nothing".

    Arguments:
        target: with GRADIENT access.
        x: clean images, shape (n, channels, height, width).
        truth: what is in each image.
        threat: Linf with one mask for all: `Patch(mask)`.
        label: the class that the patch itself is to be taken for; None: none in particular.
        steps: signed gradient steps of a batch each, from 5 % of the bounds falling to zero by a half cosine.
        batch: images per step.
        iou: overlap from which a proposal counts as lying on a box.
        seed: of the start and the order.

    Returns:
        The images with the best of ten looks at the patch: the fewest proposals left, then the lowest loss. The patch itself is
        `x_adv[0]` in the mask; `torch.where(mask, x_adv[0], others)` puts it on other images.
    """
    at_least_one(batch=batch)
    if label is not None and label < 0:
        raise UsageError(f"label is {label}", want="a class from 0, or None")
    low, high = (end[0] for end in limits(x, threat))
    assert threat.mask is not None
    mask = threat.mask.to(x.device).bool()
    noise, every = generator(seed, "dpatch", device=x.device), max(steps // LOOKS, 1)
    patch = random_colours(low, high, noise)
    place = _place(mask)

    def put(pattern: Tensor, index: Tensor) -> Tensor:
        ball = threat.around(x[index])
        return torch.where(mask, pattern, x[index]).clamp(ball.low, ball.high)

    best, rank = patch, (torch.inf, torch.inf)

    def look(pattern: Tensor) -> tuple[float, float]:
        left, total = 0.0, 0.0
        with torch.no_grad():
            for index in torch.arange(len(x)).split(target.batch_size):
                said = target.dense(put(pattern, index))
                value, count = _loss(said, [truth[at] for at in index.tolist()], place, label, iou)
                left, total = left + float(count), total + float(value)
        return left, total

    order = batches(len(x), min(batch, target.batch_size), steps, noise)
    for step, index in enumerate(progress.track(order, "dpatch", steps)):
        if step % every == 0 and (seen := look(patch)) < rank:
            best, rank = patch, seen
        leaf = patch.clone().requires_grad_()
        value, _ = _loss(target.dense(put(leaf, index)), [truth[at] for at in index.tolist()], place, label, iou)
        slope = input_gradient(-value, leaf).sign()
        stride = 0.05 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        patch = torch.minimum(torch.maximum(patch + stride * (high - low) * slope, low), high)
    if look(patch) < rank:
        best = patch
    return put(best, torch.arange(len(x), device=x.device))


def _loss(
    said: Dense, truth: Sequence[Boxes], place: Tensor, label: int | None, iou: float
) -> tuple[Tensor, Tensor]:
    """Return how far the proposals are from what the patch wants of them, summed, and how many still give the true label.

    A proposal on an object wants "nothing" to be its highest; a proposal on the patch wants `label` to be.
    """
    _, labels = on_objects(said, truth, iou)
    classes = said.logits.shape[2] - 1
    on = labels >= 0
    still = on & (said.logits.argmax(2) == labels)
    short = said.logits[..., :classes].amax(2) - said.logits[..., classes]
    value = torch.where(on, short.clamp(min=-1), torch.zeros_like(short)).sum()
    if label is not None:
        if label >= classes:
            raise UsageError(f"label is {label}", want=f"a class from 0 to {classes - 1}")
        shared = torch.stack([overlap(row, place)[:, 0] for row in said.boxes])  # (n, p)
        nearest = (shared >= iou) | (shared == shared.amax(1, keepdim=True)) & (shared > 0)
        others = said.logits.scatter(2, torch.full_like(labels, label)[..., None], -torch.inf).amax(2)
        lacks = (others - said.logits[..., label]).clamp(min=-1)
        value = value + torch.where(nearest & ~on, lacks, torch.zeros_like(lacks)).sum()
    return value, still.sum()


def _place(mask: Tensor) -> Tensor:
    """Return the box around the mask, shape (1, 4)."""
    free = mask.any(0)
    rows, columns = free.any(1).nonzero()[:, 0], free.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])[None].double()
