"""What is known of a tensor before its values are read, and how they are read: in order, in parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hauberk.core.errors import ModelError

CHUNK = 1 << 20
# Bits of an element, by the names that safetensors gives to types.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16,
    "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "C128": 128,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}
Parts = Callable[[], Iterator[bytes | memoryview]]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor in a file.

    Arguments:
        name: as the file names it.
        dtype: its type, as safetensors names it: F32, BF16, I64, BOOL …
        shape: its lengths.
        parts: the bytes of its values, little-endian, the last index fastest; what one step yields is gone with the next.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Parts = dataclasses.field(repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """How many bytes its values take."""
        return (self.count * BITS[self.dtype] + 7) // 8


def stretch(path: Path, start: int, size: int) -> Parts:
    """Return the parts of bytes that lie together in a file, read through one buffer."""

    def read() -> Iterator[memoryview]:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            yield from whole(file, size, str(path))

    return read


def whole(file: BinaryIO, size: int, name: str) -> Iterator[memoryview]:
    """Yield `size` bytes from where a file stands, through one buffer. Raises ModelError when there are fewer."""
    buffer, left = memoryview(bytearray(min(CHUNK, max(size, 1)))), size
    while left:
        got = file.readinto(buffer[: min(len(buffer), left)])  # type: ignore[attr-defined]
        if not got:
            raise ModelError(f"{name} ends {left} bytes before its last tensor does", want="a whole file")
        yield buffer[:got]
        left -= got


def swapped(parts: Iterator[bytes | memoryview], width: int) -> Iterator[bytes]:
    """Yield values of `width` bytes each with their bytes turned round."""
    rest = b""
    for part in parts:
        block = rest + bytes(part)
        cut = len(block) - len(block) % width
        yield np.frombuffer(block[:cut], dtype=f"V{width}").view(np.uint8).reshape(-1, width)[:, ::-1].tobytes()
        rest = block[cut:]
