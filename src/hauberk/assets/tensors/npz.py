"""Arrays of an npz archive, and of a single npy: headers first, values as a stream."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hauberk.assets.tensors.spec import Parts, TensorSpec, swapped
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile
from hauberk.io.zip_bones import check_bones

TYPES = {
    "f2": "F16", "f4": "F32", "f8": "F64",
    "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
    "b1": "BOOL", "c8": "C64", "c16": "C128",
}
LARGEST_HEADER = 10_000
LARGEST_TURNED = 8 << 30  # an array in Fortran's order is turned in memory


def read_npz(path: Path) -> list[TensorSpec]:
    """Return the arrays of an npz archive, by the names numpy gives them.

    Raises:
        ModelError: when it is broken, or an array is not of plain numbers.
        UnsafeFile: when two readers could see two archives in it.
    """
    found = []
    try:
        with path.open("rb") as source, zipfile.ZipFile(source) as archive:
            check_bones(source, archive)
            for one in archive.infolist():
                # numpy finds `a.npy` in place of `a.npy.npy`: a name must be what its member is called.
                if not one.filename.endswith(".npy") or one.filename.endswith(".npy.npy"):
                    raise ModelError(f"{path} holds '{one.filename[:80]}'", want="arrays alone")
                with archive.open(one) as member:
                    dtype, shape, fortran = npy_header(member, f"{path}:{one.filename}")
                    size = math.prod(shape) * dtype.itemsize
                    if member.tell() + size != one.file_size:
                        raise ModelError(f"{path}: '{one.filename[:80]}' is not as large as its shape", want="a whole file")
                found.append(_spec(one.filename.removesuffix(".npy"), dtype, shape, fortran, _member(path, one.filename)))
    except HauberkError:
        raise
    except Exception as error:  # whatever the parsers of hostile bytes stumble over
        raise _broken(path, error) from error
    return found


def npy_header(file: Any, name: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Return type, shape and order from where a file stands; nothing is evaluated but literals.

    Raises:
        ModelError: when there is no such header, or the array is of objects.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ModelError(f"{name} is npy version {version}", want="version 1 or 2, which plain numbers have")
        shape, fortran, dtype = readers[version](file, max_header_size=LARGEST_HEADER)
    except HauberkError:
        raise
    except Exception as error:  # numpy tokenises headers that are no literals, and fails in as many ways
        raise ModelError(f"{name} has no header of an array ({str(error)[:80]})", want="an array that numpy wrote") from error
    if dtype.hasobject:
        raise UnsafeFile(f"{name} is an array of objects, which are pickled", want="plain numbers")
    if any(length < 0 for length in shape) or len(shape) > 64:
        raise ModelError(f"{name} has the shape {shape}", want="lengths of 0 or more")
    return dtype, tuple(shape), bool(fortran)


def type_name(dtype: np.dtype[Any], name: str) -> str:
    """Return the name of a type of numbers. Raises ModelError for others, such as text or numpy's stand-in for bfloat16."""
    known = TYPES.get(dtype.str[1:]) if dtype.names is None and dtype.subdtype is None else None
    if known is None:
        raise ModelError(f"{name} has the type {dtype}", want="plain numbers", fix="Save types beyond numpy's as safetensors")
    return known


def _spec(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, payload: Parts) -> TensorSpec:
    kind, parts = type_name(dtype, name), payload
    if fortran and sum(length > 1 for length in shape) > 1:
        if math.prod(shape) * dtype.itemsize > LARGEST_TURNED:
            raise ModelError(f"array '{name[:80]}' in Fortran's order is too large to turn", want="C order")
        parts = _turned(payload, dtype, shape)
    if dtype.byteorder == ">" and dtype.itemsize > 1:
        # The two halves of a complex number are turned each on its own.
        width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        plain = parts
        parts = lambda: swapped(plain(), width)  # noqa: E731
    return TensorSpec(name, kind, shape, parts)


def _member(path: Path, name: str) -> Parts:
    def read() -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(name) as member:
                npy_header(member, name)
                while part := member.read(1 << 20):  # to the end, where the sum is checked
                    yield part
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise _broken(path, error) from error

    return read


def _broken(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path} is broken or cut short ({str(error)[:100]})", want="what numpy.savez wrote")


def _turned(payload: Parts, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Parts:
    def read() -> Iterator[bytes]:
        content = b"".join(bytes(part) for part in payload())
        yield np.frombuffer(content, dtype=f"V{dtype.itemsize}").reshape(shape, order="F").tobytes(order="C")

    return read
