"""Numbers out of stand-ins: tensors and arrays are rebuilt from the bytes that a pickle names, and nothing in it is called."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from hauberk.assets.scan import jagged
from hauberk.assets.scan.numpy_state import items, real_dtype
from hauberk.assets.scan.values import Global, Items, Made, as_bytes
from hauberk.assets.scan.verdict import Unverifiable

_KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}
_PLAIN, _PARAMETERS = "torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter"
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
TENSORS = (_PLAIN, _PARAMETERS, "torch._tensor._rebuild_from_type_v2")


class Unkept(Exception):
    """A thing that has no place in safetensors; the message says why."""


class Storages(Protocol):
    """Where the bytes of a file's storages lie."""

    def bytes_of(self, key: str) -> bytes:
        """Return the bytes of a storage; raises KeyError where there is none."""


class ZipStorages:
    """Storages in a torch archive; none of more than `most` bytes, where that is given."""

    def __init__(self, archive: zipfile.ZipFile, top: str, *, most: int | None = None) -> None:
        self._archive, self._top, self._most = archive, top, most

    def bytes_of(self, key: str) -> bytes:
        """Return the bytes of a storage. Raises Unverifiable for one that is too large."""
        name = f"{self._top}/data/{key}"
        if self._most is not None and (size := self._archive.getinfo(name).file_size) > self._most:
            raise Unverifiable(f"storage {key[:40]!r} has {size} bytes to be gone through")
        return self._archive.read(name)


def check_order(archive: zipfile.ZipFile, top: str) -> None:
    """Raise Unverifiable where torch would turn the bytes of each number around."""
    name = f"{top}/byteorder"
    if name in archive.namelist() and (archive.getinfo(name).file_size > 16 or archive.read(name).strip() != b"little"):
        raise Unverifiable("the numbers are written big end first")


class PlacedStorages:
    """Storages at known places of a legacy torch file; none for a plain pickle."""

    def __init__(self, source: BinaryIO, places: dict[str, tuple[int, int]] | None = None) -> None:
        self._source, self._places = source, places or {}

    def bytes_of(self, key: str) -> bytes:
        """Return the bytes of a storage."""
        place, size = self._places[key]
        self._source.seek(place)
        return self._source.read(size)


def is_tensor(made: Made) -> bool:
    """Whether a stand-in is a call that rebuilds a tensor."""
    return made.of.startswith(TENSORS)


def is_array(made: Made) -> bool:
    """Whether a stand-in is an array of NumPy, or one of its numbers."""
    return made.of in (*_RECONSTRUCT, *_BUFFER, *_SCALAR, WRAPPER)


def tensor(made: Made, storages: Storages, most: int, depth: int = 0) -> Tensor:
    """Return the tensor that a call would have rebuilt.

    Arguments:
        made: the call.
        storages: of the file it is in.
        most: bytes that it may take; a stride of zero could make any size out of one number.
        depth: of parameters in parameters.

    Raises:
        Unkept: when it is of a kind that safetensors do not have.
        Unverifiable: when it reaches beyond its storage.
    """
    args = made.args
    if depth > 4:
        raise Unverifiable("parameters nested too deep")
    if made.of.startswith("torch._tensor.") and len(args) == 4 and isinstance(args[0], Global) and isinstance(args[2], tuple):
        return tensor(Made(args[0].full, args[2]), storages, most, depth + 1)
    if made.of == jagged.REBUILD:
        raise Unkept("a jagged tensor, which safetensors do not have: keep its values() and offsets() in its place")
    if made.of.startswith(_PARAMETERS):
        if not args or not isinstance(args[0], Made) or not is_tensor(args[0]):
            raise Unkept("a parameter of something that is no plain tensor")
        return tensor(args[0], storages, most, depth + 1)
    if made.of not in (_PLAIN, f"{_PLAIN}_v2", f"{_PLAIN}_v3") or len(args) < 4:
        raise Unkept(f"a tensor of another kind ({made.of})")
    raw, kind = _storage(args[0], storages)
    if made.of.endswith("_v3"):
        named = args[6] if len(args) > 6 and isinstance(args[6], Global) and args[6].module == "torch" else None
        found = getattr(torch, named.name, None) if named is not None and named.ruling.level == 0 else None
        if not isinstance(found, torch.dtype):
            raise Unkept("a tensor whose type cannot be read")
        kind = found
    offset, size, stride = args[1], counts(args[2]), counts(args[3])
    count, width = len(raw) // kind.itemsize, math.prod(size)
    last = sum((one - 1) * step for one, step in zip(size, stride, strict=True)) if width else -1
    if type(offset) is not int or len(size) != len(stride) or offset < 0 or offset + last >= count + (not width):
        raise Unverifiable("a tensor reaches beyond its storage")
    if width * kind.itemsize > most:
        raise Unverifiable(f"a tensor of {width} items out of a storage of {count}")
    if not width:
        return torch.empty(size, dtype=kind)
    flat = torch.frombuffer(bytearray(raw[: count * kind.itemsize]), dtype=torch.uint8 if kind is torch.bool else kind)
    whole = flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)
    return whole != 0 if kind is torch.bool else whole


def _storage(value: object, storages: Storages) -> tuple[bytes, torch.dtype]:
    if isinstance(value, Made) and value.of == "torch.storage._load_from_bytes":
        return nested_storage(value)
    key = value.args[0] if isinstance(value, Made) and value.of == "persistent" and value.args else None
    if not isinstance(key, tuple) or len(key) < 5 or not isinstance(key[1], Global) or not isinstance(key[2], str):
        raise Unverifiable("a tensor whose storage cannot be followed")
    name = key[1].name.removesuffix("Storage")
    if name not in _KINDS:
        raise Unkept(f"a storage of type {key[1].name[:40]}")
    try:
        raw, kind = storages.bytes_of(key[2]), _KINDS[name]
    except KeyError as error:
        raise Unverifiable(f"storage {key[2][:40]!r} is missing") from error
    view = key[5] if len(key) > 5 else None
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3 or not all(type(one) is int and one >= 0 for one in view[1:]):
            raise Unverifiable("a view of a storage that cannot be read")
        raw = raw[view[1] * kind.itemsize : (view[1] + view[2]) * kind.itemsize]
    return raw, kind


def nested_storage(made: Made) -> tuple[bytes, torch.dtype]:
    """Return the bytes and type of a storage that is pickled as a torch file of its own."""
    from hauberk.assets.scan.convert import read_bytes

    if len(made.args) != 1 or not isinstance(made.args[0], (bytes, bytearray)):
        raise Unverifiable("a storage whose bytes cannot be followed")
    value, storages = read_bytes(bytes(made.args[0]))
    return _storage(value, storages)


def counts(value: object) -> tuple[int, ...]:
    """Return a shape or strides. Raises Unverifiable for anything else."""
    if isinstance(value, Made) and value.of == "torch.Size" and value.args:
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or len(value) > 64 or not all(type(one) is int and one >= 0 for one in value):
        raise Unverifiable("a tensor whose shape cannot be read")
    return tuple(value)


def array(made: Made, source: BinaryIO | None) -> Any:
    """Return the array that a stand-in stands for, or the list of stand-ins of an array of objects.

    Arguments:
        made: a call of NumPy, or the wrapper that joblib writes in front of an array.
        source: the stream that joblib's raw arrays lie in.
    """
    if made.of in _SCALAR:
        return np.frombuffer(as_bytes(made.args[1]) or b"", real_dtype(made.args[0]), 1)[0]
    if made.of == WRAPPER:
        if not isinstance(made.state, Items) or made.raw is None:
            raise Unverifiable("a joblib array without its description")
        if not isinstance(made.raw, int):
            return made.raw
        if source is None:
            raise Unverifiable("a joblib array outside its stream")
        dtype, shape = real_dtype(made.state.get("dtype")), made.state.get("shape")
        source.seek(made.raw)
        return _shaped(source.read(items(shape) * dtype.itemsize), dtype, shape, made.state.get("order") == "F")
    if made.of in _BUFFER:
        raw, kind, shape, order = made.args
        return _shaped(_raw(raw), real_dtype(kind), shape, order == "F")
    state = made.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise Unkept("an array that was never filled")
    dtype = real_dtype(state[2])
    return state[4] if dtype.hasobject else _shaped(_raw(state[4]), dtype, state[1], bool(state[3]))


def _raw(value: object) -> bytes:
    found = as_bytes(value)
    if found is None:
        raise Unkept("an array whose numbers lie outside the file")
    return bytes(found)


def _shaped(raw: bytes, dtype: Any, shape: Any, fortran: bool) -> Any:
    if len(raw) != items(shape) * dtype.itemsize:
        raise Unverifiable(f"an array of shape {str(shape)[:80]} has {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def to_tensor(values: Any) -> Tensor:
    """Return numbers of NumPy as a tensor that safetensors can hold."""
    native = values.astype(values.dtype.newbyteorder("="), order="C", copy=True)
    if native.dtype.kind not in "biuf" and native.dtype != np.complex64:
        raise Unkept(f"an array of {native.dtype}")
    if native.dtype.itemsize > 8:
        raise Unkept(f"an array of {native.dtype}")
    return torch.from_numpy(np.atleast_1d(native)).reshape(native.shape)


def stream(content: bytes) -> BinaryIO:
    """Return bytes as a file."""
    return io.BytesIO(content)
