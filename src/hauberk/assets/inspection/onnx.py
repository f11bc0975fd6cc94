"""ONNX: graph, operators and initialisers of a model file; external data is named, never opened."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from hauberk.assets.inspection.objects import Row
from hauberk.core.errors import ModelError, UnsafeFile, require

LARGEST = 2 << 30  # what a protobuf message can have


def read_onnx(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Return the initialisers of an ONNX model, and what there is to say of its graph.

    Raises:
        UsageError: when the library onnx is not there.
        ModelError: when the file is broken.
    """
    onnx: Any = require("onnx", "onnx", "looking into ONNX files")
    if path.stat().st_size > LARGEST:
        raise UnsafeFile(f"{path} has {path.stat().st_size} bytes", want=f"at most {LARGEST}")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # whatever the parser says of hostile bytes
        raise ModelError(f"{path} is no whole ONNX model ({type(error).__name__})", want="an ONNX model") from error
    graph = model.graph
    rows = [Row(one.name, _type(onnx, one.data_type), tuple(one.dims)) for one in graph.initializer]
    operators = collections.Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.node)
    outside = sum(one.data_location == onnx.TensorProto.EXTERNAL for one in graph.initializer)
    facts = {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": ", ".join(f"{one.domain or 'ai.onnx'} {one.version}" for one in model.opset_import),
        "operators": ", ".join(f"{name} ×{count}" for name, count in operators.most_common(12)),
        "inputs": ", ".join(_value(one) for one in graph.input[:8]),
        "outputs": ", ".join(_value(one) for one in graph.output[:8]),
    }
    if outside:
        facts["external data"] = f"{outside} tensors lie in other files"
    return rows, facts


def _type(onnx: Any, number: int) -> str:
    names = {"FLOAT": "F32", "DOUBLE": "F64", "FLOAT16": "F16", "BFLOAT16": "BF16", "INT64": "I64", "INT32": "I32", "INT8": "I8",
             "UINT8": "U8", "BOOL": "BOOL", "INT16": "I16", "UINT16": "U16"}
    try:
        name = onnx.TensorProto.DataType.Name(number)
    except ValueError:
        return "?"
    return names.get(name, name)


def _value(one: Any) -> str:
    lengths = [str(axis.dim_param or axis.dim_value or "?") for axis in one.type.tensor_type.shape.dim]
    return f"{one.name} ({', '.join(lengths)})"
