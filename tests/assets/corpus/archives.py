"""Zip and tar archives that two readers read in two ways, or that hide what they hold."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np

from corpus.asm import BENIGN, EVIL, OLD, crc, patched, torch_zip, zipped
from corpus.streams import tarred

GOOD = torch_zip(BENIGN)
LOCAL, CENTRAL, END = GOOD.index(b"PK\x03\x04"), GOOD.index(b"PK\x01\x02"), GOOD.rindex(b"PK\x05\x06")


def local(member: str, content: bytes, *, flags: int = 0, size: int | None = None) -> bytes:
    """A member with its own header."""
    length = len(content) if size is None else size
    head = (b"PK\x03\x04", 20, flags, 0, 0, 33, crc(content), length, length, len(member), 0)
    return struct.pack("<4s5H3L2H", *head) + member.encode() + content


def central(member: str, content: bytes, place: int, *, flags: int = 0) -> bytes:
    """An entry of the directory."""
    size = len(content)
    entry = (b"PK\x01\x02", 20, 0, 20, 0, flags, 0, 0, 33, crc(content), size, size, len(member), 0, 0, 0, 0, 0, place)
    return struct.pack("<4s4B4H3L5H2L", *entry) + member.encode()


def end(count: int, size: int, place: int) -> bytes:
    """The end record."""
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, place, 0)


def hand(*members: tuple[str, str, bytes]) -> bytes:
    """An archive by hand: members by the name in their own header, the name in the directory, and their content."""
    body, listed = b"", b""
    for inside, outside, content in members:
        listed += central(outside, content, len(body))
        body += local(inside, content)
    return body + listed + end(len(members), len(listed), len(body))


def npy(content: bytes = b"", descr: object = "<f8", shape: tuple[int, ...] = (1,)) -> bytes:
    """An npy file around any bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def _bomb(times: int) -> bytes:
    content = bytes(2**22)
    for _ in range(times):
        content = gzip.compress(content, 9, mtime=0)
    return content


def archives() -> dict[str, bytes]:
    """Return every archive by its name."""
    evil = torch_zip(EVIL)
    overlap = local("archive/data.pkl", BENIGN)
    overlapped = overlap + central("archive/data.pkl", BENIGN, 0) + central("b/data.pkl", BENIGN, 0)
    bomb = zipped({"x.npy": npy(bytes(2**22), shape=(2**19,))}, zipfile.ZIP_DEFLATED)
    made = {
        "plain.pt": evil, "old.pt": torch_zip(OLD), "second.pt": torch_zip(BENIGN + EVIL), "cut.pt": torch_zip(EVIL[:-1]),
        "deflated.pt": zipped({"archive/data.pkl": EVIL, "archive/version": b"3\n"}, zipfile.ZIP_DEFLATED),
        "bzip2.pt": zipped({"archive/data.pkl": EVIL}, zipfile.ZIP_BZIP2),
        "lzma.pt": zipped({"archive/data.pkl": EVIL}, zipfile.ZIP_LZMA),
        "beside.pt": torch_zip(BENIGN, **{"extra.pkl": EVIL}), "hidden.pt": torch_zip(BENIGN, **{"extra.p": EVIL}),
        "no-ending.pt": torch_zip(BENIGN, extra=EVIL), "as-storage.pt": torch_zip(BENIGN, **{"data/1": EVIL}),
        "as-old-storage.pt": torch_zip(BENIGN, **{"data/1": OLD}), "as-version.pt": torch_zip(BENIGN, **{".format_version": OLD}),
        "constants.pt": torch_zip(BENIGN, **{"constants.pkl": EVIL}), "as-text.zip": zipped({"readme.txt": OLD}),
        "as-constant.pt": torch_zip(BENIGN, **{"constants/0": EVIL}),
        "debug.pt": torch_zip(BENIGN, **{"code/a.py.debug_pkl": EVIL}),
        "bad-sum.pt": patched(evil, CENTRAL + 16, bytes(4)), "bad-sum-inside.pt": patched(evil, LOCAL + 14, bytes(4)),
        "encrypted.pt": patched(evil, evil.index(b"PK\x01\x02") + 8, b"\x01\x00"),
        "encrypted-inside.pt": patched(evil, LOCAL + 6, b"\x01\x00"),
        "other-name.pt": hand(("archive/evil.pkl", "archive/data.pkl", EVIL)),
        "other-name-benign.pt": patched(GOOD, LOCAL + 30, b"b"),
        "name-of-directory.pt": hand(("archive/data.pkl", "archive/data.txt", EVIL)),
        "method.pt": patched(GOOD, LOCAL + 8, b"\x08\x00"),
        "unknown-method.pt": patched(patched(GOOD, LOCAL + 8, b"\x63\x00"), CENTRAL + 10, b"\x63\x00"),
        "prefix.pt": bytes(16) + GOOD, "pickle-prefix.pt": EVIL + GOOD, "benign-prefix.pt": BENIGN + GOOD,
        "suffix.pt": GOOD + b"x",
        "pickle-suffix.pt": GOOD + EVIL, "cut-off.pt": GOOD[:-10], "no-directory.pt": GOOD[:CENTRAL], "only-end.pt": end(0, 0, 0),
        "comment.pt": patched(GOOD, len(GOOD) - 2, struct.pack("<H", len(EVIL))) + EVIL,
        "between.pt": GOOD[:CENTRAL] + EVIL + GOOD[CENTRAL:END] + patched(GOOD[END:], 16, struct.pack("<L", CENTRAL + len(EVIL))),
        "twice.pt": hand(("archive/data.pkl", "archive/data.pkl", BENIGN), ("archive/data.pkl", "archive/data.pkl", EVIL)),
        "case.pt": hand(("archive/data.pkl", "archive/data.pkl", BENIGN), ("archive/DATA.pkl", "archive/DATA.pkl", EVIL)),
        "overlap.pt": overlapped + end(2, len(overlapped) - len(overlap), len(overlap)), "concatenated.pt": GOOD + evil,
        "concatenated-back.pt": evil + GOOD, "two-tops.pt": zipped({"a/data.pkl": BENIGN, "b/data.pkl": EVIL}),
        "descriptor.pt": patched(GOOD, LOCAL + 6, b"\x08\x00"), "count.pt": patched(GOOD, END + 8, b"\x01\x00\x01\x00"),
        "large-count.pt": patched(GOOD, END + 8, b"\xff\xff\xff\xff"), "offset.pt": patched(GOOD, END + 16, b"\xff\xff\xff\xff"),
        "size.pt": patched(GOOD, CENTRAL + 24, b"\xff\xff\xff\x7f"), "disk.pt": patched(GOOD, END + 4, b"\x01\x00"),
        "zip64.pt": patched(GOOD, CENTRAL + 20, b"\xff" * 8), "traversal.zip": zipped({"../../x.npy": npy(bytes(8))}),
        "absolute.zip": zipped({"/etc/x.npy": npy(bytes(8))}), "backslash.zip": zipped({"..\\x.npy": npy(bytes(8))}),
        "folder.zip": hand(("evil/", "evil/", EVIL)), "empty.zip": zipped({}),
        "nested.zip": zipped({"a.zip": zipped({"m.pt": evil})}),
        "gz-in-zip.zip": zipped({"m.pkl.gz": gzip.compress(EVIL, mtime=0)}), "zip-in-gz.gz": gzip.compress(evil, mtime=0),
        "bomb.npz": bomb, "bomb.gz": _bomb(1), "bombs.gz": _bomb(5),
        "lzma-dictionary.lzma": b"]\x00\x00\xff\xff" + b"\xff" * 8 + b"\x00" * 16,
        "xz-dictionary.xz": b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F\x02\x00!\x01\x28\x00\x00\x00" + bytes(16),
        "deep.zip": zipped({"a.zip": zipped({"b.zip": zipped({"c.zip": zipped({"d.zip": zipped({"e.pt": GOOD})})})})}),
        "seven.7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24), "rar.rar": b"Rar!\x1a\x07\x01\x00" + bytes(8),
        "zstd.zst": b"\x28\xb5\x2f\xfd" + bytes(8), "lz4.joblib": b"\x04\x22\x4d\x18\x64\x40\xa7" + bytes(8),
        "member.tar": tarred({"model.pkl": EVIL}), "second.tar": tarred({"a.pkl": BENIGN, "b/c.pt": evil}),
        "traversal.tar": tarred({"../a.npy": npy(bytes(8))}), "absolute.tar": tarred({"/a.npy": npy(bytes(8))}),
        "link.tar": tarred({}, links={"a.pt": (tarfile.SYMTYPE, "/etc/passwd")}),
        "up.tar": tarred({}, links={"a": (tarfile.SYMTYPE, "../..")}),
        "hard.tar": tarred({}, links={"a.pt": (tarfile.LNKTYPE, "../secret")}),
        "device.tar": tarred({}, links={"a": (tarfile.CHRTYPE, "")}),
        "inside-link.tar": tarred({"m.npy": npy(bytes(8))}, links={"a": (tarfile.SYMTYPE, "m.npy")}),
        "long-name.tar": tarred({"d/" * 80 + "m.pkl": EVIL}),
        "pax.tar": tarred({"d/" * 80 + "m.pkl": EVIL}, form=tarfile.PAX_FORMAT),
        "pax-traversal.tar": tarred({"../" * 50 + "m.npy": npy(bytes(8))}, form=tarfile.PAX_FORMAT),
        "cut.tar": tarred({"m.npy": npy(bytes(8))})[:600], "tail.tar": tarred({"m.npy": npy(bytes(8))}) + EVIL,
        "tar.gz": gzip.compress(tarred({"model.pkl": EVIL}), mtime=0), "gz-tail.gz": gzip.compress(BENIGN, mtime=0) + EVIL,
        "two.gz": gzip.compress(BENIGN, mtime=0) + gzip.compress(EVIL, mtime=0),
        "cut.gz": gzip.compress(EVIL * 20, mtime=0)[:-12],
    }
    return made
