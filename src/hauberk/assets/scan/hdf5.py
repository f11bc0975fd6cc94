"""HDF5, as Keras writes it: every object header is walked, so that no layer of code, foreign file or pickled attribute is missed.

A subset is read, and no more: what is written another way (dense attributes and links, shared messages, other widths) is not
followed, and could not be verified.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

from hauberk.assets.scan.keras import is_keras, scan_config
from hauberk.assets.scan.manifests import parsed
from hauberk.assets.scan.opcodes import imports
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Level, Unverifiable

MAGIC = b"\x89HDF\r\n\x1a\n"
_NOWHERE = 2**64 - 1
_LARGEST = 2**26
_LINK_INFO, _DATATYPE, _FILES, _LINK, _LAYOUT, _ATTRIBUTE, _MORE, _TABLE, _MANY = 0x2, 0x3, 0x7, 0x6, 0x8, 0xC, 0x10, 0x11, 0x15
Message = tuple[int, int, bytes]


@file_format("hdf5", lambda head, size: head.startswith(MAGIC), carries_code=True)
def scan_hdf5(scan: Scan, source: BinaryIO, where: str) -> None:
    """Walk from the root group to every object; judge links, layouts and attributes."""
    walk = _Walk(scan, source, where)
    left, seen = [walk.root()], set()
    while left:
        place = left.pop()
        if place in seen:
            continue
        seen.add(place)
        scan.meter.hold()
        left.extend(walk.object(place))


class _Walk:
    """One file being walked."""

    def __init__(self, scan: Scan, source: BinaryIO, where: str) -> None:
        self.scan, self.source, self.where = scan, source, where
        self.trees: set[int] = set()
        self.size = source.seek(0, io.SEEK_END)

    def read(self, place: int, length: int) -> bytes:
        if not 0 <= place <= self.size - length or length > _LARGEST:
            raise Unverifiable(f"{length} bytes at {place} are announced, the file has {self.size}")
        self.scan.meter.spend(length)
        self.source.seek(place)
        return self.source.read(length)

    def numbers(self, place: int, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.read(place, struct.calcsize(form)))

    def root(self) -> int:
        """Return the place of the root group's header."""
        version = self.read(8, 1)[0]
        if version in (0, 1):
            widths, start = self.read(13, 2), 24 + 4 * version
            base, _, end, driver = self.numbers(start, "<4Q")
            root = self.numbers(start + 40, "<Q")[0]
        elif version in (2, 3):
            widths = self.read(9, 2)
            base, driver, end, root = self.numbers(12, "<4Q")
        else:
            raise Unverifiable(f"HDF5 of version {version} is not known")
        if widths != b"\x08\x08" or base or driver != _NOWHERE:
            raise Unverifiable("an HDF5 file with other widths, another base or a driver")
        if end != self.size:
            raise Unverifiable(f"the HDF5 file ends at byte {end} by its head, and at {self.size}")
        return root

    def object(self, place: int) -> Iterator[int]:
        """Judge one object and yield the places of those in it."""
        for kind, flags, body in self.messages(place):
            self.scan.meter.step()
            if flags & 2 and kind not in (_DATATYPE, 0xB):
                raise Unverifiable(f"a shared message in the object at byte {place}")
            if kind == _TABLE:
                tree, _ = struct.unpack_from("<2Q", body)
                yield from self.tree(tree, 0)
            elif kind == _LINK:
                target = self.link(body, place)
                if target is not None:
                    yield target
            elif (kind == _LINK_INFO and _address(body, 10 if body[1] & 1 else 2) != _NOWHERE) or (
                kind == _MANY and _address(body, 4 if body[1] & 1 else 2) != _NOWHERE
            ):
                raise Unverifiable(f"the object at byte {place} keeps its links or attributes in a heap")
            elif kind == _FILES:
                self.scan.issue(Level.DANGEROUS, self.at(place), "its data lie in other files, which a reader would open")
            elif kind == _LAYOUT and len(body) > 1 and body[0] >= 3 and body[1] == 3:
                self.scan.issue(Level.DANGEROUS, self.at(place), "it is put together from other files, which a reader would open")
            elif kind == _ATTRIBUTE:
                self.attribute(body, place)

    def at(self, place: int) -> str:
        return f"{self.where}@{place}" if self.where else f"@{place}"

    def messages(self, place: int) -> Iterator[Message]:
        """Yield (kind, flags, body) of every message of an object header, in all its blocks."""
        if self.read(place, 4) == b"OHDR":
            version, flags = self.read(place + 4, 2)
            if version != 2:
                raise Unverifiable(f"an object header of version {version}")
            start = place + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            length = int.from_bytes(self.read(start, width), "little")
            blocks, head, order = [(start + width, length)], 4, 2 if flags & 4 else 0
        else:
            version, _, _, _, length = self.numbers(place, "<BBHII")
            if version != 1:
                raise Unverifiable(f"an object header of version {version} at byte {place}")
            blocks, head, order = [(place + 16, length)], 8, 0
        count = 0
        while blocks:
            start, length = blocks.pop()
            raw, at = self.read(start, length), 0
            while at + head + order <= len(raw):
                count += 1
                if count > 10_000:
                    raise Unverifiable("an object of more than 10000 messages")
                kind, size, flags = struct.unpack_from("<HHB" if head == 8 else "<BHB", raw, at)
                at += head + order
                if at + size > len(raw):
                    raise Unverifiable(f"a message leaves its block at byte {start + at}")
                body = raw[at : at + size]
                at += size
                if kind == _MORE:
                    more, length = struct.unpack_from("<2Q", body)
                    blocks.append((more, length) if head == 8 else self.chunk(more, length))
                elif kind:
                    yield kind, flags, body

    def chunk(self, place: int, length: int) -> tuple[int, int]:
        if length < 8 or self.read(place, 4) != b"OCHK":
            raise Unverifiable(f"an object goes on at byte {place}, where nothing of it is")
        return place + 4, length - 8

    def tree(self, place: int, depth: int) -> Iterator[int]:
        """Yield the places of the objects in an old group."""
        self.scan.meter.hold()
        if place in self.trees:
            raise Unverifiable(f"a group leads back to itself at byte {place}")
        self.trees.add(place)
        mark, kind, count = struct.unpack("<4sBxH", self.read(place, 8))
        if mark == b"TREE" and kind == 0 and depth < 8:
            for index in range(count):
                (child,) = self.numbers(place + 24 + 8 + 16 * index, "<Q")
                yield from self.tree(child, depth + 1)
        elif mark == b"SNOD":
            for index in range(count):
                _, header, cache = self.numbers(place + 8 + 40 * index, "<QQI")
                if cache != 2:  # 2 is a soft link: another name in the same file
                    yield header
        else:
            raise Unverifiable(f"a group cannot be followed at byte {place}")

    def link(self, body: bytes, place: int) -> int | None:
        if body[0] != 1:
            raise Unverifiable(f"a link of version {body[0]}")
        flags, at = body[1], 2
        kind = body[at] if flags & 8 else 0
        at += (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
        width = 1 << (flags & 3)
        at += width + int.from_bytes(body[at : at + width], "little")
        if kind == 0:
            return _address(body, at)
        if kind != 1:
            self.scan.issue(Level.DANGEROUS, self.at(place), "a link leads into another file, which a reader would open")
        return None

    def attribute(self, body: bytes, place: int) -> None:
        """Judge one attribute: a configuration of Keras, or a text that is a pickle."""
        version, flags, names, types, spaces = struct.unpack_from("<BBHHH", body)
        if version not in (1, 2, 3) or (version > 1 and flags):
            raise Unverifiable(f"an attribute of version {version}, or of a shared type, in the object at byte {place}")
        at, parts = 8 + (version == 3), []
        for length in (names, types, spaces):
            parts.append(body[at : at + length])
            at += -(-length // 8) * 8 if version == 1 else length
        name, kind, space, data = parts[0].rstrip(b"\0").decode("utf-8", "replace"), parts[1], parts[2], body[at:]
        if name.startswith("PYTABLES") or name == "PSEUDOATOM":
            self.scan.issue(Level.UNVERIFIABLE, self.at(place), "it is of PyTables, which unpickles attributes and object arrays")
        for value in self.texts(kind, _count(space), data):
            if imports(io.BytesIO(value)):
                self.scan.issue(Level.UNVERIFIABLE, self.at(place), f"the attribute {name[:80]!r} also opens as a pickle")
            if name in ("model_config", "training_config"):
                made = parsed(value)
                if name == "model_config" and not is_keras(made):
                    raise Unverifiable("its model_config is not one of Keras")
                scan_config(self.scan, made, f"{self.where}:{name}" if self.where else name)

    def texts(self, kind: bytes, count: int, data: bytes) -> Iterator[bytes]:
        """Yield the texts of an attribute, whatever way they are kept; numbers give none."""
        if len(kind) < 8:
            raise Unverifiable("an attribute without a type")
        form, size = kind[0] & 15, int.from_bytes(kind[4:8], "little")
        if form == 3:
            for index in range(min(count, len(data) // max(size, 1))):
                yield data[index * size : (index + 1) * size].rstrip(b"\0")
        elif form == 9:
            for index in range(count):
                length, heap, number = struct.unpack_from("<IQI", data, 16 * index)
                if length:
                    yield self.heap(heap, number)[:length]
        elif form in (6, 7, 10, 5):
            raise Unverifiable("an attribute of a compound, reference, array or opaque type")

    def heap(self, place: int, number: int) -> bytes:
        """Return an object of a global heap."""
        mark, size = struct.unpack("<4s4xQ", self.read(place, 16))
        if mark != b"GCOL":
            raise Unverifiable(f"a text is said to lie at byte {place}, where no heap is")
        at = 16
        while at + 16 <= size:
            self.scan.meter.step()
            index, length = struct.unpack("<H6xQ", self.read(place + at, 16))
            if index == number:
                return self.read(place + at + 16, length)
            if not index:
                break
            at += 16 + -(-length // 8) * 8
        raise Unverifiable(f"a text is missing from the heap at byte {place}")


def _address(body: bytes, at: int) -> int:
    if at + 8 > len(body):
        raise Unverifiable("a message is cut off")
    return int.from_bytes(body[at : at + 8], "little")


def _count(space: bytes) -> int:
    if len(space) < 4 or space[0] not in (1, 2):
        raise Unverifiable("an attribute without a shape")
    start = 8 if space[0] == 1 else 4
    if space[1] > 8 or len(space) < start + 8 * space[1]:
        raise Unverifiable("an attribute of a shape that cannot be read")
    count = math.prod(struct.unpack_from(f"<{space[1]}Q", space, start))
    if count > 1_000_000:
        raise Unverifiable(f"an attribute of {count} items")
    return count
