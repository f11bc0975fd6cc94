"""The body of an encrypted file: chunks, each under a nonce that tells its place and whether it is the last (STREAM).

Hoang, Reyhanitabar, Rogaway and Vizár, Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, CRYPTO 2015: as the
count goes into the nonce, chunks cannot be swapped, dropped or doubled; as the end does, none can be cut off or added.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from hauberk.assets.encryption.derive import derive, wipe
from hauberk.assets.encryption.header import Header
from hauberk.core.errors import ModelError, UsageError

_PREFIX, _MOST_CHUNKS = 7, 1 << 32


class Body:
    """Seals and opens the chunks of one file.

    Arguments:
        header: names cipher, chunk size and file.
        data_key: of the file; its keys are derived from it, and wiped by `wipe`.
    """

    def __init__(self, header: Header, data_key: bytearray) -> None:
        self.suite, self.chunk = header.suite, header.chunk
        self._material = derive(
            data_key, _PREFIX + header.suite.keys, salt=header.file_id, purpose=b"hauberk body 1" + header.fixed
        )
        self._prefix = bytes(self._material[:_PREFIX])
        self._cipher = header.suite.make(memoryview(self._material)[_PREFIX:], header.fixed)
        self.sealed_chunk = header.suite.sealed(header.chunk)

    def seal(self, index: int, last: bool, plain: memoryview, out: memoryview) -> int:
        """Write a sealed chunk and return its size. Raises UsageError beyond 2^32 chunks."""
        return self._cipher.seal(self._nonce(index, last), plain, out)

    def open(self, index: int, last: bool, sealed: memoryview, out: memoryview) -> int:
        """Write the plaintext of a chunk and return its size. Raises InvalidTag when it is not the one that belongs there."""
        found = self._cipher.open(self._nonce(index, last), sealed, out)
        if not last and found != self.chunk:
            raise InvalidTag  # a padded chunk, sealed by someone who holds the key, that hides fewer bytes
        return found

    def sealed_sizes(self, size: int, name: str) -> tuple[int, int]:
        """Return how many chunks a body of `size` bytes has, and the bytes of its last one.

        Raises:
            ModelError: when it cannot be whole chunks.
        """
        chunks = -(-size // self.sealed_chunk)
        last = size - (chunks - 1) * self.sealed_chunk
        if size < self.suite.sealed(0) or (chunks > 1 and last < self.suite.sealed(1)) or chunks > _MOST_CHUNKS:
            raise ModelError(f"{name} is cut short", want="a whole file", fix="Copy the file again from where it came")
        return chunks, last

    def wipe(self) -> None:
        """Overwrite the keys; what the cryptographic library holds of them it wipes itself when it is freed."""
        wipe(self._material)

    def _nonce(self, index: int, last: bool) -> bytes:
        if index >= _MOST_CHUNKS:
            raise UsageError(f"the data is longer than 2^32 chunks of {self.chunk} bytes", want="larger chunks")
        return self._prefix + index.to_bytes(4, "big") + (b"\1" if last else b"\0")
