"""IDX files, the format of MNIST: images and labels in two files that are found by name; gzip is understood."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hauberk.core.errors import DataError
from hauberk.io.arrays import rows_of
from hauberk.io.parts import MEMORY_LIMIT, SINGLE, Part, Source

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
ROLES = {"train": ("train",), "test": ("t10k", "test")}


def looks_like_idx(path: Path) -> bool:
    """Whether a file is named as the files of MNIST are: `train-images-idx3-ubyte`, `t10k-labels.idx1-ubyte.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return ("images" in name or "labels" in name) and (name.endswith(("-ubyte", ".idx")) or "idx" in name)


def open_idx(path: Path, modality: str | None) -> Source:
    """Return the splits of a folder of IDX files (`train-*` and `t10k-*`), or the one split of an images or labels file.

    Raises:
        DataError: when the partner of a file is missing, or a file is broken or beyond the limits.
    """
    if not path.is_dir():
        return Source(str(path), {SINGLE: _pair(path, modality)}, path.name.split(".")[0].split("-")[0])
    files = sorted(one for one in path.iterdir() if looks_like_idx(one) and "images" in one.name.lower())
    parts = {
        role: _pair(one, modality)
        for role, starts in ROLES.items() for one in reversed(files) if one.name.lower().startswith(starts)
    }
    if not parts:
        raise DataError(
            f"the IDX files of {path} name no role", want="train-images-idx3-ubyte and t10k-images-idx3-ubyte",
            fix="Give the images file of each role by itself",
        )
    return Source(str(path), parts, path.resolve().name)


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array of one IDX file: memory-mapped, or unpacked from gzip.

    Raises:
        DataError: for a wrong header, a size beyond the limit, or a file that is longer or shorter than its header says.
    """
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            start = file.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or not 1 <= start[3] <= 8:
                raise DataError(f"{path} begins with {start.hex(' ')}", want="an IDX header, such as 00 00 08 03",
                                fix="Give the original file, or save the data as .npz")
            sides = file.read(4 * start[3])
            if len(sides) < 4 * start[3]:
                raise _cut(path)
            shape = tuple(int(side) for side in np.frombuffer(sides, ">u4"))
            dtype = np.dtype(TYPES[start[2]])
            size, offset = math.prod(shape) * dtype.itemsize, 4 + 4 * start[3]
            if not packed:
                if path.stat().st_size != offset + size:
                    raise _cut(path)
                return np.memmap(path, dtype, "c", offset, shape) if size else np.empty(shape, dtype)
            if size > min(MEMORY_LIMIT, 1100 * path.stat().st_size):
                raise DataError(f"{path} says that it unpacks to {size} bytes", want=f"at most {MEMORY_LIMIT}, and no bomb",
                                fix="Unpack it with gunzip: it is then memory-mapped")
            made = np.empty(size, np.uint8)
            done = 0
            while done < size and (part := file.read(min(1 << 24, size - done))):
                made[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
            if done < size or file.read(1):
                raise _cut(path)
            return made.view(dtype).reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})", want="a whole IDX file",
                        fix="Copy the file again: it may have been cut short") from error


def _pair(path: Path, modality: str | None) -> Part:
    images = path if "images" in path.name.lower() else _partner(path, "labels", "images", "idx1", "idx3")
    labels = _partner(images, "images", "labels", "idx3", "idx1")
    return Part(rows_of(read_idx(images), modality, str(images)), read_idx(labels), str(images))


def _partner(path: Path, this: str, other: str, this_kind: str, other_kind: str) -> Path:
    name = path.name.removesuffix(".gz").replace(this, other).replace(this_kind, other_kind)
    for candidate in (path.with_name(name), path.with_name(name + ".gz")):
        if candidate.exists():
            return candidate
    raise DataError(f"{path} has no {other} file beside it", want=str(path.with_name(name)), fix="Put both files into one folder")


def _cut(path: Path) -> DataError:
    return DataError(f"{path} is longer or shorter than its header says", want="a whole IDX file", fix="Copy the file again")
