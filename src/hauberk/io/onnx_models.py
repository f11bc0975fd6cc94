"""ONNX models, answered by onnxruntime on the CPU: scores, no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.errors import ModelError, UnsafeFile, require
from hauberk.io.batches import in_parts
from hauberk.io.hostile import existing, first_line

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_LARGEST = 2 << 30  # protobuf holds no more


class OnnxPredictor:
    """An ONNX model.

    Arguments:
        path: the .onnx file.
        outputs: logits, probabilities, labels or auto.
        weights: the files that hold its weights beside it, as `external_files` found them.
        content: the model itself, where it lies in memory and `path` is but its name.

    Raises:
        ModelError: when the file is broken, or does not take one floating point batch.
    """

    def __init__(self, path: Path, outputs: str = "auto", weights: tuple[Path, ...] = (), content: bytes = b"") -> None:
        self.path, self.outputs, self.weights, self.content = path, outputs, weights, content
        self.access = Access.LABEL if outputs == "labels" else Access.SCORE
        self._open()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the first output for a batch, shape (n, ...)."""
        batch = x.detach().cpu()
        answer = self._run(batch) if self.fixed_size is None else in_parts(batch, self.fixed_size, self._run)
        return answer.to(x.device)

    def __getstate__(self) -> dict[str, Any]:
        # Sessions do not travel between processes; the path does.
        return {"path": self.path, "outputs": self.outputs, "weights": self.weights, "content": self.content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _open(self) -> None:
        runtime: Any = require("onnxruntime", "onnx", "an ONNX model")
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            source = self.content or str(self.path)
            self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelError(
                f"{self.path} cannot be opened by onnxruntime ({first_line(error)})", want="a whole ONNX model",
                fix="Export the model again",
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise ModelError(f"{self.path} takes {len(inputs)} inputs: {names}", want="one, the batch of samples")
        self.input = inputs[0].name
        self._dtype = _TYPES.get(inputs[0].type)
        if self._dtype is None:
            raise ModelError(f"{self.path} takes {inputs[0].type}", want="a floating point batch")
        first = inputs[0].shape[0] if inputs[0].shape else None
        self.fixed_size = first if isinstance(first, int) else None

    def _run(self, x: Tensor) -> Tensor:
        try:
            answer = self._session.run(None, {self.input: np.ascontiguousarray(x.numpy(), dtype=self._dtype)})
        except Exception as error:
            raise ModelError(
                f"the ONNX model refused a batch of shape {tuple(x.shape)} ({first_line(error)})",
                want=f"the shape it was exported for: {self._session.get_inputs()[0].shape}",
            ) from error
        # Classifiers converted from scikit-learn give labels first, then scores.
        arrays = [one for one in answer if isinstance(one, np.ndarray)]
        chosen = next((one for one in arrays if one.dtype.kind == "f"), arrays[0] if arrays else None)
        if self.outputs == "labels":
            chosen = next((one for one in arrays if one.dtype.kind in "iu"), chosen)
        if chosen is None or chosen.dtype.kind not in "fiu":
            raise ModelError(
                f"the ONNX model returned {', '.join(type(one).__name__ for one in answer)}", want="a tensor of scores",
                fix="Export it without ZipMap, and with scores as numbers",
            )
        return torch.from_numpy(np.array(chosen))


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside a model that hold its weights.

    Raises:
        ModelError: when the model is broken, or one of them is missing.
        UnsafeFile: when one lies outside the model's folder.
    """
    if path.stat().st_size > _LARGEST:
        raise UnsafeFile(f"{path} has {path.stat().st_size} bytes", want="at most 2 GiB, with larger weights beside it")
    onnx: Any = require("onnx", "onnx", "an ONNX model")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no public base class
        raise ModelError(
            f"{path} is broken or cut short ({first_line(error)})", want="a whole ONNX model", fix="Export or copy it again"
        ) from error
    folder, found = path.parent.resolve(), set()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        place = (folder / location).resolve()
        if not location or not place.is_relative_to(folder) or place == folder:
            raise UnsafeFile(
                f"{path} wants to read '{location}', outside its own folder", want="weights beside the model",
                fix="Save the model with its weights inside",
            )
        found.add(existing(place, "file of weights"))
    return tuple(sorted(found))


def refuse_external(content: bytes, name: str) -> None:
    """Raise for a model in memory that is broken (ModelError) or wants to read files (UnsafeFile)."""
    onnx: Any = require("onnx", "onnx", "an ONNX model")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's errors share no public base class
        raise ModelError(f"{name} is no ONNX model ({first_line(error)})", want="a whole ONNX model") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        found = f"{name} wants to read weights from other files"
        raise UnsafeFile(found, want="weights inside the model", fix="Save it with them")


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model: of its graph, nested graphs, functions and attributes."""
    graphs, nodes = [model.graph], [node for function in model.functions for node in function.node]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
            nodes += graph.node
        if nodes:
            for attribute in nodes.pop().attribute:
                yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield sparse.values
                    yield sparse.indices
                graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []
