"""Keys that a file's data key is wrapped for: a raw key, a passphrase, a key service. And where keys are read from."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from hauberk.assets.encryption.derive import DATA_KEY, derive, wipe
from hauberk.assets.encryption.header import Slot, count, encoded, field
from hauberk.core.errors import UsageError

SHORTEST, LONGEST = 16, 64  # bytes of a raw key
MEMORY = 64 << 10  # KiB of Argon2id
MOST_MEMORY, MOST_ITERATIONS, MOST_LANES = 256 << 10, 8, 8  # beyond these a header is refused
_WRAPPED = DATA_KEY + 16
_LARGEST_SECRET_FILE = 64 << 10
_DIGITS = b"0123456789abcdefABCDEF"
Secret = bytes | bytearray | memoryview


@runtime_checkable
class Lock(Protocol):
    """Wraps a data key, so that one who holds the matching key can unwrap it."""

    def wrap(self, data_key: bytearray, bound: bytes) -> Slot:
        """Return the slot for the header; `bound` is the part of the header that never changes."""


@runtime_checkable
class Opener(Protocol):
    """Unwraps a data key."""

    def unwrap(self, slot: Slot, bound: bytes) -> bytearray | None:
        """Return the data key, or None when the slot is not for this key."""


class RawKey:
    """A key of 16 to 64 random bytes. The bytes are copied; `wipe` overwrites the copy.

    Raises:
        UsageError: for another length.
    """

    def __init__(self, key: Secret) -> None:
        if not SHORTEST <= len(key) <= LONGEST:
            raise UsageError(
                f"the key has {len(key)} bytes", want=f"{SHORTEST} to {LONGEST}, best 32",
                fix="Make one with: python -c 'import secrets; print(secrets.token_hex(32))'; for words use a passphrase",
            )
        self._key = bytearray(key)

    def __repr__(self) -> str:
        return f"RawKey({self.id})"

    @property
    def id(self) -> str:
        """A name of the key, which tells nothing about it."""
        return derive(self._key, 8, salt=b"", purpose=b"hauberk key id").hex()

    def wrap(self, data_key: bytearray, bound: bytes) -> Slot:
        """Return a slot for this key."""
        salt = os.urandom(32)
        sealed = wrap_under(derive(self._key, 32, salt=salt, purpose=b"hauberk wrap key"), data_key, bound)
        return {"kind": "key", "id": self.id, "salt": encoded(salt), "wrapped": sealed}

    def unwrap(self, slot: Slot, bound: bytes) -> bytearray | None:
        """Return the data key of a slot for this key."""
        if slot["kind"] != "key" or slot.get("id") != self.id:
            return None
        return unwrap_under(derive(self._key, 32, salt=field(slot, "salt", 32), purpose=b"hauberk wrap key"), slot, bound)

    def wipe(self) -> None:
        """Overwrite the key."""
        wipe(self._key)


class Passphrase:
    """Words that a person remembers, stretched by Argon2id (RFC 9106) with 64 MiB and 3 passes for each file.

    Raises:
        UsageError: for fewer than 8 characters, or parameters beyond the limits.
    """

    def __init__(self, words: str | Secret, *, memory: int = MEMORY, iterations: int = 3, lanes: int = 1) -> None:
        told = words if isinstance(words, str) else bytes(words).decode("utf-8", "surrogateescape")
        if (size := len(told.strip())) < 8:
            raise UsageError(f"the passphrase has {size} characters", want="at least 8", fix="Take five random words")
        if not (MEMORY <= memory <= MOST_MEMORY and 1 <= iterations <= MOST_ITERATIONS and 1 <= lanes <= MOST_LANES):
            raise UsageError(
                f"Argon2id with {memory} KiB, {iterations} passes and {lanes} lanes",
                want=f"{MEMORY} to {MOST_MEMORY} KiB, 1 to {MOST_ITERATIONS} passes, 1 to {MOST_LANES} lanes",
            )
        # The same words typed on two systems may come as different code points.
        self._words = bytearray(unicodedata.normalize("NFKC", told).encode("utf-8", "surrogateescape"))
        self._memory, self._iterations, self._lanes = memory, iterations, lanes

    def __repr__(self) -> str:
        return "Passphrase(…)"

    def wrap(self, data_key: bytearray, bound: bytes) -> Slot:
        """Return a slot for this passphrase."""
        slot: Slot = {
            "kind": "passphrase", "salt": encoded(os.urandom(16)), "memory": self._memory, "iterations": self._iterations,
            "lanes": self._lanes,
        }
        return {**slot, "wrapped": wrap_under(self._stretched(slot), data_key, bound)}

    def unwrap(self, slot: Slot, bound: bytes) -> bytearray | None:
        """Return the data key of a slot for this passphrase. Raises UnsafeFile for a slot that asks for too much memory."""
        return unwrap_under(self._stretched(slot), slot, bound) if slot["kind"] == "passphrase" else None

    def wipe(self) -> None:
        """Overwrite the words."""
        wipe(self._words)

    def _stretched(self, slot: Slot) -> bytearray:
        lanes = count(slot, "lanes", 1, MOST_LANES)
        memory, passes = count(slot, "memory", 8 * lanes, MOST_MEMORY), count(slot, "iterations", 1, MOST_ITERATIONS)
        key = bytearray(32)
        Argon2id(
            salt=field(slot, "salt", 16), length=32, iterations=passes, lanes=lanes, memory_cost=memory
        ).derive_into(self._words, key)  # type: ignore[arg-type]  # takes any buffer
        return key


class KeyService:
    """A service that keeps the wrapping key to itself (a cloud KMS, an HSM): it is handed the data key, and hands back a blob.

    Arguments:
        name: told in the header, so that a reader knows whom to ask.
        wrap: from 32 bytes to a blob of at most 16 KiB.
        unwrap: the way back; None for a blob that is not its own. What either of them raises is passed on.
    """

    def __init__(self, name: str, wrap: Callable[[bytes], bytes], unwrap: Callable[[bytes], bytes | None]) -> None:
        self.name, self._wrap, self._unwrap = name, wrap, unwrap

    def wrap(self, data_key: bytearray, bound: bytes) -> Slot:
        """Return a slot for this service. The data key goes out under a mask of the file: a blob fits no other file."""
        blob = self._wrap(bytes(_masked(data_key, bound)))
        if not 1 <= len(blob) <= 16 << 10:
            raise UsageError(f"the key service '{self.name}' made a blob of {len(blob)} bytes", want="1 to 16384")
        return {"kind": "service", "name": self.name, "wrapped": encoded(blob)}

    def unwrap(self, slot: Slot, bound: bytes) -> bytearray | None:
        """Return the data key of a slot for this service."""
        if slot["kind"] != "service" or slot.get("name") != self.name:
            return None
        found = self._unwrap(field(slot, "wrapped"))
        return _masked(bytearray(found), bound) if found is not None and len(found) == DATA_KEY else None


def wrap_under(key: bytearray, data_key: bytearray, bound: bytes) -> str:
    """Return the data key encrypted under a key that is used this once, and wipe that key."""
    try:
        return encoded(AESGCM(key).encrypt(bytes(12), data_key, bound))
    finally:
        wipe(key)


def unwrap_under(key: bytearray, slot: Slot, bound: bytes) -> bytearray | None:
    """Return the data key of a slot, or None where the key is not the one, and wipe that key."""
    found = bytearray(DATA_KEY)
    try:
        AESGCM(key).decrypt_into(bytes(12), field(slot, "wrapped", _WRAPPED), bound, found)
    except InvalidTag:
        return None
    finally:
        wipe(key)
    return found


def passphrase_from(held: bytearray, *, opening: bool = False) -> Passphrase:
    """Return the passphrase that a file or a variable held, and wipe what was read.

    Arguments:
        held: the words.
        opening: a file is to be opened with it, so that advice on choosing one would be no help.
    """
    try:
        return Passphrase(held)
    except UsageError as error:
        if not opening:
            raise
        raise UsageError(
            f"{error.problem}, and so opens no file", want="the passphrase that the file was encrypted with, of 8 or more",
            fix="Check the passphrase; the file was not touched",
        ) from error
    finally:
        wipe(held)


def line_from_file(path: str | Path) -> bytearray:
    """Return the first line of a small file, without its end. Raises UsageError when it cannot be read."""
    held = secret_from_file(path, strip=False)
    try:
        return held.partition(b"\n")[0].rstrip(b"\r")
    finally:
        wipe(held)


def key_from_file(path: str | Path) -> RawKey:
    """Return the key in a file: raw bytes, or hexadecimal digits.

    Raises:
        UsageError: when it cannot be read, or is no key: words are none, as nothing would stretch them.
    """
    return _raw(secret_from_file(path, strip=False), f"the key file {path}")


def key_from_environment(name: str) -> RawKey:
    """Return the key in an environment variable, in hexadecimal digits. Raises UsageError when it is not set, or is no key."""
    return _raw(secret_from_environment(name), f"the variable {name}")


def named_key(name: str) -> RawKey:
    """Return the key that `env:NAME` or `file:PATH` names. Raises UsageError for another form."""
    kind, _, rest = name.partition(":")
    if kind not in ("env", "file") or not rest:
        raise UsageError("the key is named in another form", want="env:NAME or file:PATH", fix="Keep the key itself elsewhere")
    return key_from_environment(rest) if kind == "env" else key_from_file(rest)


def secret_from_file(path: str | Path, *, strip: bool = True) -> bytearray:
    """Return a small file's content, without the line end where `strip` says so. Raises UsageError when it cannot be read."""
    place = Path(path).expanduser()
    try:
        with open(place, "rb", buffering=0) as file:
            held = bytearray(_LARGEST_SECRET_FILE)
            size = file.readinto(held)
    except OSError as error:
        raise UsageError(f"{place} cannot be read ({error.strerror or error})", want="a file with the secret") from error
    if not size or size == _LARGEST_SECRET_FILE:
        raise UsageError(f"{place} has {size or 0} bytes", want="a short file with the secret alone")
    kept = held[:size]
    wipe(held)
    return kept.rstrip(b"\r\n") if strip else kept


def secret_from_environment(name: str) -> bytearray:
    """Return the value of an environment variable. Raises UsageError when it is not set."""
    value = os.environ.get(name)
    if not value:
        raise UsageError(f"the environment variable {name} is not set", want="the secret in it", fix=f"Set {name}")
    return bytearray(value.rstrip("\r\n").encode("utf-8", "surrogateescape"))


def _raw(held: bytearray, where: str) -> RawKey:
    text, key = held.strip(), bytearray(held)
    # A raw key of 32 random bytes is all digits with a probability of 1e-34.
    if len(text) >= 2 * SHORTEST and len(text) % 2 == 0 and all(mark in _DIGITS for mark in text):
        wipe(key)
        key = bytearray(len(text) // 2)  # digit by digit: bytes.fromhex would leave a copy that cannot be wiped
        for at in range(len(key)):
            key[at] = int(text[2 * at : 2 * at + 2], 16)
    try:
        if len(key) >= SHORTEST and key == held and _words(held):
            raise UsageError(
                f"{where} holds text", want="16 to 64 random bytes, or their hexadecimal digits",
                fix="Words are a passphrase: --passphrase-file, --passphrase-env or Passphrase(text), which stretch them",
            )
        if not SHORTEST <= len(key) <= LONGEST:
            raise UsageError(f"{where} holds {len(key)} bytes", want="16 to 64 bytes, or their hexadecimal digits")
        return RawKey(key)
    finally:
        for one in (held, text, key):
            wipe(one)


def _words(held: bytearray) -> bool:
    """Return whether bytes are text: 16 random ones are with a probability of 1e-7, 32 with 1e-14."""
    try:
        return "".join(held.decode("utf-8").split()).isprintable()
    except UnicodeDecodeError:
        return False


def _masked(data_key: bytearray, bound: bytes) -> bytearray:
    mask = derive(bound, DATA_KEY, salt=b"", purpose=b"hauberk service mask")
    return bytearray(left ^ right for left, right in zip(data_key, mask, strict=True))
