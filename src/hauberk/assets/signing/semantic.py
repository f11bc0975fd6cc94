"""The semantic digest: the same names, types, shapes and values give the same digest, in whatever format they lie.

What is hashed: for each tensor, in the order of its name's UTF-8 bytes, the name, the type, the shape, and the SHA-256 of its
values, little-endian, the last index fastest. Values are bits: -0.0 differs from 0.0, and one NaN from another. A boolean is 0 or
1 and nothing else. Metadata of the file, the order of tensors in it, strides and alignment count for nothing.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from hauberk.assets.signing.facts import TensorsClaim
from hauberk.assets.tensors import TensorSpec, tensors_in
from hauberk.core.errors import ModelError

_MARK = b"hauberk-tensors/1\n"


def semantic_digest(path: str | Path, *, workers: int | None = None) -> TensorsClaim:
    """Return the digest of the tensors of a file, or of a folder of shards; values are streamed, never held.

    Arguments:
        path: safetensors, a state dict that torch.save wrote, npz, or a folder of them.
        workers: threads; None takes one per core, at most 8.

    Raises:
        ModelError: when its tensors cannot be read.
        UnsafeFile: when the file plays tricks.
    """
    return digest_tensors(tensors_in(path), workers=workers)


def digest_tensors(tensors: Sequence[TensorSpec], *, workers: int | None = None) -> TensorsClaim:
    """Return the digest of tensors, in any order. Raises ModelError for names that come twice or are not Unicode."""
    try:
        ordered = sorted(((one.name.encode("utf-8"), one) for one in tensors), key=lambda pair: pair[0])
    except UnicodeEncodeError as error:
        raise ModelError("the name of a tensor is not Unicode", want="names that UTF-8 can write") from error
    if len({name for name, _ in ordered}) != len(ordered):
        raise ModelError("two tensors have one name", want="each name once")
    many = min(workers or min(os.cpu_count() or 1, 8), max(len(ordered), 1))
    with concurrent.futures.ThreadPoolExecutor(many) as pool:
        leaves = list(pool.map(_values, (one for _, one in ordered)))
    whole = hashlib.sha256(_MARK + struct.pack("<Q", len(ordered)))
    for (name, one), leaf in zip(ordered, leaves, strict=True):
        kind = one.dtype.encode("ascii")
        whole.update(struct.pack("<IB", len(name), len(kind)) + name + kind)
        whole.update(struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *one.shape) + leaf)
    return TensorsClaim(digest=whole.hexdigest(), count=len(ordered))


def _values(tensor: TensorSpec) -> bytes:
    digest, seen = hashlib.sha256(), 0
    for part in tensor.parts():
        if tensor.dtype == "BOOL" and bytes(part).translate(None, b"\0\1"):
            raise ModelError(f"tensor '{tensor.name[:80]}' is boolean and holds another byte than 0 and 1", want="true or false")
        digest.update(part)
        seen += len(part)
    if seen != tensor.size:
        raise ModelError(f"tensor '{tensor.name[:80]}' has {seen} bytes of values, {tensor.size} are wanted", want="a whole file")
    return digest.digest()
