"""ONNX models under a key: locked weights, and decoy branches that an input of the graph chooses from."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.assets.obfuscate.decoys import SALT, decoy_of, in_order
from hauberk.assets.obfuscate.draws import Draws, as_key
from hauberk.core.errors import UsageError

SELECTOR = "selector"
_TYPES = (1, 10, 11)  # float, float16, double
_OTHERS = (2, 3, *range(16, 24))  # 8 bits and fewer, bfloat16
# What reads floating-point numbers that are no weights: scrambled, the model would not run, or burst the memory.
_SETTINGS = ("Resize", "Upsample", "Range", "Pad", "Clip", "Dropout", "NonMaxSuppression", "OneHot")


def onnx_tensors(model: Any) -> dict[str, Tensor]:
    """Return the floating-point weights of an ONNX model by name; numbers that decide a size or a range are none."""
    from onnx import numpy_helper

    settings = {name for node in model.graph.node if node.op_type in _SETTINGS for name in node.input}
    found = {
        one.name: numpy_helper.to_array(one) for one in model.graph.initializer
        if one.data_type in _TYPES and one.name not in settings
    }
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}


def unreached(model: Any) -> dict[str, int]:
    """Return the weights of an ONNX model that `onnx_tensors` does not: by name, how many numbers each holds.

    They are of another type (bfloat16, quantised), in constants, in graphs within, in attributes such as a tree's, or sparse.
    """
    found = {one.name: math.prod(one.dims) for one in model.graph.initializer if one.data_type in _OTHERS}
    found |= {one.values.name: math.prod(one.values.dims) for one in model.graph.sparse_initializer}
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if not nodes:
            graph = graphs.pop()
            nodes = list(graph.node)
            if graph is not model.graph:
                found |= {one.name: math.prod(one.dims) for one in graph.initializer if one.data_type in (*_TYPES, *_OTHERS)}
            continue
        node = nodes.pop()
        for option in node.attribute:
            name = f"{node.op_type} {option.name} {len(found)}"
            for held in ([option.t] if option.HasField("t") else []) + list(option.tensors):
                if held.data_type in (*_TYPES, *_OTHERS):
                    found[name] = found.get(name, 0) + math.prod(held.dims)
            if option.floats:
                found[name] = len(option.floats)
            graphs += ([option.g] if option.HasField("g") else []) + list(option.graphs)
    return found


def with_onnx_tensors(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the model with other weights of the same names."""
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    for one in made.graph.initializer:
        if one.name in tensors:
            one.CopyFrom(numpy_helper.from_array(tensors[one.name].contiguous().numpy(), one.name))
    return made


def add_onnx_decoys(model: Any, key: bytes, *, branches: int = 4, growth: float = 0.1) -> Any:
    """Return an ONNX model that asks, by an input more, which of several weights are the true ones.

    Nothing in the file tells: the selector is derived from the key (`onnx_selector`), and no constant is compared with. See
    `decoys.add_decoys` for what the decoys are and what they withstand.

    Arguments:
        model: an `onnx.ModelProto` with its weights inside; not changed.
        key: 32 bytes.
        branches: how many there are of each.
        growth: how much larger the weights may become, as a share.

    Raises:
        UsageError: for fewer than two branches, or where no tensor fits into the growth.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    as_key(key)
    tensors = onnx_tensors(model)
    room, chosen = growth * sum(one.numel() for one in tensors.values()), []
    # A convolution whose kernel or bias is not known when the model is loaded runs at half the speed.
    kernels = {name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose") for name in node.input[1:]}
    for name, value in in_order(tensors):
        if name not in kernels and (branches - 1) * value.numel() <= room:
            room -= (branches - 1) * value.numel()
            chosen.append(name)
    if branches < 2 or not chosen:
        raise UsageError(
            f"branches is {branches} and growth {growth:.0%}", want="two branches or more, and a growth into which a tensor fits"
        )
    made, salt = onnx.ModelProto(), secrets.token_bytes(16)
    made.CopyFrom(model)
    graph, gathers = made.graph, []
    for at, name in enumerate(chosen):
        stack = torch.stack([decoy_of(tensors[name]) for _ in range(branches)])
        stack[Draws(key, salt, f"onnx branch\0{at}").below(branches)] = tensors[name]
        place = next(one for one in graph.initializer if one.name == name)
        place.CopyFrom(numpy_helper.from_array(stack.numpy(), secrets.token_hex(6)))
        index = helper.make_tensor(secrets.token_hex(6), TensorProto.INT64, [1], [at])
        graph.initializer.append(index)
        picked = secrets.token_hex(6)
        gathers.append(helper.make_node("Gather", [SELECTOR, index.name], [picked], axis=0))
        row = secrets.token_hex(6)
        gathers.append(helper.make_node("Gather", [place.name, picked], [row], axis=0))
        axes = helper.make_tensor(secrets.token_hex(6), TensorProto.INT64, [1], [0])
        graph.initializer.append(axes)
        gathers.append(helper.make_node("Squeeze", [row, axes.name], [name]))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    graph.ClearField("node")
    graph.node.extend([*gathers, *nodes])
    graph.input.append(helper.make_tensor_value_info(SELECTOR, TensorProto.INT64, [len(chosen)]))
    helper.set_model_props(made, {SALT: salt.hex(), "branches": str(branches)})
    return made


def onnx_selector(model: Any, key: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the selector that a key stands for, to be fed as the input `selector`; nothing tells whether it is the right one.

    Raises:
        UsageError: for a model without decoys.
    """
    facts = {one.key: one.value for one in model.metadata_props}
    size = [one.type.tensor_type.shape.dim[0].dim_value for one in model.graph.input if one.name == SELECTOR]
    if SALT not in facts or not size:
        raise UsageError("the model has no decoys", want="one that add_onnx_decoys made, with its metadata")
    salt, branches = bytes.fromhex(facts[SALT]), int(facts["branches"])
    return np.array([Draws(key, salt, f"onnx branch\0{at}").below(branches) for at in range(size[0])], np.int64)
