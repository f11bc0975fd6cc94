"""Encrypted files: what goes in comes out, for each who may open it and nobody else, and files are whole or not there."""

from __future__ import annotations

import gc
import io
import os
import random
import stat
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hauberk.assets.encryption import (
    EncryptedReader,
    EncryptedWriter,
    Identity,
    KeyService,
    Passphrase,
    RawKey,
    Recipient,
    describe,
    encrypt_anew,
    encrypt_file,
    encrypt_stream,
    is_encrypted,
    key_from_environment,
    key_from_file,
    rewrap,
)
from hauberk.assets.encryption.keys import _raw, named_key, passphrase_from
from hauberk.assets.encryption.suites import SUITES
from hauberk.core.errors import ModelError, UsageError

KEY, OTHER, CHUNK = bytes(range(32)), bytes(32), 4096
near = st.integers(0, 3).flatmap(lambda n: st.integers(-18, 18).map(lambda d: max(0, n * CHUNK + d)))


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
@settings(max_examples=25, deadline=None)
@given(size=near, parts=st.lists(st.integers(1, 2 * CHUNK), max_size=6), offset=st.integers(0, 3 * CHUNK), length=near)
@example(size=CHUNK, parts=[CHUNK], offset=0, length=CHUNK)
@example(size=2 * CHUNK, parts=[], offset=CHUNK - 1, length=CHUNK + 2)
def test_what_goes_in_comes_out(suite, size: int, parts: list[int], offset: int, length: int) -> None:
    plain = random.Random(size).randbytes(size)
    whole, written = io.BytesIO(), io.BytesIO()
    encrypt_stream(io.BytesIO(plain), whole, KEY, cipher=suite.name, chunk=CHUNK)
    with EncryptedWriter(written, KEY, cipher=suite.name, chunk=CHUNK) as writer:
        at = 0
        for part in parts:
            writer.write(plain[at : at + part])
            at += part
        writer.write(plain[at:])
    assert len(whole.getvalue()) == len(written.getvalue())
    for file in (whole, written, io.BytesIO(whole.getvalue())):
        with EncryptedReader(file, KEY) as reader:
            assert reader.size == size
            assert reader.read() == plain
            reader.seek(offset)
            assert reader.read(length) == plain[offset : offset + length]
            assert reader.tell() == offset + len(plain[offset : offset + length])
            assert reader.seek(-1, io.SEEK_END) == size - 1 if size else True


def test_two_files_of_the_same_have_nothing_in_common() -> None:
    one, two = io.BytesIO(), io.BytesIO()
    for out in (one, two):
        encrypt_stream(bytes(64), out, KEY)
    assert one.getvalue()[:8] == two.getvalue()[:8]
    assert one.getvalue()[8:40] != two.getvalue()[8:40]
    assert one.getvalue()[-80:-64] != two.getvalue()[-80:-64]
    assert b"\0" * 16 not in one.getvalue()[-80:]


def break_off(sink: io.BytesIO) -> None:
    with EncryptedWriter(sink, KEY, chunk=CHUNK) as writer:
        writer.write(bytes(2 * CHUNK))
        raise RuntimeError


def test_what_was_broken_off_gets_no_end() -> None:
    """Where an error leaves a writer behind, its file must not open as if it were whole."""
    left, ended = io.BytesIO(), io.BytesIO()
    writer = EncryptedWriter(left, KEY, chunk=CHUNK)
    writer.write(bytes(2 * CHUNK))
    del writer
    gc.collect()
    with pytest.raises(RuntimeError):
        break_off(ended)
    for file in (left, ended):
        with pytest.raises(ModelError, match="cut short"):
            EncryptedReader(file.getvalue(), KEY)


def service() -> KeyService:
    """A key service that keeps what it wraps in a drawer."""
    drawer: dict[bytes, bytes] = {}

    def wrap(key: bytes) -> bytes:
        drawer[label := os.urandom(8)] = key
        return label

    return KeyService("drawer", wrap, drawer.get)


def test_each_who_may_open_opens_and_nobody_else() -> None:
    hybrid, classic, drawer = Identity.generate(), Identity.generate("x25519"), service()
    words = Passphrase("caf\u00e9 by the sea")
    out = io.BytesIO()
    encrypt_stream(b"weights", out, [KEY, words, hybrid.recipient, classic.recipient, drawer], chunk=CHUNK)
    file = out.getvalue()
    same_words = Passphrase("cafe\u0301 by the sea")  # as another keyboard types it
    for key in (KEY, RawKey(KEY), same_words, hybrid, classic, drawer, [OTHER, Identity.generate(), KEY]):
        assert EncryptedReader(file, key).read() == b"weights"
    for key in (OTHER, KEY[:31], Passphrase("cafe by the sea"), Identity.generate(), Identity.generate("x25519"), service()):
        with pytest.raises(UsageError, match="the key does not open") as error:
            EncryptedReader(file, key, name="model.hbke")
        assert "Expected one of: key" in str(error.value)
        assert "\n" not in str(error.value)


def test_secrets_do_not_show() -> None:
    secret = "tin whistle at dawn"
    shown = repr([RawKey(KEY), Passphrase(secret), Identity(KEY)])
    assert secret not in shown
    assert KEY.hex() not in shown
    assert RawKey(KEY).id not in KEY.hex()


def test_keys_are_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    from hauberk.assets.encryption import body, reader, writer
    from hauberk.assets.encryption.derive import derive

    made: list[bytearray] = []

    def watched(*args, **options) -> bytearray:
        made.append(derive(*args, **options))
        return made[-1]

    monkeypatch.setattr(body, "derive", watched)
    fresh = writer.fresh_key
    monkeypatch.setattr(writer, "fresh_key", lambda: made.append(fresh()) or made[-1])
    find = reader.data_key_of
    monkeypatch.setattr(reader, "data_key_of", lambda *args: made.append(find(*args)) or made[-1])
    out = io.BytesIO()
    encrypt_stream(b"weights", out, KEY)
    opened = EncryptedReader(out.getvalue(), KEY)
    assert opened.read() == b"weights"
    assert len(made) == 4  # data key and body keys, once to seal and once to open
    assert sum(map(any, made)) == 1  # an open reader has its body keys
    opened.close()
    assert not any(map(any, made))
    assert not any(opened._plain)
    with pytest.raises(ValueError, match="closed"):
        opened.read_at(0, bytearray(1))
    key, words, identity = RawKey(KEY), Passphrase("tin whistle"), Identity(KEY)
    for one in (key, words, identity):
        one.wipe()
    assert not any(key._key) and not any(words._words) and not any(identity._secret)


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, target = tmp_path / "model.safetensors", tmp_path / "model.hbke"
    plain.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    encrypt_file(plain, target, KEY)
    before = target.read_bytes()
    assert is_encrypted(target) and not is_encrypted(plain)
    assert describe(target).content == "safetensors"
    with pytest.raises(UsageError, match=r"model\.hbke exists already.*--force"):
        encrypt_file(plain, target, KEY)
    with pytest.raises(UsageError, match="encrypted already"):
        encrypt_file(target, tmp_path / "twice.hbke", KEY)
    with pytest.raises(ModelError, match=r"nothing\.pt cannot be read"):
        encrypt_file(tmp_path / "nothing.pt", tmp_path / "new.hbke", KEY)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hauberk.assets.encryption.writing.os.fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        encrypt_file(plain, target, KEY, force=True)
    with pytest.raises(UsageError, match="No space left"):
        rewrap(target, KEY, add=OTHER)
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.hbke", "model.safetensors"]


def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    from hauberk.assets.encryption.writing import new_file

    with pytest.raises(UsageError, match="exists already"), new_file(tmp_path / "a"):
        (tmp_path / "a").write_bytes(b"another's")
    assert (tmp_path / "a").read_bytes() == b"another's"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("broken", ["wrong key", "wrong passphrase", "corrupt header", "cut short", "plain"])
def test_one_clear_error_and_the_file_untouched(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "model.hbke"
    (tmp_path / "plain").write_bytes(bytes(10_000))
    encrypt_file(tmp_path / "plain", file, [KEY, Passphrase("tin whistle")], chunk=CHUNK)
    if broken == "corrupt header":
        held = bytearray(file.read_bytes())
        held[60] ^= 4
        file.write_bytes(held)
    if broken == "cut short":
        file.write_bytes(file.read_bytes()[:-30])
    if broken == "plain":
        file = tmp_path / "plain"
    before = file.read_bytes()
    key = {"wrong key": OTHER, "wrong passphrase": Passphrase("tin whistles")}.get(broken, KEY)
    kind, words = {
        "wrong key": (UsageError, "the key does not open model.hbke"),
        "wrong passphrase": (UsageError, "the key does not open model.hbke"),
        "corrupt header": (ModelError, "header of model.hbke is damaged: its checksum is wrong"),
        "cut short": (ModelError, "model.hbke was altered.*cut short"),
        "plain": (ModelError, "plain is not encrypted by hauberk"),
    }[broken]
    for attempt in (lambda: EncryptedReader(file, key), lambda: rewrap(file, key, add=bytes(16))):
        with pytest.raises(kind, match=words):
            attempt()
    assert file.read_bytes() == before


def test_rewrap_changes_who_may_open_and_leaves_the_body(tmp_path: Path) -> None:
    file, plain, alice, bob = tmp_path / "m.hbke", os.urandom(3 * CHUNK + 7), Identity.generate(), Identity.generate("x25519")
    (tmp_path / "plain").write_bytes(plain)
    encrypt_file(tmp_path / "plain", file, [KEY, Passphrase("tin whistle")], chunk=CHUNK)
    was, body = describe(file), file.read_bytes()[-3 * CHUNK :]

    rewrap(file, KEY, add=[alice.recipient, bob.recipient])
    rewrap(file, alice, add=Passphrase("brass kettle"), remove=["passphrase"])  # the passphrase changed
    rewrap(file, bob, remove=[RawKey(KEY).id])
    now = describe(file)
    assert (now.file_id, now.cipher, now.chunk) == (was.file_id, was.cipher, was.chunk)
    assert [kind for kind, _ in now.keys] == ["x25519-mlkem768", "x25519", "passphrase"]
    assert file.read_bytes()[-3 * CHUNK :] == body
    for key in (alice, bob, Passphrase("brass kettle")):
        assert EncryptedReader(file, key).read() == plain
    for key in (KEY, Passphrase("tin whistle")):
        with pytest.raises(UsageError, match="does not open"):
            EncryptedReader(file, key)

    rewrap(file, alice, add=OTHER, remove="*", output=tmp_path / "rotated.hbke")
    assert [kind for kind, _ in describe(tmp_path / "rotated.hbke").keys] == ["key"]
    assert describe(file) == now
    before = file.read_bytes()
    with pytest.raises(UsageError, match="nobody would be left"):
        rewrap(file, alice, remove="*")
    with pytest.raises(UsageError, match="'carol' opens nothing here"):
        rewrap(file, alice, remove=["carol"])
    assert file.read_bytes() == before

    encrypt_anew(file, alice, OTHER, cipher="sm4-gcm")
    assert describe(file).file_id != was.file_id
    assert describe(file).cipher == "sm4-gcm"
    assert EncryptedReader(file, OTHER).read() == plain


def test_recipients_in_files(tmp_path: Path) -> None:
    for kind in ("x25519-mlkem768", "x25519"):
        made, secret, public = Identity.generate(kind), tmp_path / kind, tmp_path / f"{kind}.pub"
        made.save(secret)
        made.recipient.save(public)
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert Recipient.read(public).public == made.recipient.public
        assert Identity.read(secret).recipient.id == made.recipient.id
        with pytest.raises(UsageError, match="exists already"):
            made.save(secret)
        with pytest.raises(UsageError, match="is the public key"):
            Identity.read(public)
        with pytest.raises(UsageError, match="is the secret key"):
            Recipient.read(secret)


def test_keys_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(KEY)
    (tmp_path / "hex").write_text(KEY.hex() + "\n")
    monkeypatch.setenv("MODEL_KEY", KEY.hex())
    found = [key_from_file(tmp_path / "raw"), key_from_file(tmp_path / "hex"), key_from_environment("MODEL_KEY"),
             named_key("env:MODEL_KEY"), named_key(f"file:{tmp_path / 'hex'}")]
    assert {one.id for one in found} == {RawKey(KEY).id}
    for read in (bytearray(KEY), bytearray(KEY.hex().encode()), bytearray(b"tin whistle")):
        made = passphrase_from(read) if len(read) == 11 else _raw(read, "")
        assert not any(read) and any(made._words if len(read) == 11 else made._key)  # what was read is wiped, what is kept is not
    (tmp_path / "odd").write_text("+1" * 16)  # no digits, whatever int() says of them
    (tmp_path / "words").write_text("tin whistle at dawn\n")  # would open to whoever tries words, with nothing to slow him
    (tmp_path / "signs").write_text("пароль пароль")
    monkeypatch.setenv("WORDS", "tin whistle at dawn")
    for text in ("file:odd", "file:words", "file:signs", "env:WORDS"):
        with pytest.raises(UsageError, match="holds text"):
            named_key(text.replace("file:", f"file:{tmp_path}/"))
    (tmp_path / "short").write_bytes(b"secret")
    for attempt, words in (
        (lambda: key_from_file(tmp_path / "short"), "holds 6 bytes"), (lambda: key_from_file(tmp_path / "no"), "cannot be read"),
        (lambda: key_from_environment("NO_SUCH_KEY"), "NO_SUCH_KEY is not set"), (lambda: RawKey(bytes(5)), "has 5 bytes"),
        (lambda: named_key("0123456789abcdef"), "named in another form"), (lambda: Passphrase("short"), "has 5 characters"),
        (lambda: Passphrase("long enough", memory=1024), "Argon2id with 1024 KiB"),
        (lambda: encrypt_stream(b"", io.BytesIO(), "words"), "the key is text"),
        (lambda: encrypt_stream(b"", io.BytesIO(), []), "no key is given"),
        (lambda: encrypt_stream(b"", io.BytesIO(), KEY, cipher="aes-256-cbc"), "the cipher is 'aes-256-cbc'"),
        (lambda: encrypt_stream(b"", io.BytesIO(), KEY, chunk=1000), "the chunk size is 1000"),
        (lambda: encrypt_stream(b"", io.BytesIO(), KEY, chunk=1 << 25), r"2\^25"),
        (lambda: EncryptedReader(b"HBKE", Recipient(KEY)), "is damaged"),
    ):
        with pytest.raises((UsageError, ModelError), match=words):
            attempt()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    with plain.open("wb") as file:
        file.truncate(64 << 20)
    out = bytearray(64 << 20)
    tracemalloc.start()
    encrypt_file(plain, tmp_path / "m.hbke", KEY)
    sealing = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    with EncryptedReader(tmp_path / "m.hbke", KEY) as reader:
        reader.readinto(out)
    opening = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sealing, opening) < 8 << 20
