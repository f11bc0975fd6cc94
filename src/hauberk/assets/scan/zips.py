"""ZIP archives: torch files, TorchScript, exported programs, npz, skops. Their bones are checked before any member is read."""

from __future__ import annotations

import io
import re
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from hauberk.assets.scan import manifests
from hauberk.assets.scan.opcodes import imports
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Level, Unverifiable
from hauberk.core.errors import UnsafeFile
from hauberk.io.pt2_rules import raw_weights
from hauberk.io.zip_bones import check_bones

# Raw tensor data and the small text files that torch writes beside it: read by their place, never unpickled.
_NOTES = r"[^/]+/(version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|archive_format|archive_version)"
_TORCH_RAW = re.compile(_NOTES + r"|[^/]+/data/\w+")
_EXPORTED_RAW = re.compile(_NOTES)
_CODE = re.compile(r"[^/]+/code/.*")
_STARTS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")


@file_format("zip", lambda head, size: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), carries_code=True)
def scan_zip(scan: Scan, source: BinaryIO, where: str) -> None:
    """Check the archive's bones, then scan each member that a loader would interpret."""
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if len(members) > scan.limits.members:
            raise Unverifiable(f"{len(members)} members")
        names = [one.filename for one in members]
        torch_file = any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names)
        exported = any(re.fullmatch(r"[^/]+/(models/[^/]+\.json|serialized_exported_program\.json)", name) for name in names)
        try:
            check_bones(source, archive, one_case=torch_file or exported)
        except UnsafeFile as error:
            raise Unverifiable(error.problem) from error
        raw = _raw_weights(archive, members, scan) if exported else set()
        for one in members:
            scan.meter.clock()
            place = f"{where}:{one.filename}" if where else one.filename
            if one.is_dir() and not one.file_size and not one.compress_size:
                continue
            if _CODE.fullmatch(one.filename) and torch_file:
                scan.issue(Level.UNKNOWN, place, "holds TorchScript code, which runs when the model is loaded and called")
            elif (
                one.filename in raw or (torch_file and _TORCH_RAW.fullmatch(one.filename))
                or (exported and _EXPORTED_RAW.fullmatch(one.filename))
            ):
                _numbers(scan, source, archive, one, place)
            else:
                _member(scan, archive, one, place)
        if torch_file:
            _as_torch_reads(source, archive, names)


def _raw_weights(archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], scan: Scan) -> set[str]:
    """Return the members that an exported program reads as plain numbers: its configurations say which are pickled instead."""
    configs = {}
    for one in members:
        if re.fullmatch(r"[^/]+/data/(weights|constants)/[^/]+_config\.json", one.filename):
            if one.file_size > scan.limits.header:
                raise Unverifiable(f"{one.filename} has {one.file_size} bytes of JSON")
            configs[one.filename] = manifests.parsed(archive.read(one))
    return raw_weights(configs)


def _as_torch_reads(source: BinaryIO, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """Raise Unverifiable when torch's own reader sees other members, or another pickle, than the standard library."""
    import torch

    source.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(source)
        seen = {one: bytes(reader.get_record(one)) for one in reader.get_all_records() if one.endswith((".pkl", ".py"))}
    except RuntimeError as error:
        # Without a version torch reads nothing; with one, it should have read what was read here.
        if any(re.fullmatch(r"[^/]+/(\.data/)?version", name) for name in names):
            raise Unverifiable("torch's reader cannot open the archive") from error
        return
    top = names[0].partition("/")[0]
    for name, content in seen.items():
        if f"{top}/{name}" not in names or archive.read(f"{top}/{name}") != content:
            raise Unverifiable(f"torch's reader sees another {name[:80]!r}")


def _numbers(scan: Scan, source: BinaryIO, archive: zipfile.ZipFile, one: zipfile.ZipInfo, place: str) -> None:
    """Step over raw data, unless it begins like an array, an archive or a pickle that would import something."""
    if one.compress_type != zipfile.ZIP_STORED:
        with archive.open(one) as packed, tempfile.SpooledTemporaryFile(max_size=2**26) as whole:
            _unpack(scan, one, packed, whole, place)
            inner: BinaryIO = whole  # type: ignore[assignment]
            _sniff(scan, inner, place)
        return
    source.seek(one.header_offset + 26)
    name, extra = struct.unpack("<2H", source.read(4))
    _sniff(scan, io.BufferedReader(_Window(source, one.header_offset + 30 + name + extra, one.file_size)), place)


def _sniff(scan: Scan, content: Any, place: str) -> None:
    content.seek(0)
    if content.read(8).startswith(_STARTS) or imports(content):
        scan.part(content, place)


class _Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, source: BinaryIO, start: int, size: int) -> None:
        self._source, self._start, self._size, self._at = source, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, place + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._source.seek(self._start + min(self._at, self._size))
        part = self._source.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _unpack(scan: Scan, one: zipfile.ZipInfo, packed: Any, whole: Any, place: str) -> int:
    """Unpack a member within limits and return its size. Reading to the end also checks the sum."""
    unpacked = 0
    while part := packed.read(2**18):
        unpacked += len(part)
        scan.meter.spend(len(part))
        if unpacked > 2**20 and unpacked > scan.limits.ratio * max(one.compress_size, 1):
            raise Unverifiable(f"{place} unpacks to more than {scan.limits.ratio} times its size")
        whole.write(part)
    whole.seek(0)
    return unpacked


def _member(scan: Scan, archive: zipfile.ZipFile, one: zipfile.ZipInfo, place: str) -> None:
    scan.result.parts += 1
    with archive.open(one) as packed, tempfile.SpooledTemporaryFile(max_size=2**26) as whole:
        unpacked = _unpack(scan, one, packed, whole, place)
        inner: BinaryIO = whole  # type: ignore[assignment]
        if one.filename.endswith(".json"):
            if unpacked > scan.limits.header:
                raise Unverifiable(f"{place} has {unpacked} bytes of JSON")
            manifests.scan_json(scan, one.filename, manifests.parsed(whole.read()), place)
        elif one.filename.endswith((".txt", ".md", "/version", "/byteorder")) and _plain_text(inner):
            return
        elif unpacked:
            scan.part(inner, place, PurePosixPath(one.filename).suffix.lower())


def _plain_text(content: BinaryIO) -> bool:
    """Whether a file is text to its last byte, and no pickle of the oldest protocol, which is text as well."""
    content.seek(0)
    while part := content.read(2**18):
        if part.translate(None, _TEXT):
            return False
    return not imports(content, and_calls=True)


_TEXT = bytes([*range(32, 127), *b"\r\n\t"])
