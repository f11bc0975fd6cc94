"""Digests of the files of a model: a folder walked without following a link, hashed in parallel through reused buffers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from hauberk.core.errors import UnsafeFile, UsageError

MOST_FILES = 1_000_000
_BUFFER = 1 << 18


@dataclasses.dataclass(frozen=True)
class Resource:
    """A file, or a stretch of one, and its SHA-256.

    Arguments:
        name: path relative to the model, with `/`; `.` for a model that is one file.
        digest: SHA-256, 32 bytes.
        span: first byte and the one behind the last; None for a whole file.
    """

    name: str
    digest: bytes
    span: tuple[int, int] | None = None


def list_files(root: Path, ignored: Collection[str] = ()) -> dict[str, Path]:
    """Return the files of a model by name, sorted; `ignored` are names relative to it, of files or of whole folders.

    Raises:
        UsageError: when there is nothing at `root`.
        UnsafeFile: for a link, a device, a pipe, or a name that is not Unicode: none of them can be signed.
    """
    if root.is_symlink():
        raise _refusal(root, "is a link")
    if not root.exists():
        raise UsageError(f"{root} does not exist", want="a model: a file or a folder")
    _refuse_bytes(root.resolve().name, root)
    if root.is_file():
        return {".": root}
    found: dict[str, Path] = {}
    for name, place in _walk(root, "", frozenset(ignored)):
        found[name] = place
        if len(found) > MOST_FILES:
            raise UnsafeFile(f"{root} has more than {MOST_FILES} files", want="a model")
    return dict(sorted(found.items(), key=lambda item: PurePosixPath(item[0]).parts))


def hash_files(files: dict[str, Path], *, shard: int | None = None, workers: int | None = None) -> tuple[Resource, ...]:
    """Return the digests of files, in their order.

    Arguments:
        files: from `list_files`.
        shard: bytes of a stretch, so that one large file is hashed on several cores; None hashes whole files.
        workers: threads; None takes one per core, at most 8.

    Raises:
        UsageError: when a file cannot be read.
        UnsafeFile: when it changes meanwhile, or has become a link.
    """
    tasks: list[tuple[str, Path, tuple[int, int] | None]] = []
    for name, place in files.items():
        if shard is None:
            tasks.append((name, place, None))
            continue
        size = place.stat().st_size
        # An empty file is a stretch of nothing: it is there, and stays covered.
        tasks += [(name, place, (start, min(start + shard, size))) for start in range(0, max(size, 1), shard)]
    many = min(workers or min(os.cpu_count() or 1, 8), len(tasks))
    if many <= 1:
        return tuple(_hashed(*task) for task in tasks)
    with concurrent.futures.ThreadPoolExecutor(many) as pool:
        return tuple(pool.map(_hashed, *zip(*tasks, strict=True)))


def root_digest(resources: Sequence[Resource]) -> str:
    """Return the SHA-256 over the digests in their order, in hexadecimal: what stands for the whole model."""
    whole = hashlib.sha256()
    for one in resources:
        whole.update(one.digest)
    return whole.hexdigest()


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading, unless it is a link, a device or a pipe. Raises UnsafeFile for those, UsageError for others."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if path.is_symlink():
            raise _refusal(path, "is a link") from error
        raise UsageError(f"{path} cannot be read ({error.strerror or error})", want="a file that may be read") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _refusal(path, "is no regular file")
    return io.FileIO(handle, "rb")


def _walk(folder: Path, prefix: str, ignored: frozenset[str]) -> Iterator[tuple[str, Path]]:
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror or error})", want="a folder that may be read") from error
    for entry in listed:
        name = prefix + entry.name
        if name in ignored:
            continue
        _refuse_bytes(name, Path(entry.path))
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{name}/", ignored)
        elif entry.is_file(follow_symlinks=False):
            yield name, Path(entry.path)
        else:
            raise _refusal(Path(entry.path), "is a link" if entry.is_symlink() else "is no regular file")


def _refuse_bytes(name: str, place: Path) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnsafeFile(f"{place} has a name that is not Unicode", want="a name in UTF-8", fix="Rename it") from error


def _hashed(name: str, place: Path, span: tuple[int, int] | None) -> Resource:
    with open_regular(place) as file:
        before = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").digest() if span is None else _stretch(file, *span)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnsafeFile(f"{place} changed while it was read", want="a model that is finished")
    return Resource(name, digest, span)


def _stretch(file: io.FileIO, start: int, end: int) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
    file.seek(start)
    left = end - start
    while left:
        got = file.readinto(buffer[: min(_BUFFER, left)])
        if not got:
            break  # shorter than it was: the size, compared afterwards, tells
        digest.update(buffer[:got])
        left -= got
    return digest.digest()


def _refusal(path: Path, what: str) -> UnsafeFile:
    return UnsafeFile(f"{path} {what}", want="plain files and folders", fix="Put the file itself in its place, or leave it out")
