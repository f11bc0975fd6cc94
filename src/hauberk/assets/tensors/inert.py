"""Pickles followed on stand-ins: every name becomes an inert class, every call an inert object. Nothing is imported or run."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

from hauberk.core.errors import UnsafeFile

LARGEST = 256 << 20
_PLAIN = (str, int, float, bytes, bool, type(None))


class Made:
    """A stand-in for an object: which name made it, of what, and what was put into it afterwards."""

    of = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Made:
        made = object.__new__(cls)
        made.args, made.state, made.pairs, made.entries = args, None, [], []
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.pairs: list[tuple[Any, Any]]
        self.entries: list[Any]

    def __call__(self, *args: Any) -> Made:
        return Made(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))

    def append(self, value: Any) -> None:
        """Take one value, as a list does."""
        self.entries.append(value)

    def extend(self, values: Any) -> None:
        """Take many values, as a list does."""
        self.entries += values if isinstance(values, list) else []


class Stored:
    """A stand-in for what lies outside the pickle: the storage of a tensor. It stays what it was when it was named."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a storage that is changed after it was named")


class _Follower(pickle._Unpickler):
    """The unpickler of the standard library in Python, whose every door to the outside is closed."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.names: dict[str, type[Made]] = {}
        self.stored: dict[Any, tuple[Any, ...]] = {}

    def find_class(self, module: str, name: str) -> type[Made]:
        full = f"{module}.{name}"
        return self.names.setdefault(full, type("Made", (Made,), {"of": full}))

    def persistent_load(self, key: Any) -> Stored:
        if isinstance(key, tuple) and len(key) == 5 and key[0] == "storage" and isinstance(key[2], str):
            # torch keeps the first storage of a key, and its type, for all that name the key later.
            said = (getattr(key[1], "of", None), key[4])
            if self.stored.setdefault(key[2], said) != said:
                raise pickle.UnpicklingError("one storage is described in two ways")
        return Stored(key)

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension code {code}")


def _checked(opcode: bytes) -> Callable[[Any], None]:
    """Return a handler that looks at keys before they are hashed: nested tuples would take for ever."""
    original = pickle._Unpickler.dispatch[opcode[0]]

    def handle(self: Any) -> None:
        keys = [self.stack[-2]] if opcode == b"s" else self.stack[:: 1 if opcode in (b"\x90", b"\x91") else 2]
        if not all(_hashable(key) for key in keys):
            raise pickle.UnpicklingError("a key that is neither text nor number")
        original(self)

    return handle


def _hashable(key: Any) -> bool:
    if isinstance(key, tuple):
        return len(key) <= 16 and all(isinstance(part, _PLAIN) for part in key)
    return isinstance(key, (*_PLAIN, Made, Stored)) or (isinstance(key, type) and issubclass(key, Made))


def _bytearray8(self: Any) -> None:
    length = int.from_bytes(self.read(8), "little")
    if length > LARGEST:
        raise pickle.UnpicklingError(f"{length} bytes")
    self.append(bytearray(self.read(length)))


for _opcode in (b"s", b"u", b"d", b"\x90", b"\x91"):
    _Follower.dispatch[_opcode[0]] = _checked(_opcode)
_Follower.dispatch[0x96] = _bytearray8


def follow(content: bytes, name: str, names: set[str] | None = None) -> Any:
    """Return what one pickle describes, in lists, dicts, tuples, plain values and stand-ins.

    Arguments:
        content: the pickle.
        name: of the file, for errors.
        names: filled with all that the pickle names, `module.name`, whether or not it ends up in the value.

    Raises:
        UnsafeFile: when it cannot be followed to its end.
    """
    if len(content) > LARGEST:
        raise UnsafeFile(f"{name} has a pickle of {len(content)} bytes", want=f"at most {LARGEST}")
    try:
        follower = _Follower(io.BytesIO(content))
        value = follower.load()
        if names is not None:
            names.update(follower.names)
        return value
    except Exception as error:  # the bytes are hostile: whatever an unpickler stumbles over
        raise UnsafeFile(
            f"{name} has a pickle that cannot be followed ({type(error).__name__}: {str(error)[:100]})", want="a whole file"
        ) from error
