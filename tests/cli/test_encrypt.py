"""hauberk encrypt, decrypt, rewrap, recipient: secrets stay out of sight, files are never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hauberk.assets.encryption import describe
from hauberk.assets.encryption.rewrap import encrypt_anew
from hauberk.cli import app
from hauberk.cli.encrypt import CipherName

SECRET = "tin whistle at dawn"
PLAIN = bytes(range(256)) * 9000


def hauberk(*words: str | Path, **options: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHRASE", SECRET)
    (tmp_path / "m.pt").write_bytes(PLAIN)
    (tmp_path / "phrase").write_text(SECRET + "\n")
    (tmp_path / "key").write_bytes(os.urandom(32))
    return tmp_path


def test_to_a_recipient_and_back(folder: Path) -> None:
    made = hauberk("recipient", "alice")
    assert made.exit_code == 0 and "alice and alice.pub are written: x25519-mlkem768" in made.output
    assert hauberk("recipient", "alice").exit_code == 2
    done = hauberk("encrypt", "m.pt", "--to", "alice.pub", "--passphrase-file", "phrase")
    assert done.exit_code == 0 and "m.pt.hbke is written: aes-256-gcm, opened by x25519-mlkem768" in done.stdout
    assert "m.pt is still there in the open" in done.stderr
    checked = hauberk("decrypt", "m.pt.hbke", "-i", "alice")
    assert checked.stdout == f"m.pt.hbke is whole and authentic: {len(PLAIN)} bytes of data; nothing was written\n"
    assert sorted(path.name for path in folder.iterdir()) == ["alice", "alice.pub", "key", "m.pt", "m.pt.hbke", "phrase"]
    opened = hauberk("decrypt", "m.pt.hbke", "--passphrase-env", "PHRASE", "-o", "out.pt")
    assert opened.exit_code == 0 and "out.pt is plaintext" in opened.stderr
    assert (folder / "out.pt").read_bytes() == PLAIN
    assert (folder / "out.pt").stat().st_mode & 0o077 == 0
    assert hauberk("decrypt", "m.pt.hbke", "-i", "alice", "-o", "out.pt").exit_code == 2  # not over another
    assert hauberk("decrypt", "m.pt.hbke", "-i", "alice", "-o", "out.pt", "--force").exit_code == 0


@pytest.mark.parametrize("cipher", CipherName)
def test_every_cipher_is_offered(cipher: CipherName, folder: Path) -> None:
    assert hauberk("encrypt", "m.pt", "--key-file", "key", "--cipher", cipher.value, "-o", "m").exit_code == 0
    assert describe("m").cipher == cipher.value
    assert hauberk("decrypt", "m", "--key-file", "key").exit_code == 0


def test_the_passphrase_changes_and_the_body_stays(folder: Path) -> None:
    hauberk("encrypt", "m.pt", "--passphrase-file", "phrase", "--key-file", "key")
    (folder / "new").write_text("brass kettle at noon")
    body = (folder / "m.pt.hbke").read_bytes()[-len(PLAIN) :]
    done = hauberk("rewrap", "m.pt.hbke", "--passphrase-file", "phrase", "--new-passphrase-file", "new")
    assert done.exit_code == 0 and done.stdout.endswith(", passphrase\n")
    assert (folder / "m.pt.hbke").read_bytes()[-len(PLAIN) :] == body
    assert hauberk("decrypt", "m.pt.hbke", "--passphrase-file", "phrase").exit_code == 2
    assert hauberk("decrypt", "m.pt.hbke", "--passphrase-file", "new").exit_code == 0
    assert hauberk("rewrap", "m.pt.hbke", "--passphrase-file", "new", "--remove", "key").exit_code == 0
    assert hauberk("decrypt", "m.pt.hbke", "--key-file", "key").exit_code == 2
    nothing = hauberk("rewrap", "m.pt.hbke", "--passphrase-file", "new")
    assert nothing.exit_code == 2 and "nothing is to be changed" in nothing.stderr


def test_secrets_show_in_no_message_and_no_traceback(folder: Path) -> None:
    hauberk("encrypt", "m.pt", "--key-file", "key")
    before = (folder / "m.pt.hbke").read_bytes()
    for words in (("--passphrase-env", "PHRASE"), ("--passphrase-file", "phrase"), ("--key-file", "phrase")):
        failed = hauberk("decrypt", "m.pt.hbke", *words, "-v")
        assert failed.exit_code == 2
        said = "key file phrase holds text" if "--key-file" in words else "the key does not open m.pt.hbke"
        assert said in " ".join(failed.stderr.split())
        assert SECRET not in failed.output + failed.stderr
        assert SECRET.encode().hex() not in failed.output + failed.stderr
    # Nobody is there to be asked, and a passphrase is no argument.
    assert "nobody is there to be asked" in hauberk("decrypt", "m.pt.hbke").stderr
    assert hauberk("decrypt", "m.pt.hbke", "--passphrase", SECRET).exit_code == 2
    assert (folder / "m.pt.hbke").read_bytes() == before


def test_a_passphrase_is_asked_for_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def prompt(what: str, *, hide_input: bool, confirmation_prompt: bool, err: bool) -> str:
        assert hide_input and err
        asked.append((what, confirmation_prompt))
        return SECRET

    monkeypatch.setattr("hauberk.cli.encrypt.typer.prompt", prompt)
    monkeypatch.setattr("hauberk.cli.encrypt._someone_is_there", lambda: True)
    assert hauberk("encrypt", "m.pt").exit_code == 0
    assert hauberk("decrypt", "m.pt.hbke").exit_code == 0
    assert hauberk("decrypt", "m.pt.hbke", "--passphrase-env", "PHRASE").exit_code == 0
    assert asked == [("Passphrase", True), ("Passphrase", False)]


ENDED = """
import os, signal
from hauberk.assets.encryption import EncryptedReader
from hauberk.cli import app
real, calls = EncryptedReader.readinto, []
def readinto(self, buffer):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, buffer)
EncryptedReader.readinto = readinto
app()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="unnamed files are Linux's")
def test_a_decryption_that_is_ended_leaves_no_plaintext(folder: Path) -> None:
    hauberk("encrypt", "m.pt", "--key-file", "key")
    before = sorted(folder.iterdir())
    words = ["decrypt", "m.pt.hbke", "--key-file", "key", "--output", "out.pt"]
    done = subprocess.run([sys.executable, "-c", ENDED, *words], check=False)
    assert done.returncode == -signal.SIGTERM
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_change_of_keys_keeps_the_mode(folder: Path, mode: int) -> None:
    hauberk("encrypt", "m.pt", "--key-file", "key", "-o", "m")
    (folder / "m").chmod(mode)
    for more in ((), ("-o", "other")):
        done = hauberk("rewrap", "m", "--key-file", "key", "--new-passphrase-file", "phrase", *more)
        assert done.exit_code == 0, done.output
    assert [(folder / name).stat().st_mode & 0o777 for name in ("m", "other")] == [mode, mode]
    key = (folder / "key").read_bytes()
    encrypt_anew("m", key, key)
    assert (folder / "m").stat().st_mode & 0o777 == mode
