"""Builders of the scan's corpus: malicious files with harmless payloads, and benign saves as the libraries write them.

Nothing here is kept as bytes in the repository; every file is built anew, and none is ever loaded.
"""

from __future__ import annotations

from pathlib import Path

from corpus.archives import archives
from corpus.benign import benign
from corpus.containers import containers
from corpus.encodings import encodings
from corpus.gadgets import gadgets
from corpus.streams import streams

__all__ = ["benign", "malicious", "write"]


def malicious() -> dict[str, bytes]:
    """Return every malicious file by its name, whose ending is the one it would come with."""
    parts = {"gadget": gadgets(), "encoding": encodings(), "stream": streams(), "archive": archives(), "container": containers()}
    return {f"{kind}-{name}": content for kind, files in parts.items() for name, content in files.items()}


def write(files: dict[str, bytes], folder: Path) -> list[Path]:
    """Write files into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]
