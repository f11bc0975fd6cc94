"""Files that are whole or not there: written to a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from hauberk.core.errors import UsageError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half.

    Raises:
        UsageError: when the disk is full or the place cannot be written; nothing is left behind.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: OSError, *, option: str = "--output") -> UsageError:
    """Return the error for a file that could not be written: for want of room, or because of the place that `option` named."""
    found = f"{path} could not be written ({error.strerror or error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UsageError(found, want="a folder with room", fix=f"Free some space, or choose another folder with {option}")
    fix = f"Choose one with {option}, such as in the current folder"
    return UsageError(found, want="a place that may be written to", fix=fix)


def refuse_unwritable(path: Path) -> None:
    """Raise UsageError, before the work whose result it is for, where a file could not be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error
