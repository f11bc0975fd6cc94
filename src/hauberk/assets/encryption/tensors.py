"""Safetensors in an encrypted file: written tensor by tensor, read tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hauberk.assets.encryption.reader import EncryptedReader
from hauberk.assets.encryption.writing import write_all
from hauberk.core.errors import ModelError, UsageError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
    "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_JSON = 100 << 20
_MOST_AXES = 64  # as torch has it; a product of millions of lengths would take hours
Entry = tuple[torch.dtype, tuple[int, ...], int, int]  # type, shape, begin and end in the data


class EncryptedTensors(Mapping[str, Tensor]):
    """The tensors of an encrypted safetensors file by name. A tensor is decrypted when it is asked for, and nothing else is.

    Arguments:
        reader: of the file; closed with the mapping.

    Raises:
        ModelError: when the plaintext is no safetensors.
    """

    def __init__(self, reader: EncryptedReader) -> None:
        self._reader = reader
        self._entries, self._begin = _entries(reader)

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape, begin, _ = self._entries[name]
        return self._read(dtype, shape, begin)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> EncryptedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; nothing is decrypted for it."""
        return self._entries[name][1]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return `tensor[start:stop]`, shape (stop - start, …), from the chunks that hold it alone.

        Raises:
            UsageError: for rows that the tensor does not have.
        """
        dtype, shape, begin, _ = self._entries[name]
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise UsageError(f"rows {start} to {stop} of '{name}', which has shape {shape}", want="rows that it has")
        row = math.prod(shape[1:]) * dtype.itemsize
        return self._read(dtype, (stop - start, *shape[1:]), begin + start * row)

    def verify(self) -> None:
        """Authenticate what was not read. Raises ModelError where the file was altered."""
        self._reader.verify()

    def close(self) -> None:
        """Close the file and wipe its keys."""
        self._reader.close()

    def _read(self, dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Tensor:
        held = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        self._reader.read_at(self._begin + begin, held.numpy())
        return held.view(dtype).reshape(shape) if held.numel() else torch.empty(shape, dtype=dtype)


def write_safetensors(tensors: Mapping[str, Tensor], sink: BinaryIO) -> None:
    """Write tensors in the format of safetensors, one after the other, so that no second copy of all of them is made.

    Raises:
        UsageError: for a tensor that is sparse, quantised, or of a type the format does not have.
    """
    # Wider types first: every tensor then begins at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        one = tensors[name]
        if not holds(one):
            raise UsageError(f"'{name}' is {one.layout} of {one.dtype}", want="a dense tensor", fix="Give content='torch'")
        size = one.numel() * one.dtype.itemsize
        entries[name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_all(sink, len(text).to_bytes(8, "little") + text)
    for name in order:
        flat = tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        if flat.numel():
            write_all(sink, flat.view(torch.uint8).numpy().data)


def holds(tensor: Tensor) -> bool:
    """Return whether safetensors can hold a tensor."""
    return tensor.layout is torch.strided and tensor.dtype in NAMES and tensor.device.type != "meta"


def _entries(reader: EncryptedReader) -> tuple[dict[str, Entry], int]:
    """Return dtype, shape, begin and end of each tensor, and where the data begins: as strict as the format is."""
    head = bytearray(8)
    reader.read_at(0, head)
    size = int.from_bytes(head, "little")
    if reader.size < 8 or size > min(_LARGEST_JSON, reader.size - 8):
        raise _broken(reader, f"its table would have {size} bytes")
    text = bytearray(size)
    reader.read_at(8, text)
    try:
        held = json.loads(text)
        found: dict[str, Entry] = {}
        for name, one in held.items():
            if name != "__metadata__":
                begin, end = map(_whole, one["data_offsets"])
                if len(one["shape"]) > _MOST_AXES:
                    raise ValueError(f"{len(one['shape'])} axes")
                found[name] = (DTYPES[one["dtype"]], tuple(map(_whole, one["shape"])), begin, end)
        spans = sorted((begin, end) for _, _, begin, end in found.values())
        exact = all(end - begin == math.prod(shape) * dtype.itemsize for dtype, shape, begin, end in found.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(reader, f"its table is wrong ({type(error).__name__})") from error
    ends = [0, *(end for _, end in spans)]
    if not exact or [begin for begin, _ in spans] != ends[:-1] or ends[-1] != reader.size - 8 - size:
        raise _broken(reader, "its tensors leave gaps, overlap, or go beyond its end")
    return found, 8 + size


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:20]} is no size")
    return value


def _broken(reader: EncryptedReader, what: str) -> ModelError:
    return ModelError(f"what {reader.name} holds is no safetensors: {what}", want="safetensors", fix="Encrypt the file again")
