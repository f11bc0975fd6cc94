"""Files that are whole or not there: without a name until they are whole, and then put in their place at once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hauberk.core.errors import UsageError

_OPEN_FILES = "/proc/self/fd"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half.

    Raises:
        UsageError: when the disk is full or the place cannot be written; nothing is left behind.
    """
    with whole_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = 0o644, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a file to write, which takes its place when the block ends well and vanishes when it does not.

    Until then it has no name (O_TMPFILE), so that a process that is killed leaves nothing. Where the file system or the platform
    has no such files it has a hidden name beside its place, its owner's alone, and is removed at any end but SIGKILL.

    Arguments:
        path: the file to be; its folder is made.
        mode: its permissions, once it has its place.
        replace: write over a file that is there.

    Raises:
        UsageError: when the disk is full, the place cannot be written, or a file is there that is not to be replaced.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _unnamed(path.parent)
        if handle is not None:
            with os.fdopen(handle, "w+b") as file:
                yield file
                _settle(file, mode)
                _give_name(file, path, mode, replace)
            return
        with _named(path) as (file, name):
            yield file
            _settle(file, mode)
            _rename(name, path, replace)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError, *, option: str = "--output") -> UsageError:
    """Return the error for a file that could not be written: for want of room, or because of the place that `option` named."""
    found = f"{path} could not be written ({error.strerror or error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UsageError(found, want="a folder with room", fix=f"Free some space, or choose another folder with {option}")
    fix = f"Choose one with {option}, such as in the current folder"
    return UsageError(found, want="a place that may be written to", fix=fix)


def already_there(path: Path) -> UsageError:
    """Return the error for a file that is not to be written over."""
    return UsageError(f"{path} exists already", want="a new file", fix="Use --force to write over it")


def refuse_unwritable(path: Path) -> None:
    """Raise UsageError, before the work whose result it is for, where a file could not be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def _unnamed(folder: Path) -> int | None:
    """Return a new file without a name, or None where there are none, or where none could be named later."""
    flag: int = getattr(os, "O_TMPFILE", 0)
    if not flag or not os.path.isdir(_OPEN_FILES):
        return None
    try:
        return os.open(folder, flag | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError:  # file systems refuse it in many ways; a fault of the folder shows again with a named file
        return None


def _give_name(file: BinaryIO, path: Path, mode: int, replace: bool) -> None:
    try:
        _link(file, path)
        return
    except FileExistsError as error:
        if not replace:
            raise already_there(path) from error
    except OSError:  # a file system that has unnamed files and no links to them
        with _named(path) as (copy, name):
            file.seek(0)
            shutil.copyfileobj(file, copy)
            _settle(copy, mode)
            _rename(name, path, replace)
        return
    # No call of the kernel puts an unnamed file in another's place: it needs a name first, for an instant that no signal cuts.
    with _no_signals():
        passing = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        try:
            _link(file, passing)
            os.replace(passing, path)
        except BaseException:
            with contextlib.suppress(OSError):
                passing.unlink()
            raise


def _link(file: BinaryIO, path: Path) -> None:
    folder = os.open(_OPEN_FILES, os.O_RDONLY)
    try:
        # Only with a folder named does Python call linkat with AT_SYMLINK_FOLLOW; a plain link would be one to the link itself.
        os.link(str(file.fileno()), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open a file with a hidden name beside its place, and return it with that name; it is gone afterwards unless renamed."""
    names: list[str] = []

    def remove() -> None:
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name)

    with _before_the_end(remove):
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            names.append(name)
            with os.fdopen(handle, "wb") as file:
                yield file, name
        finally:
            remove()


def _settle(file: BinaryIO, mode: int) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.chmod(file.fileno(), mode)


def _rename(name: str, path: Path, replace: bool) -> None:
    if replace:
        os.replace(name, path)
        return
    try:
        os.link(name, path)  # unlike a rename, this cannot write over a file that has come in between
    except FileExistsError as error:
        raise already_there(path) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(path):  # a file system without links
            raise already_there(path) from error
        os.replace(name, path)


@contextlib.contextmanager
def _before_the_end(remove: Callable[[], None]) -> Iterator[None]:
    """Call `remove` where SIGTERM or SIGHUP ends the process, as they do unless somebody has said otherwise."""
    taken = []
    if threading.current_thread() is threading.main_thread():
        known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        taken = [one for one in known if one is not None and signal.getsignal(one) is signal.SIG_DFL]

    def end(number: int, _: Any) -> None:
        remove()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
