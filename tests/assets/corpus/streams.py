"""What stands around a pickle: more pickles, junk, missing ends, lengths that lie, memory that grows, other formats on top."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

from corpus.asm import BENIGN, EVIL, OLD, four, name, short

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def tarred(members: dict[str, bytes], *, links: dict[str, tuple[bytes, str]] | None = None,
    form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive of members, and of links by (type, target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for one, content in members.items():
            entry = tarfile.TarInfo(one)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for one, (kind, target) in (links or {}).items():
            entry = tarfile.TarInfo(one)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    return buffer.getvalue()


def _tar_and_pickle() -> bytes:
    """A pickle of one bytes constant that torch opens as a tar archive."""
    rest = tarred({"pickle": EVIL}, form=tarfile.USTAR_FORMAT)
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    head[:9] = b"B" + struct.pack("<I", 512 + len(rest) - 5) + b"xxxx"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + rest + b"."


def streams() -> dict[str, bytes]:
    """Return every stream by its name."""
    long = b"\x8e" + struct.pack("<Q", 2**60) + b"abc"
    doubled = b"]" + b"2\x86" * 60
    made = {
        "second": BENIGN + EVIL, "second-old": BENIGN + OLD, "third": BENIGN + BENIGN + EVIL, "first": EVIL + BENIGN,
        "cut-after-call": EVIL[:-1], "cut-old": OLD[:-1], "cut-in-name": OLD[:7], "junk-behind": EVIL + b"\xff\xff",
        "zeros-behind": EVIL + bytes(64), "junk-behind-benign": BENIGN + b"\xff", "junk-before": b"\xff" + EVIL,
        "newline-before": b"\n" + OLD, "proto-in-the-middle": b"\x80\x02N0\x80\x04" + EVIL[2:], "proto-twice": b"\x80\x04" + EVIL,
        "proto-changes": b"\x80\x02\x80\x05\x80\x00" + EVIL[2:], "proto-9": b"\x80\x09" + EVIL[2:],
        "stop-in-frame": b"\x80\x04\x95" + struct.pack("<Q", 4) + b"N." + EVIL[2:], "call-then-bad": EVIL[:-1] + b"\xfe.",
        "call-then-underflow": EVIL[:-1] + b"000.", "call-then-long": EVIL[:-1] + long, "call-then-memo": EVIL[:-1] + b"h\x63.",
        "length-60": b"\x80\x04" + long, "length-4": b"\x80\x04B\xff\xff\xff\x7fabc.", "long-4": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "negative-long": b"\x80\x02\x8b\xff\xff\xff\xff.", "memo-huge": b"\x80\x02Nr\xff\xff\xff\xff.",
        "negative-memo": b"Np-1\n.",
        "memo-bomb": b"\x80\x04]\x94" + (b"(" + b"h\x00" * 10 + b"t\x94") * 40 + b"}" + b"h\x28Ns.",
        "key-bomb": four(b"}" + doubled + b"Ns"),
        "marks": b"\x80\x04" + b"(" * 600_000 + b".", "stack-bomb": b"\x80\x04" + b"}" * 600_000 + b".",
        "deep-tuple": four(b")" + b"\x85" * 99 + b"R"),
        "digits": b"I" + b"9" * 100_000 + b"\n.", "float": b"F1e9x\n.", "bad-string": b"S'abc\n.", "no-end": b"\x80\x04N",
        "empty": b"", "only-stop": b".", "only-proto": b"\x80\x04", "two-left": four(b"NN"), "mark-left": four(b"(N"),
        "fraction": four(name("fractions", "Fraction") + short("1e999999999") + b"\x85R"),
        "bytes-of-number": four(name("builtins", "bytes") + b"\x8a\x05\x00\x00\x00\x00\x10\x85R"),
        "legacy-in-the-end": MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + EVIL + b"\x80\x02].",
        "legacy-behind": MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + BENIGN + b"\x80\x02]." + EVIL,
        "legacy-version": MAGIC + EVIL + b"\x80\x02}." + BENIGN + b"\x80\x02].",
        "legacy-keys": MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + BENIGN + EVIL,
        "tar-on-top": _tar_and_pickle(), "comment": OLD.replace(b"cos", b"cos"),
        "text": b"This is no model.", "html": b"<html>", "null": bytes(100), "utf-16": "cos\nsystem\n".encode("utf-16"),
        "opcodes-without-end": b"\x80\x04" + b"N0" * 5000, "many": BENIGN * 3 + OLD * 3,
        "pickle-then-pickle-cut": BENIGN + EVIL[:-4],
        "out-of-band": pickle.dumps([1], 5)[:-1] + b"\x97\x98" + name("os", "system") + short("true") + b"\x85R\x86\x86.",
    }
    files = {f"{key}.pkl": content for key, content in made.items()}
    return files | {"legacy.pt": made["legacy-in-the-end"], "tar-on-top.pt": made["tar-on-top"], "as.safetensors": EVIL,
                    "as.npy": EVIL, "as.onnx": EVIL, "as.gguf": EVIL, "as.h5": EVIL, "as.json": EVIL, "as.keras": EVIL,
                    "as.txt": OLD,
                    "as.md": OLD, "as.bin": EVIL, "as.ckpt": EVIL, "as.pth": EVIL, "as.dat": EVIL, "without-ending": EVIL,
                    "as.npz": EVIL}
