"""What the commands on model files, keys and policies say when they are used wrongly: exit code 2, and the step that helps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner, Result

from hauberk.assets.signing import generate
from hauberk.assets.signing.policy import make_policy
from hauberk.cli import app
from hauberk.core.errors import UsageError

BYTES = os.fsdecode(b"caf\xe9.pt")  # a name as an old system wrote it: not UTF-8


def run(*arguments: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, (found.output, found.exception)
    return found


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.arange(6.0)}, "net.pt")
    Path("words").write_text("tin whistle at dawn\nanother line\n")
    Path("folder").mkdir()
    run("recipient", "alice", "--kind", "x25519")
    run("keygen", "maker", "--no-passphrase", "--algorithm", "ed25519")
    return tmp_path


def test_a_bill_is_not_written_over_another_file(shop: Path) -> None:
    before = Path("alice").read_bytes()
    assert "--force" in run("bom", "net.pt", "--no-packages", "--output", "alice", code=2).stderr
    assert Path("alice").read_bytes() == before
    assert "bill is written: 1 file, 0 components" in run("bom", "net.pt", "--no-packages", "--output", "bill").output
    run("bom", "net.pt", "--no-packages", "--output", "bill", "--force")


WRONG = [
    (("encrypt", ".", "--to", "alice.pub"), ". is a folder"),
    (("convert", ".", "--safe"), ". is a folder"),
    (("recipient", "."), ". is a folder"),
    (("encrypt", "net.pt", "--to", "alice.pub", "--output", "."), ". is a folder. Expected the name of a file"),
    (("encrypt", "net.pt", "--to", "alice.pub", "--output", ".", "--force"), ". is a folder. Expected the name of a file"),
    (("convert", "net.pt", "--safe", "--output", "folder", "--force"), "folder is a folder"),
    (("bom", "net.pt", "--no-packages", "--output", "folder"), "folder is a folder"),
    (("encrypt", "net.pt", "--to", "alice"), "alice is the secret key, which is for opening. Expected a public key"),
    (("decrypt", "net.pt", "--identity", "alice.pub"), "alice.pub is the public key, which is for encrypting"),
    (("encrypt", "net.pt"), "Name one with --to"),
    (("decrypt", "net.pt"), "Name one with --identity"),
    (("sign", "net.pt", "--key", "maker.pub"), "maker.pub is a public key, which only verifies. Expected the private key"),
    (("verify", "net.pt"), "nobody is trusted. Expected --key or --policy"),
    (("keygen", "net.pt/a", "--no-passphrase"), "Choose one with NAME"),
    (("scan", "net.pt", "--format", "xml"), "'--output-format': 'xml' is not one of"),
    (("scan", "net.pt", "--allow", "none"), "(No such file or directory)"),
    (("bom", "net.pt", "--unsafe", "none"), "cannot be read (No such file or directory)"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda one: " ".join(one) if isinstance(one, tuple) else "")
def test_what_is_said(arguments: tuple[str, ...], said: str, shop: Path) -> None:
    told = " ".join(run(*arguments, code=2).stderr.replace("│", " ").split())
    assert said in told
    assert "force=True" not in told and "fault in hauberk" not in told
    assert "chmod" not in told and "--force" not in told


def test_the_passphrase_is_the_first_line(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHRASE", "tin whistle at dawn")
    run("encrypt", "net.pt", "--passphrase-file", "words")
    run("decrypt", "net.pt.hbke", "--passphrase-env", "PHRASE")
    Path("short").write_text("short\n")
    assert "Take five random words" in run("encrypt", "net.pt", "--passphrase-file", "short", "-o", "n", code=2).stderr
    told = run("decrypt", "net.pt.hbke", "--passphrase-file", "short", code=2).stderr
    assert "has 5 characters, and so opens no file" in told and "random words" not in told


def test_keys_go_into_a_new_folder(shop: Path) -> None:
    run("keygen", "new/a", "--no-passphrase")
    assert Path("new/a.key").stat().st_mode & 0o077 == 0 and Path("new/a.pub").is_file()


def test_names_that_are_no_text(shop: Path) -> None:
    try:
        Path("net.pt").rename(BYTES)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    run("convert", BYTES, "--safe", "--output", "out.safetensors")
    assert json.loads(Path("out.safetensors.json").read_text())["source"] == "caf\ufffd.pt"
    run("convert", BYTES, "--safe")
    with safe_open(str(Path("out.safetensors")), "pt") as file:
        assert file.get_tensor("w").tolist() == [0, 1, 2, 3, 4, 5]
    run("encrypt", BYTES, "--to", "alice.pub")
    run("decrypt", f"{BYTES}.hbke", "--identity", "alice")
    for arguments in (("bom", BYTES, "--no-packages", "--output", "b.json"), ("sign", BYTES, "--key", "maker.key")):
        assert "has a name that is not Unicode" in run(*arguments, code=2).stderr
    assert not Path("b.json").exists() and not Path(f"{BYTES}.sig").exists()


def test_a_verification_names_the_key_of_a_signer_without_a_name(shop: Path) -> None:
    run("sign", "net.pt", "--key", "maker.key")
    told = " ".join(run("verify", "net.pt", "--key", "maker.pub").output.split())
    assert "net.pt, 1 file SHA-256" in told and "signer key " in told and "… (ed25519)" in told


PEM = generate("ed25519").public.pem().decode()
GOOD = {"format": 1, "keys": {"a": {"pem": PEM}}, "rule": [{"keys": ["a"]}]}


@pytest.mark.parametrize(("change", "said"), [
    ({"rule": [{"keys": ["a"], "requires": []}]}, "policy: rule[0].requires is unknown. Did you mean 'require'?"),
    ({"keys": {"a": {"pem": PEM, "untill": "x"}}}, "policy: keys.a.untill is unknown. Did you mean 'until'?"),
    ({"max_age": "soon"}, "policy: max_age is 'soon'. Expected a number of hours, days, weeks or years, such as 12h, 90d or 1y."),
    ({"rule": [{}]}, "policy: rule[0].keys is missing."),
    ({"rule": [{"keys": ["a"], "require": ["scann"]}]}, "Did you mean 'scan'?"),
    ({"rule": [{"keys": "a"}]}, "policy: rule[0].keys is 'a'. Expected a list in [ ]."),
    ({"keys": {"a": {"pem": PEM, "path": "x"}}}, "keys.a is a table with pem, path. Expected either path or pem, not both."),
    ({"algorithms": ["rsa"]}, "policy: algorithms is ['rsa']. Expected a list of p256, "),
    ({"rule": []}, "policy: rule is []."),
])
def test_a_wrong_policy_is_refused_in_words(change: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        make_policy({**GOOD, **change}, tmp_path)
    told = str(refused.value)
    assert said in told
    assert not any(raw in told for raw in ("Value error", "Extra inputs", "Field required", "Input should"))
