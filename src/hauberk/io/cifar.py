"""CIFAR-10 and CIFAR-100 as their authors published them: pickles, read without running what a pickle can run."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hauberk.core.errors import DataError, UnsafeFile
from hauberk.io.arrays import JoinedRows, rows_of
from hauberk.io.parts import SINGLE, Part, Source

FILE_LIMIT = 1 << 29
SHAPE = (3, 32, 32)


def looks_like_cifar(path: Path) -> bool:
    """Whether a file is a batch of CIFAR by name, or a folder holds such batches."""
    if path.is_dir():
        return any((path / one).is_file() for one in ("test_batch", "data_batch_1")) or all(
            (path / one).is_file() for one in ("train", "test", "meta")
        )
    return path.name == "test_batch" or path.name.startswith("data_batch_")


def open_cifar(path: Path) -> Source:
    """Return the splits of a folder of CIFAR batches, or the split of one batch. CIFAR-100 gives its fine labels.

    Raises:
        DataError: for a broken batch.
        UnsafeFile: for a batch that would run code.
    """
    if not path.is_dir():
        return Source(str(path), {SINGLE: _part([path], path.parent)}, path.name, modality="image")
    files = {"train": sorted(path.glob("data_batch_*")) or [path / "train"], "test": [path / "test_batch"]}
    if not files["test"][0].is_file():
        files["test"] = [path / "test"]
    parts = {role: _part(batches, path) for role, batches in files.items() if batches[0].is_file()}
    return Source(str(path), parts, path.resolve().name, modality="image")


def read_batch(path: Path) -> dict[str, Any]:
    """Return the dictionary of one batch; arrays of bytes are the only things in it that are not plain containers.

    Raises:
        DataError: for a broken or a huge file.
        UnsafeFile: for a pickle that names anything else.
    """
    if path.stat().st_size > FILE_LIMIT:
        raise DataError(f"{path} has {path.stat().st_size} bytes", want=f"a batch of at most {FILE_LIMIT}")
    try:
        content = _Batch(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (UnsafeFile, DataError):
        raise
    except Exception as error:  # a broken pickle fails in any way
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})", want="a whole CIFAR batch",
                        fix="Unpack the archive again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}", want="the dictionary of a CIFAR batch")
    return {key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _part(files: Sequence[Path], folder: Path) -> Part:
    rows, labels = [], []
    for file in files:
        batch = read_batch(file)
        values, y = batch.get("data"), batch.get("labels", batch.get("fine_labels"))
        if not isinstance(values, _Array) or values.shape[1:] != (math.prod(SHAPE),) or not isinstance(y, list):
            raise DataError(f"{file} holds {', '.join(batch) or 'nothing'}", want="data (n, 3072) and labels",
                            fix="Give the folder of the python version of CIFAR")
        if not all(type(one) is int for one in y):
            raise DataError(f"{file} has labels that are not integers", want="one integer per image")
        rows.append(rows_of(values.array().reshape(-1, *SHAPE), "image", str(file)))
        labels += y
    return Part(JoinedRows(rows), np.asarray(labels, np.int64), str(files[0]), class_names=_class_names(folder))


def _class_names(folder: Path) -> list[str]:
    for file, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (folder / file).is_file():
            names = read_batch(folder / file).get(key, [])
            return [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in names]
    return []


class _DType:
    """Stands for numpy.dtype; only bytes are accepted."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about bytes."""


class _Array:
    """Stands for numpy.ndarray, so that no code of NumPy is driven by the file."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.raw = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw
        if not isinstance(dtype, _DType) or dtype.name not in ("u1", "|u1") or fortran or not isinstance(raw, bytes):
            raise DataError("a CIFAR batch holds an array that is not of bytes, row by row", want="uint8 in C order")
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != len(raw):
            raise DataError(f"a CIFAR batch says its {len(raw)} bytes have shape {shape}", want="sizes that agree")
        self.shape, self.raw = tuple(shape), raw

    def array(self) -> NDArray[np.uint8]:
        """Return the bytes as an array, without a copy."""
        return np.frombuffer(self.raw, np.uint8).reshape(self.shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise DataError(f"a CIFAR batch encodes bytes as {encoding}", want="latin1")
    return text.encode("latin-1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct, ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _DType, ("_codecs", "encode"): _encode,
}


class _Batch(pickle._Unpickler):
    # The Python version of the unpickler: the C one can be made to fill the memory by a single opcode.
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name of NumPy, and refuse every other name."""
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        raise UnsafeFile(
            f"a CIFAR batch names {module}.{name}, which would run code", want="arrays and plain containers",
            fix="Do not load this file: take CIFAR from its authors",
        )

    def load_build(self) -> None:
        """Set the state of a stand-in, and of nothing else: functions and classes are objects too."""
        if type(self.stack[-2]) not in (_Array, _DType):  # type: ignore[attr-defined]
            raise UnsafeFile("a CIFAR batch changes an object that is not an array", want="arrays and plain containers")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}
