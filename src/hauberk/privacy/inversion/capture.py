"""Gradients as a participant of joint training would share them, with the truth that they hide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.target import Normalize, Target


def sample_gradient(
    target: Target, x: Tensor, y: Tensor, *, layer: str, wanted: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the cross-entropy gradient of one sample, and what truly entered a layer.

    Arguments:
        target: with GRADIENT access; the forward and the backward pass are counted.
        x: one sample, shape (1, ...).
        y: its label, shape (1,).
        layer: the layer whose input is kept.
        wanted: parameter names.

    Returns:
        The gradients by parameter name, and the layer's input as one row, shape (1, ...).
    """
    module = target.module
    named = dict(module.named_parameters())
    kept: list[Tensor] = []
    part = dict(module.named_modules())[layer]
    handle = part.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    try:
        with torch.enable_grad(), _asking([named[name] for name in wanted]):
            # The input asks for gradients too, so that the target counts this as a differentiated query.
            logits = target.logits(x.detach().clone().requires_grad_())
            loss = functional.cross_entropy(logits, y.to(logits.device))
            found = torch.autograd.grad(loss, [named[name] for name in wanted])
    finally:
        handle.remove()
    return {name: one.detach() for name, one in zip(wanted, found, strict=True)}, kept[-1]


def as_input(module: nn.Module, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return (scale, shift), shaped as x, with x = features * scale + shift; None where the layer does not see the sample itself.

    Arguments:
        module: the model, which may begin with a `Normalize`.
        features: what entered the layer for x, any shape.
        x: one sample, shape (1, ...).
    """
    if features.numel() != x.numel():
        return None
    rows = features.reshape(x.shape).to(x)
    if torch.allclose(rows, x, rtol=1e-5, atol=1e-6):
        return torch.ones_like(x), torch.zeros_like(x)
    for part in module.modules():
        if isinstance(part, Normalize):
            zero = part(torch.zeros_like(x))
            scale = 1 / (part(torch.ones_like(x)) - zero)
            if torch.allclose(rows, part(x), rtol=1e-4, atol=1e-5):
                return scale, -zero * scale
    return None


@contextlib.contextmanager
def _asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    frozen = [one for one in parameters if not one.requires_grad]
    for one in frozen:
        one.requires_grad_(True)
    try:
        yield
    finally:
        for one in frozen:
            one.requires_grad_(False)
