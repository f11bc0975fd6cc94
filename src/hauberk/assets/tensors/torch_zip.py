"""Tensors of a file that torch.save wrote, found by following its pickle on stand-ins; values are read by their place."""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hauberk.assets.tensors.inert import Made, Stored, follow
from hauberk.assets.tensors.spec import BITS, CHUNK, Parts, TensorSpec, stretch
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile
from hauberk.io.zip_bones import check_bones

STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8",
    "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "ComplexDouble": "C128",
}
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL", "complex64": "C64",
    "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
LARGEST_EXPANDED = 1 << 30
# All that the pickle of a state dict names. Another name may be called on the way, and leave no trace in the value.
NEEDED = frozenset({
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch.storage.UntypedStorage", *(f"torch.{one}Storage" for one in STORAGES),
    *(f"torch.{one}" for one in DTYPES),
})


class Archive:
    """A zip that torch wrote: its pickle followed, and where its storages lie.

    Raises:
        ModelError: when it is not one.
        UnsafeFile: when two readers could see two files in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.places, self.names = path, dict[str, tuple[int, int]](), set[str]()
        self._storages: dict[str, tuple[str, int]] = {}
        try:
            with path.open("rb") as source, zipfile.ZipFile(source) as archive:
                check_bones(source, archive, one_case=True)
                names = [one.filename for one in archive.infolist()]
                tops = [name[: -len("/data.pkl")] for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
                if len(tops) != 1:
                    raise ModelError(f"{path} has no data.pkl", want="a file that torch.save wrote")
                top = tops[0]
                if f"{top}/byteorder" in names and archive.read(f"{top}/byteorder") != b"little":
                    raise ModelError(f"{path} was written on a big-endian machine", want="little-endian tensors")
                self.value = follow(archive.read(f"{top}/data.pkl"), str(path), self.names)
                for one in archive.infolist():
                    if one.filename.startswith(f"{top}/data/") and one.compress_type == zipfile.ZIP_STORED:
                        source.seek(one.header_offset + 26)
                        name, extra = struct.unpack("<2H", source.read(4))
                        key = one.filename[len(top) + 6 :]
                        self.places[key] = one.header_offset + 30 + name + extra, one.file_size
        except HauberkError:
            raise
        except Exception as error:  # whatever the parsers of hostile bytes stumble over
            raise ModelError(f"{path} is broken or cut short ({str(error)[:100]})", want="what torch.save wrote") from error

    def tensor(self, name: str, made: Any) -> TensorSpec | None:
        """Return the tensor that a stand-in describes; None when it describes something else.

        Raises:
            ModelError: for a tensor whose description does not hold, or that is of a kind not known here.
        """
        if isinstance(made, Made) and made.of == "torch._utils._rebuild_parameter" and made.args:
            self._untouched(name, made)
            made = made.args[0]
        if not isinstance(made, Made) or made.of not in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
            return None
        self._untouched(name, made)
        try:
            return self._described(name, made)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise self._wrong(name, "is described in a way that is not torch's") from error

    def _described(self, name: str, made: Made) -> TensorSpec:
        if not 6 <= len(made.args) <= 8:
            raise self._wrong(name, "is described in a way that is not torch's")
        stored, offset, shape, stride = made.args[:4]
        third = made.of.endswith("v3")
        metadata = made.args[7 if third else 6] if len(made.args) > (7 if third else 6) else None
        if metadata:
            raise self._wrong(name, "is a view that torch would still change (conjugate or negative)")
        placed = isinstance(stored, Stored) and isinstance(stored.key, tuple)
        if not placed or not _counts(shape) or not _counts(stride) or not _counts((offset,)):
            raise self._wrong(name, "is described in a way that is not torch's")
        kind, typed, key, _, numel = stored.key
        storage = typed.of
        dtype = DTYPES.get(made.args[6].of.removeprefix("torch.")) if third else STORAGES.get(
            storage.removeprefix("torch.").removesuffix("Storage")
        )
        known = isinstance(key, str) and key in self.places and _counts((numel,))
        if kind != "storage" or dtype is None or not known or len(shape) != len(stride):
            raise self._wrong(name, f"lies in a storage that cannot be read ({storage[:60]} {str(key)[:20]})")
        if self._storages.setdefault(key, (storage, numel)) != (storage, numel):
            raise self._wrong(name, "lies in a storage that another tensor describes otherwise")
        width = BITS[dtype] // 8
        start, room = self.places[key]
        # torch takes as many elements of a storage as the pickle says it has.
        each = BITS[STORAGES.get(storage.removeprefix("torch.").removesuffix("Storage"), "U8")] // 8
        room = min(room, numel * each)
        count = math.prod(shape)
        last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) + 1 if count else offset
        if last * width > room or (offset * width > room):
            raise self._wrong(name, "reaches beyond its storage")
        if count * width > max(room, LARGEST_EXPANDED):
            raise self._wrong(name, f"would expand {room} bytes to {count * width}")
        if count == 0 or _contiguous(shape, stride):
            parts = stretch(self.path, start + offset * width, count * width)
        else:
            parts = self._strided(start + offset * width, tuple(shape), tuple(stride), width)
        return TensorSpec(name, dtype, tuple(shape), parts)

    def _untouched(self, name: str, made: Made) -> None:
        if made.state is not None or made.pairs or made.entries:
            raise self._wrong(name, "is changed after it was made")

    def _strided(self, start: int, shape: tuple[int, ...], stride: tuple[int, ...], width: int) -> Parts:
        def read() -> Iterator[bytes]:
            items = sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) + 1
            flat = np.memmap(self.path, dtype=f"V{width}", mode="r", offset=start, shape=(items,))
            view = np.lib.stride_tricks.as_strided(flat, shape, [step * width for step in stride], writeable=False)
            rows = max(1, CHUNK // max(1, math.prod(shape[1:]) * width))
            for row in range(0, shape[0], rows):
                yield np.ascontiguousarray(view[row : row + rows]).tobytes()

        return read

    def _wrong(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self.path}: tensor '{name[:80]}' {what}", want="tensors as torch.save writes them")


def read_torch(path: Path) -> list[TensorSpec]:
    """Return the tensors of a state dict that torch.save wrote.

    Raises:
        ModelError: when the file is broken, or holds more than tensors by name.
        UnsafeFile: when its pickle or its archive plays tricks.
    """
    archive = Archive(path)
    strange = sorted(archive.names - NEEDED)
    if strange:
        raise UnsafeFile(
            f"{path} names {strange[0][:80]}", want="tensors by name alone: a state dict", fix="Save model.state_dict()"
        )
    found = []
    for name, value in _pairs(archive.value, path):
        tensor = archive.tensor(name, value)
        if tensor is None:
            what = value.of if isinstance(value, Made) else type(value).__name__
            raise ModelError(f"{path} holds '{name[:80]}', which is {what[:80]}", want="tensors by name alone: a state dict",
                             fix="Save model.state_dict()")
        found.append(tensor)
    return found


def _pairs(value: Any, path: Path) -> list[tuple[str, Any]]:
    pairs = list(value.items()) if isinstance(value, dict) else None
    if isinstance(value, Made) and value.of == "collections.OrderedDict" and not value.entries and not value.args:
        # torch puts the state into the object's attributes: any other could stand before its methods.
        plain = value.state is None or (isinstance(value.state, dict) and set(value.state) <= {"_metadata"})
        pairs = value.pairs if plain else None
    if pairs is None or not all(isinstance(key, str) for key, _ in pairs):
        what = value.of if isinstance(value, Made) else type(value).__name__
        raise ModelError(f"{path} holds {what[:80]}", want="tensors by name: a state dict", fix="Save model.state_dict()")
    if len({key for key, _ in pairs}) != len(pairs):
        raise UnsafeFile(f"{path} names a tensor twice", want="each name once")
    return pairs


def _counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 64 and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**62 for one in values
    )


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    step = 1
    for length, wanted in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and wanted != step:
            return False
        step *= length
    return True
