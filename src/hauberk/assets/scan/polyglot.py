"""Files that open as more than one format: what one reader takes for numbers, another runs."""

from __future__ import annotations

import io
import os
import tarfile
from typing import BinaryIO

from hauberk.assets.scan.opcodes import imports

BLOCK = 512
_TAIL = 65_536 + 22
_ANY_TORCH = {"zip", "pickle"}
# What a loader takes a file of this ending for. Endings that say nothing are not listed.
_ENDINGS = {
    ".safetensors": {"safetensors"}, ".npy": {"npy"}, ".npz": {"zip"}, ".onnx": {"onnx"}, ".pt2": {"zip"}, ".skops": {"zip"},
    ".keras": {"zip"}, ".h5": {"hdf5"}, ".hdf5": {"hdf5"}, ".gguf": {"gguf"}, ".tar": {"tar"}, ".json": {"json"},
    ".tgz": {"compressed"},
    ".zip": {"zip"}, ".pt": _ANY_TORCH, ".pth": _ANY_TORCH, ".ckpt": _ANY_TORCH, ".pkl": {"pickle", "zip", "compressed"},
    ".pickle": {"pickle", "zip", "compressed"}, ".joblib": {"pickle", "compressed"}, ".gz": {"compressed"},
    ".bz2": {"compressed"}, ".xz": {"compressed"},
}


def other_readings(format_name: str, source: BinaryIO, head: bytes, ending: str) -> list[str]:
    """Return as what else than the format found a file would open, in words; empty for an honest file.

    Arguments:
        format_name: of the format found.
        source: the bytes of the file.
        head: its first 512 bytes.
        ending: of its name, with the dot; empty when it has none.
    """
    found = []
    if format_name not in _ENDINGS.get(ending, {format_name}):
        found.append(f"its name ends in {ending} and its content is {format_name}")
    if format_name != "tar" and is_tar(head):
        found.append("it also opens as a tar archive, which torch tries first")
    if format_name != "zip":
        end = source.seek(0, io.SEEK_END)
        source.seek(max(0, end - _TAIL), os.SEEK_SET)
        if b"PK\x05\x06" in source.read():
            found.append("it also opens as a zip archive")
    # A length that begins like a pickle is chance below 64 KiB: its third byte is then zero, where every unpickler stops.
    headed = format_name == "safetensors" and head[0] == 0x80 and 2 <= head[1] <= 5 and head[2] != 0
    if format_name != "pickle" and (headed or imports(source)):
        found.append("it also opens as a pickle")
    return found


def is_tar(head: bytes) -> bool:
    """Whether a file with this first block opens as a tar archive."""
    try:
        tarfile.TarInfo.frombuf(head[:BLOCK], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True
