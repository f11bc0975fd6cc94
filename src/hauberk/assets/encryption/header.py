"""The header of an encrypted file: which cipher, which chunks, and the data key wrapped for everyone who may open it.

    "HBKE" | version | cipher | log2 of the chunk size | 0 | file id (32)          40 bytes that never change
    length (4) | JSON: content, slots | checksum (8) | MAC (32)                    made again when keys are added or removed

The first 40 bytes enter the derivation of every key, so that a body opens under its own header alone. The checksum tells accident
from a wrong key before a key is asked for; the MAC, under a key that only the data key gives, tells alteration.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json
import math
import os
import struct
from typing import Any, BinaryIO

from hauberk.assets.encryption.derive import derive
from hauberk.assets.encryption.suites import BY_NUMBER, Suite
from hauberk.core.errors import ModelError, UnsafeFile, UsageError

MAGIC = b"HBKE"
VERSION = 1
LARGEST_HEADER = 256 << 10
MOST_SLOTS = 64
SMALLEST_CHUNK, LARGEST_CHUNK = 12, 24  # as powers of two: 4 KiB to 16 MiB
CONTENTS = ("torch", "safetensors", "onnx", "other")
_FIXED = struct.Struct(">4sBBBB32s")
_LENGTH = struct.Struct(">I")
_CHECK, _MAC = 8, 32
Slot = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Header:
    """What stands before the body.

    Arguments:
        suite: the cipher.
        power: log2 of the chunk size.
        file_id: 32 random bytes.
        content: torch, safetensors, onnx or other.
        slots: the data key, wrapped once for each who may open the file.
        mac: over all of it; empty before it is made.
    """

    suite: Suite
    power: int
    file_id: bytes
    content: str
    slots: tuple[Slot, ...]
    mac: bytes = b""

    @property
    def chunk(self) -> int:
        """Plaintext bytes of a whole chunk."""
        return 1 << self.power

    @property
    def fixed(self) -> bytes:
        """The 40 bytes that keys and chunks are bound to."""
        return _FIXED.pack(MAGIC, VERSION, self.suite.number, self.power, 0, self.file_id)

    @property
    def told(self) -> bytes:
        """All that the MAC covers."""
        text = json.dumps({"content": self.content, "slots": self.slots}, sort_keys=True, separators=(",", ":")).encode()
        if len(text) > LARGEST_HEADER or len(self.slots) > MOST_SLOTS:
            raise UsageError(
                f"{len(self.slots)} keys make a header of {len(text)} bytes",
                want=f"at most {MOST_SLOTS} keys in {LARGEST_HEADER} bytes", fix="Remove keys that are no longer used",
            )
        return self.fixed + _LENGTH.pack(len(text)) + text

    def packed(self, data_key: bytearray) -> bytes:
        """Return the header as it is written, with a MAC under the data key."""
        told = self.told
        return told + hashlib.sha256(told).digest()[:_CHECK] + _mac(data_key, self.fixed, told)

    def proves(self, data_key: bytearray) -> bool:
        """Return whether this header was made by someone who knows the data key, and not altered since."""
        return hmac.compare_digest(_mac(data_key, self.fixed, self.told), self.mac)


def new_header(suite: Suite, power: int, content: str) -> Header:
    """Return a header with a fresh file id and no slots. Raises UsageError for a chunk size that is not offered."""
    if not SMALLEST_CHUNK <= power <= LARGEST_CHUNK:
        raise UsageError(f"the chunk size is 2^{power} bytes", want=f"2^{SMALLEST_CHUNK} to 2^{LARGEST_CHUNK}")
    if content not in CONTENTS:
        raise UsageError(f"the content is '{content}'", want=f"one of {', '.join(CONTENTS)}")
    return Header(suite, power, os.urandom(32), content, ())


def power_of(chunk: int) -> int:
    """Return log2 of a chunk size. Raises UsageError where it is no power of two."""
    if chunk < 1 or chunk & (chunk - 1):
        raise UsageError(f"the chunk size is {chunk}", want="a power of two, such as 1048576")
    return int(math.log2(chunk))


def read_header(source: BinaryIO, name: str) -> tuple[Header, int]:
    """Read a header that a stranger may have made, and return it with its size in bytes.

    Arguments:
        source: stands at its beginning.
        name: for messages.

    Raises:
        ModelError: when it is no header, cut short, or damaged.
        UnsafeFile: when it asks for more than the limits.
    """
    start = source.read(_FIXED.size + _LENGTH.size)
    if len(start) < 4 or start[:4] != MAGIC:
        raise ModelError(f"{name} is not encrypted by hauberk", want="a file that hauberk encrypt wrote", fix="Use it as it is")
    if len(start) < _FIXED.size + _LENGTH.size:
        raise _damaged(name, "it is cut short")
    _, version, cipher, power, zero, file_id = _FIXED.unpack(start[: _FIXED.size])
    if version != VERSION:
        raise ModelError(f"{name} has version {version}", want=f"version {VERSION}", fix="Open it with a newer hauberk")
    size = _LENGTH.unpack(start[_FIXED.size :])[0]
    if size > LARGEST_HEADER:
        raise UnsafeFile(f"{name} has a header of {size} bytes", want=f"at most {LARGEST_HEADER}", fix="Have the file sent again")
    rest = source.read(size + _CHECK + _MAC)
    if len(rest) < size + _CHECK + _MAC:
        raise _damaged(name, "it is cut short")
    text, check, mac = rest[:size], rest[size : size + _CHECK], rest[size + _CHECK :]
    if hashlib.sha256(start + text).digest()[:_CHECK] != check:
        raise _damaged(name, "its checksum is wrong")
    if cipher not in BY_NUMBER or zero or not SMALLEST_CHUNK <= power <= LARGEST_CHUNK:
        raise _damaged(name, f"it names the cipher {cipher} and chunks of 2^{power} bytes")
    content, slots = _parsed(text, name)
    header = Header(BY_NUMBER[cipher], power, file_id, content, slots, mac)
    if _told(header) != start + text:
        raise _damaged(name, "it is not written in the one way that is allowed")
    return header, len(start) + len(rest)


def _told(header: Header) -> bytes:
    try:
        return header.told
    except (UsageError, RecursionError):  # within the limits as read, but not when written in the one allowed way
        return b""


def _parsed(text: bytes, name: str) -> tuple[str, tuple[Slot, ...]]:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, "it is no JSON") from error
    slots = held.get("slots") if isinstance(held, dict) else None
    if not isinstance(slots, list) or set(held) != {"content", "slots"} or held["content"] not in CONTENTS:
        raise _damaged(name, "it lacks content or slots")
    if not 1 <= len(slots) <= MOST_SLOTS:
        raise UnsafeFile(f"{name} names {len(slots)} keys", want=f"1 to {MOST_SLOTS}", fix="Have the file sent again")
    if not all(isinstance(slot, dict) and isinstance(slot.get("kind"), str) for slot in slots):
        raise _damaged(name, "a key in it has no kind")
    return held["content"], tuple(slots)


def encoded(value: bytes | bytearray | memoryview) -> str:
    """Return bytes as text for a slot."""
    return base64.b64encode(value).decode()


def field(slot: Slot, key: str, size: int | None = None, most: int = 16 << 10) -> bytes:
    """Return the bytes of a slot's field.

    Raises:
        ModelError: when it is missing, no base64, or not of that size.
    """
    value = slot.get(key)
    try:
        found = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        found = None
    if found is None or len(found) > most or (size is not None and len(found) != size):
        raise ModelError(
            f"the header's {slot['kind']} key has a wrong '{key}'", want=f"{size or 'some'} bytes in base64",
            fix="The file is damaged or was altered: copy it again",
        )
    return found


def count(slot: Slot, key: str, least: int, most: int) -> int:
    """Return a whole number of a slot. Raises UnsafeFile beyond the limits: no header may ask for a machine's whole memory."""
    value = slot.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UnsafeFile(
            f"the header asks for {key} = {str(value)[:40]}", want=f"{least} to {most}", fix="Have the file encrypted again",
        )
    return value


def _mac(data_key: bytearray, fixed: bytes, told: bytes) -> bytes:
    key = derive(data_key, _MAC, salt=fixed, purpose=b"hauberk header 1")
    try:
        return hmac.digest(key, told, "sha256")
    finally:
        key[:] = bytes(len(key))


def _damaged(name: str, what: str) -> ModelError:
    return ModelError(
        f"the header of {name} is damaged: {what}", want="a whole header", fix="Copy the file again from where it came"
    )
