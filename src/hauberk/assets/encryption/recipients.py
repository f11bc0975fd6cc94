"""Recipients: files are encrypted to a public key, and opened with the secret one. X25519 alone, or with ML-KEM-768.

The hybrid holds as long as either of the two does: its key comes from both shared secrets, bound to both ciphertexts and both
public keys. (RFC 7748; FIPS 203; the combiner follows Giacon, Heuer and Poettering, KEM Combiners, PKC 2018.)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from hauberk.assets.encryption.derive import derive, wipe
from hauberk.assets.encryption.header import Slot, encoded, field
from hauberk.assets.encryption.keys import secret_from_file, unwrap_under, wrap_under
from hauberk.assets.encryption.writing import new_file, write_all
from hauberk.core.errors import UsageError

KINDS = ("x25519-mlkem768", "x25519")
_PUBLIC, _SECRET = "hauberk-recipient-1", "hauberk-identity-1"
_X, _ML, _ML_SEED, _ML_CIPHERTEXT = 32, 1184, 64, 1088


class Recipient:
    """One who can be encrypted to: a public key.

    Arguments:
        public: 32 bytes of X25519; in the hybrid, 1184 bytes of ML-KEM-768 more.

    Raises:
        UsageError: for bytes that are no public key.
    """

    def __init__(self, public: bytes) -> None:
        if len(public) not in (_X, _X + _ML):
            raise UsageError(f"the public key has {len(public)} bytes", want=f"{_X}, or {_X + _ML} for the hybrid")
        self.public, self.kind = public, KINDS[len(public) == _X]
        try:
            self._x = X25519PublicKey.from_public_bytes(public[:_X])
            self._ml = MLKEM768PublicKey.from_public_bytes(public[_X:]) if len(public) > _X else None
            X25519PrivateKey.generate().exchange(self._x)  # refuses points of low order, whose shared secret anybody knows
        except ValueError as error:
            raise UsageError("the public key is no point or lattice key", want="one that hauberk recipient made") from error

    def __repr__(self) -> str:
        return f"Recipient({self.id}, {self.kind})"

    @property
    def id(self) -> str:
        """The name of the key, which stands in the header."""
        return hashlib.sha256(self.public).hexdigest()[:16]

    @classmethod
    def read(cls, path: str | Path) -> Recipient:
        """Read a public key that `save` wrote. Raises UsageError when it is none."""
        return cls(_read(path, _PUBLIC, "a public key, a .pub that hauberk recipient wrote"))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the public key. Raises UsageError when the file is there already."""
        _write(path, f"{_PUBLIC} {self.kind} {encoded(self.public)}\n", force=force, mode=0o644)

    def wrap(self, data_key: bytearray, bound: bytes) -> Slot:
        """Return a slot for this recipient."""
        once = X25519PrivateKey.generate()
        sent, shared = once.public_key().public_bytes_raw(), bytearray(once.exchange(self._x))
        if self._ml is not None:
            second, ciphertext = self._ml.encapsulate()
            sent, shared = sent + ciphertext, shared + bytearray(second)
        sealed = wrap_under(_combined(shared, sent, self.public, self.kind), data_key, bound)
        return {"kind": self.kind, "id": self.id, "sent": encoded(sent), "wrapped": sealed}


class Identity:
    """One who can open: the secret key of a recipient.

    Arguments:
        secret: 32 bytes of X25519; in the hybrid, the 64 bytes seed of ML-KEM-768 more. The copy kept is wiped by `wipe`.

    Raises:
        UsageError: for another length.
    """

    def __init__(self, secret: bytes | bytearray) -> None:
        if len(secret) not in (_X, _X + _ML_SEED):
            raise UsageError(f"the secret key has {len(secret)} bytes", want=f"{_X}, or {_X + _ML_SEED} for the hybrid")
        self._secret = bytearray(secret)
        x, ml = self._parts()
        public = x.public_key().public_bytes_raw() + (ml.public_key().public_bytes_raw() if ml is not None else b"")
        self.recipient = Recipient(public)

    def __repr__(self) -> str:
        return f"Identity({self.recipient.id}, {self.recipient.kind})"

    @classmethod
    def generate(cls, kind: str = KINDS[0]) -> Identity:
        """Return a new one; by default the hybrid, which a quantum computer does not open. Raises UsageError for another kind."""
        if kind not in KINDS:
            raise UsageError(f"the kind of key is '{kind}'", want=" or ".join(KINDS))
        return cls(os.urandom(_X if kind == "x25519" else _X + _ML_SEED))

    @classmethod
    def read(cls, path: str | Path) -> Identity:
        """Read a secret key that `save` wrote. Raises UsageError when it is none."""
        return cls(_read(path, _SECRET, "a secret key that hauberk recipient wrote"))

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the secret key, readable by its owner alone. Raises UsageError when the file is there already."""
        _write(path, f"{_SECRET} {self.recipient.kind} {encoded(self._secret)}\n", force=force, mode=0o600)

    def wrap(self, data_key: bytearray, bound: bytes) -> Slot:
        """Return a slot for the matching recipient, so that an identity can save for itself."""
        return self.recipient.wrap(data_key, bound)

    def unwrap(self, slot: Slot, bound: bytes) -> bytearray | None:
        """Return the data key of a slot for this recipient."""
        who = self.recipient
        if slot["kind"] != who.kind or slot.get("id") != who.id:
            return None
        x, ml = self._parts()
        sent = field(slot, "sent", _X + (_ML_CIPHERTEXT if ml is not None else 0))
        try:
            shared = bytearray(x.exchange(X25519PublicKey.from_public_bytes(sent[:_X])))
        except ValueError:  # a point of low order, which no honest sender picks
            return None
        if ml is not None:
            shared += bytearray(ml.decapsulate(sent[_X:]))
        return unwrap_under(_combined(shared, sent, who.public, who.kind), slot, bound)

    def wipe(self) -> None:
        """Overwrite the secret key."""
        wipe(self._secret)

    def _parts(self) -> tuple[X25519PrivateKey, MLKEM768PrivateKey | None]:
        view = memoryview(self._secret)
        x = X25519PrivateKey.from_private_bytes(view[:_X])
        return x, MLKEM768PrivateKey.from_seed_bytes(view[_X:]) if len(view) > _X else None


def _combined(shared: bytearray, sent: bytes, public: bytes, kind: str) -> bytearray:
    """Return the wrapping key: bound to all that was sent and to whom, and wipe the shared secrets."""
    try:
        salt = hashlib.sha256(sent).digest() + hashlib.sha256(public).digest()
        return derive(shared, 32, salt=salt, purpose=b"hauberk wrap " + kind.encode())
    finally:
        wipe(shared)


def _read(path: str | Path, mark: str, want: str) -> bytes:
    words = bytes(secret_from_file(path)).split()
    try:
        known = len(words) == 3 and words[0].decode("ascii") == mark and words[1].decode("ascii") in KINDS
        held = base64.b64decode(words[2], validate=True) if known else None
    except (binascii.Error, ValueError):
        held = None
    if held is None:
        what, fix = f"{path} is no key of hauberk recipient", "Make a pair with: hauberk recipient NAME"
        if words and mark == _PUBLIC and words[0] == _SECRET.encode():
            what, fix = f"{path} is the secret key, which is for opening", f"Use the public one, as {path}.pub"
        elif words and mark == _SECRET and words[0] == _PUBLIC.encode():
            what, fix = f"{path} is the public key, which is for encrypting", "Use the secret one, the same name without .pub"
        raise UsageError(what, want=want, fix=fix)
    return held


def _write(path: str | Path, text: str, *, force: bool, mode: int) -> None:
    with new_file(Path(path), force=force, mode=mode) as file:
        write_all(file, text.encode())
