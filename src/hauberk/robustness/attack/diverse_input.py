"""Diverse input: gradients through random resizing and padding, so that the example does not fit one model alone."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, View, lowest, unchanged, with_momentum

_PAPER = "Xie et al. 2019, arXiv:1803.06978"
_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022")


@attack(
    question="Do gradients through random resizing change the answer, and transfer?", access=Access.GRADIENT,
    paper=_PAPER, tags=_TAGS, preset="thorough",
)
def di_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    chance: float = 0.5, smallest: float = 0.9, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Take steps along gradients through images that are shrunk and padded at random (DI²-FGSM).

    Every iterate is looked at as well: a query more per step, without a gradient. Inputs that are not images
    (n, channels, height, width) are not resized.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        chance: probability that an image is resized at a step; 0 is the basic iterative method.
        smallest: the least size, as a share of the full one.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of sizes and places.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    draw = _Resize(run, chance, smallest, generator(seed, "di-fgsm", device=x.device))
    run.ascend(x, lambda run, z: run.gradient(z, [draw.view(z)]), sees=False)
    return run.best


@attack(
    question="Do gradients through random resizing, with momentum, change the answer, and transfer?", access=Access.GRADIENT,
    paper=_PAPER, tags=_TAGS, preset="thorough",
)
def mdi_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    chance: float = 0.5, smallest: float = 0.9, decay: float = 1.0, loss: str = "ce",
    early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Do as DI-FGSM, with momentum (M-DI²-FGSM).

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        chance: probability that an image is resized at a step; 0 is MI-FGSM.
        smallest: the least size, as a share of the full one.
        decay: weight of the earlier gradients at each step; 0 is DI-FGSM.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of sizes and places.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    draw = _Resize(run, chance, smallest, generator(seed, "mdi-fgsm", device=x.device))
    run.ascend(x, lambda run, z: with_momentum(run, run.gradient(z, [draw.view(z)]), decay), sees=False)
    return run.best


class _Resize:
    """Draws, for every image of a batch, a size, a place, and whether it is resized at all."""

    def __init__(self, run: Climb, chance: float, smallest: float, noise: torch.Generator) -> None:
        if not 0 <= chance <= 1:
            raise UsageError(f"chance is {chance}", want="a probability in [0, 1]")
        if not 0 < smallest <= 1:
            raise UsageError(f"smallest is {smallest}", want="a share of the full size in (0, 1]")
        self.chance, self.smallest, self.noise = chance, smallest, noise
        low = lowest(run)  # what the padding is filled with
        self.low = low.amin() if low.ndim else low
        if run.ball.x.ndim != 4:
            run.target.notice("inputs that are not images are not resized: diverse-input attacks are plain ones here")

    def view(self, z: Tensor) -> View:
        """Return the view of the images z, shape (n, channels, height, width), through one draw for each."""
        if z.ndim != 4:
            return unchanged
        draws = uniform(torch.empty(len(z), 4, dtype=torch.float64, device=z.device), self.noise)
        size = self.smallest + (1 - self.smallest) * draws[:, 0]
        size = torch.where(draws[:, 3] < self.chance, size, torch.ones_like(size))
        rows = shrinking(size, draws[:, 1], z.shape[2]).to(z.dtype)[:, None]
        columns = shrinking(size, draws[:, 2], z.shape[3]).to(z.dtype)[:, None].mT
        return lambda image: self.low + rows @ (image - self.low) @ columns


def shrinking(size: Tensor, place: Tensor, length: int) -> Tensor:
    """Return the matrices (n, length, length) that shrink a line of pixels by bilinear interpolation and pad it with zeros.

    A matrix and not a resampling call: each sample has its own, and its gradient is the same bits on every run.

    Arguments:
        size: share of the length to shrink to, shape (n,); rounded to pixels.
        place: where the padding is divided, in [0, 1), shape (n,).
        length: pixels of the line.
    """
    shrunk = (size * length).round().clamp(min=1)[:, None, None]
    first = (place[:, None, None] * (length - shrunk + 1)).floor()
    pixel = torch.arange(length, dtype=size.dtype, device=size.device)
    at = pixel[None, :, None] - first  # the place of each output pixel in the shrunk line
    source = ((at + 0.5) * length / shrunk - 0.5).clamp(0, length - 1)
    weight = (1 - (source - pixel).abs()).clamp(min=0)
    return torch.where((at >= 0) & (at < shrunk), weight, torch.zeros_like(weight))
