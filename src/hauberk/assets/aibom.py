"""The bill of materials of a model as a CycloneDX 1.6 ML-BOM: model, files, data, software, licences, unsafe versions."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hauberk.assets.advisories import Affected
from hauberk.assets.bom import Component
from hauberk.assets.signing.digest import hash_files, list_files, root_digest
from hauberk.core.errors import HauberkError, UsageError

SPEC = "1.6"
# Identifiers of SPDX that packages of this field state; others are written as a name.
SPDX = frozenset({
    "0BSD", "AFL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-2.0", "EPL-2.0",
    "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "HPND", "ISC", "LGPL-2.1-only",
    "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "MS-PL", "NCSA",
    "OFL-1.1", "OpenSSL", "PostgreSQL", "PSF-2.0", "Python-2.0", "Unlicense", "WTFPL", "ZPL-2.1", "Zlib",
})
_TYPES = {"package": "library", "python": "platform", "system": "operating-system"}


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is said of the model, beyond what its files show.

    Arguments:
        name, version: of the model.
        license: an SPDX identifier or expression, or a name.
        task: such as image classification.
        architecture: such as ResNet-50.
        author: who made it.
        data: files or folders it was trained on.
    """

    name: str
    version: str = ""
    license: str = ""
    task: str = ""
    architecture: str = ""
    author: str = ""
    data: tuple[Path, ...] = ()


def ai_bom(
    card: ModelCard, files: Sequence[str | Path], components: Sequence[Component], *, unsafe: Sequence[Affected] = (),
    now: datetime.datetime | None = None,
) -> dict[str, Any]:
    """Return the bill of a model, valid against the schema of CycloneDX 1.6.

    Arguments:
        card: what is said of the model.
        files: the model, files or folders; each file is listed with its SHA-256.
        components: the software, from `bom.inventory`.
        unsafe: from `advisories.affected`; written as vulnerabilities.
        now: the time to state; None leaves it out, and equal contents then make equal bills.

    Raises:
        UsageError: when a file is not there.
        UnsafeFile: for links and devices among the files.
    """
    model: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "model", "name": card.name}
    if card.version:
        model["version"] = card.version
    if card.author:
        model["authors"] = [{"name": card.author}]
    if card.license:
        model["licenses"] = licences(card.license)
    parts = _parts(files)
    model["hashes"] = [{"alg": "SHA-256", "content": _whole(parts)}]
    model["components"] = [
        {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
        for name, digest in parts.items()
    ]
    datasets = [_dataset(place) for place in dict.fromkeys(card.data)]
    model["modelCard"] = _card(card, files, datasets)
    software = [_software(one) for one in components]
    refs = [one["bom-ref"] for one in (*datasets, *software)]
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX", "specVersion": SPEC, "version": 1, "metadata": {
            "tools": {"components": [{"type": "application", "name": "hauberk", "version": _version()}]}, "component": model,
        },
        "components": [*datasets, *software],
        "dependencies": [{"ref": "model", "dependsOn": list(dict.fromkeys(refs))}],
    }
    if unsafe:
        bill["vulnerabilities"] = _vulnerabilities(unsafe)
    if now is not None:
        bill["metadata"]["timestamp"] = now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))}"
    return bill


def licences(text: str) -> list[dict[str, Any]]:
    """Return a licence as CycloneDX writes it: an identifier or an expression of SPDX where it is one, else a name."""
    if text in SPDX:
        return [{"license": {"id": text}}]
    words = re.findall(r"[^\s()]+", text)
    if len(words) > 1 and words[1] in ("AND", "OR", "WITH") and all(
        word in SPDX or word in ("AND", "OR") for word in words
    ):
        return [{"expression": text}]
    return [{"license": {"name": text}}]


def _software(one: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": _TYPES[one.kind], "bom-ref": _ref(one), "name": one.name, "version": one.version}
    if one.purl:
        entry["purl"] = one.purl
    if one.license:
        entry["licenses"] = licences(one.license)
    return entry


def _ref(one: Component) -> str:
    return one.purl or f"{one.kind}:{one.name}"


def _dataset(place: Path) -> dict[str, Any]:
    digest = _whole(_parts([place]))
    return {
        "type": "data", "bom-ref": f"data:{place.name}:{digest[:12]}", "name": place.name,
        "hashes": [{"alg": "SHA-256", "content": digest}], "data": [{"type": "dataset", "name": place.name}],
    }


def _card(card: ModelCard, files: Sequence[str | Path], datasets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the model card: what is said, and what the tensors show."""
    parameters: dict[str, Any] = {}
    if card.task:
        parameters["task"] = card.task
    if card.architecture:
        parameters["modelArchitecture"] = card.architecture
    if datasets:
        parameters["datasets"] = [{"ref": one["bom-ref"]} for one in datasets]
    shown = _shown(files)
    made: dict[str, Any] = {"properties": [{"name": f"hauberk:{name}", "value": value} for name, value in shown.items()]}
    if parameters:
        made["modelParameters"] = parameters
    return made


def _shown(files: Sequence[str | Path]) -> dict[str, str]:
    from hauberk.assets.signing.semantic import digest_tensors
    from hauberk.assets.tensors import tensors_in

    try:
        tensors = [one for file in files for one in tensors_in(file)]
        digest = digest_tensors(tensors).digest
    except HauberkError as error:
        return {"tensors": f"not read: {error.problem}"}
    types = sorted({one.dtype for one in tensors})
    return {
        "parameters": str(sum(one.count for one in tensors)), "tensors": str(len(tensors)), "types": ", ".join(types),
        "tensor-digest": digest,
    }


def _parts(files: Sequence[str | Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in map(Path, files):
        for resource in hash_files(list_files(one)):
            name = one.name if resource.name == "." else f"{one.name}/{resource.name}"
            if name in found:
                raise UsageError(f"two files are called {name}", want="each name once", fix="Name the folder that holds them")
            found[name] = resource.digest.hex()
    if not found:
        raise UsageError("there is no file to list", want="a model")
    return found


def _whole(parts: dict[str, str]) -> str:
    """Return the digest of the one file, or over the digests of many, as signatures have it."""
    from hauberk.assets.signing.digest import Resource

    return next(iter(parts.values())) if len(parts) == 1 else root_digest(
        [Resource(name, bytes.fromhex(digest)) for name, digest in parts.items()]
    )


def _vulnerabilities(unsafe: Sequence[Affected]) -> list[dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for one in unsafe:
        entry = made.setdefault(one.advisory.id, {"id": one.advisory.id, "affects": []})
        if one.advisory.summary:
            entry["description"] = one.advisory.summary
        status = "affected" if one.certain else "unknown"
        entry["affects"].append({
            "ref": _ref(one.component), "versions": [{"version": one.component.version or "unknown", "status": status}],
        })
    return list(made.values())


def _version() -> str:
    import hauberk

    return hauberk.__version__
