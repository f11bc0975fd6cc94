"""What a file holds, by its first bytes: so that a header can say how the plaintext is to be loaded."""

from __future__ import annotations

from typing import BinaryIO

_LARGEST_JSON = 100 << 20  # as safetensors itself limits it


def content_of(source: BinaryIO, suffix: str) -> str:
    """Return torch, safetensors, onnx or other. `suffix` decides for ONNX, whose files have no mark."""
    head = source.read(64)
    if head[:4] == b"PK\3\4" and suffix.lower() not in (".npz", ".zip", ".keras", ".skops", ".pt2"):
        return "torch"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_JSON:
        return "safetensors"
    return "onnx" if suffix.lower() == ".onnx" else "other"
