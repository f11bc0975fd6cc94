"""What a gradient attack climbs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import UsageError, nearest
from hauberk.core.gradients import input_gradient
from hauberk.core.threat import Goal, Threat

LOSSES = ("ce", "margin")


def climbed(logits: Tensor, y: Tensor, threat: Threat, loss: str) -> Tensor:
    """Return the loss that grows towards the threat's goal, shape (n,), differentiable.

    Arguments:
        logits: shape (n, classes).
        y: true labels, or for a targeted threat the labels to reach, shape (n,); of a multi-label model (n, labels).
        loss: `ce`, cross-entropy, whose gradient vanishes where the softmax saturates; or `margin`, the difference of logits,
            which no scale of the logits blinds.

    Returns:
        Never NaN: answers that hold NaN are as high, or for a targeted threat as low, as can be.
    """
    if loss == "margin":
        return -threat.margin(logits, y)
    sign = -1 if threat.goal is Goal.TARGETED else 1
    if y.ndim == 2:  # the labels marked -1 are nobody's concern
        each = functional.binary_cross_entropy_with_logits(logits, y.clamp(min=0).to(logits.dtype), reduction="none")
        value = sign * (each * (y >= 0)).sum(1)
    else:
        value = sign * functional.cross_entropy(logits, y, reduction="none")
    return torch.where(value.isnan(), -threat.margin(logits.detach(), y), value)


def known_loss(loss: str) -> None:
    """Raise UsageError for a loss of another name."""
    if loss not in LOSSES:
        raise UsageError(f"loss is '{loss}'", want=" | ".join(LOSSES), fix=nearest(loss, LOSSES))


def hinge_gradient(logits: Tensor, y: Tensor, threat: Threat, z: Tensor) -> Tensor:
    """Return the gradient towards z of what of the margin is above zero: that of `threat.margin(logits, y).relu()`.

    Between two logits it is one up and one down: said to the model directly, that spares a graph of small steps.
    """
    if y.ndim == 2 or threat.goal is Goal.CONFIDENCE:
        return input_gradient(threat.margin(logits, y).relu(), z)
    known, label = logits.detach(), y[:, None]
    own, (other, rival) = known.gather(1, label), known.scatter(1, label, -torch.inf).max(1, keepdim=True)
    away = own < other if threat.goal is Goal.TARGETED else own > other  # false beside a NaN, and of two infinite alike
    sign = away.to(known.dtype) * (-1 if threat.goal is Goal.TARGETED else 1)
    return input_gradient(logits, z, torch.zeros_like(known).scatter_(1, label, sign).scatter_(1, rival, -sign))
