"""NumPy archives: `.npz` with x and y, or with x and y of both roles. Stored members are memory-mapped."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hauberk.core.errors import DataError, nearest
from hauberk.io.arrays import rows_of
from hauberk.io.parts import MEMORY_LIMIT, SINGLE, Part, Source

X_NAMES = ("x", "images", "data", "features")
Y_NAMES = ("y", "labels", "targets", "target")
DEFLATE_MOST = 1100  # deflate cannot shrink by more than a factor of 1032
READ_STEP = 1 << 24
MOST_MEMBERS = 10_000
BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError, ValueError, RuntimeError, NotImplementedError, SyntaxError,
    OverflowError, MemoryError, TypeError,
)


def open_npz(path: Path, groups: Sequence[str], modality: str | None) -> Source:
    """Return the splits of an archive: `x` and `y`, or `x_train y_train x_test y_test` (also `train_images`, `labels`, …).

    Arguments:
        path: of the archive.
        groups: names of arrays with the group of each sample (`sex`, or `sex_train` and `sex_test`).
        modality: see `rows_of`.

    Raises:
        DataError: for a broken archive, Python objects in it, sizes beyond the limits, or names that are not understood.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = _roles(list(members))
            if not found:
                raise DataError(
                    f"{path} holds the arrays {', '.join(sorted(members)[:12]) or 'of nothing'}",
                    want="x and y, or x_train, y_train, x_test, y_test", fix="Save it with numpy.savez(path, x=x, y=y)",
                )
            return Source(str(path), {
                role: Part(
                    rows_of(_member(path, archive, members[x]), modality, f"{path}:{x}"), _member(path, archive, members[y]),
                    f"{path}:{x}" if role else str(path),
                    {name: _member(path, archive, _group(path, members, name, role)) for name in groups},
                )
                for role, (x, y) in found.items()
            }, path.stem)
    except BROKEN as error:
        raise _broken(path, error) from error


def read_members(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of an archive by name; stored ones are memory-mapped, copy on write.

    Raises:
        DataError: for a broken archive, Python objects in it, or sizes beyond the limits.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS:
                raise ValueError(f"it holds {len(members)} arrays, more than {MOST_MEMBERS}")
            return {info.filename.removesuffix(".npy"): _member(path, archive, info) for info in members}
    except BROKEN as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} cannot be read ({type(error).__name__}: {error})", want="a whole .npz archive of plain arrays",
        fix="Copy or save the file again: it may have been cut short",
    )


def _roles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    lower = {name.lower(): name for name in names}
    found: dict[str, tuple[str, str]] = {}
    for role in ("test", "train", SINGLE):
        pairs = [
            (lower[x], lower[y])
            for shape in (("{}_{}", "{1}_{0}") if role else ("{}",))
            for x in (shape.format(one, role) for one in X_NAMES) if x in lower
            for y in (shape.format(one, role) for one in Y_NAMES) if y in lower
        ]
        if pairs and (role or not found):
            found[role] = pairs[0]
    return found


def _group(path: Path, members: Mapping[str, zipfile.ZipInfo], name: str, role: str) -> zipfile.ZipInfo:
    for key in (f"{name}_{role}", f"{role}_{name}") if role else (name,):
        if key in members:
            return members[key]
    wanted = f"{name}_{role}" if role else name
    raise DataError(f"{path} has no array '{wanted}' for the group '{name}'", fix=nearest(wanted, list(members)))


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    where = f"{path}:{info.filename}"
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file, where)
        size = math.prod(shape) * dtype.itemsize
        offset = file.tell()
        if offset + size != info.file_size:
            raise DataError(
                f"{where} has {info.file_size} bytes", want=f"{offset + size} for shape {shape} of {dtype}",
                fix="Save the file again: it may have been cut short",
            )
        if info.compress_type == zipfile.ZIP_STORED and size:
            return _mapped(path, info, offset, shape, fortran, dtype)
        if size > MEMORY_LIMIT or size > DEFLATE_MOST * max(info.compress_size, 1) + READ_STEP:
            raise DataError(
                f"{where} says that {info.compress_size} bytes unpack to {size}", want=f"at most {MEMORY_LIMIT} bytes in memory",
                fix="Save it uncompressed with numpy.savez: it is then memory-mapped",
            )
        return _unpacked(file, size, where).view(dtype).reshape(shape, order="F" if fortran else "C")


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{where} is in array format {version}", want="format 1.0 or 2.0", fix="Save it with numpy.savez")
    shape, fortran, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    if dtype.hasobject or dtype.names is not None:
        raise DataError(
            f"{where} holds {dtype}", want="plain numbers or strings",
            fix="Python objects could run code: convert them before saving",
        )
    if any(side < 0 for side in shape):
        raise DataError(f"{where} has shape {shape}", want="no negative side")
    return shape, fortran, dtype


def _mapped(
    path: Path, info: zipfile.ZipInfo, offset: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]
) -> NDArray[Any]:
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member has no local header")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30])) + offset
    # Copy on write: torch wants writable memory, and the file stays as it is.
    return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")


def _unpacked(file: IO[bytes], size: int, where: str) -> NDArray[np.uint8]:
    # The pages of an empty array cost nothing before bytes arrive, so a header that lies about its size cannot fill the memory.
    made = np.empty(size, np.uint8)
    done = 0
    while done < size:
        part = file.read(min(READ_STEP, size - done))
        if not part:
            raise DataError(f"{where} ends after {done} of {size} bytes", want="a whole file", fix="Copy the file again")
        made[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
    file.read(1)  # reaches the end, where zipfile compares the checksum
    return made
