"""Reads which channels belong together in a torch module, by symbolic tracing."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from hauberk.assets.obfuscate.channels import Channels, Value
from hauberk.core.errors import ModelError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample,
)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU)
_BENT = (
    nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.Softplus, nn.Mish, nn.CELU,
    nn.Hardtanh, nn.LogSigmoid, nn.Softsign,
)
_CALLS: dict[Any, str] = {
    **dict.fromkeys((functional.relu, torch.relu, functional.leaky_relu, "relu", "relu_"), "homogeneous"),
    **dict.fromkeys((
        functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d,
        functional.adaptive_avg_pool2d, functional.adaptive_avg_pool1d, torch.max_pool2d, torch.max_pool1d,
    ), "pool"),
    **dict.fromkeys((functional.dropout, functional.dropout2d, "contiguous", "clone", "detach"), "same"),
    **dict.fromkeys((
        torch.sigmoid, torch.tanh, functional.gelu, functional.silu, functional.elu, functional.sigmoid, functional.tanh,
        functional.softplus, functional.relu6, functional.hardswish, "sigmoid", "tanh",
    ), "bent"),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_", operator.sub, torch.sub), "add"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), "mul"),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", torch.reshape), "flatten"),
    **dict.fromkeys((torch.mean, "mean"), "mean"),
}


def traced(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return the module's graph in evaluation mode, with the shape of every value on `node.meta`.

    Raises:
        ModelError: where its path depends on the data, so that there is no one graph.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    try:
        graph = fx.symbolic_trace(copy.deepcopy(module).eval())
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be traced ({type(error).__name__}: {first_words(error)})",
            want="a module whose path does not depend on the data", fix="Export it to ONNX and obfuscate that file",
        ) from error
    with torch.no_grad():
        try:
            graph(example)
        except Exception as error:  # whatever a layer says of an input that it does not take
            raise ModelError(
                f"{type(module).__name__} does not take the example, of shape {tuple(example.shape)} ({first_words(error)})",
                want="a batch of its inputs",
            ) from error
        ShapeProp(graph).propagate(example)
    return graph


def first_words(error: Exception) -> str:
    """Return what an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def read(graph: fx.GraphModule) -> Channels:
    """Return the channels of a traced module; tensors are named as in its state dict."""
    reader = _Reader(graph)
    for node in graph.graph.nodes:
        reader.visit(node)
    reader.channels.settle(reader.frozen)
    return reader.channels


class _Reader:
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.channels = graph, Channels()
        self.values: dict[fx.Node, Value] = {}
        self.frozen: set[str] = set()  # tensors that something reads which is not understood
        self.modules = dict(graph.named_modules())
        # Parameters may have several names; a state dict of a deep copy keeps them tied, and one name stands for all.
        self.names = {id(tensor): name for name, tensor in reversed(list(graph.state_dict(keep_vars=True).items()))}

    def visit(self, node: fx.Node) -> None:
        found = self._value(node)
        if found is not None:
            self.values[node] = found

    def _value(self, node: fx.Node) -> Value | None:
        inputs = [self.values[one] for one in node.all_input_nodes if one in self.values]
        shape = _shape(node)
        if node.op == "output":
            self.channels.opaque(*inputs)
            return None
        if node.op == "placeholder":
            return self._fixed(node)
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self.graph)
            self.frozen.add(self.names.get(id(held), ""))
        if node.op in ("call_function", "call_method") and node.target in ("size", "dim", getattr):
            return None  # a number, which no change of order or scale alters
        if shape is None:
            self._freeze(node)
            self.channels.opaque(*inputs)
            return None
        if len(inputs) == 1 and node.op == "call_module":
            return self._module(node, inputs[0])
        self._freeze(node)
        kind = _CALLS.get(node.target) if node.op in ("call_function", "call_method") else None
        return self._call(node, kind, inputs)

    def _module(self, node: fx.Node, value: Value) -> Value:
        module, channels = self.modules[str(node.target)], self.channels
        if is_parametrized(module):  # its weight is computed, and what it is computed from is not to be edited
            channels.opaque(value)
            return self._fixed(node)
        name, bias = self._name(module, "weight"), self._name(module, "bias")
        if isinstance(module, nn.Linear) and self._last(node, value):
            return channels.mix(value, name, bias, module.out_features, axis=-1 if _rank(node) > 2 else 1)
        if isinstance(module, _CONVOLUTIONS) and value.axis == 1 and value.repeat == 1:
            if module.groups == 1 and module.padding_mode == "zeros":
                return channels.mix(value, name, bias, module.out_channels)
            if module.groups == module.in_channels == module.out_channels and module.padding_mode == "zeros":
                return channels.channelwise(value, (name, bias) if bias else (name,), (), linear=True)
        if isinstance(module, _TRANSPOSED) and module.groups == 1 and value.axis == 1 and value.repeat == 1:
            return channels.mix(value, name, bias, module.out_channels, out_axis=1, in_axis=0)
        if isinstance(module, _NORMS) and value.axis == 1 and module.track_running_stats:
            scaled = (name, bias) if module.affine else ()
            running = (self._name(module, "running_mean"), self._name(module, "running_var"))
            return channels.channelwise(value, scaled, running, linear=False)
        rows = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
        if rows and self._last(node, value) and value.repeat == 1:
            last = dataclasses.replace(value, axis=-1 if _rank(node) > 2 else 1)
            return channels.channelwise(last, tuple(one for one in (name, bias) if one), (), linear=False)
        if isinstance(module, nn.Flatten) and module.start_dim == 1:
            return channels.flatten(value, _positions(node))
        for kinds, kind in ((_HOMOGENEOUS, "homogeneous"), (_BENT, "bent"), (_POOLS, "pool"), (_SAME, "same")):
            if isinstance(module, kinds):
                return self._call(node, kind, [value])
        channels.opaque(value)
        self._freeze(node)
        return self._fixed(node)

    def _freeze(self, node: fx.Node) -> None:
        """Leave alone the tensors of a module that is not understood."""
        if node.op == "call_module":
            held = self.modules[str(node.target)].state_dict(keep_vars=True).values()
            self.frozen |= {self.names.get(id(tensor), "") for tensor in held}

    def _call(self, node: fx.Node, kind: str | None, inputs: list[Value]) -> Value:
        channels, known = self.channels, len([one for one in node.args if isinstance(one, fx.Node)])
        if kind in ("homogeneous", "bent") and len(inputs) == 1:
            return channels.pointwise(inputs[0], homogeneous=kind == "homogeneous")
        if kind == "pool" and len(inputs) == 1 and inputs[0].repeat == 1 and inputs[0].axis == 1:
            return channels.pointwise(inputs[0], homogeneous=True)
        if kind == "same" and len(inputs) == 1:
            return channels.linear(inputs[0])
        if kind in ("add", "mul") and len(inputs) == 2 and known == 2 and _same_shapes(node):
            return channels.join(inputs[0], inputs[1], adds=kind == "add")
        if kind == "mul" and len(inputs) == 1 and known == 1:
            return channels.linear(inputs[0])  # by a number
        if kind == "flatten" and len(inputs) == 1 and _flattens(node):
            return channels.flatten(inputs[0], _positions(node))
        if kind == "mean" and len(inputs) == 1 and inputs[0].axis == 1 and inputs[0].repeat == 1 and _over_positions(node):
            return channels.linear(inputs[0])
        channels.opaque(*inputs)
        return self._fixed(node)

    def _fixed(self, node: fx.Node) -> Value:
        shape = _shape(node) or (1, 1)
        return self.channels.fresh(shape[1] if len(shape) > 1 else 1, fixed=True)

    def _name(self, module: nn.Module, part: str) -> str:
        tensor = getattr(module, part, None)
        return self.names.get(id(tensor), "") if isinstance(tensor, Tensor) else ""

    def _last(self, node: fx.Node, value: Value) -> bool:
        """Whether the units of a value lie along the last axis of what a layer reads."""
        fixed = not self.channels.moves(value.units) and not self.channels.moves(value.scale)
        return value.axis == -1 or _rank(node) == 2 or fixed


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def _rank(node: fx.Node) -> int:
    return len(_shape(node.all_input_nodes[0]) or ())


def _positions(node: fx.Node) -> int:
    return math.prod((_shape(node.all_input_nodes[0]) or ())[2:])


def _flattens(node: fx.Node) -> bool:
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    return before is not None and after is not None and len(after) == 2 and after == (before[0], math.prod(before[1:]))


def _same_shapes(node: fx.Node) -> bool:
    shapes: list[Any] = [_shape(one) for one in node.all_input_nodes]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _over_positions(node: fx.Node) -> bool:
    """Whether a mean is over all axes behind the channels."""
    before, after = _shape(node.all_input_nodes[0]) or (), _shape(node) or ()
    return len(before) > 2 and after in (before[:2], (*before[:2], *(1 for _ in before[2:])))
