"""The checks of signatures and of unsafe versions, as a plan asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hauberk import Data, Target
from hauberk.assets.signing import Label, generate, sign
from hauberk.assets.signing.facts import duration
from hauberk.assets.signing.sign import signature_path
from hauberk.checks.context import Settings, Trusted
from hauberk.checks.engine import run_check
from hauberk.core.errors import UsageError
from hauberk.core.finding import Finding, Status
from hauberk.io.plan import parse_plan
from hauberk.methods import load_methods
from hauberk.planned import prepare

KEY = generate("ed25519")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "maker.pub").write_bytes(KEY.public.pem())
    (tmp_path / "net").mkdir()
    place = tmp_path / "net" / "a.safetensors"
    save_file({"w": torch.ones(2)}, place)
    return place


def run(name: str, *files: Path, trusted: Trusted) -> Finding:
    data = Data((torch.rand(8, 3), torch.arange(8) % 2))  # type: ignore[arg-type]
    check = load_methods().get(name, "check")
    return run_check(check, Target(nn.Linear(3, 2), files=files), data, Settings(trusted=trusted))


def test_signatures_by_key(model: Path) -> None:
    trusted = Trusted(keys=(str(model.parents[1] / "maker.pub"),))
    found = run("assets/signature", model, trusted=trusted)
    assert found.status is Status.FAIL and found.value == 1 and "cannot be read" in found.summary
    signature_path(model).write_text(sign(model, KEY, Label(version="2")).to_json())
    found = run("assets/signature", model, trusted=trusted)
    assert found.status is Status.PASS and (found.value, found.n) == (0, 1)
    row = found.evidence[0].rows[0]  # type: ignore[union-attr]
    assert row[:2] == ("a.safetensors", "verified") and row[6] == "2"
    other = model.with_name("b.safetensors")
    save_file({"w": torch.ones(3)}, other)
    found = run("assets/signature", model, other, trusted=trusted)
    assert found.status is Status.FAIL and (found.value, found.n) == (1, 2)
    model.write_bytes(model.read_bytes() + b"x")
    assert "changed: a.safetensors" in run("assets/signature", model, trusted=trusted).summary


def test_a_signature_over_the_folder_and_code_outside_it(model: Path) -> None:
    folder, code = model.parent, model.parents[1] / "net.py"
    code.write_text("x = 1\n")
    signature_path(folder).write_text(sign(folder, KEY).to_json())
    trusted = Trusted(keys=(str(model.parents[1] / "maker.pub"),), signed=str(folder))
    assert run("assets/signature", model, trusted=trusted).status is Status.PASS
    found = run("assets/signature", code, model, trusted=trusted)
    assert found.status is Status.WARN and "no signature covers net.py" in found.notes
    (folder / "more").write_text("x")
    assert run("assets/signature", model, trusted=trusted).status is Status.FAIL
    gone = Trusted(keys=trusted.keys, signed=str(folder / "none"))
    assert run("assets/signature", model, trusted=gone).status is Status.FAIL


def test_without_a_key_nothing_is_said(model: Path) -> None:
    signature_path(model).write_text(sign(model, KEY).to_json())
    found = run("assets/signature", model, trusted=Trusted())
    assert found.status is Status.NOT_RUN and "a signature lies beside a.safetensors" in found.reason
    assert run("assets/signature", trusted=Trusted(keys=("x",))).status is Status.NOT_RUN
    assert run("assets/known-unsafe", trusted=Trusted()).status is Status.NOT_RUN


def test_a_policy_and_its_age(model: Path) -> None:
    policy = model.parents[1] / "policy.toml"
    policy.write_text('format = 1\n[keys.maker]\npath = "maker.pub"\n[[rule]]\nkeys = ["maker"]\nrequire = ["expiry"]\n')
    signature_path(model).write_text(sign(model, KEY).to_json())
    found = run("assets/signature", model, trusted=Trusted(policy=str(policy)))
    assert found.status is Status.FAIL and "not there: expiry" in found.summary
    assert [advice.text[:14] for advice in found.advice] == ["The files are "]  # as signed, and short of the policy alone
    bound = model.parents[1] / "bound.toml"
    bound.write_text('format = 1\n[keys.maker]\npath = "maker.pub"\n[[rule]]\nkeys = ["maker"]\nmax_epsilon = 3\n')
    claims = {"privacy": {"digest": "0" * 64, "epsilon": 9.6}}
    signature_path(model).write_text(sign(model, KEY, Label(claims=claims)).to_json())
    advice = run("assets/signature", model, trusted=Trusted(policy=str(bound))).advice
    assert [one.mitigation for one in advice] == ["", "AML.M0007"] and "smaller ε" in advice[1].text
    bound.write_text('format = 1\n[keys.maker]\npath = "maker.pub"\nrevoked = true\n[[rule]]\nkeys = ["maker"]\n')
    assert "its maker again" in run("assets/signature", model, trusted=Trusted(policy=str(bound))).advice[0].text
    model.write_bytes(model.read_bytes() + b"x")
    assert "its maker again" in run("assets/signature", model, trusted=Trusted(policy=str(policy))).advice[0].text
    signature_path(model).write_text(sign(model, KEY, Label(expires=duration("1d"))).to_json())
    found = run("assets/signature", model, trusted=Trusted(policy=str(policy)))
    assert found.status is Status.PASS and "as maker signed them" in found.summary


def test_unsafe_versions(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("torch <1 OLD-1\n")
    found = run("assets/known-unsafe", trusted=Trusted(unsafe=str(listed)))
    assert found.status is Status.PASS and found.value == 0 and "1 entries of the list alone" in found.notes[0]
    listed.write_text("torch >=2 CVE-1 loads code\nNumPy * CVE-2\n")
    found = run("assets/known-unsafe", trusted=Trusted(unsafe=str(listed)))
    assert found.status is Status.FAIL and found.value == 2 and "numpy, torch" in found.summary
    assert {row[3] for row in found.evidence[0].rows} == {"CVE-1", "CVE-2"}  # type: ignore[union-attr]


def test_a_plan_names_them_and_is_refused_where_they_are_not_there(model: Path) -> None:
    base = model.parents[1]
    (base / "net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(64, 10)\n")
    (base / "unsafe.txt").write_text("torch <1 X\n")

    def plan(**assets: object) -> Trusted:
        table = {"model": {"path": "net.py:build"}, "data": {"test": "sklearn:digits"}, "assets": assets}
        return prepare(parse_plan(table, source=base / "plan.toml"))[2].trusted

    made = plan(keys=["maker.pub"], signed="net", unsafe="unsafe.txt")
    assert made == Trusted((str(base / "maker.pub"),), "", str(base / "net"), "", str(base / "unsafe.txt"))
    for wrong in ({"keys": ["none.pub"]}, {"policy": "none.toml"}, {"keys": ["maker.pub"], "policy": "p"}, {"unknown": 1}):
        with pytest.raises(UsageError):
            plan(**wrong)
