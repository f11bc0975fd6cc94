"""NumPy's .npy files: raw numbers, or a pickle where the items are objects."""

from __future__ import annotations

import ast
import io
import math
import re
from typing import BinaryIO

from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Unverifiable

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # as NumPy itself reads without being told otherwise
_DTYPE = re.compile(r"[<>|=]?([biufcSUVaMm?])(\d*)(\[\w+\])?")


def item_size(text: str) -> int | None:
    """Return the bytes per item of a dtype string such as `<f8`; None for objects. Raises Unverifiable for others."""
    if text.lstrip("<>|=") in ("O", "O8", "O4"):
        return None
    found = _DTYPE.fullmatch(text)
    if found is None:
        raise Unverifiable(f"dtype {text[:40]!r} is not known")
    kind, size = found.group(1), found.group(2)
    if kind == "?":
        return 1
    if kind in "Mm":
        return 8
    if not size:
        raise Unverifiable(f"dtype {text[:40]!r} has no size")
    return int(size) * (4 if kind == "U" else 1)


@file_format("npy", lambda head, size: head.startswith(MAGIC), carries_code=True)
def scan_npy(scan: Scan, source: BinaryIO, where: str) -> None:
    """Read the header, then follow the pickle of an object array, or check that raw data fills the file exactly."""
    from hauberk.assets.scan.pickles import follow

    size = source.seek(0, io.SEEK_END)
    shape, bytes_each = read_header(source)
    if bytes_each is None:
        follow(scan, source, f"{where}@{source.tell()}:object array")
    else:
        source.seek(math.prod(shape) * bytes_each, io.SEEK_CUR)
    if source.tell() != size:
        raise Unverifiable(f"the array ends at byte {source.tell()}, the file at {size}")


def read_header(source: BinaryIO) -> tuple[tuple[int, ...], int | None]:
    """Return shape and bytes per item, None for objects, and leave the file behind the header. Raises Unverifiable."""
    source.seek(len(MAGIC))
    major = source.read(2)[0]
    if major not in (1, 2, 3):
        raise Unverifiable(f"npy version {major} is not known")
    width = 2 if major == 1 else 4
    length = int.from_bytes(source.read(width), "little")
    if length > LONGEST_HEADER:
        raise Unverifiable(f"an npy header of {length} bytes")
    text = source.read(length)
    if len(text) != length:
        raise Unverifiable("the npy header is cut off")
    header = ast.literal_eval(text.decode("latin1").strip())
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise Unverifiable("the npy header is not one of NumPy")
    shape, bytes_each = header["shape"], _described(header["descr"])
    if not isinstance(shape, tuple) or not all(isinstance(one, int) and one >= 0 for one in shape):
        raise Unverifiable("the npy header has no shape")
    return shape, bytes_each


def _described(descr: object) -> int | None:
    """Return the bytes per item of a header's `descr`; None where any field holds objects."""
    if isinstance(descr, str):
        return item_size(descr)
    if not isinstance(descr, list):
        raise Unverifiable("the npy header has no dtype")
    total, objects = 0, False
    for field in descr:
        if not isinstance(field, tuple) or len(field) not in (2, 3):
            raise Unverifiable("the npy header has a field that cannot be read")
        size = _described(field[1])
        repeat = field[2] if len(field) == 3 else ()
        repeat = repeat if isinstance(repeat, tuple) else (repeat,)
        objects = objects or size is None
        total += (size or 0) * math.prod(repeat)
    return None if objects else total
