"""Keys from keys (HKDF-SHA256, RFC 5869), and wiping them."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DATA_KEY = 32


def derive(secret: bytes | bytearray | memoryview, size: int, *, salt: bytes, purpose: bytes) -> bytearray:
    """Return `size` bytes for one purpose, in a buffer that can be wiped."""
    out = bytearray(size)
    HKDF(hashes.SHA256(), size, salt, purpose).derive_into(secret, out)
    return out


def fresh_key() -> bytearray:
    """Return a random data key in a buffer that can be wiped."""
    key = bytearray(DATA_KEY)
    drawn = os.urandom(DATA_KEY)
    key[:] = drawn
    return key


def wipe(secret: bytearray) -> None:
    """Overwrite a secret where it lies."""
    secret[:] = bytes(len(secret))
