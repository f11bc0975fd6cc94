"""Structure invariant attack: gradients over copies whose blocks are each changed in a way of their own."""

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
from hauberk.robustness.attack.pieces import amount, cosines, cuts, pick, resampling


@attack(
    question="Do gradients over copies with blocks changed one by one change the answer, and transfer?",
    access=Access.GRADIENT,
    paper="Wang et al. 2023, arXiv:2309.14700",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def sia(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    copies: int = 20, blocks: int = 3, decay: float = 1.0, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Take steps with momentum along the mean gradient over copies cut into blocks, each shifted, mirrored, dimmed, blurred, ...

    The first copy is the image itself. Inputs that are not images (n, channels, height, width) are not cut.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        copies: copies per step, one query and one gradient each; 1 is MI-FGSM.
        blocks: pieces along each side, cut at random places.
        decay: weight of the earlier gradients at each step.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of cuts and changes, which a whole batch shares.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    if blocks < 1:
        raise UsageError(f"blocks is {blocks}", want="1 or more pieces along each side")
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    low, noise = lowest(run), generator(seed, "sia")
    if x.ndim != 4:
        target.notice("inputs that are not images are not cut into blocks: SIA is MI-FGSM here")
    changed: list[View] = [lambda z: low + restructured(z - low, blocks, noise)] * (copies - 1 if x.ndim == 4 else 0)
    run.ascend(x, lambda run, z: with_momentum(run, run.gradient(z, [unchanged, *changed]), decay))
    return run.best


def restructured(z: Tensor, blocks: int, noise: torch.Generator) -> Tensor:
    """Return images z, shape (n, c, h, w), zero where black, with every block through one of ten changes at random."""
    strips = []
    for strip in z.split(cuts(z.shape[2], blocks, noise), 2):
        parts = strip.split(cuts(z.shape[3], blocks, noise), 3)
        strips.append(torch.cat([_CHANGES[pick(len(_CHANGES), noise)](part, noise) for part in parts], 3))
    return torch.cat(strips, 2)


def _rolled(axis: int, z: Tensor, noise: torch.Generator) -> Tensor:
    return z.roll(pick(z.shape[axis], noise), axis)


def _noisy(z: Tensor, noise: torch.Generator) -> Tensor:
    """Add up to a sixteenth of each sample's own range; the range is not differentiated."""
    span = z.detach().amax((1, 2, 3), keepdim=True) - z.detach().amin((1, 2, 3), keepdim=True)
    return z + span / 16 * _drawn(z, -1.0, 1.0, noise)


def _dropped(z: Tensor, noise: torch.Generator) -> Tensor:
    return z * (_drawn(z, 0.0, 1.0, noise) >= 0.1)


def _blurred(z: Tensor, _: torch.Generator) -> Tensor:
    """Shrink to four fifths and stretch again."""
    rows, columns = (
        resampling(max(round(0.8 * side), 1), side, z) @ resampling(side, max(round(0.8 * side), 1), z) for side in z.shape[2:]
    )
    return rows @ z @ columns.mT


def _without_detail(z: Tensor, _: torch.Generator) -> Tensor:
    """Drop the upper two fifths of the frequencies along both axes."""
    rows, columns = (cosines(side, z)[: side - int(0.4 * side)] for side in z.shape[2:])
    return rows.mT @ (rows @ z @ columns.mT) @ columns


def _drawn(z: Tensor, low: float, high: float, noise: torch.Generator) -> Tensor:
    """Return uniform noise of one sample's shape, the same for all of a batch."""
    drawn = torch.rand(z.shape[1:], generator=noise, dtype=torch.float64)
    return (low + (high - low) * drawn).to(z)


_CHANGES = (
    lambda z, noise: _rolled(2, z, noise), lambda z, noise: _rolled(3, z, noise),
    lambda z, _: z.flip(2), lambda z, _: z.flip(3), lambda z, _: z.flip(2, 3),
    lambda z, noise: z * amount(0.0, 1.0, noise), _noisy, _dropped, _blurred, _without_detail,
)
