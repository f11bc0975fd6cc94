"""Gradients as a participant of joint training would share them, with the truth that they hide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.core.target import Normalize, Target
from hauberk.privacy.inversion.first_linear import linear_layers


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
        The gradients by parameter name, and the layer's input as one row, shape (1, ...): the first, where it is called often.

    Raises:
        ModelError: when the layer is not called.
    """
    module = target.module
    named = dict(module.named_parameters(remove_duplicate=False))
    kept: list[Tensor] = []
    part = dict(module.named_modules())[layer]
    handle = part.register_forward_pre_hook(
        lambda _, inputs, others: kept.append((inputs[0] if inputs else others["input"]).detach()), with_kwargs=True
    )
    try:
        found = _differentiate(target, x, y, [named[name] for name in wanted])
    finally:
        handle.remove()
    if not kept:
        raise ModelError(f"layer '{layer}' was not called", want="a layer that takes part in the answer")
    # A parameter that the answer does not depend on is shared as zeros.
    return {
        name: torch.zeros_like(named[name]) if one is None else one.detach() for name, one in zip(wanted, found, strict=True)
    }, kept[0]


def called_linear(target: Target, x: Tensor, y: Tensor) -> list[str]:
    """Return the names of the linear layers that make up the answer to one sample, in the order they are called.

    Registration tells neither: the projection of `nn.MultiheadAttention` is never called as a module, and an auxiliary head may
    be called without its output being used.

    Arguments:
        target: with GRADIENT access; one forward and one backward pass are counted.
        x: one sample, shape (1, ...).
        y: its label, shape (1,).
    """
    module = target.module
    named = dict(module.named_parameters(remove_duplicate=False))
    weights = {name: named.get(f"{name}.weight" if name else "weight") for name in linear_layers(module)}
    # A weight that is computed from others (a parametrisation) has no gradient of its own to share.
    known = {name: weight for name, weight in weights.items() if weight is not None}
    order: list[str] = []

    def mark(name: str) -> Callable[[nn.Module, object], None]:
        return lambda _module, _inputs: order.append(name)

    parts = dict(module.named_modules())
    handles = [parts[name].register_forward_pre_hook(mark(name)) for name in known]
    try:
        found = _differentiate(target, x, y, list(known.values()))
    finally:
        for handle in handles:
            handle.remove()
    used = {name for name, one in zip(known, found, strict=True) if one is not None}
    return [name for name in dict.fromkeys(order) if name in used]


def _differentiate(target: Target, x: Tensor, y: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    with torch.enable_grad(), _asking(parameters):
        # The input asks for gradients too, so that the target counts this as a differentiated query.
        logits = target.logits(x.detach().clone().requires_grad_())
        loss = functional.cross_entropy(logits, y.to(logits.device))
        return torch.autograd.grad(loss, list(parameters), allow_unused=True)


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
