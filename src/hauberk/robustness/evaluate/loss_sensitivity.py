"""Loss sensitivity: how steeply the loss rises with the input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import geometry
from hauberk.core.access import Access
from hauberk.core.errors import UsageError, nearest
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target, as_target
from hauberk.robustness.evaluate.figure import one_class

NORMS = ("l1", "l2", "linf")


def loss_sensitivity(target: Target | nn.Module, x: Tensor, y: Tensor, *, norm: str = "l1") -> Tensor:
    """Return the size of the gradient of the cross-entropy towards each input (Arpit et al. 2017, arXiv:1706.05394).

    The paper takes the mean of the L1 size over samples: `loss_sensitivity(model, x, y).mean()`.

    Arguments:
        target: with GRADIENT access.
        x: inputs, shape (n, ...).
        y: true labels, shape (n,).
        norm: `l1`, `l2` or `linf`, of the gradient. The dual of a threat's norm tells the rise of the loss per unit of radius.

    Returns:
        Shape (n,), float64.

    Raises:
        UsageError: for an unknown norm, or a multi-label model.
    """
    if norm not in NORMS:
        raise UsageError(f"norm is '{norm}'", want=" | ".join(NORMS), fix=nearest(norm, NORMS))
    target = as_target(target)
    one_class(target, "loss_sensitivity")
    target.need(Access.GRADIENT, "loss_sensitivity")
    found = []
    for index in torch.arange(len(x), device=x.device).split(target.batch_size):
        with torch.enable_grad():
            z = x[index].detach().clone().requires_grad_()
            loss = functional.cross_entropy(target.logits(z), y[index], reduction="none")
            gradient = input_gradient(loss, z)
        found.append(geometry.norms(gradient.flatten(1), norm))
    return torch.cat(found) if found else x.new_zeros(0, dtype=torch.float64)
