"""hauberk keygen, sign, verify, bom and inspect, as a user types them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from hauberk.cli import app


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PASS", "secret")
    state = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict()
    save_file(state, "net.safetensors")
    torch.save(state, "net.pt")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, (found.output, found.exception)
    return found


def keys() -> None:
    run("keygen", "maker", "--passphrase-env", "PASS")


def test_from_a_key_to_a_verified_model(shop: Path) -> None:
    assert "p256" in run("keygen", "maker", "--passphrase-env", "PASS").output
    assert "never written over" in run("keygen", "maker", "--passphrase-env", "PASS", code=2).output
    sign = ("sign", "net.safetensors", "--key", "maker.key", "--passphrase-env", "PASS")
    run(*sign, "--name", "net", "--version", "1.2", "--expires", "90d", "--tensors", "--scan")
    assert "--force" in run(*sign, code=2).output
    found = run("verify", "net.safetensors", "--key", "maker.pub")
    assert "verified: net.safetensors" in found.output and "version 1.2" in found.output and "verdict safe" in found.output
    told = json.loads(run("verify", "net.safetensors", "--key", "maker.pub", "--output-format", "json").output)
    assert told["model"]["sha256"] == hashlib.sha256(Path("net.safetensors").read_bytes()).hexdigest()  # as every tool gives it
    assert told["ok"] is True and told["facts"]["scan"]["verdict"] == "safe" and told["model"]["name"] == "net"
    assert "tensors alone" in run(
        "verify", "net.pt", "--signature", "net.safetensors.sig", "--key", "maker.pub", "--content", "tensors"
    ).output
    assert "changed: net.pt" in run("verify", "net.pt", "--signature", "net.safetensors.sig", "--key", "maker.pub", code=1).output
    run("verify", "net.safetensors", "--key", "maker.pub", "--minimum-version", "1.3", code=1)
    run("verify", "net.safetensors", "--key", "maker.pub", "--name", "other", code=1)
    content = bytearray(Path("net.safetensors").read_bytes())
    content[-1] ^= 1
    Path("net.safetensors").write_bytes(content)
    found = run("verify", "net.safetensors", "--key", "maker.pub", code=1)
    assert "NOT verified" in found.output and "changed: net.safetensors" in found.output


def test_passphrases_come_from_a_variable_or_a_file_and_never_from_nowhere(shop: Path) -> None:
    Path("word").write_text("secret\nmore\n")
    run("keygen", "a", "--passphrase-file", "word", "--algorithm", "ed25519")
    run("sign", "net.pt", "--key", "a.key", "--passphrase-env", "PASS")
    for options, said in (
        ((), "no terminal"), (("--passphrase-env", "NONE"), "is not set"), (("--passphrase-file", "none"), "cannot be read"),
        (("--passphrase-env", "PASS", "--passphrase-file", "word"), "one of them"),
    ):
        assert said in run("sign", "net.pt", "--key", "a.key", "--force", *options, code=2).output
    Path("word").write_text("other\n")
    assert "passphrase is wrong" in run("sign", "net.pt", "--key", "a.key", "--force", "--passphrase-file", "word", code=2).output
    assert "no terminal" in run("keygen", "b", code=2).output and not Path("b.key").exists()
    assert "not encrypted" in run("keygen", "b", "--no-passphrase").output
    run("sign", "net.pt", "--key", "b.key", "--force")
    run("verify", "net.pt", "--key", "b.pub")
    run("verify", "net.pt", "--key", "a.pub", code=1)


def test_what_is_wrong_is_a_usage_error(shop: Path) -> None:
    run("keygen", "a", "--no-passphrase")
    for arguments in (
        ("verify", "net.pt"), ("verify", "none", "--key", "a.pub"), ("verify", "net.pt", "--key", "none"),
        ("verify", "net.pt", "--key", "a.pub", "--policy", "none.toml"), ("verify", "net.pt", "--key", "a.key"),
        ("sign", "none", "--key", "a.key"), ("sign", "net.pt", "--key", "a.pub"),
        ("sign", "net.pt", "--key", "a.key", "--version", "v1"),
        ("sign", "net.pt", "--key", "a.key", "--expires", "soon"), ("keygen", "c", "--no-passphrase", "--passphrase-env", "PASS"),
        ("sign", "net.pt", "--key", "a.key", "--privacy-statement", "none"), ("inspect", "none"), ("bom", "none"),
    ):
        run(*arguments, code=2)
    assert "cannot be read" in run("verify", "net.pt", "--key", "a.pub", code=1).output  # no signature: not verified


def test_a_policy_decides(shop: Path) -> None:
    run("keygen", "maker", "--no-passphrase")
    Path("data.csv").write_text("1,2\n")
    Path("mark.key").write_bytes(bytes(range(32)))
    Path("policy.toml").write_text(
        'format = 1\n[keys.maker]\npath = "maker.pub"\n[[rule]]\nmodels = ["net*"]\nkeys = ["maker"]\nscan = ["safe"]\n'
        'require = ["training-data", "watermark", "privacy", "expiry"]\nmax_epsilon = 3\n'
    )
    sign = ("sign", "net.pt", "--key", "maker.key", "--force", "--scan", "--expires", "1y", "--training-data", "data.csv")
    run(*sign)
    assert "not there: privacy, watermark" in run("verify", "net.pt", "--policy", "policy.toml", code=1).output
    for noise, code in (("1.5", 0), ("0.5", 1)):
        run("account", "--noise", noise, "--n", "60000", "--batch", "256", "--epochs", "1", "--output", "privacy.json", "--force")
        run(*sign, "--watermark", "mark.key", "--privacy-statement", "privacy.json")
        found = run("verify", "net.pt", "--policy", "policy.toml", code=code)
    assert "claims ε" in found.output
    assert "maker (p256" in found.output
    Path("mark.key").write_bytes(b"short")
    assert "at least 16" in run(*sign, "--watermark", "mark.key", code=2).output


def test_a_dangerous_file_is_signed_as_what_it_is(shop: Path) -> None:
    run("keygen", "maker", "--no-passphrase")
    Path("folder").mkdir()
    Path("folder/README.md").write_text("# A model\nWith ünïcode.\n")
    save_file({"a": torch.ones(1)}, "folder/a.safetensors")
    run("sign", "folder", "--key", "maker.key", "--scan")
    assert "verdict safe, files 2" in run("verify", "folder", "--key", "maker.pub").output
    Path("folder/b.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "dangerous" in run("sign", "folder", "--key", "maker.key", "--scan", "--force").output
    assert "verdict dangerous" in run("verify", "folder", "--key", "maker.pub").output


def test_stretches_and_names_left_out(shop: Path) -> None:
    run("keygen", "maker", "--no-passphrase")
    Path("folder").mkdir()
    Path("folder/large").write_bytes(bytes(3 << 20))
    run("sign", "folder", "--key", "maker.key", "--shard", "1", "--ignore", "cache", "--output", "folder/model.sig")
    verify = ("verify", "folder", "--key", "maker.pub", "--signature", "folder/model.sig")
    assert "not covered" not in run(*verify).output
    Path("folder/cache").write_bytes(b"x")
    assert "not covered    cache" in run(*verify).output
    with open("folder/large", "r+b") as file:
        file.seek(2_500_000)
        file.write(b"x")
    assert "changed: large" in run(*verify, code=1).output


def test_a_look_at_a_file(shop: Path) -> None:
    run("keygen", "maker", "--no-passphrase")
    found = run("inspect", "net.pt").output
    for said in ("format         torch", "encryption     none", "none beside the file", "scan           safe", "26 in 4 tensors",
                 "Linear(3 → 4)", "0.weight"):
        assert said in found
    assert len(found.splitlines()) <= 40
    run("sign", "net.pt", "--key", "maker.key")
    assert "not verified: give --key" in run("inspect", "net.pt").output
    assert "verified: signed by key" in run("inspect", "net.pt", "--key", "maker.pub").output
    told = json.loads(run("inspect", "net.pt", "--key", "maker.pub", "--output-format", "json").output)
    assert told["signature"]["ok"] is True and told["parameters"] == 26 and told["tensors"][0]["shape"] == [4, 3]
    Path("net.pt").write_bytes(b"HBKE" + bytes(50))
    found = run("inspect", "net.pt", "--key", "maker.pub").output
    assert "encrypted; its key is needed" in found and "NOT verified" in found


def test_a_bill_and_unsafe_versions(shop: Path) -> None:
    run("bom", "net.safetensors", "--output", "bom.json", "--license", "MIT", "--task", "classification", "--data", "net.pt")
    bill = json.loads(Path("bom.json").read_text())
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": "MIT"}}] and len(bill["components"]) > 10
    Path("unsafe.txt").write_text("torch <2 OLD-1\ntyper * X-1 all of it\n")
    found = run("bom", "net.safetensors", "--unsafe", "unsafe.txt", "--output", "bom.json", "--force", code=1)
    assert "unsafe: typer" in found.output and "OLD-1" not in found.output
    assert [one["id"] for one in json.loads(Path("bom.json").read_text())["vulnerabilities"]] == ["X-1"]
    one, two = (run("bom", "net.pt", "--no-packages", "--no-time").output for _ in range(2))
    assert one == two and "timestamp" not in one
    run("bom", "net.pt", "--no-packages", "--unsafe", "unsafe.txt", code=2)
