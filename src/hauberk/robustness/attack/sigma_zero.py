"""σ-zero: the fewest changed features, by gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.beam_search import beam
from hauberk.robustness.attack.linear import opening
from hauberk.robustness.attack.losses import hinge_gradient
from hauberk.robustness.attack.nearest import Nearest, cosine, fewer

_TINY = 1e-30
_FEATURES, _TRIES = 20, 20  # of the beam search: the most features, and how many are asked about for each set


@attack(
    question="How few features have to change for a wrong answer?",
    access=Access.GRADIENT,
    paper="Cinà et al. 2025, arXiv:2402.01879",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l0",),
    minimum_norm=True,
)
def sigma_zero(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 300, step_size: float = 1.0, sigma: float = 1e-3,
    threshold: float = 0.3, trials: int = 5, rivals: int = 9, width: int = 5,
) -> Tensor:
    """Descend the margin plus a smooth count of the changed features, and undo the changes below a threshold that adapts.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0, any goal; `eps` is the most features that count, `math.inf` gives the fewest found.
        steps: gradient steps.
        step_size: of Adam, in widths of each feature's range; it falls to a tenth by a half cosine.
        sigma: of the count, sum d² / (d² + sigma) over changes d in widths; the smaller, the sharper.
        threshold: the first one, in widths; it grows after every success and falls after every failure.
        trials: of the point found, to make do with a feature less, as the paper does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 begins at x.
        width: of a beam search before the descent, as the paper has none; 0: none. Where few features are enough it finds them.

    Returns:
        The point of fewest changes seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    span = (near.high - near.low)[rows].clamp(min=_TINY)  # changes are measured in ranges of their feature
    low, high = near.low[rows] / span, near.high[rows] / span
    change = opening(near, rows, rivals) / span
    if width:
        beam(near, rows, _FEATURES, width, _TRIES)
    mean, square = torch.zeros_like(span), torch.zeros_like(span)
    cut = torch.full_like(span[:, 0], threshold)
    for step in range(steps if len(rows) else 0):
        z, logits, hit = near.follow(change * span, rows)
        slope = hinge_gradient(logits, y[rows], threat, z).to(near.dtype).flatten(1) * span
        count = 2 * sigma * change / (change.square() + sigma).square() / change.shape[1]
        gradient = slope + count
        gradient = gradient / gradient.abs().amax(1, keepdim=True).clamp(min=_TINY)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        rise = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + _TINY)
        length = cosine(step_size, step_size / 10, step, steps)
        change = torch.minimum(torch.maximum(change - length * rise, low), high)
        cut = (cut + torch.where(hit, 0.01 * length, -0.01 * length)).clamp(0, 1)
        change = torch.where(change.abs() < cut[:, None], 0, change)
    if len(rows):
        near.ask(change * span, rows)
        fewer(near, rows, trials)
    return near.finish()
