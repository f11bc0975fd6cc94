"""Obfuscation of ONNX models: names, shapes and texts taken away, weights mixed, operations split and reordered."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch

from hauberk.assets.obfuscate.channels import Channels
from hauberk.assets.obfuscate.draws import new_key
from hauberk.assets.obfuscate.keyed import SALT_BYTES
from hauberk.assets.obfuscate.mixing import mixed
from hauberk.assets.obfuscate.onnx_reader import names_read, read_onnx


def strip_onnx(model: Any) -> Any:
    """Return an ONNX model without what its makers left in it; the answers are the same bit for bit.

    Nodes, tensors and axes get names that say nothing; texts, producer, metadata, and the shapes of inner values are gone; nodes
    and weights stand in another order. Names of inputs and outputs stay, for callers use them.

    Arguments:
        model: an `onnx.ModelProto`; not changed.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    if made.functions:  # a function has a name, and so have all that is in it
        import onnx.inliner

        made = onnx.inliner.inline_local_functions(made)
    graph = made.graph
    for part in ("producer_name", "producer_version", "domain", "doc_string", "metadata_props"):
        made.ClearField(part)
    kept = {one.name for one in (*graph.input, *graph.output)} - {one.name for one in graph.initializer}
    names: dict[str, str] = {"": ""}
    _renamed(graph, names, kept)
    order = torch.from_numpy(np.argsort([secrets.randbits(62) for _ in graph.initializer])).tolist()
    weights = [graph.initializer[at] for at in order]
    copies = [onnx.TensorProto.FromString(one.SerializeToString()) for one in weights]
    graph.ClearField("initializer")
    graph.initializer.extend(copies)
    _reordered(graph)
    return made


def mix_onnx(model: Any, *, key: bytes | None = None) -> tuple[Any, Channels]:
    """Return an ONNX model with units reordered, scaled and rotated between its layers, and the channels it has.

    The answers move by rounding alone (1e-6 of the largest).

    Arguments:
        model: an `onnx.ModelProto` with its weights inside; not changed.
        key: of the draws, 32 bytes; None draws one that nobody keeps.
    """
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    channels = read_onnx(made)
    used = {edit.tensor for edit in channels.edits}
    held = {one.name: one for one in made.graph.initializer if one.name in used}
    tensors = {name: torch.from_numpy(numpy_helper.to_array(one).copy()) for name, one in held.items()}
    salt = secrets.token_bytes(SALT_BYTES) if key is None else bytes(SALT_BYTES)
    for name, value in mixed(tensors, channels, new_key() if key is None else key, salt).items():
        held[name].CopyFrom(numpy_helper.from_array(value.numpy(), name))
    return made, channels


def split_onnx(model: Any, *, smallest: int = 8) -> Any:
    """Return an ONNX model whose convolutions and products are split in two unequal parts, joined again behind them.

    Each output is computed from the same numbers as before: what can differ is the order in which a library adds them.

    Arguments:
        model: an `onnx.ModelProto` with its weights inside; not changed.
        smallest: layers with fewer outputs stay whole.
    """
    import onnx
    from onnx import numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    weights = {one.name: one for one in graph.initializer}
    nodes, fresh = [], []
    for node in graph.node:
        axis = _output_axis(node, weights)
        total = weights[node.input[1]].dims[axis] if axis is not None else 0
        if axis is None or total < max(smallest, 4):  # fewer leave a part empty
            nodes.append(node)
            continue
        cut = total // 4 + secrets.randbelow(total // 2)
        parts = []
        for part in (slice(0, cut), slice(cut, total)):
            piece = onnx.NodeProto()
            piece.CopyFrom(node)
            piece.name = ""
            for at, name in enumerate(node.input[1:], start=1):
                if not name:
                    continue
                array = numpy_helper.to_array(weights[name])
                taken = array[part] if at > 1 or axis == 0 else array[:, part]
                piece.input[at] = secrets.token_hex(6)
                fresh.append(numpy_helper.from_array(np.ascontiguousarray(taken), piece.input[at]))
            piece.output[0] = secrets.token_hex(6)
            parts.append(piece.output[0])
            nodes.append(piece)
        nodes.append(onnx.helper.make_node("Concat", parts, [node.output[0]], axis=1))
    graph.ClearField("node")
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in names_read(node)} | {one.name for one in graph.output}
    kept = [onnx.TensorProto.FromString(one.SerializeToString()) for one in graph.initializer if one.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend([*kept, *fresh])
    return made


def _output_axis(node: Any, weights: dict[str, Any]) -> int | None:
    """Return which axis of a layer's weight its outputs lie along; None where it is not split."""
    names = [name for name in node.input[1:] if name]
    known = node.domain in ("", "ai.onnx") and node.op_type in ("Conv", "Gemm")
    if not known or not names or any(name not in weights for name in names):
        return None
    options = {one.name: one for one in node.attribute}
    if node.op_type == "Conv":
        return 0 if "group" not in options or options["group"].i == 1 else None
    axis = 0 if "transB" in options and options["transB"].i else 1
    if len(names) > 1 and list(weights[names[1]].dims) != [weights[names[0]].dims[axis]]:
        return None  # one number for all outputs, or a table of them
    return axis


def _renamed(graph: Any, names: dict[str, str], kept: set[str]) -> None:
    """Rename a graph and the graphs within it in place, and take away what else is told of it."""
    graph.name = "g"
    for part in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(part)
    for thing in (*graph.initializer, *(one.values for one in graph.sparse_initializer), *graph.input, *graph.output):
        if thing.name not in kept:
            thing.name = names.setdefault(thing.name, secrets.token_hex(6))
        thing.ClearField("doc_string")
        thing.ClearField("metadata_props")
    for one in (one for info in (*graph.input, *graph.output) for one in info.type.tensor_type.shape.dim):
        if one.dim_param:
            one.dim_param = names.setdefault(f"\0axis {one.dim_param}", f"d{len(names)}")
    for node in graph.node:
        node.name = ""
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for side in (node.input, node.output):
            for at, name in enumerate(side):
                if name not in kept:
                    side[at] = names.setdefault(name, secrets.token_hex(6))
        for option in node.attribute:
            for inner in ([option.g] if option.HasField("g") else []) + list(option.graphs):
                _renamed(inner, names, kept)


def _reordered(graph: Any) -> None:
    """Put the nodes in another order in which each still follows what it reads."""
    import onnx

    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    made_by = {name: at for at, node in enumerate(waiting) for name in node.output if name}
    needs = {at: {made_by[name] for name in names_read(node) if name in made_by} for at, node in enumerate(waiting)}
    graph.ClearField("node")
    while needs:
        ready = [at for at, left in needs.items() if not left]
        chosen = ready[secrets.randbelow(len(ready))]
        graph.node.append(waiting[chosen])
        del needs[chosen]
        for left in needs.values():
            left.discard(chosen)
