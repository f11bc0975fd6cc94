"""Opening files that strangers made: they exist, are not too large, and their archives do not burst or play tricks."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hauberk.core.errors import ModelError, UnsafeFile

LARGEST_FILE = 16 << 30
LARGEST_RATIO = 200  # what a byte in an archive may grow to; weights hardly shrink at all
SMALL = 64 << 20  # archives that stay below this are harmless at any ratio
MOST_ENTRIES = 100_000


def existing(source: str | Path, what: str = "model file") -> Path:
    """Return the path of a file that is there, is a file, is not empty, and is not above the size limit.

    Raises:
        ModelError: when it is missing, empty, or a folder.
        UnsafeFile: above 16 GiB.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise ModelError(f"{path} does not exist", want=f"a {what}", fix="Check the path; it starts from the current folder")
    if not path.is_file():
        raise ModelError(f"{path} is a folder or device", want=f"a {what}")
    size = path.stat().st_size
    if not size:
        raise ModelError(f"{path} is empty", want=f"a {what}", fix="Write the file again")
    if size > LARGEST_FILE:
        raise UnsafeFile(f"{path} has {size} bytes", want=f"at most {LARGEST_FILE}")
    return path


def check_archive(path: Path) -> list[str]:
    """Return the names in a zip archive, after a look at its directory alone.

    Raises:
        ModelError: when it is cut short or no archive.
        UnsafeFile: when it would burst (a zip bomb), names a file twice, or names one outside itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise ModelError(
            f"{path} is broken or cut short ({error})", want="a whole zip archive", fix="Copy or save the file again"
        ) from error
    names = [entry.filename for entry in entries]
    if len(names) > MOST_ENTRIES or len(set(names)) != len(names):
        found = f"{path} holds {len(names)} entries, {len(set(names))} different"
        raise UnsafeFile(found, want=f"each entry once, at most {MOST_ENTRIES}")
    full, packed = sum(entry.file_size for entry in entries), sum(entry.compress_size for entry in entries)
    if full > LARGEST_FILE or (full > SMALL and full > LARGEST_RATIO * max(packed, 1)):
        raise UnsafeFile(
            f"{path} would grow from {packed} to {full} bytes when opened", want=f"at most {LARGEST_RATIO} times its size",
            fix="Have the file made again by someone you trust",
        )
    outside = [name for name in names if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/")]
    if outside:
        raise UnsafeFile(f"{path} names a place outside itself: '{outside[0]}'", want="names inside the archive")
    return names


def is_zip(path: Path) -> bool:
    """Return whether a file begins like a zip archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def first_line(error: BaseException, limit: int = 240) -> str:
    """Return the message of an error in one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
