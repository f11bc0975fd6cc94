"""GGUF: the table of contents of a file for llama.cpp."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from hauberk.assets.inspection.objects import Row
from hauberk.core.errors import ModelError

MOST = 1_000_000
LONGEST = 1 << 20
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
}


def read_gguf(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Return the tensors and the short metadata of a GGUF file.

    Raises:
        ModelError: when it is cut short or its numbers cannot be.
    """
    try:
        with path.open("rb") as file:
            magic, version, tensors, pairs = struct.unpack("<4sIQQ", _read(file, 24))
            if magic != b"GGUF" or version not in (2, 3) or max(tensors, pairs) > MOST:
                raise ValueError(f"version {version}, {tensors} tensors, {pairs} entries")
            metadata = {}
            for _ in range(pairs):
                key, value = _text(file), _value(file, struct.unpack("<I", _read(file, 4))[0])
                if not isinstance(value, list):
                    metadata[key] = str(value)[:200]
            return [_tensor(file) for _ in range(tensors)], metadata
    except (ValueError, struct.error, OSError, RecursionError) as error:
        raise ModelError(f"{path} is no whole GGUF file ({str(error)[:100]})", want="GGUF version 2 or 3") from error


def _tensor(file: BinaryIO) -> Row:
    name = _text(file)
    (dimensions,) = struct.unpack("<I", _read(file, 4))
    if dimensions > 8:
        raise ValueError(f"{dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", _read(file, 8 * dimensions))
    kind, _ = struct.unpack("<IQ", _read(file, 12))
    return Row(name, _TYPES.get(kind, f"type {kind}"), tuple(reversed(shape)))


def _value(file: BinaryIO, kind: int, depth: int = 0) -> Any:
    if kind in _NUMBERS:
        return struct.unpack(_NUMBERS[kind], _read(file, struct.calcsize(_NUMBERS[kind])))[0]
    if kind == _TEXT:
        return _text(file)
    if kind == _ARRAY and depth < 4:
        inner, count = struct.unpack("<IQ", _read(file, 12))
        if count > 10 * MOST:
            raise ValueError(f"an array of {count}")
        for _ in range(count):
            _value(file, inner, depth + 1)
        return []
    raise ValueError(f"a value of type {kind}")


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _read(file, 8))
    if length > LONGEST:
        raise ValueError(f"a text of {length} bytes")
    return _read(file, length).decode("utf-8")


def _read(file: BinaryIO, size: int) -> bytes:
    part = file.read(size)
    if len(part) != size:
        raise ValueError("it is cut short")
    return part
