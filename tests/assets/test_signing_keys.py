"""Keys: published vectors, files that only their owner reads, passphrases, and what is refused."""

from __future__ import annotations

import base64
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils

from hauberk.assets.signing.dsse import pae
from hauberk.assets.signing.keys import ALGORITHMS, SigningKey, VerifyingKey, generate, read_private, read_public, write_pair
from hauberk.core.errors import UsageError

# RFC 8032, section 7.1, tests 1 to 3: secret, public, message, signature.
RFC8032 = [
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
     "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC8032)
def test_ed25519_is_that_of_the_rfc(secret: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))
    assert key.sign(bytes.fromhex(message)).hex() == signature
    known = VerifyingKey(ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    assert known.id == key.public.id
    assert known.verifies(bytes.fromhex(signature), bytes.fromhex(message))
    assert not known.verifies(bytes.fromhex(signature), bytes.fromhex(message) + b"\0")


def test_dsse_is_that_of_the_protocol() -> None:
    # secure-systems-lab/dsse, protocol.md, test vectors: encoding, and an ECDSA signature over it.
    message = pae("http://example.com/HelloWorld", b"hello world")
    assert message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    numbers = ec.EllipticCurvePublicNumbers(
        46950820868899156662930047687818585632848591499744589407958293238635476079160,
        5640078356564379163099075877009565129882514886557779369047442380624545832820, ec.SECP256R1(),
    )
    raw = base64.b64decode("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
    signature = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    key = VerifyingKey(numbers.public_key())
    assert key.algorithm == "p256" and key.verifies(signature, message) and not key.verifies(signature, message[:-1])
    # Lengths are in bytes, not in characters.
    assert pae("é", "ü".encode()) == "DSSEv1 2 é 2 ü".encode()


# FIPS 204, table 2: bytes of a signature.
@pytest.mark.parametrize(("algorithm", "size"), [("ml-dsa-44", 2420), ("ml-dsa-65", 3309), ("ml-dsa-87", 4627)])
def test_ml_dsa_has_the_sizes_of_the_standard(algorithm: str, size: int) -> None:
    assert len(generate(algorithm).sign(b"x")) == size


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_pair_comes_back_from_its_files(algorithm: str, tmp_path: Path) -> None:
    key = generate(algorithm)
    write_pair(key, tmp_path / "a.key", tmp_path / "a.pub", b"secret" if algorithm == "ml-dsa-65" else None)
    public = read_public(tmp_path / "a.pub")
    again = read_private(tmp_path / "a.key", lambda: b"secret")
    assert public.algorithm == algorithm and public.id == key.public.id == again.public.id
    signature = again.sign(b"message")
    assert public.verifies(signature, b"message")
    for wrong in (b"", signature[:-1], signature + b"\0", bytes([signature[0] ^ 1]) + signature[1:]):
        assert not public.verifies(wrong, b"message")
    assert not public.verifies(signature, b"messagf") and not generate(algorithm).public.verifies(signature, b"message")


def test_a_private_key_is_for_its_owner_and_under_scrypt(tmp_path: Path) -> None:
    key, private, public = generate(), tmp_path / "a.key", tmp_path / "a.pub"
    write_pair(key, private, public, "pässwort".encode())
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    text = private.read_bytes()
    assert text.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    der = base64.b64decode(b"".join(text.splitlines()[1:-1]))
    # scrypt, N = 2^14, r = 8, p = 5; AES-256-CBC: object identifiers and integers as DER has them.
    assert bytes.fromhex("2b06010401da47040b") in der and bytes.fromhex("02024000020108020105") in der
    assert bytes.fromhex("60864801650304012a") in der
    serialization.load_pem_private_key(text, "pässwort".encode())
    with pytest.raises(UsageError, match="passphrase is wrong"):
        read_private(private, lambda: b"other")
    with pytest.raises(UsageError, match="is encrypted"):
        read_private(private)
    assert "secret" not in repr(key) and "_key" not in repr(key)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_ours_and_we_read_openssls(tmp_path: Path) -> None:
    key, private = generate("p256"), tmp_path / "a.key"
    write_pair(key, private, tmp_path / "a.pub", b"secret")
    command = ["openssl", "pkey", "-in", str(private), "-passin", "pass:secret", "-pubout"]
    shown = subprocess.run(command, capture_output=True, check=True)
    assert shown.stdout == key.public.pem()
    theirs = tmp_path / "b.key"
    command = ["openssl", "pkcs8", "-topk8", "-scrypt", "-in", str(private), "-passin", "pass:secret"]
    command += ["-out", str(theirs), "-passout", "pass:b"]
    subprocess.run(command, capture_output=True, check=True)
    assert read_private(theirs, lambda: b"b").public.id == key.public.id


def test_nothing_is_written_over_and_half_a_pair_is_none(tmp_path: Path) -> None:
    key = generate()
    (tmp_path / "a.pub").write_text("mine")
    with pytest.raises(UsageError, match="never written over"):
        write_pair(key, tmp_path / "a.key", tmp_path / "a.pub", None)
    assert not (tmp_path / "a.key").exists() and (tmp_path / "a.pub").read_text() == "mine"
    (tmp_path / "b.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        write_pair(key, tmp_path / "b.key", tmp_path / "b.pub", None)
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "b.pub").exists()
    with pytest.raises(UsageError, match="passphrase is empty"):
        write_pair(key, tmp_path / "c.key", tmp_path / "c.pub", b"")


def test_keys_that_are_not_taken(tmp_path: Path) -> None:
    place = tmp_path / "k"
    for made in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(UsageError, match="Expected one of p256"):
            VerifyingKey(made.public_key())
    write_pair(generate(), place.with_suffix(".key"), place.with_suffix(".pub"), None)
    with pytest.raises(UsageError, match="is a private key"):
        read_public(place.with_suffix(".key"))
    public = place.with_suffix(".pub")
    with pytest.raises(UsageError, match="is a public key"):
        read_private(public)
    place.write_text("words")
    with pytest.raises(UsageError, match="no private key"):
        read_private(place)
    place.with_suffix(".key").chmod(0o644)
    with pytest.raises(UsageError, match="others may read it"):
        read_private(place.with_suffix(".key"))
    place.write_bytes(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(UsageError, match="no public key"):
        read_public(place)
    with pytest.raises(UsageError, match="Did you mean 'ed25519'"):
        generate("ed2551")
