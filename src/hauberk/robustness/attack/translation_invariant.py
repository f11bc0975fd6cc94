"""TI-FGSM: the gradient is smoothed over neighbouring pixels, which stands for gradients at shifted images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, with_momentum


@attack(
    question="Does a gradient smoothed over neighbouring pixels change the answer, and transfer?",
    access=Access.GRADIENT,
    paper="Dong et al. 2019, arXiv:1904.02884",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def ti_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    kernel: int | None = None, decay: float = 1.0, loss: str = "ce", early_stop: bool = True,
) -> Tensor:
    """Take steps with momentum along the gradient convolved with a Gaussian; return the best point seen.

    The gradient of inputs that are not images (n, channels, height, width) stays as it is.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        kernel: side of the Gaussian in pixels, odd; its deviation is a fifth of that. 1 is MI-FGSM. None: a fifth of the
            image, 15 (the paper's) at most.
        decay: weight of the earlier gradients at each step.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    if kernel is not None and (kernel < 1 or kernel % 2 == 0):
        raise UsageError(f"kernel is {kernel}", want="an odd number of pixels")
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    if x.ndim != 4:
        target.notice("the gradient of inputs that are not images is not smoothed: TI-FGSM is MI-FGSM here")
    side = kernel if kernel is not None else min(min(x.shape[2:], default=0) // 5 // 2 * 2 + 1, 15)
    run.ascend(x, lambda run, z: with_momentum(run, smoothed(run.gradient(z), side), decay))
    return run.best


def smoothed(gradient: Tensor, side: int) -> Tensor:
    """Return the gradient of images convolved with a Gaussian of that side, channel by channel, zero beyond the border."""
    if gradient.ndim != 4 or side == 1:
        return gradient
    place = torch.arange(side, dtype=gradient.dtype, device=gradient.device) - side // 2
    line = torch.exp(-0.5 * (place / (side / 5)).square())
    line = (line / line.sum()).expand(gradient.shape[1], 1, side)
    rows = functional.conv2d(gradient, line[..., None], padding=(side // 2, 0), groups=gradient.shape[1])
    return functional.conv2d(rows, line[:, :, None], padding=(0, side // 2), groups=gradient.shape[1])
