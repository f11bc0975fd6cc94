"""The bytes of a pickle: cut into opcodes, or skimmed to see whether they could import anything at all."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from hauberk.assets.scan.verdict import Stumble

# What genops says where the real machine ends as well: a byte that is no opcode, or bytes that are missing.
_BOTH_STUMBLE = ("unknown", "exhausted", "not enough data", "but only")
_OPCODES = {ord(one.code): one for one in pickletools.opcodes}
_CALLS = frozenset({"REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "INST"})
_TEXTS = frozenset(
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()  # noqa: SIM905
)
_LENGTHS = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4, pickletools.TAKEN_FROM_ARGUMENT4U: 4,
            pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_MOST_STEPS = 100_000


class Bounded:
    """A stream that never reads more than is there: a length in an opcode must not become an allocation."""

    def __init__(self, stream: BinaryIO) -> None:
        here = stream.tell()
        self._end = stream.seek(0, io.SEEK_END)
        stream.seek(here)
        self._stream, self.tell, self.escaped, self.cut = stream, stream.tell, False, False

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        return self._stream.read(size) if size < 4096 else self._stream.read(min(size, self._end - self._stream.tell()))

    def readline(self) -> bytes:
        """Return the rest of the line; one longer than 16 MiB comes without its end, which no opcode accepts."""
        line = self._stream.readline(2**24)
        self.escaped = self.escaped or b"\\" in line
        self.cut = self.cut or len(line) == 2**24
        return line


def cut(bounded: Bounded) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """Cut a stream into opcodes; where genops fails and the real machine would too, raise Stumble."""
    try:
        for opcode, arg, position in pickletools.genops(cast(BinaryIO, bounded)):
            yield opcode, arg, position or 0
    except ValueError as error:
        text = str(error)
        if type(error) is ValueError and not bounded.cut and any(part in text for part in _BOTH_STUMBLE):
            raise Stumble(f"it is malformed ({text[:120]})") from error
        raise


def imports(source: BinaryIO, *, and_calls: bool = False) -> bool:
    """Return whether a pickle reader that is put at byte 0 could import something before it fails or ends.

    Arguments:
        source: bytes of some other format; read from the start, and left wherever.
        and_calls: ask for a call behind the import as well: plain text often begins like an import.

    Returns:
        True where it could, or where it goes on for longer than is looked at. Values are stepped over, never built.
    """
    end = source.seek(0, 2)
    source.seek(0)
    seen, texts = False, 0
    for _ in range(_MOST_STEPS):
        code = source.read(1)
        opcode = _OPCODES.get(code[0]) if code else None
        # Plain readers have no persistent objects, and torch's wants a tuple where PERSID gives text.
        if opcode is None or opcode.name in ("STOP", "PERSID"):
            return False
        if opcode.name in ("EXT1", "EXT2", "EXT4") or (opcode.name == "STACK_GLOBAL" and not texts):
            return False  # an extension that nobody registered, or a name that is not there
        if opcode.name in ("GLOBAL", "INST"):
            if not _names(source.readline(2**16), source.readline(2**16)):
                return False
            seen = True
        elif opcode.name == "STACK_GLOBAL":
            seen = True
        elif opcode.name == "PROTO" and source.read(1) > b"\x05":
            return False
        if opcode.name in _TEXTS and opcode.arg is not None:
            texts += _is_name(source, opcode.arg.n)
        elif opcode.name not in ("GLOBAL", "INST", "PROTO") and opcode.arg is not None:
            _step_over(source, opcode.arg.n)
        if seen and (not and_calls or opcode.name in _CALLS):
            return True
        if source.tell() > end:
            return False
    return True


def _names(module: bytes, name: bytes) -> bool:
    try:
        texts = [one[:-1].decode("utf-8").rstrip("\r") for one in (module, name) if one.endswith(b"\n")]
        return len(texts) == 2 and all(one.isprintable() and " " not in one for one in texts)
    except UnicodeDecodeError:
        return False


def _is_name(source: BinaryIO, size: int) -> bool:
    """Step over a text and return whether it could name something importable."""
    start = source.tell()
    _step_over(source, size)
    end = source.tell()
    source.seek(start + _LENGTHS.get(size, 0))
    raw = source.read(max(0, min(end - source.tell(), 4096)))
    source.seek(end)
    try:
        return bool(raw.strip()) and raw.strip().decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def _step_over(source: BinaryIO, size: int) -> None:
    if size >= 0:
        source.seek(size, 1)
    elif size == pickletools.UP_TO_NEWLINE:
        while (part := source.readline(2**20)) and not part.endswith(b"\n"):
            pass
        if not part:
            source.seek(1, 2)
    else:
        source.seek(min(int.from_bytes(source.read(_LENGTHS[size]), "little"), 2**62), 1)
