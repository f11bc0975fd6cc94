"""What lies on the stack of the inert pickle machine: stand-ins that never become the real thing."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any, BinaryIO

from hauberk.assets.scan.allowlist import Ruling
from hauberk.assets.scan.verdict import Unverifiable

_KEY_WEIGHT = 10_000


@dataclasses.dataclass(eq=False, slots=True)
class Global:
    """A name that the pickle imports."""

    module: str
    name: str
    ruling: Ruling

    @property
    def full(self) -> str:
        """`module.name`."""
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False, slots=True)
class Made:
    """What calling a global, or making its class empty, would have given.

    Arguments:
        of: the global; `persistent` for what the loader fetches by a key.
        args: it was called with, or the key.
        state: what it was filled with by BUILD.
        held: what was appended, as values, or set, as pairs.
        raw: what lies behind it in a joblib stream: the byte at which numbers start, or the value of the pickle there.
    """

    of: str
    args: tuple[Any, ...] = ()
    state: Any = None
    held: list[Any] = dataclasses.field(default_factory=list)
    raw: Any = None


@dataclasses.dataclass(eq=False, slots=True)
class Items:
    """A dictionary: pairs in the order they were set, since stand-ins cannot be hashed like the real keys.

    Closed, it was judged as it is: nothing more may be set in it.
    """

    pairs: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    closed: bool = False

    def get(self, key: str) -> Any:
        """Return the last value set under a text key; None when there is none."""
        return next((value for one, value in reversed(self.pairs) if isinstance(one, str) and one == key), None)


def as_bytes(value: object) -> bytes | bytearray | None:
    """Return the bytes that a value stands for, however old the protocol; None when it stands for none."""
    if isinstance(value, (bytes, bytearray)):
        return value
    if isinstance(value, str):
        # Strings of Python 2 are bytes; old arrays come so.
        return value.encode("latin1") if all(ord(one) < 256 for one in set(value)) else None
    if isinstance(value, Made) and value.of == "_codecs.encode" and len(value.args) == 2 and isinstance(value.args[0], str):
        return as_bytes(value.args[0])
    if isinstance(value, Made) and value.of == "builtins.bytearray" and len(value.args) == 1 and not value.held:
        return as_bytes(value.args[0]) if isinstance(value.args[0], (Made, bytes)) else None
    return b"" if isinstance(value, Made) and value.of == "builtins.bytes" and not value.args else None


def check_keys(values: list[Any], at: int, step: Callable[[int], None]) -> None:
    """Count the parts of the keys, key by key: each is hashed to its last leaf. Raises Unverifiable for a key of too many."""
    step(1)
    for value in values:
        left, seen = [value] if isinstance(value, tuple) else [], 0
        while left:
            seen += 1
            if seen + len(left) > _KEY_WEIGHT:
                raise Unverifiable(f"a key of more than {_KEY_WEIGHT} parts at byte {at}")
            one = left.pop()
            if isinstance(one, tuple):
                left.extend(one[: _KEY_WEIGHT + 1])
        if seen:
            step(seen)


class Mark:
    """The mark that tuples, lists and calls are gathered from."""


MARK = Mark()


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, source: BinaryIO, start: int, size: int) -> None:
        self._source, self._start, self._size, self._at = source, start, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the place in the stretch."""
        return self._at

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the stretch."""
        self._at = max(0, place + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the stretch alone."""
        self._source.seek(self._start + min(self._at, self._size))
        part = self._source.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)
