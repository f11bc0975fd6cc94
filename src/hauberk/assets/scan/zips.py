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
from hauberk.assets.scan.keras import is_keras, scan_config
from hauberk.assets.scan.machine import Machine
from hauberk.assets.scan.opcodes import imports
from hauberk.assets.scan.others import TEXTS, is_text
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.torchscript import LARGEST, scan_bytecode, scan_script
from hauberk.assets.scan.values import Window
from hauberk.assets.scan.verdict import Unverifiable
from hauberk.core.errors import UnsafeFile
from hauberk.io.pt2_rules import raw_weights
from hauberk.io.zip_bones import check_bones

# Raw tensor data and the small text files that torch writes beside it: read by their place, never unpickled.
_NOTES = r"[^/]+/(version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|archive_format|archive_version)"
_TORCH_RAW = re.compile(_NOTES + r"|[^/]+/(data|constants|traced_inputs)/\w+")
_EXPORTED_RAW = re.compile(_NOTES)
_CODE = re.compile(r"[^/]+/code/.*\.py")
_LARGEST_DIRECTORY, _LARGEST_DICTIONARY = 2**26, 2**26
_PLAIN_TEXTS = TEXTS - {".yaml", ".yml"}
_STARTS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")


@file_format("zip", lambda head, size: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), carries_code=True)
def scan_zip(scan: Scan, source: BinaryIO, where: str) -> None:
    """Check the archive's bones, then scan each member that a loader would interpret."""
    _directory_fits(scan, source)
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if len(members) > scan.limits.members:
            raise Unverifiable(f"{len(members)} members")
        if not members:
            raise Unverifiable("the archive is empty")
        if archive.comment and not is_text(io.BytesIO(archive.comment)):
            raise Unverifiable("the archive has a comment that is no text")
        names = [one.filename for one in members]
        torch_file = any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names)
        exported = any(re.fullmatch(r"[^/]+/(models/[^/]+\.json|serialized_exported_program\.json)", name) for name in names)
        scan.script = scan.script or (torch_file and any(_CODE.fullmatch(name) for name in names))
        try:
            check_bones(source, archive, one_case=torch_file or exported)
        except UnsafeFile as error:
            raise Unverifiable(error.problem) from error
        raw = _raw_weights(archive, members, scan) if exported else set()
        outer, scan.archive = scan.archive, (archive, names[0].partition("/")[0]) if torch_file else None
        try:
            for one in members:
                scan.meter.clock()
                _check_dictionary(source, one)
                place = f"{where}:{one.filename}" if where else one.filename
                if one.is_dir() and not one.file_size and not one.compress_size:
                    continue
                if torch_file and _CODE.fullmatch(one.filename):
                    _script(scan, archive, one, place)
                elif (
                    one.filename in raw or (torch_file and _TORCH_RAW.fullmatch(one.filename))
                    or (exported and _EXPORTED_RAW.fullmatch(one.filename))
                ):
                    _numbers(scan, source, archive, one, place)
                else:
                    _member(scan, archive, one, place)
        finally:
            scan.archive = outer
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
    _sniff(scan, io.BufferedReader(Window(source, one.header_offset + 30 + name + extra, one.file_size)), place)


def _sniff(scan: Scan, content: Any, place: str) -> None:
    content.seek(0)
    if content.read(8).startswith(_STARTS) or imports(content):
        scan.part(content, place)


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
            made = manifests.parsed(whole.read())
            manifests.scan_json(scan, one.filename, made, place)
            scan_config(scan, made, place)
            manifests.scan_manifest(scan, made, place)
            if one.filename == "config.json" and archive_is_keras(archive) and not is_keras(made):
                raise Unverifiable(f"{place} is no configuration of Keras")
        elif PurePosixPath(one.filename).suffix.lower() in _PLAIN_TEXTS or one.filename.endswith(("/version", "/byteorder")):
            if not is_text(inner):
                scan.part(inner, place, PurePosixPath(one.filename).suffix.lower())
        elif unpacked:
            scan.part(inner, place, PurePosixPath(one.filename).suffix.lower())
            if re.fullmatch(r"[^/]+/bytecode\.pkl", one.filename):
                inner.seek(0)
                scan_bytecode(scan, Machine(scan, place).run(inner), place)


def archive_is_keras(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is one that Keras would open."""
    return {"config.json", "metadata.json"} <= set(archive.namelist())


def _script(scan: Scan, archive: zipfile.ZipFile, one: zipfile.ZipInfo, place: str) -> None:
    scan.result.parts += 1
    if one.file_size > LARGEST:
        raise Unverifiable(f"{place} has {one.file_size} bytes of code")
    with archive.open(one) as packed, tempfile.SpooledTemporaryFile(max_size=2**26) as whole:
        _unpack(scan, one, packed, whole, place)
        scan_script(scan, whole.read(), place)


def _directory_fits(scan: Scan, source: BinaryIO) -> None:
    """Raise Unverifiable, before the standard library reads it, for a directory larger than the limits allow."""
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - 65_557))
    tail = source.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise Unverifiable("the archive has no end")
    count, length = struct.unpack_from("<HL", tail, place + 10)
    large = tail.rfind(b"PK\x06\x06", 0, place)
    if count == 0xFFFF or length == 0xFFFFFFFF:
        if large < 0 or len(tail) < large + 48:
            raise Unverifiable("the 64-bit end record is not where it should be")
        count, length = struct.unpack_from("<QQ", tail, large + 32)
    if count > scan.limits.members or length > _LARGEST_DIRECTORY:
        raise Unverifiable(f"{count} members")


def _check_dictionary(source: BinaryIO, one: zipfile.ZipInfo) -> None:
    """Raise Unverifiable where a member packed by LZMA asks for a dictionary that fills the memory."""
    if one.compress_type != zipfile.ZIP_LZMA:
        return
    source.seek(one.header_offset + 26)
    name, extra = struct.unpack("<2H", source.read(4))
    source.seek(one.header_offset + 30 + name + extra)
    head = source.read(9)
    if len(head) < 9 or int.from_bytes(head[5:9], "little") > _LARGEST_DICTIONARY:
        raise Unverifiable(f"{one.filename[:80]} asks for a dictionary of {int.from_bytes(head[5:9], 'little')} bytes")
