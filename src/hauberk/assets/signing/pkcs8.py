"""Private keys under a passphrase: PKCS#8 (RFC 5958) with scrypt (RFC 7914) and AES-256-CBC, as PEM that OpenSSL reads too."""

from __future__ import annotations

import base64
import os

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

# 16 MiB and five passes: what fits the memory that OpenSSL grants to scrypt, at the cost of one pass over 128 MiB.
COST, BLOCK, PASSES = 2**14, 8, 5
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_SCRYPT = bytes.fromhex("2b06010401da47040b")
_AES_256_CBC = bytes.fromhex("60864801650304012a")


def encrypted_pem(plain: bytes, passphrase: bytes) -> bytes:
    """Return a private key as PEM that only the passphrase opens.

    Arguments:
        plain: the key as PKCS#8 in DER.
        passphrase: any bytes but none.
    """
    salt, iv = os.urandom(16), os.urandom(16)
    key = Scrypt(salt=salt, length=32, n=COST, r=BLOCK, p=PASSES).derive(passphrase)
    pad = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    body = encryptor.update(pad.update(plain) + pad.finalize()) + encryptor.finalize()
    kdf = _sequence(_element(6, _SCRYPT), _sequence(_element(4, salt), *(_integer(one) for one in (COST, BLOCK, PASSES))))
    cipher = _sequence(_element(6, _AES_256_CBC), _element(4, iv))
    der = _sequence(_sequence(_element(6, _PBES2), _sequence(kdf, cipher)), _element(4, body))
    text = base64.b64encode(der).decode()
    lines = [text[place : place + 64] for place in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]).encode()


def _element(tag: int, content: bytes) -> bytes:
    """Return one element of DER: tag, length, content."""
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _element(0x30, b"".join(parts))


def _integer(value: int) -> bytes:
    return _element(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))
