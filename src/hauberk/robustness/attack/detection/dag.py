"""DAG, dense adversary generation: every proposal that lies on an object is driven to say something else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.errors import UsageError, nearest
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator
from hauberk.core.threat import Threat
from hauberk.robustness.attack.detection.boxes import Boxes, overlap
from hauberk.robustness.attack.detection.contract import detection_attack
from hauberk.robustness.attack.detection.target import Dense, DetectorTarget
from hauberk.robustness.attack.pgd import ascent

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")
AIMS = ("nothing", "other")


@detection_attack(
    question="Can a small change, found along the gradient, hide or rename the objects in an image?", access=Access.GRADIENT,
    paper="Xie et al. 2017, arXiv:1703.08603", tags=TAGS,
)
def dag(
    target: DetectorTarget, x: Tensor, truth: Sequence[Boxes], threat: Threat, *, steps: int = 100, towards: str = "nothing",
    iou: float = 0.5, seed: int = 0,
) -> Tensor:
    """Push all proposals that lie on a true box until they say "nothing", or another class.

    Arguments:
        target: with GRADIENT access.
        x: clean images, shape (n, channels, height, width).
        truth: what is in each image.
        threat: any norm, untargeted.
        steps: gradient steps, each the steepest of the threat's norm; their length starts at 20 eps / steps and falls to zero by
            a half cosine.
        towards: `nothing`, so that the object vanishes under every name, or `other`, a random other class for each object, as in
            the paper; there a proposal counts as turned when it no longer gives the true label.
        iou: overlap with a true box from which a proposal counts as lying on it.
        seed: of the other classes.

    Returns:
        Images in the ball: the one seen with the fewest proposals left to turn; images without any leave at once.
    """
    if towards not in AIMS:
        raise UsageError(f"towards is '{towards}'", want=" | ".join(AIMS), fix=nearest(towards, AIMS))
    ball, best = threat.around(x), x.clone()
    fewest, lowest = x.new_full((len(x),), torch.inf), x.new_full((len(x),), torch.inf)
    length, noise = (20 * ball.size / max(steps, 1)).to(x.dtype), generator(seed, "dag")
    draws = [torch.rand(len(one), generator=noise) for one in truth]
    alive, z = torch.arange(len(x), device=x.device), x
    for step in progress.track(range(steps + 1), "dag"):
        count, height, gradient = [], [], []
        for index in torch.arange(len(alive)).split(target.batch_size):  # positions among those alive
            leaf = z[index].detach().requires_grad_(step < steps)
            said = target.dense(leaf)
            rows = alive[index].tolist()
            own, rival, active = _pairs(said, [truth[row] for row in rows], [draws[row] for row in rows], towards, iou)
            value = torch.where(active, own - rival, torch.zeros_like(own)).sum(1)  # (part,)
            count.append(active.sum(1).to(x.dtype))
            height.append(value.detach().to(x.dtype))
            gradient.append(input_gradient(-value, leaf) if step < steps else torch.zeros_like(leaf))
        counts, heights, slope = torch.cat(count), torch.cat(height), torch.cat(gradient)
        better = (counts < fewest[alive]) | ((counts == fewest[alive]) & (heights < lowest[alive]))
        kept = alive[better]
        best[kept], fewest[kept], lowest[kept] = z[better], counts[better], heights[better]
        going = counts > 0
        if step == steps or not bool(going.any()):
            break
        alive, z, slope = alive[going], z[going], slope[going]
        part = ball.subset(alive)
        stride = length[alive] * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        z = part.project(z + ascent(part, z, slope, stride))
    return best


def on_objects(said: Dense, truth: Sequence[Boxes], iou: float) -> tuple[Tensor, Tensor]:
    """Return for each proposal the true box it lies on, and that box's label; -1 for none: shape (n, p) each."""
    which = torch.full(said.boxes.shape[:2], -1, device=said.boxes.device)
    labels = which.clone()
    for row, one in enumerate(truth):
        if len(one) and said.boxes.shape[1]:
            shared, at = overlap(said.boxes[row], one.boxes.to(said.boxes.device)).max(1)
            lies = shared >= iou
            which[row][lies] = at[lies]
            labels[row][lies] = one.labels.to(at.device)[at[lies]]
    return which, labels


def _pairs(
    said: Dense, truth: Sequence[Boxes], draws: Sequence[Tensor], towards: str, iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits to bring down and to raise, and which proposals are still to be turned, shape (n, p) each."""
    which, labels = on_objects(said, truth, iou)
    classes = said.logits.shape[2] - 1
    answer = said.logits.argmax(2)
    if towards == "nothing" or classes == 1:
        own, _ = said.logits[..., :classes].max(2)
        return own, said.logits[..., classes], (labels >= 0) & (answer != classes)
    aim = torch.zeros_like(labels)
    for row, draw in enumerate(draws):
        shift = 1 + (draw.to(labels.device) * (classes - 1)).long().clamp(max=classes - 2)
        aim[row] = (labels[row] + shift[which[row].clamp(min=0)]) % classes
    own = said.logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return own, said.logits.gather(2, aim[..., None])[..., 0], (labels >= 0) & (answer == labels)
