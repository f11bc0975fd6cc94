"""What a key decides: permutations, signs, scales and choices, drawn from a keystream that only the key's owner can make."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from hauberk.core.errors import UsageError

KEY_BYTES = 32


def new_key() -> bytes:
    """Return a fresh 256-bit key from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def as_key(key: object) -> bytes:
    """Return the key as bytes.

    Raises:
        UsageError: for anything but 32 bytes; the value is never shown.
    """
    if not isinstance(key, (bytes, bytearray)) or len(key) != KEY_BYTES:
        size = f"{len(key)} bytes" if isinstance(key, (bytes, bytearray)) else f"a {type(key).__name__}"
        raise UsageError(f"the key is {size}", want=f"{KEY_BYTES} random bytes", fix="Make one with new_key() and keep it safe")
    return bytes(key)


class Draws:
    """Draws for one purpose: HKDF-SHA256 (RFC 5869) of the key, the salt and the purpose keys a ChaCha20 stream.

    Arguments:
        key: 32 bytes.
        salt: public, unlike for every file, so that one key never makes the same draws twice.
        purpose: what is drawn, such as the name of a tensor.
    """

    def __init__(self, key: bytes, salt: bytes, purpose: str) -> None:
        info = b"hauberk obfuscate 1\0" + purpose.encode()
        made = HKDF(hashes.SHA256(), length=48, salt=salt, info=info).derive(as_key(key))
        self._stream = Cipher(algorithms.ChaCha20(made[:32], made[32:]), mode=None).encryptor()

    def words(self, n: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Return n uniform 64-bit words, shape (n,), the next of the stream."""
        return np.frombuffer(self._stream.update(bytes(8 * n)), dtype="<u8")

    def permutation(self, n: int) -> Tensor:
        """Return a uniform permutation of 0 … n - 1, shape (n,), int64: the order of n random words."""
        return torch.from_numpy(np.argsort(self.words(n), kind="stable").astype(np.int64))

    def signs(self, n: int) -> Tensor:
        """Return n fair signs, shape (n,), float64."""
        return torch.from_numpy((self.words(n) >> np.uint64(63)).astype(np.float64) * 2 - 1)

    def scales(self, n: int, octaves: float) -> Tensor:
        """Return n factors log-uniform over 2^-octaves … 2^octaves, shape (n,), float64."""
        unit = (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return torch.from_numpy(np.exp2((2 * unit - 1) * octaves))

    def powers(self, n: int, octaves: int) -> Tensor:
        """Return n powers of two from 2^-octaves to 2^octaves, shape (n,), float64: to multiply by them rounds nothing."""
        return torch.from_numpy(np.exp2((self.words(n) % np.uint64(2 * octaves + 1)).astype(np.float64) - octaves))

    def rotation(self, n: int) -> Tensor:
        """Return an orthogonal matrix drawn by Haar's measure, shape (n, n), float64 (Mezzadri 2007, arXiv:math-ph/0609050)."""
        unit = ((self.words(2 * n * n) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        normal = np.sqrt(-2 * np.log(unit[: n * n])) * np.cos(2 * np.pi * unit[n * n :])
        q, r = torch.linalg.qr(torch.from_numpy(normal.reshape(n, n)))
        return q * r.diagonal().sign()

    def below(self, n: int) -> int:
        """Return a whole number from 0 to n - 1 whose bias is below n / 2^64."""
        return int(self.words(1)[0] % np.uint64(n))
