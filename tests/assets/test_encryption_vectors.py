"""Known answers: the ciphers as they are put together here, the derivation of keys, and the format from its description alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from hauberk.assets.encryption import Identity, Passphrase, encrypt_stream
from hauberk.assets.encryption.derive import derive
from hauberk.assets.encryption.suites import Aead, ChunkCipher, EncryptThenMac, Sm4Gcm

of = bytes.fromhex
NIST = of(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_KEY = of("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
SM4_KEY = of("0123456789abcdeffedcba9876543210")
GCM_KEY = of("feffe9928665731c6d6a8f9467308308" * 2)
GCM_PLAIN = of(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
AAD = of("feedfacedeadbeeffeedfacedeadbeefabaddad2")
SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
)


def sealed(cipher: ChunkCipher, nonce: bytes, plain: bytes) -> bytes:
    out = bytearray(len(plain) + 64)
    size = cipher.seal(nonce, memoryview(plain), memoryview(out))
    back = bytearray(len(plain) + 16)
    assert cipher.open(nonce, memoryview(bytes(out[:size])), memoryview(back)) == len(plain)
    assert back[: len(plain)] == plain
    return bytes(out[:size])


def test_aes_256_gcm() -> None:
    # McGrew and Viega, The Galois/Counter Mode of Operation, test cases 13 (nothing), 15 (no associated data) and 16.
    assert sealed(Aead(AESGCM(bytes(32)), b""), bytes(12), b"") == of("530f8afbc74536b9a963b4f1c4cb738b")
    nonce = of("cafebabefacedbaddecaf888")
    body = of(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
    )
    assert sealed(Aead(AESGCM(GCM_KEY), b""), nonce, GCM_PLAIN) == body + of("b094dac5d93471bdec1a502270e3cc6c")
    assert sealed(Aead(AESGCM(GCM_KEY), AAD), nonce, GCM_PLAIN[:60]) == body[:60] + of("76fc6ece0f4e1768cddf8853bb2d551b")


def test_chacha20_poly1305() -> None:
    # RFC 8439, 2.8.2.
    cipher = Aead(ChaCha20Poly1305(bytes(range(0x80, 0xA0))), of("50515253c0c1c2c3c4c5c6c7"))
    assert sealed(cipher, of("070000004041424344454647"), SUNSCREEN) == of(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
        "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116"
        "1ae10b594f09e26a7e902ecbd0600691"
    )


def test_sm4_gcm() -> None:
    # RFC 8998, A.1.
    plain = of("".join(mark * 16 for mark in "abcdef") + "e" * 16 + "a" * 16)
    assert sealed(Sm4Gcm(SM4_KEY, AAD), of("00001234567800000000abcd"), plain) == of(
        "17f399f08c67d5ee19d0dc9969c4bb7d5fd46fd3756489069157b282bb200735d82710ca5c22f0ccfa7cbf93d496ac15a56834cbcf98c397b4024a2691233b8d"
        "83de3541e4c2b58177e065a9bf7b62ec"
    )


def defined_hmac(digest: Callable[[bytes], bytes], key: bytes, message: bytes) -> bytes:
    """FIPS 198-1, for keys of at most a block of 64 bytes."""
    block = key.ljust(64, b"\0")
    inner = digest(bytes(one ^ 0x36 for one in block) + message)
    return digest(bytes(one ^ 0x5C for one in block) + inner)


def sm3(message: bytes) -> bytes:
    running = hashes.Hash(hashes.SM3())
    running.update(message)
    return running.finalize()


@pytest.mark.parametrize(("algorithm", "mode", "start", "plain", "expected"), [
    # NIST SP 800-38A, F.5.5 and F.2.5; draft-ribose-cfrg-sm4, A.2.2 (two of its blocks).
    (algorithms.AES(NIST_KEY), modes.CTR, of("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), NIST,
     "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c52b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"),
    (algorithms.AES(NIST_KEY), modes.CBC, bytes(range(16)), NIST,
     "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b"),
    (algorithms.SM4(SM4_KEY), modes.CBC, bytes(range(16)), of("aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffffaaaaaaaabbbbbbbb"),
     "78ebb11cc40b0a48312aaeb2040244cb4cb7016951909226979b0d15dc6a8f6d"),
])
@pytest.mark.parametrize(("digest", "oracle"), [
    (hashes.SHA256(), lambda message: hashlib.sha256(message).digest()), (hashes.SM3(), sm3),
])
def test_modes_with_a_mac(algorithm, mode, start, plain, expected, digest, oracle) -> None:
    nonce, bound, key = bytes(range(12)), b"bound to this", bytes(range(32))
    cipher = EncryptThenMac(algorithm, mode, mac_key=key, digest=digest, start=lambda _: start, bound=bound)
    found = sealed(cipher, nonce, plain)
    body, tag = found[:-32], found[-32:]
    assert body[: len(plain)] == of(expected)
    assert len(body) == len(plain) + (16 if mode is modes.CBC else 0)
    assert tag == defined_hmac(oracle, key, bound + nonce + body)


def test_the_pieces_of_keys() -> None:
    # GB/T 32905, A.1; RFC 5869, A.1.
    assert sm3(b"abc") == of("66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0")
    assert derive(b"\x0b" * 22, 42, salt=bytes(range(13)), purpose=bytes(range(0xF0, 0xFA))) == of(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def hkdf(secret: bytes, size: int, salt: bytes, purpose: bytes) -> bytes:
    """RFC 5869, by its definition."""
    extracted, out, last = hmac.digest(salt or bytes(32), secret, "sha256"), b"", b""
    for count in range(1, -(-size // 32) + 1):
        last = hmac.digest(extracted, last + purpose + bytes([count]), "sha256")
        out += last
    return out[:size]


def test_a_file_opens_by_the_description_of_its_format_alone() -> None:
    """A second reader, written from docs/concepts/encryption.md with nothing of the library."""
    plain, key = bytes(range(256)) * 40, bytes(range(32))
    secret = of("11" * 32 + "22" * 64)
    out = io.BytesIO()
    encrypt_stream(plain, out, [key, Identity(secret), Passphrase("tin whistle")], chunk=4096)
    held = out.getvalue()
    fixed, size = held[:40], int.from_bytes(held[40:44], "big")
    assert fixed[:8] == b"HBKE" + bytes([1, 1, 12, 0])
    told, rest = held[: 44 + size], held[44 + size :]
    table = json.loads(held[44 : 44 + size])
    assert table["content"] == "other"
    check, mac, body = rest[:8], rest[8:40], rest[40:]
    assert check == hashlib.sha256(told).digest()[:8]

    raw, hybrid, words = table["slots"]
    part = {name: base64.b64decode(raw[name]) for name in ("salt", "wrapped")}
    data_key = AESGCM(hkdf(key, 32, part["salt"], b"hauberk wrap key")).decrypt(bytes(12), part["wrapped"], fixed)

    sent = base64.b64decode(hybrid["sent"])
    x, ml = X25519PrivateKey.from_private_bytes(secret[:32]), MLKEM768PrivateKey.from_seed_bytes(secret[32:])
    public = x.public_key().public_bytes_raw() + ml.public_key().public_bytes_raw()
    shared = x.exchange(X25519PublicKey.from_public_bytes(sent[:32])) + ml.decapsulate(sent[32:])
    salt = hashlib.sha256(sent).digest() + hashlib.sha256(public).digest()
    wrapping = hkdf(shared, 32, salt, b"hauberk wrap x25519-mlkem768")
    assert AESGCM(wrapping).decrypt(bytes(12), base64.b64decode(hybrid["wrapped"]), fixed) == data_key

    assert (words["memory"], words["iterations"], words["lanes"]) == (64 << 10, 3, 1)
    stretched = Argon2id(
        salt=base64.b64decode(words["salt"]), length=32, iterations=3, lanes=1, memory_cost=64 << 10
    ).derive(b"tin whistle")
    assert AESGCM(stretched).decrypt(bytes(12), base64.b64decode(words["wrapped"]), fixed) == data_key

    assert mac == hmac.digest(hkdf(data_key, 32, fixed, b"hauberk header 1"), told, "sha256")
    material = hkdf(data_key, 39, fixed[8:], b"hauberk body 1" + fixed)
    cipher, parts = AESGCM(material[7:]), [body[at : at + 4112] for at in range(0, len(body), 4112)]
    opened = [
        cipher.decrypt(material[:7] + index.to_bytes(4, "big") + bytes([index == len(parts) - 1]), one, fixed)
        for index, one in enumerate(parts)
    ]
    assert b"".join(opened) == plain
    assert len(parts) == 3
