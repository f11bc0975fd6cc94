"""Who may open a file: keys as users give them, and the search for the one that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from hauberk.assets.encryption.derive import wipe
from hauberk.assets.encryption.header import Header, Slot, read_header
from hauberk.assets.encryption.keys import Lock, Opener, RawKey, Secret
from hauberk.core.errors import ModelError, UsageError

Locks = Lock | Secret | Sequence[Lock | Secret]
Openers = Opener | Secret | Sequence[Opener | Secret]
MOST_PASSPHRASES = 8  # each that is tried costs the time and memory of its Argon2id


@dataclasses.dataclass(frozen=True)
class Description:
    """What an encrypted file tells without a key, and unproven until one is given.

    Arguments:
        cipher: its name.
        chunk: plaintext bytes of a chunk.
        content: torch, safetensors, onnx or other.
        keys: (kind, id or name) of each who may open it.
        file_id: hexadecimal; the same as long as the body is.
        size: bytes of the file.
    """

    cipher: str
    chunk: int
    content: str
    keys: tuple[tuple[str, str], ...]
    file_id: str
    size: int


def describe(path: str | Path) -> Description:
    """Return what the header of an encrypted file says.

    Raises:
        ModelError: when the file is not encrypted, cannot be read, or its header is damaged.
        UnsafeFile: when the header asks for more than the limits.
    """
    with opened(path) as file:
        header, _ = read_header(file, Path(path).name)
    names = tuple((_printable(slot["kind"]), name_of(slot)) for slot in header.slots)
    return Description(
        header.suite.name, header.chunk, header.content, names, header.file_id.hex(), Path(path).stat().st_size
    )


def is_encrypted(path: str | Path) -> bool:
    """Return whether a file begins like one that hauberk encrypted. False where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4) == b"HBKE"
    except OSError:
        return False


def opened(path: str | Path):  # type: ignore[no-untyped-def]  # noqa: ANN201  # io.FileIO, which BinaryIO does not know
    """Open a file to be read without a buffer. Raises ModelError when it cannot be."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})", want="a file that is there") from error


def name_of(slot: Slot) -> str:
    """Return the id or name that a slot tells, safe to print."""
    return _printable(slot.get("id", slot.get("name", "")))


def _printable(told: object) -> str:
    return "".join(mark for mark in told[:64] if mark.isprintable()) if isinstance(told, str) else ""


def as_locks(given: Locks) -> list[Lock]:
    """Return locks, raw bytes among them as raw keys. Raises UsageError where there is none, or for something else."""
    found: list[Lock] = []
    for one in _listed(given):
        made = RawKey(one) if isinstance(one, Secret) else one
        if not isinstance(made, Lock):
            raise _no_key(one, "encrypt")
        found.append(made)
    if not found:
        raise UsageError("no key is given to encrypt for", want="at least one", fix=_KEYS)
    return found


def as_openers(given: Openers) -> list[Opener]:
    """Return openers, raw bytes among them as raw keys. Raises UsageError where there is none, or for something else."""
    found: list[Opener] = []
    for one in _listed(given):
        made = RawKey(one) if isinstance(one, Secret) else one
        if not isinstance(made, Opener):
            raise _no_key(one, "open")
        found.append(made)
    if not found:
        raise UsageError("no key is given to open with", want="at least one", fix=_KEYS)
    return found


def data_key_of(header: Header, keys: Openers, name: str) -> bytearray:
    """Return the data key of a file, found with the first key that fits.

    Raises:
        UsageError: when no key fits.
        ModelError: when one fits, and the header was altered since.
        UnsafeFile: when the header asks for more than the limits.
    """
    openers = as_openers(keys)
    if sum(slot["kind"] == "passphrase" for slot in header.slots) > MOST_PASSPHRASES:
        raise UsageError(f"{name} has more passphrases than may be tried", want=f"at most {MOST_PASSPHRASES}")
    for opener in openers:
        for slot in header.slots:
            data_key = opener.unwrap(slot, header.fixed)
            if data_key is None:
                continue
            if not header.proves(data_key):
                wipe(data_key)
                raise ModelError(
                    f"the header of {name} was altered: a key opens it, and its seal is wrong", want="the header as it was made",
                    fix="Copy the file again from where it came",
                )
            return data_key
    kinds = ", ".join(sorted({f"{_printable(slot['kind'])} {name_of(slot)}".strip() for slot in header.slots}))
    found = f"the key does not open {name}" if len(openers) == 1 else f"none of {len(openers)} keys opens {name}"
    raise UsageError(
        found, want=f"one of: {kinds[:400]}", fix="Check the key or passphrase; the file was not touched",
    )


_KEYS = "Give a key, a Passphrase, a Recipient (to encrypt) or an Identity (to open)"


def _listed(given: Locks | Openers) -> Iterable[object]:
    if isinstance(given, (list, tuple)):
        return given
    return [given]


def _no_key(one: object, purpose: str) -> UsageError:
    if isinstance(one, str):
        return UsageError("the key is text", want="bytes, or Passphrase(text)", fix="Words are stretched, a key is random bytes")
    return UsageError(f"a {type(one).__name__} cannot {purpose}", want="a key that can", fix=_KEYS)
