"""rewrap: who may open a file is changed, and its body stays as it is."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag

from hauberk.assets.encryption.access import Locks, Openers, as_locks, data_key_of, name_of, opened
from hauberk.assets.encryption.body import Body
from hauberk.assets.encryption.derive import wipe
from hauberk.assets.encryption.header import Header, read_header
from hauberk.assets.encryption.reader import EncryptedReader
from hauberk.assets.encryption.writer import CHUNK, fill, wrapped_for
from hauberk.assets.encryption.writing import new_file, write_all
from hauberk.core.errors import ModelError, UsageError


def rewrap(
    path: str | Path, keys: Openers, *, add: Locks = (), remove: Sequence[str] = (), output: str | Path | None = None,
    force: bool = False,
) -> Header:
    """Add and remove those who may open a file, without encrypting its body again.

    One who was removed opens neither this file nor what is encrypted for the others later; an old copy he still opens, and if he
    kept the data key, this one too. Against that, encrypt the plaintext anew.

    Arguments:
        path: an encrypted file.
        keys: one that opens it.
        add: raw keys and locks to add.
        remove: ids, names or kinds (passphrase, key, …) that `describe` tells, or `*` for all that were there.
        output: another file to write; None replaces the file itself, which is the old one or the new one, never half.
        force: write over an output that is there.

    Returns:
        The new header.

    Raises:
        UsageError: when no key fits, nobody would be left, or a name to remove is not there.
        ModelError: when the file is damaged, altered or cut short.
    """
    name, path = Path(path).name, Path(path).resolve()  # a link stays a link
    place = path if output is None else Path(output)
    with opened(path) as source:
        header, begin = read_header(source, name)
        data_key = data_key_of(header, keys, name)
        try:
            _check_end(source, name, header, data_key, begin)
            changed = dataclasses.replace(header, slots=_kept(header, remove), mac=b"")
            added = () if isinstance(add, (list, tuple)) and not add else as_locks(add)
            changed = wrapped_for(changed, list(added), data_key)
            if not changed.slots:
                raise UsageError("nobody would be left who can open the file", want="at least one key", fix="Add one")
            head = changed.packed(data_key)
        finally:
            wipe(data_key)
        source.seek(begin)
        with new_file(place, force=force or output is None, mode=_mode(source.fileno())) as sink:
            write_all(sink, head)
            buffer = bytearray(CHUNK)
            while size := fill(source, buffer):
                write_all(sink, memoryview(buffer)[:size])
    return changed


def encrypt_anew(path: str | Path, keys: Openers, locks: Locks, *, cipher: str = "", output: str | Path | None = None) -> Header:
    """Encrypt an encrypted file under a new data key, through memory: for when a key was lost or a cipher is given up.

    Arguments:
        path: an encrypted file.
        keys: one that opens it.
        locks: all who may open the new one.
        cipher: by name; empty keeps the file's.
        output: another file to write; None replaces the file itself.

    Raises:
        UsageError, ModelError: as for `rewrap`.
    """
    from hauberk.assets.encryption.writer import encrypt_stream

    place = Path(path).resolve() if output is None else Path(output)  # a link stays a link
    with EncryptedReader(path, keys) as reader, new_file(place, force=output is None, mode=_mode(path)) as sink:
        was = reader.header
        stream: io.RawIOBase = reader
        return encrypt_stream(
            stream, sink, locks, cipher=cipher or was.suite.name, chunk=was.chunk, content=was.content,  # type: ignore[arg-type]
        )


def _mode(file: str | Path | int) -> int:
    """Return the permissions of a file: one that its owner alone could read stays so under other keys."""
    return stat.S_IMODE(os.stat(file).st_mode) & 0o777


def _check_end(source: BinaryIO, name: str, header: Header, data_key: bytearray, begin: int) -> None:
    """Raise ModelError for a body that is cut short, before it gets a header that was made today."""
    body, sealed, plain = Body(header, data_key), bytearray(header.suite.sealed(header.chunk)), bytearray(header.chunk + 16)
    try:
        chunks, size = body.sealed_sizes(source.seek(0, io.SEEK_END) - begin, name)
        source.seek(begin + (chunks - 1) * body.sealed_chunk)
        found = memoryview(sealed)[: fill(source, sealed)]
        body.open(chunks - 1, True, found[:size], memoryview(plain))
    except InvalidTag as error:
        raise ModelError(
            f"{name} was altered or cut short: its end is not authentic", want="the file as it was encrypted",
            fix="Copy the file again from where it came",
        ) from error
    finally:
        body.wipe()
        wipe(plain)


def _kept(header: Header, remove: Sequence[str]) -> tuple[dict[str, object], ...]:
    if isinstance(remove, str):
        remove = (remove,)
    known = {word for slot in header.slots for word in (slot["kind"], name_of(slot)) if word} | {"*"}
    for one in remove:
        if one not in known:
            raise UsageError(f"'{one[:80]}' opens nothing here", want=f"one of {', '.join(sorted(known))}"[:600])
    return tuple(
        slot for slot in header.slots if "*" not in remove and slot["kind"] not in remove and name_of(slot) not in remove
    )
