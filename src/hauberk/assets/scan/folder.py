"""Whole folders: every file in them is scanned, and no link leads out of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hauberk.assets.scan.limits import Limits
from hauberk.assets.scan.scanner import scan_file
from hauberk.assets.scan.verdict import Issue, Level, ScanResult
from hauberk.core.errors import UsageError

LEFT_OUT = frozenset({".git"})  # the history of a checkout: no loader opens it


def scan_paths(
    paths: Sequence[str | Path], *, limits: Limits | None = None, allow: Iterable[str] = ()
) -> Iterator[ScanResult]:
    """Yield the verdict on every file named, and on every file of the folders named, in order of their names.

    Arguments:
        paths: files and folders. A link that you name is followed; one inside a folder never leads out of it.
        limits: how much to spend on each file; None takes the defaults.
        allow: names that you vouch for, `module:name`.

    Raises:
        UsageError: when a path does not exist, or a name to allow cannot be read.
    """
    places, names = [Path(path).expanduser() for path in paths], tuple(allow)
    for place in places:
        if not place.exists():
            raise UsageError(f"{place} does not exist", want="files or folders", fix="Check the path; it starts from this folder")
    most = (limits or Limits()).members
    for place in places:
        if not place.is_dir():
            yield scan_file(place, limits=limits, allow=names)
            continue
        root, count = place.resolve(), 0
        for path in _files(place):
            count += 1
            if count > most:
                yield _unverifiable(place, f"it holds more than {most} files")
                break
            if path.is_symlink():
                found = _link(path, root)
                if found is not None:
                    yield found
            else:
                yield scan_file(path, limits=limits, allow=names)
        if not count:
            yield _unverifiable(place, "the folder is empty")


def _files(folder: Path) -> Iterator[Path]:
    broken: list[OSError] = []
    for here, folders, files in os.walk(folder, followlinks=False, onerror=broken.append):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT and name not in links)
        yield from (Path(here, name) for name in sorted([*files, *links]))
    for error in broken:  # a folder that cannot be listed: scanning its path says so
        yield Path(error.filename)


def _link(path: Path, root: Path) -> ScanResult | None:
    """Return why a link was not followed; None where it leads to a file that is scanned anyway."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return _unverifiable(path, "it is a link that leads nowhere")
    if target.is_relative_to(root) and not LEFT_OUT & set(target.relative_to(root).parts):
        return None
    return _unverifiable(path, f"it is a link out of the folder, to {str(target)[:200]}, and was not followed")


def _unverifiable(path: Path, why: str) -> ScanResult:
    return ScanResult(str(path), format="link" if path.is_symlink() else "folder", issues=[Issue(Level.UNVERIFIABLE, "", why)])
