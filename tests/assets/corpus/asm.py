"""An assembler of pickles: opcodes by hand, and plain values with calls that no library here could make."""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import zipfile
import zlib
from typing import Any

COMMAND = "true"


def short(text: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def name(module: str, attribute: str) -> bytes:
    """Pushes a name through STACK_GLOBAL."""
    return short(module) + short(attribute) + b"\x93"


def old_name(module: str, attribute: str) -> bytes:
    """Pushes a name through GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def four(body: bytes) -> bytes:
    """A whole pickle of protocol 4."""
    return b"\x80\x04" + body + b"."


def call(module: str, attribute: str, *args: str) -> bytes:
    """A whole pickle that calls a name with texts."""
    return four(name(module, attribute) + b"(" + b"".join(short(one) for one in args) + b"tR")


EVIL = call("os", "system", COMMAND)
OLD = b"cos\nsystem\n(S'true'\ntR."
BENIGN = pickle.dumps({"a": 1}, 2)


@dataclasses.dataclass(frozen=True)
class Ref:
    """A name to import."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a name, and what the result is filled with."""

    ref: Any
    args: tuple[Any, ...] = ()
    state: Any = None
    new: bool = False


def encode(value: Any) -> bytes:
    """Return the opcodes that push a value."""
    if isinstance(value, Ref):
        return name(value.module, value.name)
    if isinstance(value, Call):
        made = encode(value.ref) + encode(value.args) + (b"\x81" if value.new else b"R")
        return made + (encode(value.state) + b"b" if value.state is not None else b"")
    if isinstance(value, tuple):
        return b"(" + b"".join(encode(one) for one in value) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(encode(one) for one in value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(encode(key) + encode(one) for key, one in value.items()) + b"u"
    return pickle.dumps(value, 3)[2:-1]  # constants and bytes: their opcodes without header and STOP


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for one, content in members.items() if isinstance(members, dict) else members:
            info = zipfile.ZipInfo(one)
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def torch_zip(pickled: bytes, **more: bytes) -> bytes:
    """A torch archive around a pickle."""
    return zipped({"archive/data.pkl": pickled, "archive/byteorder": b"little", "archive/version": b"3\n",
        "archive/data/0": bytes(8),
                   **{f"archive/{key}": content for key, content in more.items()}})


def patched(content: bytes, place: int, new: bytes) -> bytes:
    """Bytes with some replaced."""
    return content[:place] + new + content[place + len(new) :]


def protobuf(number: int, content: bytes | int) -> bytes:
    """One field of a message."""
    if isinstance(content, int):
        return bytes([number << 3]) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number of protobuf."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def gguf(keys: dict[str, str], version: int = 3) -> bytes:
    """A GGUF file with texts in its metadata and one tensor."""
    def text(one: str) -> bytes:
        return struct.pack("<Q", len(one.encode())) + one.encode()

    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(keys))
    head += b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in keys.items())
    head += text("w") + struct.pack("<IQIQ", 1, 4, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(16)


def hdf5(attributes: dict[str, str], *, links: bytes = b"", more: bytes = b"") -> bytes:
    """An HDF5 file of version 2 whose root group has texts as attributes, and further messages."""
    def message(kind: int, body: bytes) -> bytes:
        return struct.pack("<BHB", kind, len(body), 0) + body

    body = links + more
    for key, value in attributes.items():
        raw, label = value.encode(), key.encode() + b"\0"
        kind = b"\x13\x00\x00\x00" + struct.pack("<I", max(len(raw), 1))
        space = b"\x02\x00\x00\x00"
        head = struct.pack("<BBHHHB", 3, 0, len(label), len(kind), len(space), 0)
        body += message(0xC, head + label + kind + space + (raw or b"\0"))
    header = b"OHDR\x02\x02" + struct.pack("<I", len(body)) + body + bytes(4)
    end = 48 + len(header)
    return b"\x89HDF\r\n\x1a\n\x02\x08\x08\x00" + struct.pack("<4Q", 0, 2**64 - 1, end, 48) + bytes(4) + header


def crc(content: bytes) -> int:
    """The sum that zip keeps."""
    return zlib.crc32(content)


def hdf5_old(attributes: dict[str, str], child: bytes = b"") -> bytes:
    """An HDF5 file as h5py writes it by default: version 0, texts in a global heap, one object in a symbol table.

    Arguments:
        attributes: of the root group.
        child: messages of the object in it.
    """
    heap, texts, root = b"", {}, 96
    for index, (key, value) in enumerate(attributes.items(), 1):
        raw = value.encode()
        heap += struct.pack("<HHIQ", index, 1, 0, len(raw)) + raw + bytes(-len(raw) % 8)
        texts[key] = (len(raw), index)
    room = max(4096 - 32 - len(heap), 0)  # the library reads no smaller heap; what is left of it is object 0
    heap += struct.pack("<HHIQ", 0, 0, 0, 16 + room) + bytes(room)
    heap = b"GCOL\x01\x00\x00\x00" + struct.pack("<Q", 16 + len(heap)) + heap

    def message(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 8)
        return struct.pack("<HHB3x", kind, len(body), 0) + body

    def header(body: bytes, count: int) -> bytes:
        return struct.pack("<BxHII4x", 1, count, 1, len(body)) + body

    sizes = sum(8 + 8 + -(-(len(key) + 1) // 8) * 8 + 24 + 8 + 16 for key in texts)
    tree = root + 16 + 24 + sizes
    node, names = tree + 48, tree + 48 + 48
    one = names + 32 + 16
    other = header(child, 1)
    place = one + len(other)
    body = message(0x11, struct.pack("<2Q", tree, names))
    for key, (length, index) in texts.items():
        label = key.encode() + b"\0"
        kind = b"\x19\x01\x01\x00" + struct.pack("<I", 16) + b"\x10\x00\x00\x00\x01\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00"
        part = struct.pack("<BxHHH", 1, len(label), 20, 8) + label + bytes(-len(label) % 8) + kind[:20].ljust(24, b"\0")
        body += message(0xC, part + b"\x01\x00\x00\x00\x00\x00\x00\x00" + struct.pack("<IQI", length, place, index))
    nowhere = 2**64 - 1
    head = b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08\x00" + struct.pack("<HHI", 4, 16, 0)
    head += struct.pack("<4Q", 0, nowhere, place + len(heap), nowhere) + struct.pack("<QQII2Q", 0, root, 1, 0, tree, names)
    made = head + header(body, 1 + len(texts)) + b"TREE" + struct.pack("<BBH2Q3Q", 0, 0, 1, nowhere, nowhere, 0, node, 8)
    made += b"SNOD\x01\x00" + struct.pack("<HQQII16x", 1, 8, one, 0, 0)
    made += b"HEAP" + struct.pack("<B3x3Q", 0, 16, 1, names + 32) + bytes(8) + b"child\0\0\0"
    return made + other + heap
