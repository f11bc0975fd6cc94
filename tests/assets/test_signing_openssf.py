"""Bundles exchanged with the OpenSSF's model-signing, both ways for P-256; and bundles that it made, kept as text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hauberk.assets.signing import Label, generate, read_public, sign, verify
from hauberk.assets.signing.keys import write_pair

GOLDEN = Path(__file__).parent / "openssf"  # made by model-signing 1.1.1 over the model below
KEY = read_public(GOLDEN / "key.pub")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"hello")
    (folder / "sub" / "b.txt").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("name", ["files", "shards"])
def test_a_bundle_of_theirs_is_verified(name: str, model: Path) -> None:
    signature = GOLDEN / f"{name}.sig.json"
    found = verify(model, signature, keys=[KEY])
    assert found.ok and found.require().name == "model" and found.algorithm == "p256"
    assert found.statement is not None and found.statement.facts is None
    assert not verify(model, signature, keys=[generate().public])
    (model / ".git").mkdir()
    (model / ".git" / "x").write_text("x")  # theirs leaves out what belongs to git
    assert verify(model, signature, keys=[KEY]).ok
    (model / "a.bin").write_bytes(b"hellp")
    assert verify(model, signature, keys=[KEY]).problems == ["changed: a.bin"]
    (model / "a.bin").write_bytes(b"hello")
    (model / "c").write_bytes(b"")
    assert verify(model, signature, keys=[KEY]).problems == ["not signed: c"]


def test_a_bundle_of_theirs_over_one_file(tmp_path: Path) -> None:
    place = tmp_path / "single.bin"
    place.write_bytes(b"one")
    assert verify(place, GOLDEN / "single.sig.json", keys=[KEY]).ok
    place.write_bytes(b"two")
    assert not verify(place, GOLDEN / "single.sig.json", keys=[KEY]).ok


THEIRS = """import sys
import model_signing

what, key, model, signature = sys.argv[1:]
if what == "sign":
    model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(model, signature)
else:
    model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).verify(model, signature)
"""


@pytest.mark.parametrize("shard", [None, 1 << 16])
def test_bundles_are_exchanged_both_ways(model: Path, tmp_path: Path, shard: int | None) -> None:
    probe = subprocess.run([sys.executable, "-c", "import model_signing"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("model-signing (with pyOpenSSL) is not installed")

    def theirs(*arguments: object) -> int:
        return subprocess.run([sys.executable, "-c", THEIRS, *map(str, arguments)], capture_output=True, check=False).returncode

    key, private, public = generate("p256"), tmp_path / "k.key", tmp_path / "k.pub"
    write_pair(key, private, public, None)
    (model / "large").write_bytes(bytes(range(256)) * 1000)
    ours = tmp_path / "ours.sig"
    ours.write_text(sign(model, key, Label(version="1"), shard=shard).to_json())
    assert theirs("verify", public, model, ours) == 0
    if shard is None:  # it cannot read back its own bundles over stretches
        assert theirs("sign", private, model, tmp_path / "theirs.sig") == 0
        assert verify(model, tmp_path / "theirs.sig", keys=[key.public]).ok
    (model / "large").write_bytes(bytes(256_000))
    assert theirs("verify", public, model, ours) != 0
