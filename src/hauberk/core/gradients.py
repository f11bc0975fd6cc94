"""Gradients towards the input, for methods: zero where the model lets none through, never an error, never on the weights."""

from __future__ import annotations

import torch
from torch import Tensor


def input_gradient(value: Tensor, z: Tensor, push: Tensor | None = None) -> Tensor:
    """Return the gradient of the summed `value` towards z, in the shape of z; of its sum weighed by `push` where that is given.

    Where the graph is cut (a detached layer, rounding written without a derivative) the gradient is zero, as it is for an
    adversary. Entries that are not finite become zero. Neither z nor the weights collect a `.grad`.
    """
    if not value.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(value.sum() if push is None else value, z, push, materialize_grads=True)
    if bool(gradient.sum().isfinite()):  # a sum, and no copy: this is asked at every step
        return gradient
    return gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
