"""Keys that sign and verify: ECDSA on the NIST curves, Ed25519, ML-DSA. The key decides the algorithm, never the signature."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa

from hauberk.assets.signing.pkcs8 import encrypted_pem
from hauberk.core.errors import UsageError, nearest
from hauberk.core.files import cannot_write

_CURVES: dict[str, tuple[str, Callable[[], ec.EllipticCurve], Callable[[], hashes.HashAlgorithm]]] = {
    "secp256r1": ("p256", ec.SECP256R1, hashes.SHA256), "secp384r1": ("p384", ec.SECP384R1, hashes.SHA384),
    "secp521r1": ("p521", ec.SECP521R1, hashes.SHA512),
}
_MAKE: dict[str, Callable[[], Any]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()), "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()), "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate, "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}
_PUBLIC = {
    ed25519.Ed25519PublicKey: "ed25519", mldsa.MLDSA44PublicKey: "ml-dsa-44", mldsa.MLDSA65PublicKey: "ml-dsa-65",
    mldsa.MLDSA87PublicKey: "ml-dsa-87",
}
ALGORITHMS = tuple(_MAKE)
_LARGEST = 1 << 16


class VerifyingKey:
    """A public key.

    Arguments:
        key: as `cryptography` loads it.

    Raises:
        UsageError: for a kind of key that is not taken here, such as RSA.
    """

    def __init__(self, key: Any) -> None:
        self._key, self.algorithm = key, _algorithm(key)
        # The digest of the PEM text: the id by which bundles of the OpenSSF name a key.
        self.id = hashlib.sha256(self.pem()).hexdigest()

    def pem(self) -> bytes:
        """Return the key as PEM."""
        return bytes(
            self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether the signature is this key's on this message."""
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, message, ec.ECDSA(_CURVES[self._key.curve.name][2]()))
            else:
                self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class SigningKey:
    """A private key; printing it shows nothing of it."""

    _key: Any = dataclasses.field(repr=False)

    @property
    def public(self) -> VerifyingKey:
        """The public half."""
        return VerifyingKey(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, ec.ECDSA(_CURVES[self._key.curve.name][2]()))
        return bytes(self._key.sign(message))

    def pem(self, passphrase: bytes | None) -> bytes:
        """Return the key as PEM: under the passphrase, or in the clear for None."""
        form = serialization.PrivateFormat.PKCS8
        if passphrase is None:
            return bytes(self._key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        plain = self._key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption())
        return encrypted_pem(plain, passphrase)


def generate(algorithm: str = "p256") -> SigningKey:
    """Return a new key.

    Arguments:
        algorithm: p256, p384, p521, ed25519, ml-dsa-44, ml-dsa-65 or ml-dsa-87.

    Raises:
        UsageError: for an algorithm that is not known, or that the OpenSSL behind `cryptography` lacks.
    """
    if algorithm not in _MAKE:
        raise UsageError(f"'{algorithm}' is no algorithm of signatures here", fix=nearest(algorithm, ALGORITHMS))
    try:
        return SigningKey(_MAKE[algorithm]())
    except UnsupportedAlgorithm as error:
        raise UsageError(
            f"{algorithm} is not in this build of cryptography ({error})", want="cryptography with OpenSSL 3.5 or later",
            fix="Run: pip install --upgrade cryptography",
        ) from error


def write_pair(key: SigningKey, private: Path, public: Path, passphrase: bytes | None) -> None:
    """Write both halves; the private one readable by its owner alone. Nothing is ever written over.

    Raises:
        UsageError: where one of the files exists or cannot be written; then neither is there afterwards.
    """
    if passphrase is not None and not passphrase:
        raise UsageError("the passphrase is empty", want="a passphrase, or none at all (--no-passphrase)")
    _create(private, key.pem(passphrase), 0o600)
    try:
        _create(public, key.public.pem(), 0o644)
    except UsageError:
        private.unlink()
        raise


def read_private(path: str | Path, passphrase: Callable[[], bytes] | None = None) -> SigningKey:
    """Return a private key from a PEM file.

    Arguments:
        path: the file. One that is not encrypted must be readable by its owner alone.
        passphrase: asked only when the key is encrypted.

    Raises:
        UsageError: when it cannot be read, is no private key of a kind taken here, or the passphrase is wrong.
    """
    place = Path(path)
    text = _read(place)
    locked = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in text or b"Proc-Type: 4,ENCRYPTED" in text
    if locked and passphrase is None:
        raise UsageError(f"the key {place} is encrypted", want="its passphrase", fix="Give --passphrase-env or --passphrase-file")
    if b"PRIVATE KEY-----" not in text and b"PUBLIC KEY-----" in text:
        raise UsageError(f"{place} is a public key, which only verifies", want="the private key, which keygen wrote as NAME.key")
    if not locked and b"PRIVATE KEY-----" in text and os.name == "posix" and place.stat().st_mode & 0o077:
        mode = stat.S_IMODE(place.stat().st_mode)
        raise UsageError(
            f"the private key {place} is not encrypted and others may read it (mode {mode:o})", want="mode 600",
            fix=f"Run: chmod 600 {place}. If others have had it, make a new key",
        )
    secret = passphrase() if locked and passphrase is not None else None
    try:
        key = SigningKey(serialization.load_pem_private_key(text, secret))
        _ = key.public
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or the file is broken" if locked else "it holds no private key"
        raise UsageError(f"the key {place} cannot be opened: {what}", want="a private key as PEM (hauberk keygen)") from error
    return key


def read_public(path: str | Path) -> VerifyingKey:
    """Return a public key from a PEM file.

    Raises:
        UsageError: when it cannot be read, or is no public key of a kind taken here; for a private key too.
    """
    place = Path(path)
    return parse_public(_read(place), str(place))


def parse_public(text: bytes, name: str) -> VerifyingKey:
    """Return a public key from PEM text; `name` says in errors where it came from."""
    if b"PRIVATE KEY-----" in text:
        raise UsageError(f"{name} is a private key", want="the public one, which may be given away (.pub)")
    try:
        return VerifyingKey(serialization.load_pem_public_key(text))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{name} holds no public key", want="a public key as PEM (hauberk keygen)") from error


def chosen(keys: Iterable[VerifyingKey], hint: str) -> list[VerifyingKey]:
    """Return the keys that a bundle may be signed with: the one it hints at, or all where it hints at none."""
    return [key for key in keys if not hint or key.id == hint]


def _algorithm(key: Any) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name][0]
    for kind, name in _PUBLIC.items():
        if isinstance(key, kind):
            return name
    what = f"EC on {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    raise UsageError(f"the key is {what}", want=f"one of {', '.join(ALGORITHMS)}", fix="Make one with hauberk keygen")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read ({error.strerror or error})", want="a PEM file") from error
    if len(text) > _LARGEST:
        raise UsageError(f"the key {path} has more than {_LARGEST} bytes", want="a PEM file")
    return text


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    except FileExistsError as error:
        if not os.path.lexists(path):
            raise cannot_write(path, error, option="NAME") from error  # a file stands where its folder would
        raise UsageError(f"{path} exists", want="a new name: keys are never written over") from error
    except OSError as error:
        raise cannot_write(path, error, option="NAME") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise cannot_write(path, error, option="NAME") from error
