"""BPDA: a backward pass for a layer that has none, so that gradient attacks see through it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.core.taps import first_input, with_first

Smooth = Callable[[Tensor], Tensor]
_Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def bpda(model: nn.Module, layers: str | Sequence[str], *, backward: str | Smooth = "identity") -> Iterator[nn.Module]:
    """Let gradients pass named layers of a model while the block runs (Athalye et al. 2018, arXiv:1802.00420).

    Answers stay the same to the last bit; only what is differentiated is replaced. A layer may round, leave torch, detach, or
    refuse inputs that want gradients: it gets a detached one. The model is as it was when the block ends, also by an error.

    `with bpda(model, "jpeg"): z = pgd(model, x, y, threat)`

    Arguments:
        model: the module to attack.
        layers: names of `model.named_modules()`; each takes a tensor first, in its place or by name, and returns a
            tensor.
        backward: `identity`, also called straight-through: the gradient is passed on as it comes, for layers that return the
            shape they are given; or a differentiable function that resembles the layer and returns what it returns in shape.

    Raises:
        ModelError: for a layer that the model does not have, or whose answer has another shape than its replacement.
        UsageError: for a backward of another name.
    """
    if not callable(backward) and backward != "identity":
        raise UsageError(f"backward is '{backward}'", want="identity, or a differentiable function")
    smooth: Smooth = backward if callable(backward) else lambda x: x
    modules = dict(model.named_modules())
    names = [layers] if isinstance(layers, str) else list(layers)
    for name in names:
        if not name or name not in modules:
            known = [one for one in modules if one]
            raise ModelError(f"there is no layer '{name}'", want="a name of model.named_modules()", fix=nearest(name, known))
    handles = []
    try:
        for name in names:
            given: list[Tensor] = []
            handles.append(modules[name].register_forward_pre_hook(_detach(name, given), with_kwargs=True))
            # First of the layer's hooks: those of others see what the layer answered, as they would without this block.
            handles.append(modules[name].register_forward_hook(_replace(name, given, smooth), prepend=True))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _detach(name: str, given: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], _Call]:
    """Return a hook that keeps what the layer is given, in its place or by name, and hands it on without its graph."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> _Call:
        word, value = first_input(module, inputs, named)
        if not isinstance(value, Tensor):
            raise ModelError(f"layer '{name}' is not given a tensor as its first argument", fix="Name the layer around it")
        given.append(value)
        return with_first(value.detach().clone(), word, inputs, named)  # a copy: the layer may write on it

    return hook


def _replace(name: str, given: list[Tensor], smooth: Smooth) -> Callable[[nn.Module, object, object], Tensor]:
    """Return a hook that gives the layer's answer the derivative of the smooth function."""

    def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise ModelError(f"layer '{name}' returned {type(output).__name__}", want="a tensor", fix="Name the layer around it")
        stand_in = smooth(given.pop())
        given.clear()  # what a call that failed has left
        if stand_in.shape != output.shape:
            raise ModelError(
                f"layer '{name}' returned shape {tuple(output.shape)} and its replacement {tuple(stand_in.shape)}",
                want="the same shape", fix="Give backward= a differentiable function of that shape",
            )
        answer: Tensor = _Borrowed.apply(output.detach(), stand_in)  # type: ignore[no-untyped-call]
        return answer

    return hook


class _Borrowed(torch.autograd.Function):
    """One tensor's value with another's derivative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        """Return the value, to the last bit."""
        ctx.like = (stand_in.dtype, stand_in.device)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor]:
        """Pass the gradient to the stand-in alone."""
        dtype, device = ctx.like
        return None, gradients[0].to(device, dtype)
