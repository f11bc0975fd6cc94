"""The bill of materials of a model: what software stands behind it, in which versions, with the digests of its files."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hauberk.assets.files import sha256


@dataclasses.dataclass(frozen=True)
class Component:
    """One piece of software.

    Arguments:
        name, version: as its package states them.
        kind: `package`, `python` or `system`.
        required_by_us: whether Hauberk itself asks for it; the rest came with the model, the data or the program around them.
        license: as the package states it; empty where it does not.
        purl: package URL.
    """

    name: str
    version: str
    kind: str = "package"
    required_by_us: bool = False
    license: str = ""
    purl: str = ""


def inventory(modules: Iterable[str] | None = None) -> list[Component]:
    """Return Python, the operating system, and the installed packages, by name.

    Arguments:
        modules: names of imported modules, to keep only the packages they come from; None takes every package of the environment,
            which does not depend on what happens to be imported so far.
    """
    names = sorted(_installed() if modules is None else _behind(modules))
    ours, python = required("hauberk"), platform.python_version()
    found = [
        Component("python", python, "python", True, "PSF-2.0", f"pkg:generic/python@{python}"),
        Component(platform.system(), f"{platform.release()} {platform.machine()}", "system"),
    ]
    for name in names:
        about = importlib.metadata.metadata(name).json
        version = str(about.get("version", ""))
        known = _license(str(about.get("license_expression") or about.get("license") or ""))
        found.append(Component(name, version, "package", name in ours, known, f"pkg:pypi/{name}@{version}"))
    return found


def required(package: str) -> set[str]:
    """Return the packages that `package` asks for without extras, theirs included; itself too. Empty when it is not installed."""
    seen: set[str] = set()
    left = [_plain(package)]
    while left:
        name = left.pop()
        if name in seen:
            continue
        try:
            wants = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        left += [_plain(re.split(r"[\s;<>=!~\[(]", want, maxsplit=1)[0]) for want in wants if "extra ==" not in want]
    return seen


def cyclonedx(components: Sequence[Component], *, model: str, files: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Return a CycloneDX 1.6 bill: the model with the digests of its files, and the software as its components."""
    digests = [
        {"type": "file", "name": Path(one).name, "hashes": [{"alg": "SHA-256", "content": sha256(one)}]} for one in files
    ]
    software = []
    for one in components:
        kind = {"package": "library", "python": "platform", "system": "operating-system"}[one.kind]
        entry: dict[str, Any] = {"type": kind, "name": one.name, "version": one.version}
        if one.purl:
            entry |= {"purl": one.purl, "bom-ref": one.purl}
        if one.license:
            entry["licenses"] = [{"license": {"name": one.license}}]
        software.append(entry)
    subject: dict[str, Any] = {"type": "machine-learning-model", "name": model}
    if digests:
        subject["components"] = digests
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": subject}, "components": software,
    }


def _installed() -> set[str]:
    return {_plain(one.metadata["Name"]) for one in importlib.metadata.distributions() if one.metadata["Name"]}


def _behind(modules: Iterable[str]) -> set[str]:
    places = _packages()
    return {_plain(one) for top in {name.partition(".")[0] for name in modules} for one in places.get(top, ())}


@functools.cache
def _packages() -> dict[str, list[str]]:
    # Reads the record of every installed package: done once, as it takes some tenths of a second.
    return dict(importlib.metadata.packages_distributions())


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _license(text: str) -> str:
    # Some packages put the whole text of the licence here.
    first = text.strip().splitlines()[0] if text.strip() else ""
    return first if len(first) <= 60 else ""
