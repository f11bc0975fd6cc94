"""ZIP archives: torch files, TorchScript, exported programs, npz, skops. Walked by our own eyes before any member is read.

Readers disagree on damaged archives, and what one reader sees another may not. So the two headers of each member must agree, the
members must tile the file, and the archive must end where the file ends; else it cannot be verified.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

from hauberk.assets.scan import manifests
from hauberk.assets.scan.scanner import HEAD, Scan, file_format
from hauberk.assets.scan.verdict import Level, Unverifiable

LOCAL, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s4H2LH")
# Raw tensor data and the small text files that torch writes beside it: read by their place, never unpickled.
_NOTES = r"[^/]+/(version|byteorder|\.data/\w+|\.format_version|\.storage_alignment|archive_format|archive_version)"
_TORCH_RAW = re.compile(_NOTES + r"|[^/]+/data/\w+")
_EXPORTED_RAW = re.compile(_NOTES)
_CODE = re.compile(r"[^/]+/code/.*")


@file_format("zip", lambda head, size: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), carries_code=True)
def scan_zip(scan: Scan, source: BinaryIO, where: str) -> None:
    """Check the archive's bones, then scan each member that a loader would interpret."""
    size = source.seek(0, io.SEEK_END)
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        if len(members) > scan.limits.members:
            raise Unverifiable(f"{len(members)} members")
        _check_bones(source, size, archive, members)
        names = [one.filename for one in members]
        torch_file = any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names)
        exported = any(re.fullmatch(r"[^/]+/(models/[^/]+\.json|serialized_exported_program\.json)", name) for name in names)
        raw = _raw_weights(archive, members, scan) if exported else set()
        for one in members:
            scan.meter.clock()
            place = f"{where}:{one.filename}" if where else one.filename
            if one.is_dir():
                continue
            if _CODE.fullmatch(one.filename) and torch_file:
                scan.issue(Level.UNKNOWN, place, "holds TorchScript code, which runs when the model is loaded and called")
            elif (
                one.filename in raw or (torch_file and _TORCH_RAW.fullmatch(one.filename))
                or (exported and _EXPORTED_RAW.fullmatch(one.filename))
            ):
                continue
            else:
                _member(scan, archive, one, place)


def _raw_weights(archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], scan: Scan) -> set[str]:
    """Return the members that an exported program reads as plain numbers: its configuration says which are pickled instead."""
    found = set()
    for one in members:
        if not re.fullmatch(r"[^/]+/data/(weights|constants)/[^/]+_config\.json", one.filename):
            continue
        if one.file_size > scan.limits.header:
            raise Unverifiable(f"{one.filename} has {one.file_size} bytes of JSON")
        config = json.loads(archive.read(one))["config"]
        folder = one.filename.rpartition("/")[0]
        names = [entry["path_name"] for entry in config.values() if entry["use_pickle"] is False]
        found |= {f"{folder}/{name}" for name in names if re.fullmatch(r"(weight|tensor)_\d+", name)}
    return found


def _member(scan: Scan, archive: zipfile.ZipFile, one: zipfile.ZipInfo, place: str) -> None:
    scan.result.parts += 1
    # Reading to the end also checks the sum: a member that fails it reads differently elsewhere.
    with archive.open(one) as packed, tempfile.SpooledTemporaryFile(max_size=2**26) as whole:
        unpacked = 0
        while part := packed.read(2**18):
            unpacked += len(part)
            scan.meter.spend(len(part))
            if unpacked > 2**20 and unpacked > scan.limits.ratio * max(one.compress_size, 1):
                raise Unverifiable(f"{place} unpacks to more than {scan.limits.ratio} times its size")
            whole.write(part)
        whole.seek(0)
        head = whole.read(HEAD)
        whole.seek(0)
        if one.filename.endswith(".json"):
            if unpacked > scan.limits.header:
                raise Unverifiable(f"{place} has {unpacked} bytes of JSON")
            manifests.scan_json(scan, one.filename, json.loads(whole.read()), place)
        elif _plain_text(head) and one.filename.endswith((".txt", ".md", "/version", "/byteorder")):
            return
        elif head:
            inner: BinaryIO = whole  # type: ignore[assignment]
            scan.part(inner, place)


def _plain_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head)


def _check_bones(source: BinaryIO, size: int, archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise Unverifiable where two readers could see two archives."""
    names = [one.filename for one in members]
    if len(set(names)) != len(names):
        raise Unverifiable("two members have one name")
    source.seek(max(0, size - END.size - len(archive.comment)))
    end = source.read(END.size)
    if len(end) != END.size or not end.startswith(b"PK\x05\x06"):
        raise Unverifiable("the archive does not end where the file ends")
    place = 0
    for one in sorted(members, key=lambda member: member.header_offset):
        if ".." in one.filename.split("/") or one.filename.startswith("/") or "\\" in one.filename or "\0" in one.orig_filename:
            raise Unverifiable(f"a member is named {one.filename[:80]!r}")
        if one.header_offset != place:
            raise Unverifiable(f"{one.header_offset - place} bytes before member {one.filename[:80]!r} belong to no member")
        place = _check_member(source, one)
    if archive.start_dir - place > 0 and not _only_padding(source, place, archive.start_dir):
        raise Unverifiable(f"{archive.start_dir - place} bytes behind the last member belong to none")
    if archive.start_dir < place:
        raise Unverifiable("members reach into the directory")


def _check_member(source: BinaryIO, one: zipfile.ZipInfo) -> int:
    """Compare both headers of a member and return where it ends."""
    source.seek(one.header_offset)
    raw = source.read(LOCAL.size)
    if len(raw) != LOCAL.size:
        raise Unverifiable(f"member {one.filename[:80]!r} is cut off")
    magic, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = LOCAL.unpack(raw)
    name = source.read(name_length)
    known = {one.orig_filename.encode("utf-8"), one.orig_filename.encode("cp437", "replace")}
    if magic != b"PK\x03\x04" or name not in known or method != one.compress_type or (flags ^ one.flag_bits) & ~0x8:
        raise Unverifiable(f"the two headers of member {one.filename[:80]!r} disagree")
    if one.flag_bits & 0x2041:
        raise Unverifiable(f"member {one.filename[:80]!r} is encrypted")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        raise Unverifiable(f"member {one.filename[:80]!r} is packed by method {method}")
    described = bool(flags & 0x8)
    stated = (crc, packed, unpacked)
    true = (one.CRC, one.compress_size, one.file_size)
    # Sizes of 2^32 - 1 stand in a 64-bit extra field; those of 0 behind the data where a descriptor is announced.
    if any(a != b and not (described and a == 0) and a != 0xFFFFFFFF for a, b in zip(stated, true, strict=True)):
        raise Unverifiable(f"the two headers of member {one.filename[:80]!r} disagree on size or sum")
    if method == zipfile.ZIP_STORED and one.compress_size != one.file_size:
        raise Unverifiable(f"member {one.filename[:80]!r} is stored with two sizes")
    ends = one.header_offset + LOCAL.size + name_length + extra_length + one.compress_size
    if not described:
        return ends
    source.seek(ends)
    marked = source.read(4) == b"PK\x07\x08"
    # Some writers announce a descriptor, fill the header all the same, and write the descriptor too; widths differ with zip64.
    for width in (12, 20):
        source.seek(ends + 4 * marked)
        found = source.read(width)
        form = "<3L" if width == 12 else "<L2Q"
        if len(found) == width and struct.unpack(form, found) == true:
            return ends + 4 * marked + width
    raise Unverifiable(f"member {one.filename[:80]!r} lacks the descriptor it announces")


def _only_padding(source: BinaryIO, start: int, end: int) -> bool:
    """Whether the bytes between members and directory are the padding of zeros that some writers leave."""
    if end - start > 4096:
        return False
    source.seek(start)
    return not any(source.read(end - start))
