"""New files: whole or not there, and never over another unless that is said."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hauberk.core.errors import UsageError
from hauberk.core.files import cannot_write


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, which takes that name when the block ends well and is removed when it does not.

    Arguments:
        path: the file to be.
        force: write over a file that is there.
        mode: its permissions.

    Raises:
        UsageError: when the file is there already, is a folder, or the place cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", want="the name of a file")
    if not force and os.path.lexists(path):
        raise _taken(path)
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb", buffering=0) as file:  # no buffer: chunks are large, and not held a second time
            yield file
            os.fsync(file.fileno())
        os.chmod(name, mode)
        _take_place(name, path, force=force)
        name = ""
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)


def write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte: a file without a buffer may take fewer than it is given."""
    view = memoryview(data)
    while len(view):
        taken = sink.write(view)
        view = view[len(view) if taken is None else taken :]


def _take_place(name: str, path: Path, *, force: bool) -> None:
    if force:
        os.replace(name, path)
        return
    try:
        os.link(name, path)  # unlike a rename, this cannot write over a file that has come in between
    except FileExistsError as error:
        raise _taken(path) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(path):  # a file system without links
            raise _taken(path) from error
        os.replace(name, path)
        return
    os.unlink(name)


def _taken(path: Path) -> UsageError:
    return UsageError(f"{path} exists already", want="a new file", fix="Use --force to write over it")
