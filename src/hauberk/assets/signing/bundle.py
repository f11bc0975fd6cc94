"""Sigstore bundles v0.3 with one public key, as JSON: what lies beside a signed model."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from pathlib import Path
from typing import Any

from hauberk.assets.signing.dsse import PAYLOAD_TYPE

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
LARGEST = 64 << 20


class Refused(Exception):
    """Something about a signature does not hold; the message says what. Always ends as 'not verified'."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One signed payload.

    Arguments:
        payload: what was signed, an in-toto statement.
        signature: over its DSSE encoding.
        hint: id of the key, from the verification material; not signed, so good for choosing among trusted keys only.
        key_id: the same, from the envelope; other makers leave it empty.
    """

    payload: bytes
    signature: bytes
    hint: str
    key_id: str = ""

    def to_json(self) -> str:
        """Return the bundle as JSON."""
        return json.dumps({
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode(), "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(self.signature).decode(), "keyid": self.key_id}],
            },
        }) + "\n"


def read_bundle(path: str | Path) -> Bundle:
    """Return the bundle in a file. Raises Refused when there is none, or it is not as it should be in any part."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise Refused(f"the signature {path} cannot be read ({error.strerror or error})") from error
    if len(content) > LARGEST:
        raise Refused(f"the signature {path} has more than {LARGEST} bytes")
    return parse_bundle(content)


def parse_bundle(content: bytes) -> Bundle:
    """Return the bundle in JSON text. Raises Refused for anything but one DSSE envelope, one signature, one public key."""
    whole = _table(parse_json(content), "the bundle", {"mediaType", "verificationMaterial", "dsseEnvelope"})
    if whole["mediaType"] != MEDIA_TYPE:
        raise Refused(f"the signature is {str(whole['mediaType'])[:80]!r}, not {MEDIA_TYPE}")
    material = _table(
        whole["verificationMaterial"], "verificationMaterial", {"publicKey"}, {"tlogEntries", "timestampVerificationData"}
    )
    if material.get("tlogEntries") or material.get("timestampVerificationData"):
        raise Refused("the signature has entries of a transparency log or time stamps, which cannot be verified here")
    hint = _text(_table(material["publicKey"], "publicKey", set(), {"hint"}).get("hint") or "", "hint")
    envelope = _table(whole["dsseEnvelope"], "dsseEnvelope", {"payload", "payloadType", "signatures"})
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise Refused(f"the payload is {str(envelope['payloadType'])[:80]!r}, not {PAYLOAD_TYPE}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Refused("the envelope does not have exactly one signature")
    signature = _table(signatures[0], "signature", {"sig"}, {"keyid"})
    return Bundle(
        _bytes(envelope["payload"], "payload"), _bytes(signature["sig"], "sig"), hint,
        _text(signature.get("keyid") or "", "keyid"),
    )


def parse_json(content: bytes) -> Any:
    """Return the value of JSON text in UTF-8. Raises Refused where two readers could see two things: a key that comes twice."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise Refused("the signature is no JSON, or broken") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Refused("a table of the signature has a key twice")
    return made


def _no_number(text: str) -> float:
    raise Refused(f"the signature holds {text}, which is no JSON")


def _table(value: Any, name: str, needed: set[str], allowed: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or not needed <= set(value) <= needed | (allowed or set()):
        raise Refused(f"{name} of the signature does not have the fields it should: {', '.join(sorted(needed))}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{name} of the signature is no text")
    if any("\ud800" <= mark <= "\udfff" for mark in value):
        raise Refused(f"{name} of the signature is not Unicode")
    return value


def _bytes(value: Any, name: str) -> bytes:
    try:
        made = base64.b64decode(_text(value, name), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{name} of the signature is not base64") from error
    if base64.b64encode(made).decode() != value:
        raise Refused(f"{name} of the signature is not base64 in its one way of writing")
    return made
