"""The ciphers of a sealed body: each seals one chunk under a nonce of its own, and gives nothing back that was altered."""

from __future__ import annotations

import dataclasses
import hmac as stdlib_hmac
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, CipherAlgorithm, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from hauberk.core.errors import UsageError, nearest

BLOCK = 16
NONCE = 12


class ChunkCipher(Protocol):
    """Seals and opens single chunks. `out` may be longer than what is written; the count that was written is returned."""

    def seal(self, nonce: bytes, plain: memoryview, out: memoryview) -> int:
        """Write ciphertext and tag to `out`."""

    def open(self, nonce: bytes, sealed: memoryview, out: memoryview) -> int:
        """Write the plaintext to `out`. Raises InvalidTag where the tag is wrong, and leaves nothing of it there."""


class Aead:
    """AES-256-GCM or ChaCha20-Poly1305, from buffer to buffer. What is written before the tag turns out wrong is wiped again.

    Arguments:
        cipher: the keyed cipher.
        bound: what every chunk is bound to, as associated data.
    """

    def __init__(self, cipher: AESGCM | ChaCha20Poly1305, bound: bytes) -> None:
        self._cipher, self._bound = cipher, bound

    def seal(self, nonce: bytes, plain: memoryview, out: memoryview) -> int:
        """Write ciphertext and tag."""
        return self._cipher.encrypt_into(nonce, plain, self._bound, out[: len(plain) + BLOCK])

    def open(self, nonce: bytes, sealed: memoryview, out: memoryview) -> int:
        """Write the plaintext."""
        if len(sealed) < BLOCK:
            raise InvalidTag
        plain = out[: len(sealed) - BLOCK]
        try:
            return self._cipher.decrypt_into(nonce, sealed, self._bound, plain)
        except InvalidTag:
            plain[:] = bytes(len(plain))
            raise


class Sm4Gcm:
    """SM4-GCM (RFC 8998). What is written before the tag turns out wrong is wiped again.

    Arguments:
        key: 16 bytes.
        bound: what every chunk is bound to, as associated data.
    """

    def __init__(self, key: bytes | memoryview, bound: bytes) -> None:
        self._algorithm, self._bound = _sm4(key), bound

    def seal(self, nonce: bytes, plain: memoryview, out: memoryview) -> int:
        """Write ciphertext and tag."""
        running = Cipher(self._algorithm, modes.GCM(nonce)).encryptor()
        running.authenticate_additional_data(self._bound)
        written = running.update_into(plain, out)
        running.finalize()
        out[written : written + BLOCK] = running.tag
        return written + BLOCK

    def open(self, nonce: bytes, sealed: memoryview, out: memoryview) -> int:
        """Write the plaintext."""
        if len(sealed) < BLOCK:
            raise InvalidTag
        running = Cipher(self._algorithm, modes.GCM(nonce, bytes(sealed[-BLOCK:]))).decryptor()
        running.authenticate_additional_data(self._bound)
        written = running.update_into(sealed[:-BLOCK], out)
        try:
            running.finalize()
        except InvalidTag:
            out[:written] = bytes(written)
            raise
        return written


class EncryptThenMac:
    """A mode without a tag of its own, then HMAC over bound data, nonce and ciphertext; the MAC is judged first.

    Arguments:
        algorithm: the keyed block cipher.
        mode: `modes.CTR` or `modes.CBC` (which is padded as in PKCS #7).
        mac_key: another key than the cipher's.
        digest: of the HMAC.
        start: from the nonce of a chunk, 12 bytes, to its initial block, 16 bytes: unforeseeable for CBC.
        bound: what every chunk is bound to; of a fixed length, so that the parts under the MAC cannot run into each other.
    """

    def __init__(
        self, algorithm: CipherAlgorithm, mode: type[modes.CTR] | type[modes.CBC], *, mac_key: bytes | memoryview,
        digest: hashes.HashAlgorithm, start: Callable[[bytes], bytes], bound: bytes,
    ) -> None:
        self._algorithm, self._mode, self._start = algorithm, mode, start
        self._mac = hmac.HMAC(mac_key, digest)  # keyed once, copied for each chunk
        self._mac.update(bound)
        self._tag, self._padded = digest.digest_size, mode is modes.CBC

    def seal(self, nonce: bytes, plain: memoryview, out: memoryview) -> int:
        """Write ciphertext and MAC."""
        running = Cipher(self._algorithm, self._mode(self._start(nonce))).encryptor()
        whole = len(plain) - len(plain) % BLOCK if self._padded else len(plain)
        written = running.update_into(plain[:whole], out)
        if self._padded:
            missing = BLOCK - len(plain) % BLOCK
            out[written : written + BLOCK] = running.update(bytes(plain[whole:]) + bytes([missing]) * missing)
            written += BLOCK
        running.finalize()
        out[written : written + self._tag] = self._over(nonce, out[:written])
        return written + self._tag

    def open(self, nonce: bytes, sealed: memoryview, out: memoryview) -> int:
        """Write the plaintext."""
        size = len(sealed) - self._tag
        if size < 0 or (self._padded and (size < BLOCK or size % BLOCK)):
            raise InvalidTag
        if not stdlib_hmac.compare_digest(self._over(nonce, sealed[:size]), bytes(sealed[size:])):
            raise InvalidTag
        running = Cipher(self._algorithm, self._mode(self._start(nonce))).decryptor()
        if not self._padded:
            return running.update_into(sealed[:size], out)
        # The library wants room for one block more than it writes: a chunk that just fits goes through a buffer.
        head = bytearray(size + BLOCK)
        running.update_into(sealed[:size], head)
        missing = head[size - 1]
        if not 1 <= missing <= BLOCK or head[size - missing : size] != bytes([missing]) * missing:
            raise InvalidTag
        out[: size - missing] = memoryview(head)[: size - missing]
        head[:] = bytes(len(head))
        return size - missing

    def _over(self, nonce: bytes, sealed: memoryview) -> bytes:
        running = self._mac.copy()
        running.update(nonce)
        running.update(sealed)
        return running.finalize()


def _sm4(key: bytes | memoryview) -> algorithms.SM4:
    return algorithms.SM4(key)  # type: ignore[arg-type]  # takes any buffer; a copy in bytes could not be wiped


@dataclasses.dataclass(frozen=True)
class Suite:
    """A cipher a body can be sealed with.

    Arguments:
        number: its mark in the header.
        name: what users write.
        keys: bytes of key material, all its keys together.
        tag: bytes of tag or MAC per chunk.
        padded: whether a chunk grows to a multiple of 16 bytes, and by at least one.
        make: from the key material and the bound data to the cipher.
    """

    number: int
    name: str
    keys: int
    tag: int
    padded: bool
    make: Callable[[memoryview, bytes], ChunkCipher]

    def sealed(self, size: int) -> int:
        """Return how many bytes a chunk of `size` bytes takes when sealed."""
        return size + (BLOCK - size % BLOCK if self.padded else 0) + self.tag


def _ctr(keys: memoryview, bound: bytes) -> ChunkCipher:
    # The nonce leaves 32 bits to count blocks in: 64 GiB, far more than a chunk may have.
    return EncryptThenMac(
        algorithms.AES(keys[:32]), modes.CTR, mac_key=keys[32:64], digest=hashes.SHA256(),
        start=lambda nonce: nonce + bytes(BLOCK - NONCE), bound=bound,
    )


def _cbc(algorithm: Callable[[memoryview], CipherAlgorithm], size: int, digest: hashes.HashAlgorithm) -> Callable[
    [memoryview, bytes], ChunkCipher
]:
    def make(keys: memoryview, bound: bytes) -> ChunkCipher:
        source = hmac.HMAC(keys[size + 32 : size + 64], digest)

        def start(nonce: bytes) -> bytes:
            running = source.copy()
            running.update(nonce)
            return running.finalize()[:BLOCK]

        return EncryptThenMac(
            algorithm(keys[:size]), modes.CBC, mac_key=keys[size : size + 32], digest=digest, start=start, bound=bound,
        )

    return make


SUITES = (
    Suite(1, "aes-256-gcm", 32, BLOCK, False, lambda keys, bound: Aead(AESGCM(keys), bound)),
    Suite(2, "chacha20-poly1305", 32, BLOCK, False, lambda keys, bound: Aead(ChaCha20Poly1305(keys), bound)),
    Suite(3, "sm4-gcm", 16, BLOCK, False, lambda keys, bound: Sm4Gcm(keys, bound)),
    Suite(4, "aes-256-ctr-hmac-sha256", 64, 32, False, _ctr),
    Suite(5, "aes-256-cbc-hmac-sha256", 96, 32, True, _cbc(algorithms.AES, 32, hashes.SHA256())),
    Suite(6, "sm4-cbc-hmac-sm3", 80, 32, True, _cbc(_sm4, 16, hashes.SM3())),
)
ALIASES = {"AES-GCM": "aes-256-gcm", "AES-CBC": "aes-256-cbc-hmac-sha256", "SM4-CBC": "sm4-cbc-hmac-sm3"}
BY_NUMBER = {suite.number: suite for suite in SUITES}
BY_NAME = {suite.name: suite for suite in SUITES}
DEFAULT = "aes-256-gcm"


def suite_named(name: str) -> Suite:
    """Return the cipher of that name; the modes of MindSpore's `enc_mode` are known too, and always authenticated here.

    Raises:
        UsageError: for a name that is not known.
    """
    found = BY_NAME.get(ALIASES.get(name, name))
    if found is None:
        raise UsageError(f"the cipher is '{name}'", want="one that is known", fix=nearest(name, list(BY_NAME)))
    return found
