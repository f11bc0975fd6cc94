"""EncryptedReader: the plaintext of an encrypted file, read anywhere, chunk by chunk, in memory alone."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag

from hauberk.assets.encryption.access import Openers, data_key_of, opened
from hauberk.assets.encryption.body import Body
from hauberk.assets.encryption.derive import wipe
from hauberk.assets.encryption.header import read_header
from hauberk.assets.encryption.keys import Secret
from hauberk.core.errors import ModelError


class EncryptedReader(io.RawIOBase):
    """A file object of the plaintext, for every library that reads one. Only chunks that are asked for are decrypted.

    Each chunk is authenticated before any of it is released, and the last one when the file is opened, so that a file that was
    cut short does not open. Large reads are decrypted straight into the caller's buffer.

    Arguments:
        source: a path, an open binary file that can seek, or the bytes of the file.
        keys: bytes of a raw key, or any openers.
        name: for messages.

    Raises:
        UsageError: when no key fits.
        ModelError: when the file is not encrypted, damaged, altered or cut short.
        UnsafeFile: when its header asks for more than the limits.
    """

    def __init__(self, source: str | Path | BinaryIO | Secret, keys: Openers, *, name: str = "") -> None:
        super().__init__()
        self._held = memoryview(source).cast("B") if isinstance(source, Secret) else None
        self.name = name or (Path(source).name if isinstance(source, (str, Path)) else str(getattr(source, "name", "the data")))
        self._owned = isinstance(source, (str, Path))
        self._placed = self._owned and hasattr(os, "preadv")
        self._file: Any = None
        if self._held is None:
            self._file = opened(source) if isinstance(source, (str, Path)) else source
        try:
            head: Any = self._file if self._held is None else io.BytesIO(self._held[: 512 << 10])
            head.seek(0)
            self.header, self._begin = read_header(head, self.name)
            data_key = data_key_of(self.header, keys, self.name)
            self._body = Body(self.header, data_key)
            wipe(data_key)
            self._measure()
        except BaseException:
            self._let_go()
            raise

    def _measure(self) -> None:
        total = len(self._held) if self._held is not None else self._file.seek(0, io.SEEK_END)
        self._chunks, self._last = self._body.sealed_sizes(total - self._begin, self.name)
        self._sealed = memoryview(bytearray(self._body.sealed_chunk)) if self._held is None else memoryview(b"")
        self._plain = bytearray(self.header.chunk + 16)  # one decrypted chunk, for reads that do not take it whole
        self._cached, self._cached_size = -1, 0
        self._seen = bytearray(self._chunks)
        self._at, self._guard = 0, threading.RLock()
        self.size = (self._chunks - 1) * self.header.chunk
        self.size += self._cache(self._chunks - 1)

    def _let_go(self) -> None:
        if getattr(self, "_body", None) is not None:
            self._body.wipe()
        if getattr(self, "_plain", None) is not None:
            wipe(self._plain)
        if self._owned and self._file is not None:
            self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, and return the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the plaintext goes, and return how far."""
        with self._guard:
            found = self.read_at(self._at, buffer)
            self._at += found
        return found

    def read_at(self, offset: int, buffer: Any) -> int:
        """Fill a buffer with the plaintext from `offset` on, wherever the file stands, and return how far.

        Raises:
            ModelError: for a chunk that was altered; nothing of it is released.
        """
        if self.closed:
            raise ValueError("the encrypted file is closed")
        out, chunk, done = memoryview(buffer).cast("B"), self.header.chunk, 0
        wanted = max(0, min(len(out), self.size - offset))
        with self._guard:
            while done < wanted:
                index, within = divmod(offset + done, chunk)
                whole = min(chunk, self.size - index * chunk)
                if not within and wanted - done >= whole and index != self._cached:
                    done += self._open(index, out[done : done + whole])
                    continue
                size = self._cache(index)
                part = min(wanted - done, size - within)
                out[done : done + part] = memoryview(self._plain)[within : within + part]
                done += part
        return done

    def readall(self) -> bytes:
        """Return what is left, in a bytes object that cannot be wiped; `readinto` a bytearray can."""
        out, buffer = io.BytesIO(), bytearray(self.header.chunk)  # getvalue hands out what it holds, without a copy
        while size := self.readinto(buffer):
            out.write(memoryview(buffer)[:size])
        wipe(buffer)
        return out.getvalue()

    def verify(self) -> None:
        """Authenticate every chunk that was not read yet. Raises ModelError where one was altered."""
        for index in range(self._chunks):
            if not self._seen[index]:
                with self._guard:
                    self._cache(index)

    def close(self) -> None:
        """Close the file and wipe its keys and the chunk that is held."""
        if not self.closed:
            self._let_go()
        super().close()

    def _cache(self, index: int) -> int:
        if index != self._cached:
            self._cached = -1
            self._cached_size = self._open(index, memoryview(self._plain))
            self._cached = index
        return self._cached_size

    def _open(self, index: int, out: memoryview) -> int:
        last = index == self._chunks - 1
        size = self._last if last else self._body.sealed_chunk
        begin = self._begin + index * self._body.sealed_chunk
        try:
            found = self._body.open(index, last, self._fetch(begin, size), out)
        except InvalidTag as error:
            raise ModelError(
                f"{self.name} was altered, cut short or put together: chunk {index + 1} of {self._chunks} is not authentic",
                want="the file as it was encrypted", fix="Copy the file again from where it came",
            ) from error
        self._seen[index] = 1
        return found

    def _fetch(self, begin: int, size: int) -> memoryview:
        if self._held is not None:
            return self._held[begin : begin + size]
        view, done = self._sealed[:size], 0
        while done < size:
            if self._placed:  # a process forked from this one shares the file's position, and must not move it
                part = os.preadv(self._file.fileno(), [view[done:]], begin + done)
            else:
                self._file.seek(begin + done)
                part = self._file.readinto(view[done:])
            if not part:
                raise ModelError(f"{self.name} became shorter while it was read", want="a file that stays as it is")
            done += part
        return view
