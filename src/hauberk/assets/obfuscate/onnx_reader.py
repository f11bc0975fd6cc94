"""Reads which channels belong together in an ONNX graph."""

from __future__ import annotations

import math
from typing import Any

from hauberk.assets.obfuscate.channels import Channels, Value

_HOMOGENEOUS = ("Relu", "LeakyRelu")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_BENT = ("Sigmoid", "Tanh", "Gelu", "Erf", "Elu", "Selu", "HardSwish", "HardSigmoid", "Softplus", "Mish", "Softsign", "Celu")
_SAME = ("Identity", "Dropout")


def read_onnx(model: Any) -> Channels:
    """Return the channels of an ONNX model; tensors are named as its initializers."""
    import onnx

    reader = _Reader(onnx.shape_inference.infer_shapes(model).graph)
    for node in reader.graph.node:
        reader.visit(node)
    reader.channels.opaque(*(reader.values[one.name] for one in reader.graph.output if one.name in reader.values))
    reader.channels.settle(reader.frozen)
    return reader.channels


class _Reader:
    def __init__(self, graph: Any) -> None:
        self.graph, self.channels = graph, Channels()
        self.weights = {one.name: tuple(one.dims) for one in graph.initializer}
        self.shapes = {one.name: _dims(one) for one in (*graph.input, *graph.value_info, *graph.output)}
        self.shapes |= self.weights
        self.values: dict[str, Value] = {}
        self.frozen: set[str] = set()
        for one in graph.input:
            if one.name not in self.weights:
                self.values[one.name] = self._fixed(one.name)

    def visit(self, node: Any) -> None:
        # A second output, such as the places of maxima, tells of the order of units in ways that are not followed.
        plain = not any(node.output[1:])
        found = self._value(node, [self.values[name] for name in node.input if name in self.values]) if plain else None
        if found is None:
            names = names_read(node)  # graphs within a node read what lies outside without naming it as an input
            self.frozen |= {name for name in names if name in self.weights}
            self.channels.opaque(*(self.values[name] for name in sorted(names) if name in self.values))
            for name in node.output:
                self.values[name] = self._fixed(name)
            return
        self.values[node.output[0]] = found

    def _value(self, node: Any, inputs: list[Value]) -> Value | None:
        """Return what a node answers, or None where it is not understood."""
        channels, kind = self.channels, node.op_type
        if node.domain not in ("", "ai.onnx") or any(one.type in (5, 10) for one in node.attribute):
            return None  # a domain of its own, or a graph within
        held = [name for name in node.input[1:] if name in self.weights]
        if kind in ("Conv", "ConvTranspose", "Gemm", "BatchNormalization"):
            whole = len(inputs) == 1 and len(held) == len([name for name in node.input[1:] if name])
            return self._layer(node, inputs[0]) if whole else None
        if len(inputs) == 1 and kind in ("MatMul", "Add"):
            return self._product(node, inputs[0])
        pools = kind in _POOLS and len(inputs) == 1 and inputs[0].axis == 1 and inputs[0].repeat == 1
        if len(inputs) == 1 and (kind in _HOMOGENEOUS or pools):
            return channels.pointwise(inputs[0], homogeneous=True)
        if len(inputs) == 1 and kind in _BENT:
            return channels.pointwise(inputs[0], homogeneous=False)
        if len(inputs) == 1 and kind in _SAME:
            return channels.linear(inputs[0])
        if len(inputs) == 2 and kind in ("Add", "Mul", "Sub") and self._alike(node):
            return channels.join(inputs[0], inputs[1], adds=kind != "Mul")
        if len(inputs) == 1 and kind in ("Flatten", "Reshape"):
            return self._flatten(node, inputs[0])
        return None

    def _layer(self, node: Any, value: Value) -> Value | None:
        names, channels = [*node.input[1:], ""], self.channels
        options = {one.name: one for one in node.attribute}
        weight, bias = names[0], names[1]
        shape = self.weights[weight]
        if node.op_type == "BatchNormalization":
            if value.axis != 1 or len(node.input) != 5:
                return None
            return channels.channelwise(value, (names[0], names[1]), (names[2], names[3]), linear=False)
        if node.op_type == "Gemm":
            plain = all(options[one].f == 1.0 for one in ("alpha", "beta") if one in options)
            if not plain or ("transA" in options and options["transA"].i):
                return None
            turned = "transB" in options and options["transB"].i == 1
            if bias and self.weights[bias] != (shape[0 if turned else 1],):  # one number for all units, or a table of them
                return None
            return channels.mix(
                value, weight, bias, shape[0 if turned else 1], out_axis=0 if turned else 1, in_axis=1 if turned else 0
            )
        if value.axis != 1 or value.repeat != 1:
            return None
        groups = options["group"].i if "group" in options else 1
        if groups == 1 and node.op_type == "Conv":
            return channels.mix(value, weight, bias, shape[0])
        if groups == 1:
            return channels.mix(value, weight, bias, shape[1], out_axis=1, in_axis=0)
        if node.op_type == "Conv" and groups == shape[0] and shape[1] == 1 and groups == value.size:
            return channels.channelwise(value, (weight, bias) if bias else (weight,), (), linear=True)
        return None

    def _product(self, node: Any, value: Value) -> Value | None:
        """Return the answer of a product with a matrix of weights, or of the bias that is added behind one."""
        weights = [name for name in node.input if name in self.weights]
        if len(weights) != 1:
            return None
        shape = self.weights[weights[0]]
        if node.op_type == "MatMul":
            if len(shape) != 2 or node.input[1] != weights[0] or not self._last(node, value):
                return None
            return self.channels.mix(value, weights[0], "", shape[1], out_axis=1, in_axis=0, axis=-1)
        # A row added to a product: its one axis is the last, where the units of the product lie.
        if len(shape) == 1 and shape[0] == value.size and value.axis == -1 and value.repeat == 1:
            return self.channels.shifted(value, weights[0])
        return None

    def _flatten(self, node: Any, value: Value) -> Value | None:
        before, after = self.shapes.get(node.input[0]), self.shapes.get(node.output[0])
        if value.axis != 1 or before is None or after is None or len(after) != 2 or None in before[1:]:
            return None
        positions = math.prod(before[2:])  # type: ignore[arg-type]
        return self.channels.flatten(value, positions) if after[1] == before[1] * positions else None  # type: ignore[operator]

    def _last(self, node: Any, value: Value) -> bool:
        shape = self.shapes.get(node.input[0])
        fixed = not self.channels.moves(value.units) and not self.channels.moves(value.scale)
        return value.axis == -1 or (shape is not None and len(shape) == 2) or fixed

    def _alike(self, node: Any) -> bool:
        one, other = (self.shapes.get(name) for name in node.input[:2])
        return one is not None and one == other

    def _fixed(self, name: str) -> Value:
        shape = self.shapes.get(name) or ()
        size = shape[1] if len(shape) > 1 and shape[1] is not None else 1
        return self.channels.fresh(size, fixed=True)


def names_read(node: Any) -> set[str]:
    """Return the names a node reads, inside its graphs too."""
    found = set(node.input)
    for option in node.attribute:
        for inner in ([option.g] if option.HasField("g") else []) + list(option.graphs):
            for one in inner.node:
                found |= names_read(one)
            found |= {one.name for one in inner.output}
    return found


def _dims(info: Any) -> tuple[int | None, ...] | None:
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(one.dim_value if one.HasField("dim_value") else None for one in info.type.tensor_type.shape.dim)
