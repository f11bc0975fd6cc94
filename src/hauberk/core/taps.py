"""tap: activations of an unmodified model, by hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hauberk.core.errors import ModelError, nearest


class Tap:
    """Activations of chosen layers during the forward passes of a `with` block.

    `tap.activations[name]` holds the output of the last forward pass, attached to the graph when there is one. The hooks are gone
    when the block ends, also by an error.

    With `read`, a layer's output is handed to `read(name, output)` while the model runs, and what that returns is kept in place
    of a copy: a summary of a large activation then costs no memory of its size. It must not write to the output, nor return a
    view of it.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], read: Callable[[str, Tensor], Tensor] | None = None
    ) -> None:
        self.model, self.layers, self.read = model, tuple(layers), read
        self.activations: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Tap:
        modules = dict(self.model.named_modules())
        for name in self.layers:
            self._handles.append(modules[name].register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def units(self) -> Tensor:
        """Return the activations as neurons, shape (n, neurons): spatial maps are averaged per channel, layers joined."""
        rows = [self.activations[name] for name in self.layers]
        return torch.cat([one.flatten(2).mean(2) if one.ndim > 2 else one for one in rows], 1)

    def _keep(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise ModelError(f"layer '{name}' returned {type(output).__name__}", want="a tensor", fix="Tap another layer")
            # A copy: the next layer may change its input in place (ReLU(inplace=True), `out += identity`).
            self.activations[name] = output.clone() if self.read is None else self.read(name, output)

        return hook


def tap(
    model: nn.Module, layers: Sequence[str] | None = None, *, read: Callable[[str, Tensor], Tensor] | None = None
) -> Tap:
    """Return a context manager that keeps the activations of `layers` (None: every layer without children).

    Arguments:
        model: any module; nothing of it is changed.
        layers: names out of `model.named_modules()`.
        read: what is kept of an output, `(name, output) -> summary`; None keeps a copy.

    Raises:
        ModelError: for a layer the model does not have.
    """
    known = [name for name, module in model.named_modules() if name and not list(module.children())]
    everything = dict(model.named_modules())
    for name in layers or ():
        if name not in everything:
            raise ModelError(f"there is no layer '{name}'", want="a name of model.named_modules()", fix=nearest(name, known))
    return Tap(model, known if layers is None else layers, read)


def first_input(module: nn.Module, inputs: Sequence[object], named: Mapping[str, object]) -> tuple[str, object]:
    """Return what a module was called with first, and the name it was given by; "" where it stood in its place.

    By name it is the first parameter of `forward` where that is a tensor, else the first tensor named; None where there is none.
    """
    if inputs:
        return "", inputs[0]
    first = next(iter(inspect.signature(module.forward).parameters), "")
    if isinstance(named.get(first), Tensor):
        return first, named[first]
    return next(((name, value) for name, value in named.items() if isinstance(value, Tensor)), ("", None))


def with_first(
    value: Tensor, name: str, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with another tensor in the place that `first_input` told."""
    return (inputs, {**named, name: value}) if name else ((value, *inputs[1:]), named)


def penultimate(model: nn.Module) -> str:
    """Return the name of the layer whose input is the last feature vector: the last linear layer.

    Raises:
        ModelError: when the model has no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError("the model has no nn.Linear layer", want="a linear head", fix="Name the layer to tap")
    return linear[-1]


def features(model: nn.Module, x: Tensor, layer: str | None = None) -> Tensor:
    """Return the input of `layer` (default: the last linear layer) for x, shape (n, width), without gradients.

    Raises:
        ModelError: for a layer that the model does not have, or does not use.
    """
    from hauberk.core.target import evaluating

    modules, name = dict(model.named_modules()), layer if layer is not None else penultimate(model)
    if name not in modules:
        raise ModelError(f"there is no layer '{name}'", want="a name of model.named_modules()", fix=nearest(name, list(modules)))
    module = modules[name]
    kept: list[Tensor] = []

    # A copy, for the same reason as in `Tap`.
    def keep(called: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        value = first_input(called, inputs, named)[1]
        if not isinstance(value, Tensor):
            raise ModelError(f"layer '{name}' is not given a tensor as its first argument", fix="Tap another layer")
        kept.append(value.detach().flatten(1).clone())

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        handle.remove()
    if not kept:
        raise ModelError(f"layer '{name}' is not used by the model", want="a layer of the forward pass", fix="Tap another layer")
    return kept[-1]
