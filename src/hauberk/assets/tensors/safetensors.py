"""Tensors of a safetensors file, from its header alone; values are read by their place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hauberk.assets.tensors.spec import BITS, TensorSpec, stretch
from hauberk.core.errors import ModelError

LARGEST_HEADER = 100_000_000
MOST_AXES = 64  # as torch has it; a product of millions of lengths would take hours


def read_safetensors(path: Path) -> list[TensorSpec]:
    """Return the tensors of a safetensors file.

    Raises:
        ModelError: when its header does not describe the file to the last byte.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise _broken(path, f"a header of {length} bytes")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise _broken(path, "a header that is not JSON, or has a name twice") from error
    if not isinstance(header, dict):
        raise _broken(path, "a header that is no table")
    header.pop("__metadata__", None)
    found, place = [], 0
    for name, entry in sorted(header.items(), key=lambda item: _start(path, item[1])):
        dtype, shape, start, end = _entry(path, name, entry)
        if start != place:
            raise _broken(path, f"tensor '{name[:80]}' at {start}, where the one before ends at {place}")
        found.append(TensorSpec(name, dtype, shape, stretch(path, 8 + length + start, end - start)))
        place = end
    if 8 + length + place != size:
        raise _broken(path, f"{size} bytes where its header describes {8 + length + place}")
    return found


def _entry(path: Path, name: str, entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    dtype, shape, (start, end) = entry.get("dtype"), entry.get("shape"), entry["data_offsets"]
    if dtype not in BITS or not isinstance(shape, list) or len(shape) > MOST_AXES or not all(_count(one) for one in shape):
        raise _broken(path, f"tensor '{name[:80]}' of a type or shape that cannot be read")
    if (end - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise _broken(path, f"tensor '{name[:80]}' whose shape does not fit its {end - start} bytes")
    return dtype, tuple(shape), start, end


def _start(path: Path, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_count(one) for one in offsets):
        raise _broken(path, "a tensor without a place")
    return offsets[0], offsets[1]


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name twice")
    return made


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} has {what}", want="a whole safetensors file", fix="Save or copy it again")
