"""Tar archives, walked header by header: their members are scanned, their links and devices are never followed."""

from __future__ import annotations

import io
import tarfile
from pathlib import PurePosixPath
from typing import BinaryIO

from hauberk.assets.scan.polyglot import BLOCK, is_tar
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.values import Window
from hauberk.assets.scan.verdict import Level, Unverifiable

_LONGEST = 2**20
_FILES, _LINKS, _FOLDER = (tarfile.REGTYPE, tarfile.AREGTYPE), (tarfile.LNKTYPE, tarfile.SYMTYPE), tarfile.DIRTYPE


@file_format("tar", lambda head, size: head[257:262] == b"ustar" and is_tar(head), carries_code=True, rank=1)
def scan_tar(scan: Scan, source: BinaryIO, where: str) -> None:
    """Walk the archive to its end and scan every member."""
    size = source.seek(0, io.SEEK_END)
    place = members = 0
    extra: dict[str, str] = {}
    while place < size:
        source.seek(place)
        block = source.read(BLOCK)
        if not block.strip(b"\0"):
            _only_zeros(source)
            return
        scan.meter.clock()
        members += 1
        if members > scan.limits.members:
            raise Unverifiable(f"more than {scan.limits.members} members")
        one = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        begin = place + BLOCK
        if one.size < 0 or begin + one.size > size:
            raise Unverifiable(f"member {one.name[:80]!r} is cut off")
        place = begin + -(-one.size // BLOCK) * BLOCK
        if one.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE):
            extra |= _long(source, begin, one)
            continue
        _member(scan, source, one, begin, extra, where)
        extra = {}
    raise Unverifiable("the archive has no end")


def _long(source: BinaryIO, begin: int, one: tarfile.TarInfo) -> dict[str, str]:
    """Return what a header in front of a member says of it: its name or its link, where they are long."""
    if one.size > _LONGEST:
        raise Unverifiable(f"a header of {one.size} bytes")
    source.seek(begin)
    raw = source.read(one.size)
    text = raw.decode("utf-8", "surrogateescape")
    if one.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": text.rstrip("\0")}
    if one.type == tarfile.GNUTYPE_LONGLINK:
        return {"linkpath": text.rstrip("\0")}
    found: dict[str, str] = {}
    place = 0
    while place < len(raw):
        # A record is its own length, a blank, and key=value: in bytes, and the place alone moves on.
        digits = raw[place : place + 8].partition(b" ")[0]
        if not digits.isdigit() or not len(digits) < int(digits) <= len(raw) - place:
            raise Unverifiable("an extended header that cannot be read")
        line = raw[place + len(digits) + 1 : place + int(digits)].decode("utf-8", "surrogateescape")
        place += int(digits)
        key, _, value = line.rstrip("\n").partition("=")
        if key not in ("path", "linkpath", "mtime", "atime", "ctime", "uname", "gname", "uid", "gid", "comment"):
            raise Unverifiable(f"an extended header sets {key[:40]!r}")
        found[key] = value
    return found


def _member(scan: Scan, source: BinaryIO, one: tarfile.TarInfo, begin: int, extra: dict[str, str], where: str) -> None:
    name, link = extra.get("path", one.name), extra.get("linkpath", one.linkname)
    place = f"{where}:{name[:200]}" if where else name[:200]
    if _leaves(name):
        scan.issue(Level.DANGEROUS, place, "a member would be written outside the folder")
    if one.type in _LINKS:
        target = str(PurePosixPath(name).parent / link) if one.type == tarfile.SYMTYPE else link
        outside = link.startswith("/") or _leaves(target)
        scan.issue(Level.DANGEROUS if outside else Level.UNVERIFIABLE, place,
                   f"a member is a link to {link[:120]!r}{', outside the folder' if outside else ', which was not followed'}")
    elif one.type in _FILES:
        if one.size:
            scan.part(io.BufferedReader(Window(source, begin, one.size)), place, PurePosixPath(name).suffix.lower())
    elif one.type != _FOLDER:
        scan.issue(Level.UNVERIFIABLE, place, f"a member of kind {one.type!r} is no file")


def _leaves(name: str) -> bool:
    """Whether a path climbs out of the folder it is put in, at any point."""
    depth = 0
    for part in name.replace("\\", "/").split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return True
    return name.startswith(("/", "\\")) or "\0" in name


def _only_zeros(source: BinaryIO) -> None:
    while part := source.read(2**20):
        if part.strip(b"\0"):
            raise Unverifiable("bytes follow the end of the archive")
