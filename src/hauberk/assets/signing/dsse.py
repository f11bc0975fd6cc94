"""DSSE 1.0: what a signature covers is the type of the payload and the payload, never JSON that could be written otherwise."""

from __future__ import annotations

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding: the bytes that are signed.

    Arguments:
        payload_type: media type of the payload.
        payload: as it is.

    The paper: secure-systems-lab/dsse, protocol.md, version 1.0.0.
    """
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
