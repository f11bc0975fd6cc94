"""Compressed files (gzip, zlib, bzip2, xz, lzma): unpacked within limits, then scanned as what they hold."""

from __future__ import annotations

import bz2
import lzma
import tempfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Unverifiable

_MEMORY = 2**28  # a dictionary of gigabytes may be announced in six bytes
# Makes a decompressor: an object with decompress(data, max_length), eof and unused_data.
_MAKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31), b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(memlimit=_MEMORY),
    b"]\x00\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY), b"x\x01": zlib.decompressobj,
    b"x\x5e": zlib.decompressobj,
    b"x\x9c": zlib.decompressobj, b"x\xda": zlib.decompressobj,
}
CHUNK = 2**18


def _looks(head: bytes, size: int) -> bool:
    # 376 is x\x01: a safetensors length. Behind a zlib mark, zeros would be a block whose two lengths contradict each other.
    length = head[:1] == b"x" and head[2:9] == b"\0\0\0\0\0\0{"
    return head.startswith(tuple(_MAKERS)) and not length


def is_compressed(head: bytes) -> bool:
    """Whether a file with these first bytes is compressed."""
    return _looks(head, 0)


def unpack(scan: Scan, source: BinaryIO, whole: Any) -> None:
    """Unpack a compressed file into another, within limits. Raises Unverifiable beyond them, or where it is cut off."""
    source.seek(0)
    head = source.read(8)
    source.seek(0)
    opened = next(make for magic, make in _MAKERS.items() if head.startswith(magic))()
    packed = unpacked = 0
    while not opened.eof:
        # zlib hands back the input it did not take; bz2 and lzma keep it, and say whether they need more.
        data = getattr(opened, "unconsumed_tail", b"")
        if not data and getattr(opened, "needs_input", True):
            data = source.read(CHUNK)
            packed += len(data)
        out = opened.decompress(data, CHUNK)
        if not out and not data and not opened.eof:
            raise Unverifiable("the compressed data is cut off")
        unpacked += len(out)
        scan.meter.spend(len(out))
        if unpacked > 2**20 and unpacked > scan.limits.ratio * max(packed, 1):
            raise Unverifiable(f"it unpacks to more than {scan.limits.ratio} times its size")
        whole.write(out)
    if opened.unused_data or source.read(1):
        raise Unverifiable("bytes follow the compressed data")


@file_format("compressed", _looks, carries_code=True)
def scan_compressed(scan: Scan, source: BinaryIO, where: str) -> None:
    """Unpack to a temporary file that has no name, watching size and ratio, and scan that."""
    with tempfile.SpooledTemporaryFile(max_size=2**26) as whole:
        unpack(scan, source, whole)
        inner: BinaryIO = whole  # type: ignore[assignment]
        scan.part(inner, f"{where}:unpacked" if where else "unpacked")
