"""GGUF: no code but the chat template in its metadata; a header that lies about lengths and places crashes its readers."""

from __future__ import annotations

import io
import math
import struct
from typing import Any, BinaryIO

from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.templates import scan_template
from hauberk.assets.scan.verdict import Unverifiable

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
_MOST, _LONGEST, _LARGEST_BLOCK = 1_000_000, 2**24, 2**26
# Items and bytes of a block, by the number of the type in ggml.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110),
    12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50),
    20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66),
}


@file_format("gguf", lambda head, size: head.startswith(b"GGUF"), carries_code=False)
def scan_gguf(scan: Scan, source: BinaryIO, where: str) -> None:
    """Walk the header: every key, every tensor; judge templates; check that tensors lie in the file, apart from one another."""
    size = source.seek(0, io.SEEK_END)
    source.seek(4)
    version, tensors, keys = _take(source, "<IQQ")
    if version not in (2, 3):
        raise Unverifiable(f"GGUF version {version} is not known")
    if max(tensors, keys) > _MOST:
        raise Unverifiable(f"{tensors} tensors and {keys} keys are announced")
    table: dict[str, Any] = {}
    for _ in range(keys):
        key = _text(scan, source)
        if key in table:
            raise Unverifiable(f"the key {key[:80]!r} stands twice")
        (kind,) = _take(source, "<I")
        table[key] = _value(scan, source, kind, 0)
        if "chat_template" in key and isinstance(table[key], str):
            scan_template(scan, table[key], f"{where}:{key}" if where else key)
    spans = sorted(_tensor(scan, source) for _ in range(tensors))
    alignment = table.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise Unverifiable("an alignment that cannot be read")
    start = -(-source.tell() // alignment) * alignment
    place = 0
    for begin, end, name in spans:
        if begin < place:
            raise Unverifiable(f"tensor {name[:80]!r} lies over the one before")
        place = end
    if start + place > size and spans:
        raise Unverifiable(f"the tensors end at byte {start + place}, the file at {size}")
    source.seek(start + place if spans else source.tell())
    rest = source.read(alignment + 1)
    if len(rest) > alignment or rest.strip(b"\0"):
        raise Unverifiable("bytes follow the last tensor")


def _take(source: BinaryIO, form: str) -> tuple[Any, ...]:
    raw = source.read(struct.calcsize(form))
    if len(raw) != struct.calcsize(form):
        raise Unverifiable("the header is cut off")
    return struct.unpack(form, raw)


def _text(scan: Scan, source: BinaryIO) -> str:
    scan.meter.step()
    (length,) = _take(source, "<Q")
    if length > _LONGEST:
        raise Unverifiable(f"a text of {length} bytes is announced")
    raw = source.read(length)
    if len(raw) != length:
        raise Unverifiable("a text is cut off")
    scan.meter.spend(length)
    return raw.decode("utf-8", "replace")


def _value(scan: Scan, source: BinaryIO, kind: int, depth: int) -> Any:
    scan.meter.step()
    if kind in _NUMBERS:
        return _take(source, _NUMBERS[kind])[0]
    if kind == _TEXT:
        return _text(scan, source)
    if kind != _LIST or depth > 4:
        raise Unverifiable(f"a value of kind {kind} is not known, or nested too deep")
    inner, count = _take(source, "<IQ")
    if inner in _NUMBERS:
        width = struct.calcsize(_NUMBERS[inner]) * count
        end = source.seek(0, io.SEEK_CUR) + width
        if width > _LARGEST_BLOCK or source.seek(0, io.SEEK_END) < end:
            raise Unverifiable(f"a list of {count} numbers is announced")
        source.seek(end)
        return None
    for _ in range(count):
        _value(scan, source, inner, depth + 1)
    return None


def _tensor(scan: Scan, source: BinaryIO) -> tuple[int, int, str]:
    name = _text(scan, source)
    (rank,) = _take(source, "<I")
    if rank > 8:
        raise Unverifiable(f"tensor {name[:80]!r} has {rank} dimensions")
    *shape, kind, offset = _take(source, f"<{rank}QIQ")
    if kind not in _BLOCKS:
        raise Unverifiable(f"tensor {name[:80]!r} is of type {kind}, which is not known")
    items, width = _BLOCKS[kind]
    count = math.prod(shape)
    if count % items:
        raise Unverifiable(f"tensor {name[:80]!r} has a broken block")
    return offset, offset + count // items * width, name
