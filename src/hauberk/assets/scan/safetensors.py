"""safetensors: a JSON header and raw data; no code, but a header that lies can still crash or mislead a reader."""

from __future__ import annotations

import io
import math
from typing import Any, BinaryIO

from hauberk.assets.scan.manifests import parsed
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Unverifiable

LARGEST_HEADER = 16_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16,
    "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}


def _looks(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= max(size - 8, 0)


@file_format("safetensors", _looks, carries_code=False)
def scan_safetensors(scan: Scan, source: BinaryIO, where: str) -> None:
    """Check the header: its length, its depth, and that the tensors tile the data from first byte to last."""
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    if length > min(scan.limits.header, LARGEST_HEADER):
        raise Unverifiable(f"a header of {length} bytes")
    scan.meter.spend(length)
    text = source.read(length)
    # Names and metadata are flat: any depth beyond that of a shape is not safetensors.
    header = parsed(text)
    if not isinstance(header, dict):
        raise Unverifiable("the header is not a table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise Unverifiable("the metadata is not text")
    spans = sorted(_span(name, entry) for name, entry in header.items())
    place = 0
    for start, end, name in spans:
        if start != place:
            raise Unverifiable(f"tensor {name[:80]!r} starts at {start}, the one before ends at {place}")
        place = end
    if 8 + length + place != size:
        raise Unverifiable(f"the tensors end at byte {8 + length + place}, the file at {size}")


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _BITS:
        raise Unverifiable(f"tensor {name[:80]!r} is not described as safetensors are")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2 and len(shape) <= 64):
        raise Unverifiable(f"tensor {name[:80]!r} has a shape or place that cannot be read")
    start, end = offsets
    if (end - start) * 8 != math.prod(shape) * _BITS[entry["dtype"]]:
        raise Unverifiable(f"tensor {name[:80]!r} takes {end - start} bytes, which its shape does not")
    return start, end, name


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in values)
