"""Versions known to be unsafe, from a list that the user gives: nothing is asked of any network."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from hauberk.assets.bom import Component
from hauberk.core.errors import DataError, UnsafeFile

LARGEST = 64 << 20


@dataclasses.dataclass(frozen=True)
class Advisory:
    """A warning about some versions of a package.

    Arguments:
        package: its name.
        versions: which are unsafe, as PEP 440 specifies them: `<2.6`, `>=1.0,<1.4`, `*` for all.
        id: of the warning, such as CVE-2025-32434.
        summary: in words.
    """

    package: str
    versions: str
    id: str
    summary: str = ""


@dataclasses.dataclass(frozen=True)
class Affected:
    """A component that a warning speaks of; `certain` is False where its version cannot be compared."""

    component: Component
    advisory: Advisory
    certain: bool = True


def read_advisories(path: str | Path) -> list[Advisory]:
    """Return the warnings of a file.

    Arguments:
        path: a text with a line `package versions id [words]` for each, `#` before remarks; or JSON, a list of objects with
            `package`, `versions`, `id` and, if wanted, `summary`.

    Raises:
        DataError: when it cannot be read, or a line is wrong; an empty list too, as it would clear everything.
    """
    place = Path(path)
    try:
        if place.stat().st_size > LARGEST:
            raise UnsafeFile(f"{place} has {place.stat().st_size} bytes", want=f"at most {LARGEST}")
        text = place.read_text(encoding="utf-8-sig")  # with a mark before it, the first name would fit no package
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"the list {place} cannot be read ({why})", want="lines of package, versions, id") from error
    found = _table(text, place) if text.lstrip().startswith("[") else _lines(text, place)
    if not found:
        raise DataError(f"the list {place} is empty", want="lines of package, versions, id")
    return found


def affected(components: Iterable[Component], advisories: Sequence[Advisory]) -> list[Affected]:
    """Return the components that the warnings speak of; one whose version cannot be read counts as affected."""
    by_name: dict[str, list[Advisory]] = {}
    for one in advisories:
        by_name.setdefault(plain(one.package), []).append(one)
    found = []
    for component in components:
        for advisory in by_name.get(plain(component.name), ()):
            try:
                version = Version(component.version)
            except InvalidVersion:
                found.append(Affected(component, advisory, certain=False))
                continue
            if advisory.versions == "*" or SpecifierSet(advisory.versions).contains(version, prereleases=True):
                found.append(Affected(component, advisory))
    return found


def plain(name: str) -> str:
    """Return the name of a package as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _lines(text: str, place: Path) -> list[Advisory]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split(maxsplit=3)
        if not words:
            continue
        if len(words) < 3:
            raise DataError(f"{place}, line {number}: '{line[:60]}'", want="package, versions, id: torch <2.6 CVE-2025-32434")
        summary = words[3] if len(words) > 3 else ""
        found.append(_checked(Advisory(words[0], words[1], words[2], summary), f"{place}, line {number}"))
    return found


def _table(text: str, place: Path) -> list[Advisory]:
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the list {place} is no JSON ({str(error)[:80]})", want="a list of objects") from error
    found = []
    for number, entry in enumerate(entries):
        keys = ("package", "versions", "id")
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) and entry[key] for key in keys):
            raise DataError(f"{place}, entry {number}", want="an object with package, versions and id")
        made = Advisory(entry["package"], entry["versions"], entry["id"], str(entry.get("summary", "")))
        found.append(_checked(made, f"{place}, entry {number}"))
    return found


def _checked(one: Advisory, where: str) -> Advisory:
    try:
        if one.versions != "*":
            # A comma at an end means that the rest stands behind a blank, and would be taken for the identifier.
            if not all(part.strip() for part in one.versions.split(",")):
                raise InvalidSpecifier("empty")
            SpecifierSet(one.versions)
    except InvalidSpecifier as error:
        raise DataError(
            f"{where}: the versions '{one.versions[:60]}'", want="what PEP 440 specifies, such as <2.6 or >=1.0,<1.4; * for all"
        ) from error
    return one
