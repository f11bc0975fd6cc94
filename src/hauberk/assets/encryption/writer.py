"""Sealing: a stream, a file, or whatever a library writes, in constant memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from hauberk.assets.encryption.access import Locks, as_locks, opened
from hauberk.assets.encryption.body import Body
from hauberk.assets.encryption.derive import fresh_key, wipe
from hauberk.assets.encryption.header import Header, new_header, power_of
from hauberk.assets.encryption.keys import Secret
from hauberk.assets.encryption.sniff import content_of
from hauberk.assets.encryption.suites import DEFAULT, suite_named
from hauberk.assets.encryption.writing import new_file, write_all
from hauberk.core.errors import UsageError

CHUNK = 1 << 20


class Sealer:
    """Writes header and sealed chunks to a sink.

    Arguments:
        sink: takes bytes.
        keys: who may open.
        cipher: by name.
        chunk: plaintext bytes of a chunk, a power of two.
        content: torch, safetensors, onnx or other.

    Raises:
        UsageError: for keys, cipher or chunk size that cannot be used; nothing is written then.
    """

    def __init__(self, sink: BinaryIO, keys: Locks, *, cipher: str = DEFAULT, chunk: int = CHUNK, content: str = "other") -> None:
        header, locks = new_header(suite_named(cipher), power_of(chunk), content), as_locks(keys)
        data_key = fresh_key()
        try:
            header = wrapped_for(header, locks, data_key)
            self._body = Body(header, data_key)
            head = header.packed(data_key)
        finally:
            wipe(data_key)
        self.header, self._sink, self._index = header, sink, 0
        self._out = memoryview(bytearray(self._body.sealed_chunk + 16))
        write_all(sink, head)

    def put(self, plain: memoryview, last: bool) -> None:
        """Seal a chunk: a whole one, unless it is the last."""
        size = self._body.seal(self._index, last, plain, self._out)
        write_all(self._sink, self._out[:size])
        self._index += 1
        if last:
            self._body.wipe()


class EncryptedWriter(io.RawIOBase):
    """A file object that seals what is written to it; it must be closed, or the file has no end and will not open.

    Arguments: as for `Sealer`. After an error `abandon` closes it without an end; so does leaving a `with` block by an error.
    """

    _ended, _held = True, bytearray()  # until it has begun

    def __init__(self, sink: BinaryIO, keys: Locks, *, cipher: str = DEFAULT, chunk: int = CHUNK, content: str = "other") -> None:
        super().__init__()
        self._sealer = Sealer(sink, keys, cipher=cipher, chunk=chunk, content=content)
        self._held, self._filled, self._written, self._ended = bytearray(chunk), 0, 0, False

    def __del__(self) -> None:
        # The base class would close it, and so give an end to what was perhaps broken off.
        self.abandon()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._written

    def write(self, data: Any) -> int:
        """Take all of `data`."""
        view, chunk = memoryview(data).cast("B"), len(self._held)
        size = len(view)
        while len(view):
            if self._filled == chunk:  # more follows, so this was not the last
                self._sealer.put(memoryview(self._held), False)
                self._filled = 0
            if not self._filled and len(view) > chunk:
                self._sealer.put(view[:chunk], False)
                view = view[chunk:]
                continue
            part = min(chunk - self._filled, len(view))
            self._held[self._filled : self._filled + part] = view[:part]
            self._filled, view = self._filled + part, view[part:]
        self._written += size
        return size

    def abandon(self) -> None:
        """Wipe what is held and close, without an end."""
        self._ended = True
        wipe(self._held)
        super().close()

    def close(self) -> None:
        """Seal the last chunk."""
        if not self._ended:
            self._ended = True
            self._sealer.put(memoryview(self._held)[: self._filled], True)
            wipe(self._held)
        super().close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.abandon()
        else:
            self.close()


def encrypt_stream(
    source: BinaryIO | Secret, sink: BinaryIO, keys: Locks, *, cipher: str = DEFAULT, chunk: int = CHUNK, content: str = "other",
) -> Header:
    """Encrypt a stream, or bytes in memory, to a sink, in constant memory.

    Arguments:
        source: is read to its end.
        sink: takes bytes; needs no seeking.
        keys: who may open: bytes of a raw key, or one or several locks.
        cipher, chunk, content: as for `Sealer`.

    Returns:
        The header.

    Raises:
        UsageError: for what cannot be used, before anything is written.
    """
    sealer = Sealer(sink, keys, cipher=cipher, chunk=chunk, content=content)
    if isinstance(source, Secret):
        view = memoryview(source).cast("B")
        for begin in range(0, max(len(view), 1), chunk):
            sealer.put(view[begin : begin + chunk], begin + chunk >= len(view))
        return sealer.header
    one, other = bytearray(chunk), bytearray(chunk)  # a chunk is sealed once it is known whether more follows
    try:
        size = fill(source, one)
        while True:
            following = fill(source, other) if size == chunk else 0
            sealer.put(memoryview(one)[:size], not following)
            if not following:
                return sealer.header
            one, other, size = other, one, following
    finally:
        wipe(one)
        wipe(other)


def encrypt_file(
    path: str | Path, output: str | Path, keys: Locks, *, cipher: str = DEFAULT, chunk: int = CHUNK, force: bool = False,
) -> Header:
    """Encrypt a file to another; the new one is whole or not there.

    Arguments:
        path: the file, which is left as it is.
        output: the encrypted file.
        keys: who may open: bytes of a raw key, or one or several locks.
        cipher: by name.
        chunk: plaintext bytes of a chunk, a power of two from 4 KiB to 16 MiB.
        force: write over a file that is there.

    Returns:
        The header.

    Raises:
        UsageError: when the output is there already or cannot be written, or a key or cipher cannot be used.
        ModelError: when the file cannot be read.
    """
    with opened(path) as source:
        if source.read(4) == b"HBKE":
            raise UsageError(f"{path} is encrypted already", want="a plain file", fix="To change its keys: hauberk rewrap")
        source.seek(0)
        content = content_of(source, Path(path).suffix)
        source.seek(0)
        with new_file(Path(output), force=force) as sink:
            return encrypt_stream(source, sink, keys, cipher=cipher, chunk=chunk, content=content)


def wrapped_for(header: Header, locks: list[Any], data_key: bytearray) -> Header:
    """Return the header with a slot for each lock more."""
    import dataclasses

    slots = [*header.slots, *(lock.wrap(data_key, header.fixed) for lock in locks)]
    return dataclasses.replace(header, slots=tuple(slots))


def fill(source: BinaryIO, buffer: bytearray) -> int:
    """Read until the buffer is full or the source ends, and return how many bytes came."""
    view, done, into = memoryview(buffer), 0, getattr(source, "readinto", None)
    while done < len(buffer):
        if into is not None:
            part = into(view[done:]) or 0
        else:
            read = source.read(len(buffer) - done)
            part = len(read)
            view[done : done + part] = read
        if not part:
            break
        done += part
    return done
