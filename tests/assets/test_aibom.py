"""The AI bill of materials: valid against the schema of CycloneDX 1.6, with digests, licences, unsafe versions."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from referencing import Registry, Resource
from safetensors.torch import save_file

from hauberk.assets.advisories import Advisory, affected, read_advisories
from hauberk.assets.aibom import SPDX, ModelCard, ai_bom, licences
from hauberk.assets.bom import Component, cyclonedx, inventory
from hauberk.assets.signing.semantic import semantic_digest
from hauberk.core.errors import DataError, UnsafeFile, UsageError

SCHEMAS = Path(__file__).parent / "cyclonedx"
SOFTWARE = [
    Component("python", "3.11.7", "python", True, "PSF-2.0", "pkg:generic/python@3.11.7"), Component("Linux", "6.1", "system"),
    Component("torch", "2.5.1+cpu", "package", True, "BSD-3-Clause", "pkg:pypi/torch@2.5.1+cpu"),
    Component("numpy", "2.4.6", "package", True, "BSD-3-Clause AND 0BSD AND MIT", "pkg:pypi/numpy@2.4.6"),
    Component("odd", "1.0", "package", False, "Do What You Want", "pkg:pypi/odd@1.0"), Component("git-made", "abc123"),
]


def schema(name: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress((SCHEMAS / f"{name}.schema.json.gz").read_bytes())))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    base = "http://cyclonedx.org/schema/"
    held = [(f"{base}{name}.SNAPSHOT.schema.json", Resource.from_contents(schema(name))) for name in ("spdx", "jsf-0.82")]
    return jsonschema.Draft7Validator(schema("bom-1.6"), registry=Registry().with_resources(held))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = tmp_path / "net.safetensors"
    save_file({"fc.weight": torch.ones(4, 3), "fc.bias": torch.zeros(4, dtype=torch.float16)}, place)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.csv").write_bytes(b"1,2\n")
    (tmp_path / "train" / "b.csv").write_bytes(b"3,4\n")
    return place


def test_the_bill_is_valid_and_says_what_is_there(model: Path, validator: jsonschema.Draft7Validator) -> None:
    card = ModelCard("net", "1.2", "Apache-2.0", "classification", "MLP", "Somebody", (model.parent / "train",))
    unsafe = affected(SOFTWARE, [Advisory("torch", "<2.6", "CVE-2025-32434", "loads code"), Advisory("GIT_made", "*", "X-1")])
    now = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    bill = ai_bom(card, [model], SOFTWARE, unsafe=unsafe, now=now)
    assert list(validator.iter_errors(bill)) == []
    subject = bill["metadata"]["component"]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert subject["type"] == "machine-learning-model" and subject["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert subject["components"][0]["hashes"][0]["content"] == digest and bill["metadata"]["timestamp"] == "2026-03-01T00:00:00Z"
    shown = {one["name"]: one["value"] for one in subject["modelCard"]["properties"]}
    assert shown["hauberk:parameters"] == "16" and shown["hauberk:types"] == "F16, F32"
    assert shown["hauberk:tensor-digest"] == semantic_digest(model).digest
    data = next(one for one in bill["components"] if one["type"] == "data")
    both = b"".join(hashlib.sha256(content).digest() for content in (b"1,2\n", b"3,4\n"))
    assert data["hashes"][0]["content"] == hashlib.sha256(both).hexdigest()
    assert subject["modelCard"]["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]
    by_name = {one["name"]: one for one in bill["components"]}
    assert by_name["numpy"]["licenses"] == [{"expression": "BSD-3-Clause AND 0BSD AND MIT"}]
    assert by_name["odd"]["licenses"] == [{"license": {"name": "Do What You Want"}}]
    assert {(one["id"], one["affects"][0]["versions"][0]["status"]) for one in bill["vulnerabilities"]} == {
        ("CVE-2025-32434", "affected"), ("X-1", "unknown"),
    }
    assert bill["vulnerabilities"][0]["affects"][0]["ref"] == "pkg:pypi/torch@2.5.1+cpu"
    refs = {subject["bom-ref"], *(one["bom-ref"] for one in bill["components"])}
    assert set(bill["dependencies"][0]["dependsOn"]) < refs


def test_the_validator_refuses_what_is_wrong(model: Path, validator: jsonschema.Draft7Validator) -> None:
    bill = ai_bom(ModelCard("net"), [model], SOFTWARE)
    assert validator.is_valid(bill)
    bill["components"][0]["licenses"] = [{"license": {"id": "No-Such-1.0"}}]
    assert not validator.is_valid(bill)


def test_the_environment_and_the_check_have_valid_bills(model: Path, validator: jsonschema.Draft7Validator) -> None:
    components = inventory(["numpy", "torch", "cryptography"])
    assert list(validator.iter_errors(ai_bom(ModelCard("net"), [model.parent], components))) == []
    assert list(validator.iter_errors(cyclonedx(components, model="net", files=[model]))) == []


def test_equal_contents_make_equal_bills(model: Path) -> None:
    one, two = (ai_bom(ModelCard("net"), [model], SOFTWARE) for _ in range(2))
    assert one == two
    save_file({"fc.weight": torch.zeros(4, 3)}, model)
    assert ai_bom(ModelCard("net"), [model], SOFTWARE)["serialNumber"] != one["serialNumber"]


def test_files_that_cannot_be_listed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / model.name).write_bytes(b"other")
    with pytest.raises(UsageError, match="two files are called"):
        ai_bom(ModelCard("net"), [model, tmp_path / "x" / model.name], [])
    (tmp_path / "x" / "link").symlink_to(model)
    with pytest.raises(UnsafeFile, match="is a link"):
        ai_bom(ModelCard("net"), [tmp_path / "x"], [])
    pickled = tmp_path / "m.pkl"
    pickled.write_bytes(b"\x80\x04N.")
    shown = ai_bom(ModelCard("net"), [pickled], [])["metadata"]["component"]["modelCard"]["properties"]
    assert shown[0]["name"] == "hauberk:tensors" and shown[0]["value"].startswith("not read")


def test_identifiers_are_those_of_spdx() -> None:
    assert set(schema("spdx")["enum"]) >= SPDX
    assert licences("MIT") == [{"license": {"id": "MIT"}}]
    assert licences("MIT OR Apache-2.0") == [{"expression": "MIT OR Apache-2.0"}]
    assert licences("MIT OR Mine") == [{"license": {"name": "MIT OR Mine"}}]
    assert licences("The MIT License") == [{"license": {"name": "The MIT License"}}]


@pytest.mark.parametrize(("version", "specifier", "hit"), [
    ("2.5.1", "<2.6", True), ("2.6.0", "<2.6", False), ("2.5.1+cpu", "<2.6", True), ("2.6.0rc1", "<2.6", False),
    ("2.6.0rc1", "<=2.6", True), ("1.3", ">=1.0,<1.4", True), ("1.4", ">=1.0,<1.4", False), ("1.4", "*", True),
    ("1.4.2", "==1.4.*", True),
    ("1.10", "<1.9", False), ("what", "<1", True), ("", "<1", True),
])
def test_versions_are_compared_as_pep_440_does(version: str, specifier: str, hit: bool) -> None:
    found = affected([Component("A.b_c", version)], [Advisory("a-b-c", specifier, "X")])
    assert bool(found) == hit
    assert affected([Component("other", version)], [Advisory("a-b-c", specifier, "X")]) == []


def test_lists_of_unsafe_versions(tmp_path: Path) -> None:
    place = tmp_path / "list"
    place.write_text("# what we know\ntorch <2.6 CVE-2025-32434 loads code, even with weights_only\n\nnumpy * X-2  # all\n")
    assert read_advisories(place) == [
        Advisory("torch", "<2.6", "CVE-2025-32434", "loads code, even with weights_only"), Advisory("numpy", "*", "X-2"),
    ]
    place.write_text('[{"package": "torch", "versions": ">=2,<2.6", "id": "X"}]')
    assert read_advisories(place) == [Advisory("torch", ">=2,<2.6", "X")]
    place.write_text("\ufefftorch <2.6 X\n")  # as some editors save it: the first package must still be found
    assert read_advisories(place) == [Advisory("torch", "<2.6", "X")]
    for bad in ("torch >=1.0, <2.6 X", "", "# nothing\n",
                "torch <2.6\n", "torch 2.6 X\n", "[]", "[1]", '[{"package": "a", "versions": "<", "id": "x"}]',
                "[",                '[{"package": "a", "versions": " ", "id": "x"}]'):
        place.write_text(bad)
        with pytest.raises(DataError):
            read_advisories(place)
    with pytest.raises(DataError):
        read_advisories(tmp_path / "none")
