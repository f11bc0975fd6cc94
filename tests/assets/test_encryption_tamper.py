"""Alteration: whatever is done to an encrypted file, it does not open."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.assets.encryption import EncryptedReader, Identity, KeyService, RawKey, Recipient, encrypt_stream
from hauberk.assets.encryption.header import read_header
from hauberk.assets.encryption.suites import SUITES, Suite
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile, UsageError

KEY, CHUNK = bytes(range(32)), 4096
PLAIN = random.Random(0).randbytes(4 * CHUNK + 1000)  # five chunks


def made(plain: bytes, cipher: str) -> bytes:
    out = io.BytesIO()
    encrypt_stream(plain, out, [KEY, b"a second key" + bytes(20)], cipher=cipher, chunk=CHUNK)
    return out.getvalue()


FILE, ME = made(PLAIN, "aes-256-gcm"), Identity(KEY)


def opened(file: bytes) -> bytes:
    with EncryptedReader(file, KEY, name="the file") as reader:
        return reader.readall()


class Parts:
    """A file taken apart, so that it can be put together wrongly."""

    def __init__(self, file: bytes, suite: Suite) -> None:
        _, begin = read_header(io.BytesIO(file), "")
        self.fixed, self.text, self.mac = file[:40], file[44 : begin - 40], file[begin - 32 : begin]
        step = suite.sealed(CHUNK)
        self.chunks = [file[at : at + step] for at in range(begin, len(file), step)]

    def joined(self, fixed: bytes = b"", text: bytes = b"", mac: bytes = b"", chunks: list[bytes] | None = None) -> bytes:
        """With the checksum made good: it is for accidents, and an attacker makes it good as well."""
        told = (fixed or self.fixed) + len(text or self.text).to_bytes(4, "big") + (text or self.text)
        chunks = self.chunks if chunks is None else chunks
        return told + hashlib.sha256(told).digest()[:8] + (mac or self.mac) + b"".join(chunks)


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def mutations(file: bytes, other: bytes, suite: Suite) -> Iterator[tuple[str, bytes]]:
    """`other` was made with the same key and cipher, of the same length."""
    draw, one, two = random.Random(1), Parts(file, suite), Parts(other, suite)
    chunks, n, begin = one.chunks, len(one.chunks), len(file) - sum(map(len, one.chunks))
    for at in range(begin):
        yield f"flip header byte {at}", flipped(file, at, at % 8)
    for _ in range(100):
        at = draw.randrange(begin, len(file))
        yield f"flip body byte {at}", flipped(file, at, draw.randrange(8))
    for at in range(40):
        yield f"flip fixed byte {at}, checksum made good", one.joined(fixed=flipped(one.fixed, at, at % 8))
    for at in range(32):
        yield f"flip MAC byte {at}", one.joined(mac=flipped(one.mac, at))
    for left in range(n):
        for right in range(left + 1, n):
            order = list(range(n))
            order[left], order[right] = right, left
            yield f"swap chunks {left} and {right}", one.joined(chunks=[chunks[at] for at in order])
        yield f"drop chunk {left}", one.joined(chunks=chunks[:left] + chunks[left + 1 :])
        yield f"double chunk {left}", one.joined(chunks=[*chunks[: left + 1], *chunks[left:]])
        yield f"end after chunk {left}", one.joined(chunks=chunks[:left]) if left else file[:begin]
        yield f"chunk {left} of another file", one.joined(chunks=[*chunks[:left], two.chunks[left], *chunks[left + 1 :]])
        yield f"tail of another file from {left}", one.joined(chunks=chunks[:left] + two.chunks[left:])
        yield f"chunk {left} emptied", one.joined(chunks=[*chunks[:left], b"", *chunks[left + 1 :]])
    for cut in (1, 15, 16, 17, 31, 32, 33, 47, 48, 500, 1000, 1016, 1017, len(file) - begin - 1, len(file) - 44, len(file) - 3):
        yield f"cut {cut} bytes", file[: len(file) - cut]
    for more in (b"\0", bytes(16), bytes(4096), chunks[0], chunks[-1], file):
        yield f"{len(more)} bytes appended", file + more
    yield "a byte before", b"\0" + file
    for number in range(8):
        if number != suite.number:  # downgrades among them
            yield f"cipher {number}", one.joined(fixed=one.fixed[:5] + bytes([number]) + one.fixed[6:])
    for power in (0, 11, 13, 24, 25, 255):
        yield f"chunks of 2^{power}", one.joined(fixed=one.fixed[:6] + bytes([power]) + one.fixed[7:])
    for version in (0, 2, 255):
        yield f"version {version}", one.joined(fixed=one.fixed[:4] + bytes([version]) + one.fixed[5:])
    table, theirs = json.loads(one.text), json.loads(two.text)
    slots = table["slots"]

    def edited(**changes: object) -> bytes:
        return one.joined(text=json.dumps({**table, **changes}, sort_keys=True, separators=(",", ":")).encode())

    yield "content", edited(content="torch")
    yield "a slot dropped", edited(slots=slots[:1])
    yield "a slot doubled", edited(slots=[*slots, slots[0]])
    yield "slots in another order", edited(slots=slots[::-1])
    yield "a slot of another file added", edited(slots=[*slots, theirs["slots"][0]])
    yield "a slot of another file first", edited(slots=[theirs["slots"][0], *slots])
    yield "a slot with a word more", edited(slots=[{**slots[0], "more": 1}, slots[1]])
    yield "another key's slot", edited(slots=[slots[0], {**slots[1], "id": slots[0]["id"]}])
    yield "slots of another file", edited(slots=theirs["slots"])
    yield "a table more", edited(more=1)
    yield "the same table with a space", one.joined(text=one.text.replace(b":", b": ", 1))
    yield "no slots", edited(slots=[])
    yield "the MAC of another file", one.joined(mac=two.mac)
    yield "the header of another file", two.joined(chunks=chunks)
    yield "the beginning of another file", one.joined(fixed=two.fixed)
    yield "table and MAC of another file", one.joined(text=two.text, mac=two.mac)
    yield "beginning and table of another file", one.joined(fixed=two.fixed, text=two.text)
    yield "chunks of another file", one.joined(chunks=two.chunks)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_alteration_is_rejected(suite: Suite) -> None:
    file, other = made(PLAIN, suite.name), made(PLAIN[::-1], suite.name)
    assert opened(file) == PLAIN
    tried, loaded = 0, []
    for name, mutant in mutations(file, other, suite):
        assert mutant != file, name
        tried += 1
        try:
            opened(mutant)
        except HauberkError:
            continue
        loaded.append(name)
    assert loaded == []
    assert tried >= 200


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_nothing_of_an_altered_chunk_is_released(suite: Suite) -> None:
    file = made(PLAIN, suite.name)
    begin = len(file) - sum(map(len, Parts(file, suite).chunks))
    mutant = flipped(file, begin + 2 * suite.sealed(CHUNK) + 5)  # in the third chunk
    reader, out = EncryptedReader(mutant, KEY), bytearray(len(PLAIN))
    with pytest.raises(ModelError, match="chunk 3 of 5 is not authentic"):
        reader.readinto(out)
    assert out == PLAIN[: 2 * CHUNK] + bytes(len(PLAIN) - 2 * CHUNK)
    assert reader.read_at(3 * CHUNK, out) == len(PLAIN) - 3 * CHUNK  # what was not altered is still there
    reader.close()


tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["content", "slots", "kind", "id", "salt", "wrapped", "sent", "memory", "name"]), inner, max_size=5
    ), max_leaves=20,
)
kinds = st.sampled_from(["key", "passphrase", "x25519", "x25519-mlkem768", "service", "\x1b[2J"])
slot = st.builds(lambda table, kind: {**(table if isinstance(table, dict) else {}), "kind": kind}, tables, kinds)


@settings(max_examples=80, deadline=None)
@given(slots=st.lists(slot, max_size=3), table=tables, wild=st.booleans())
def test_headers_of_strangers_end_in_one_of_our_errors(slots: list[object], table: object, wild: bool) -> None:
    from hauberk.assets.encryption import Passphrase

    parts = Parts(FILE, SUITES[0])
    held = table if wild else {"content": "other", "slots": slots}
    text = json.dumps(held, sort_keys=True, separators=(",", ":")).encode()
    openers = [RawKey(KEY), Passphrase("tin whistle"), ME, KeyService("", bytes, bytes)]
    with pytest.raises(HauberkError) as error:
        EncryptedReader(parts.joined(text=text or b"0"), openers)
    assert "\x1b" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 120))
def test_bytes_of_strangers_end_in_one_of_our_errors(data: bytes, kept: int) -> None:
    with pytest.raises(HauberkError):
        EncryptedReader(FILE[:kept] + data, KEY)


def test_a_header_may_not_ask_for_more_than_the_limits() -> None:
    from hauberk.assets.encryption import Passphrase

    out = io.BytesIO()
    encrypt_stream(PLAIN, out, Passphrase("tin whistle"), chunk=CHUNK)
    parts = Parts(out.getvalue(), SUITES[0])
    table = json.loads(parts.text)
    for changes, word in (({"memory": 64 << 20}, "memory"), ({"iterations": 10**9}, "iterations"), ({"lanes": 1 << 24}, "lanes")):
        slots = [{**table["slots"][0], **changes}]
        text = json.dumps({"content": "other", "slots": slots}, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(UnsafeFile, match=f"asks for {word}"):
            EncryptedReader(parts.joined(text=text), Passphrase("tin whistle"))
    many = json.dumps({"content": "other", "slots": table["slots"] * 9}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(UsageError, match="more passphrases than may be tried"):
        EncryptedReader(parts.joined(text=many), Passphrase("tin whistle"))
    most = json.dumps({"content": "other", "slots": table["slots"] * 65}, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(UnsafeFile, match="names 65 keys"):
        EncryptedReader(parts.joined(text=most), KEY)
    with pytest.raises(UnsafeFile, match="header of 4294967295 bytes"):
        EncryptedReader(parts.fixed + b"\xff" * 4 + bytes(100), KEY)
    number = b'{"content":"other","slots":' + b"9" * 5000 + b"}"
    for text in (b"[" * 200_000, number, b"null", b'{"slots":[{}],"content":"other"}'):
        with pytest.raises(ModelError, match="is damaged"):
            EncryptedReader(parts.joined(text=text), KEY)


def test_a_header_as_deep_as_the_interpreter_goes_ends_in_one_of_our_errors() -> None:
    for depth in range(960, 1000):
        text = ('{"content":"torch","slots":[{"kind":"x","v":' + "[" * depth + "]" * depth + "}]}").encode()
        told = b"HBKE" + bytes([1, 1, 20, 0]) + bytes(32) + len(text).to_bytes(4, "big") + text
        with pytest.raises(HauberkError):
            read_header(io.BytesIO(told + hashlib.sha256(told).digest()[:8] + bytes(132)), "x")


def test_a_public_key_that_shares_no_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="no point"):
        Recipient(bytes(32))
