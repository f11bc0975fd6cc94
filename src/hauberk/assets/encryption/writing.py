"""New files: whole or not there, and never over another unless that is said."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hauberk.core.errors import UsageError
from hauberk.core.files import already_there, whole_file


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file that takes its place when the block ends well; until then it has no name, and a killed process leaves nothing.

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
        raise already_there(path)
    with whole_file(path, mode=mode, replace=force) as file:
        yield file


def write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte: a file without a buffer may take fewer than it is given."""
    view = memoryview(data)
    while len(view):
        taken = sink.write(view)
        view = view[len(view) if taken is None else taken :]
