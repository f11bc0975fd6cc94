"""Files, digests and the bill of materials, as the checks report them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hauberk import Data, Target
from hauberk.assets.bom import cyclonedx, inventory, required
from hauberk.assets.files import sha256
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Finding, Status
from hauberk.methods import load_methods


@pytest.fixture
def data() -> Data:
    return Data((torch.rand(8, 3), torch.arange(8) % 2))  # type: ignore[arg-type]


def run(name: str, data: Data, *files: Path) -> Finding:
    return run_check(load_methods().get(name, "check"), Target(nn.Linear(3, 2), files=files), data, Settings())


def test_a_model_from_memory_has_no_files(data: Data) -> None:
    for name in ("assets/unsafe-opcodes", "assets/file-hash"):
        found = run(name, data)
        assert found.status is Status.NOT_RUN and "from memory" in found.reason


def test_the_worst_file_decides(data: Data, tmp_path: Path) -> None:
    safe, unknown, bad, broken = (tmp_path / name for name in ("a.safetensors", "b.pkl", "c.pkl", "d.pkl"))
    save_file({"w": torch.ones(2)}, str(safe))
    unknown.write_bytes(b"cmypackage\nNet\n.")
    bad.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    broken.write_bytes(b"\x80\x04N")
    cases = [((safe,), Status.PASS, 0), ((safe, unknown), Status.WARN, 1), ((safe, broken), Status.FAIL, 1),
             ((safe, unknown, bad), Status.FAIL, 2), ((tmp_path / "missing",), Status.FAIL, 1)]
    for files, status, blocked in cases:
        found = run("assets/unsafe-opcodes", data, *files)
        assert (found.status, found.value, found.n) == (status, blocked, len(files))
    found = run("assets/unsafe-opcodes", data, safe, unknown, bad)
    assert "c.pkl: dangerous, imports os.system" in found.summary
    assert [row[2] for row in found.evidence[0].rows] == ["safe data", "unknown code", "dangerous"]  # type: ignore[union-attr]
    assert found.evidence[0].rows[2][-1] == "hauberk convert c.pkl --safe"  # type: ignore[union-attr]
    assert ("c.pkl", "dangerous", "@0", "imports os.system") in found.evidence[1].rows  # type: ignore[union-attr]
    module = tmp_path / "e.pt"
    torch.save(nn.Linear(2, 2), module)
    found = run("assets/unsafe-opcodes", data, module)
    assert found.status is Status.PASS and found.evidence[0].rows[0][2] == "safe framework objects"  # type: ignore[union-attr]


def test_digests_are_those_of_the_standard(data: Data, tmp_path: Path) -> None:
    place = tmp_path / "abc.pkl"
    place.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256(place) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    content = bytes(range(256)) * 20_000
    place.write_bytes(content)
    assert sha256(place, chunk=1000) == hashlib.sha256(content).hexdigest()
    found = run("assets/file-hash", data, place)
    assert found.status is Status.PASS and "can hold code" in found.notes[0]
    assert found.evidence[0].rows[0][1:3] == (len(content), sha256(place))  # type: ignore[union-attr]


def test_the_inventory_states_what_is_imported(data: Data) -> None:
    found = {one.name: one for one in inventory(["torch", "torch.nn", "numpy", "json", "pytest"])}
    assert set(found) == {"python", platform.system(), "torch", "numpy", "pytest"}
    assert found["torch"].version == importlib.metadata.version("torch")
    assert found["torch"].required_by_us and found["numpy"].required_by_us and not found["pytest"].required_by_us
    assert found["numpy"].purl == f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}"
    assert {"torch", "sympy", "scipy"} <= required("hauberk") and "mypy" not in required("hauberk")
    finding = run("assets/inventory", data)
    assert finding.status is Status.PASS and finding.value is not None and finding.value >= 4
    assert any(row[0] == "torch" for row in finding.evidence[0].rows)  # type: ignore[union-attr]


def test_the_inventory_does_not_depend_on_what_is_imported_so_far(data: Data) -> None:
    first = run("assets/inventory", data).value
    import sqlite3.dbapi2  # noqa: F401

    assert run("assets/inventory", data).value == first == sum(one.kind == "package" for one in inventory())
    assert {one.name for one in inventory(["torch"])} <= {one.name for one in inventory()}


def test_source_code_that_was_named_is_listed_and_not_judged(data: Data, tmp_path: Path) -> None:
    source = tmp_path / "shop.py"
    source.write_text("x = 1\n")
    found = run("assets/unsafe-opcodes", data, source)
    assert found.status is Status.NOT_RUN and "shop.py is source code" in found.reason
    hashes = run("assets/file-hash", data, source)
    assert hashes.evidence[0].rows[0][3:] == ("Python source", "yes")  # type: ignore[union-attr]


def test_the_bill_is_cyclonedx(tmp_path: Path) -> None:
    place = tmp_path / "m.safetensors"
    place.write_bytes(b"abc")
    bill = cyclonedx(inventory(["torch"]), model="net", files=[place])
    assert json.loads(json.dumps(bill)) == bill
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "net")
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": sha256(place)}]
    kinds = {one["name"]: one["type"] for one in bill["components"]}
    assert (kinds["torch"], kinds["python"]) == ("library", "platform")


def test_files_in_the_open_are_told_and_a_gate_makes_them_fail(data: Data, tmp_path: Path) -> None:
    from hauberk.assets.encryption import encrypt_file

    plain, sealed = tmp_path / "w.safetensors", tmp_path / "w.hbke"
    save_file({"w": torch.ones(2)}, str(plain))
    encrypt_file(plain, sealed, bytes(32))
    for files, status, value in (((sealed,), Status.PASS, 0), ((plain,), Status.PASS, 1), ((plain, sealed), Status.PASS, 1)):
        found = run("assets/encryption-at-rest", data, *files)
        assert (found.status, found.value, found.n) == (status, value, len(files))
    assert "informational; to encrypt it: hauberk encrypt w.safetensors --key-file KEY" in found.notes
    assert ("w.hbke", "yes", "aes-256-gcm", "key 5f84188c1ae37d18") in found.evidence[0].rows  # type: ignore[union-attr]
    strict = Settings(gates={"assets/encryption-at-rest": {"max": 0}})
    card = load_methods().get("assets/encryption-at-rest", "check")
    found = run_check(card, Target(nn.Linear(3, 2), files=(plain, sealed)), data, strict)
    assert found.status is Status.FAIL
    assert found.advice[0].command == "hauberk encrypt FILE --key-file KEY"
    # The scan says of an encrypted file that it was not scanned, and of the others what it says.
    assert run("assets/unsafe-opcodes", data, sealed).status is Status.NOT_RUN
    found = run("assets/unsafe-opcodes", data, sealed, plain)
    assert (found.status, found.n) == (Status.PASS, 1) and "w.hbke: encrypted" in found.notes[0]
    assert run("assets/file-hash", data, sealed).evidence[0].rows[0][3:] == ("encrypted", "no")  # type: ignore[union-attr]
    code = tmp_path / "a.py"
    code.write_text("x = 1\n")
    told = run("assets/file-hash", data, code, sealed).summary
    assert told.startswith(f"2 files; {sealed.name} has SHA-256 ")
    for name in ("assets/disclosure", "assets/encryption-at-rest"):
        assert run(name, data, code, sealed).summary == "the file is encrypted"
        assert run(name, data, sealed, sealed).summary == "all 2 files are encrypted"
    found = run("assets/unsafe-opcodes", data, code, sealed)
    assert found.status is Status.NOT_RUN and "scan the file before it is encrypted" in found.reason
