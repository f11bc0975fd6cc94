"""The bones of a zip archive: directory, end records and headers, walked by our own eyes before any member is read.

Readers disagree on damaged archives, and what one reader sees another may not. So the end records must agree with the directory,
the two headers of each member with each other, the members must tile the file, and the archive must end where the file ends.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hauberk.core.errors import UnsafeFile

_LOCAL, _CENTRAL = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L")
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_NAME = 0x7075  # an extra field that gives a member a second name


def check_bones(source: BinaryIO, archive: zipfile.ZipFile, *, one_case: bool = False) -> None:
    """Return only when every reader sees the same members in an archive.

    Arguments:
        source: the bytes of the archive.
        archive: the same, opened by the standard library.
        one_case: names that differ in case alone are one name, as for torch's reader.

    Raises:
        UnsafeFile: naming what two readers could see differently.
    """
    members = archive.infolist()
    names = [one.filename.casefold() if one_case else one.filename for one in members]
    if len(set(names)) != len(names):
        raise _refusal("two members have one name")
    start = _directory(source, archive, members)
    place = 0
    for one in sorted(members, key=lambda member: member.header_offset):
        if ".." in one.filename.split("/") or one.filename.startswith("/") or "\\" in one.filename or "\0" in one.orig_filename:
            raise _refusal(f"a member is named {one.filename[:80]!r}")
        if one.header_offset != place:
            raise _refusal(f"{one.header_offset - place} bytes before member {one.filename[:80]!r} belong to no member")
        place = _member_ends(source, one)
    if start - place > 0 and not _only_padding(source, place, start):
        raise _refusal(f"{start - place} bytes behind the last member belong to none")
    if start < place:
        raise _refusal("members reach into the directory")


def check_file_bones(path: Path) -> None:
    """Return only when every reader sees the same members in the archive at `path`, names in one case as torch takes them.

    Raises:
        UnsafeFile: naming what two readers could see differently.
    """
    try:
        with path.open("rb") as source, zipfile.ZipFile(source) as archive:
            check_bones(source, archive, one_case=True)
    except UnsafeFile as error:
        raise UnsafeFile(f"{path} reads in two ways: {error.problem}", want=error.want, fix=error.fix) from error


def _directory(source: BinaryIO, archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo]) -> int:
    """Compare the end records with the directory, entry by entry, and return where it starts."""
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - _END.size - 65_535))
    tail = source.read()
    place = size - len(tail) + tail.rfind(b"PK\x05\x06")
    end = _read(source, place, _END)
    if end is None or end[0] != b"PK\x05\x06" or place + _END.size + end[7] != size or end[7] != len(archive.comment):
        raise _refusal("the archive does not end where the file ends")
    start = archive.start_dir
    directory_ends = _walk(source, start, members)
    true = (0, 0, len(members), len(members), directory_ends - start, start)
    after = directory_ends
    if after != place:
        # Readers look for this record at the place the locator names, or right before the locator: both must be one.
        large, locator = _read(source, after, _END64), _read(source, after + _END64.size, _LOCATOR)
        if large is None or locator is None or large[0] != b"PK\x06\x06" or large[1] != _END64.size - 12:
            raise _refusal(f"{place - after} bytes behind the directory belong to no record")
        if locator != (b"PK\x06\x07", 0, after, 1) or large[4:] != true or after + _END64.size + _LOCATOR.size != place:
            raise _refusal("the 64-bit end record is not where it is said to be, or describes another directory")
    limits = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    for index, (told, really, most) in enumerate(zip(end[1:7], true, limits, strict=True)):
        if told != really and not (index > 1 and told == most and after != place):
            raise _refusal("the end record does not describe the directory")
    return start


def _walk(source: BinaryIO, start: int, members: Sequence[zipfile.ZipInfo]) -> int:
    """Walk the directory and return where it ends."""
    place = start
    for one in members:
        entry = _read(source, place, _CENTRAL)
        if entry is None or entry[0] != b"PK\x01\x02":
            raise _refusal(f"the directory lacks the entry of member {one.filename[:80]!r}")
        name, extra, comment = entry[10:13]
        if len(source.read(name)) != name or entry[13] not in (0, 0xFFFF):
            raise _refusal(f"the directory entry of member {one.filename[:80]!r} is cut off, or on another disk")
        kinds = _extras(source.read(extra))
        if kinds is None or _OTHER_NAME in kinds or kinds.count(1) > 1:
            raise _refusal(f"member {one.filename[:80]!r} has extra fields that readers disagree on")
        place += _CENTRAL.size + name + extra + comment
    return place


def _extras(raw: bytes) -> list[int] | None:
    kinds, place = [], 0
    while place + 4 <= len(raw):
        kind, size = struct.unpack_from("<2H", raw, place)
        kinds.append(kind)
        place += 4 + size
    return kinds if place == len(raw) else None


def _read(source: BinaryIO, place: int, form: struct.Struct) -> tuple[Any, ...] | None:
    if place < 0:
        return None
    source.seek(place)
    raw = source.read(form.size)
    return form.unpack(raw) if len(raw) == form.size else None


def _member_ends(source: BinaryIO, one: zipfile.ZipInfo) -> int:
    """Compare both headers of a member and return where it ends."""
    source.seek(one.header_offset)
    raw = source.read(_LOCAL.size)
    if len(raw) != _LOCAL.size:
        raise _refusal(f"member {one.filename[:80]!r} is cut off")
    magic, _, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _LOCAL.unpack(raw)
    name = source.read(name_length)
    known = {one.orig_filename.encode("utf-8"), one.orig_filename.encode("cp437", "replace")}
    if magic != b"PK\x03\x04" or name not in known or method != one.compress_type or (flags ^ one.flag_bits) & ~0x8:
        raise _refusal(f"the two headers of member {one.filename[:80]!r} disagree")
    if one.flag_bits & 0x2041:
        raise _refusal(f"member {one.filename[:80]!r} is encrypted")
    if method not in _METHODS:
        raise _refusal(f"member {one.filename[:80]!r} is packed by method {method}")
    described = bool(flags & 0x8)
    stated = (crc, packed, unpacked)
    true = (one.CRC, one.compress_size, one.file_size)
    # Sizes of 2^32 - 1 stand in a 64-bit extra field; those of 0 behind the data where a descriptor is announced.
    if any(a != b and not (described and a == 0) and a != 0xFFFFFFFF for a, b in zip(stated, true, strict=True)):
        raise _refusal(f"the two headers of member {one.filename[:80]!r} disagree on size or sum")
    if method == zipfile.ZIP_STORED and one.compress_size != one.file_size:
        raise _refusal(f"member {one.filename[:80]!r} is stored with two sizes")
    ends = one.header_offset + _LOCAL.size + name_length + extra_length + one.compress_size
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
    raise _refusal(f"member {one.filename[:80]!r} lacks the descriptor it announces")


def _only_padding(source: BinaryIO, start: int, end: int) -> bool:
    """Whether the bytes between members and directory are the padding of zeros that some writers leave."""
    if end - start > 4096:
        return False
    source.seek(start)
    return not any(source.read(end - start))


def _refusal(problem: str) -> UnsafeFile:
    return UnsafeFile(problem, want="an archive that every reader reads alike", fix="Have the file written again")
