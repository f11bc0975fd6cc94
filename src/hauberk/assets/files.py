"""Digests of model files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(path: str | Path, *, chunk: int = 2**20) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in parts. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(chunk):
            digest.update(part)
    return digest.hexdigest()
