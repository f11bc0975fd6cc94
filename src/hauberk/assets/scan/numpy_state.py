"""What a pickle may fill NumPy objects with: the states that NumPy writes itself, compared with those of the NumPy here.

A dtype or array takes its state unseen: object items under a dtype that says raw bytes would be read as addresses. So a state
must be, entry by entry, what NumPy would have written for that dtype. Only types whose text was checked are made, no array ever.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hauberk.assets.scan.arrays import item_size
from hauberk.assets.scan.values import Global, Items, Made, as_bytes
from hauberk.assets.scan.verdict import Unverifiable

_CORES = ("numpy.core", "numpy._core")
_RECONSTRUCT, _SCALAR, _BUFFER = (
    {f"{core}.{name}" for core in _CORES} for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
)
_MASKED = "numpy.ma.core._mareconstruct"
_MASKS = {"numpy.ma.core.MaskedArray", "numpy.ma.MaskedArray"}
_ARRAYS = {"numpy.ndarray", "numpy.matrix", "numpy.rec.recarray"}
_DEEPEST, _MOST = 8, 2**40


def check_call(full: str, args: tuple[Any, ...]) -> None:
    """Raise Unverifiable when a call that makes a NumPy object is none that NumPy writes."""
    if full in _RECONSTRUCT:
        _empty(args, 1, _ARRAYS)
    elif full == _MASKED:
        _empty(args, 2, _MASKS | _ARRAYS)
    elif full == "numpy.dtype":
        real_dtype(Made(full, args))
    elif full in _SCALAR:
        if len(args) != 2:
            raise Unverifiable("a NumPy number without its bytes")
        _holds(real_dtype(args[0]), 1, args[1])
    elif full in _BUFFER and (len(args) != 4 or real_dtype(args[1]).hasobject):
        raise Unverifiable("a NumPy array is put over a buffer as NumPy does not")


def check_state(made: Made) -> None:
    """Raise Unverifiable when a NumPy object was filled with a state that NumPy does not write."""
    if made.of == "numpy.dtype":
        real_dtype(made)
    elif made.of in _RECONSTRUCT | _ARRAYS:
        _array(made.state, 5)
    elif made.of in {_MASKED, *_MASKS}:
        dtype, count = _array(made.state, 7)
        _holds(np.ma.make_mask_descr(dtype), count, made.state[5])


def _empty(args: tuple[Any, ...], classes: int, known: set[str]) -> None:
    named = all(isinstance(one, Global) and one.full in known for one in args[:classes])
    if len(args) != classes + 2 or not named or args[classes] != (0,) or as_bytes(args[classes + 1]) != b"b":
        raise Unverifiable("a NumPy array is started with something else than no items")


def _array(state: object, length: int) -> tuple[Any, int]:
    if not isinstance(state, tuple) or len(state) != length:
        raise Unverifiable("a NumPy array is filled with no state of NumPy")
    count = items(state[1])
    dtype = real_dtype(state[2])
    _holds(dtype, count, state[4])
    return dtype, count


def items(shape: object) -> int:
    """Return how many items a shape has."""
    if not isinstance(shape, tuple) or len(shape) > 64 or not all(type(one) is int and one >= 0 for one in shape):
        raise Unverifiable("an array whose shape cannot be read")
    count = math.prod(shape)
    if count > _MOST or (count == 0 and any(one > _MOST for one in shape)):
        raise Unverifiable(f"an array of shape {str(shape)[:80]}")
    return count


def _holds(dtype: Any, count: int, data: object) -> None:
    """Objects come as a list of as many, all else as bytes that fill the array exactly."""
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise Unverifiable("an array of objects is not filled with a list of as many")
        return
    raw = as_bytes(data)
    if raw is None or len(raw) != count * dtype.itemsize or (not dtype.itemsize and count > 2**26):
        raise Unverifiable(f"an array of {count} items of {dtype.itemsize} bytes is filled with something else")


def real_dtype(made: object, depth: int = 0) -> Any:
    """Return the dtype that a stand-in would become. Raises Unverifiable unless its state is what NumPy writes for it."""
    if not isinstance(made, Made) or made.of != "numpy.dtype" or depth > _DEEPEST:
        raise Unverifiable("a dtype that cannot be read")
    args, state = made.args, made.state
    if args and isinstance(args[0], Global) and args[0].full == "numpy.record":
        # The type of the rows of a recarray: a dtype of fields, whose rows have the fields as attributes.
        if state is None:
            return np.dtype(np.record)
        width = state[5] if isinstance(state, tuple) and len(state) == 8 else None
        rows = real_dtype(Made(made.of, (f"V{width}", *args[1:]), state), depth)
        if rows.names is None:
            raise Unverifiable("a dtype of records without its fields")
        return np.dtype((np.record, rows))
    if not args or not isinstance(args[0], str) or len(args) not in (1, 3) or (len(args) == 3 and args[1:] != (False, True)):
        raise Unverifiable("a dtype that is made of something else than text")
    text = args[0]
    item_size(text)
    try:
        if state is None:
            return np.dtype(text)
        if len(args) != 3 or not isinstance(state, tuple) or len(state) not in (8, 9):
            raise Unverifiable(f"dtype {text[:40]!r} is filled with no state of NumPy")
        found = tuple(_plain(one, depth) for one in state)
        if len(found) == 9 and isinstance(found[8], tuple) and found[8] and found[8][0] == {}:
            found = (*found[:8], (None, *found[8][1:]))  # older NumPy writes no metadata as an empty table
        made_here = _made(text, found)
        if made_here.__reduce__()[1:] != (args, found):
            raise Unverifiable(f"dtype {text[:40]!r} is filled with a state that NumPy does not write")
        if made_here.hasobject and made_here != np.dtype("O"):
            raise Unverifiable("a dtype with objects in its fields")
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError, MemoryError) as error:
        raise Unverifiable(f"dtype {text[:40]!r} cannot be read ({type(error).__name__})") from error
    return made_here


def _made(text: str, state: tuple[Any, ...]) -> Any:
    _, order, inner, names, fields, size, _, flags = state[:8]
    if inner is not None:
        items(inner[1])
        return np.dtype(tuple(inner))
    if names is not None:
        columns = [fields[name] for name in names]
        return np.dtype({
            "names": list(names), "formats": [column[0] for column in columns], "offsets": [column[1] for column in columns],
            "itemsize": size,
        }, align=bool(flags & 0x80))
    if len(state) == 9:
        unit, count = state[8][1][0].decode("ascii"), state[8][1][1]
        if not unit.isalpha() or type(count) is not int:
            raise Unverifiable("a date type whose unit cannot be read")
        text = text if unit == "generic" else f"{text}[{count}{unit}]"
    made = np.dtype(text)
    return made.newbyteorder(order) if order in ("<", ">") else made


def _plain(value: object, depth: int) -> Any:
    """Turn a stand-in inside a dtype's state into what it stands for."""
    if depth > _DEEPEST:
        raise Unverifiable("a dtype nested too deep")
    if isinstance(value, Made):
        raw = as_bytes(value)
        return real_dtype(value, depth + 1) if raw is None else raw
    if isinstance(value, tuple):
        return tuple(_plain(one, depth + 1) for one in value)
    if isinstance(value, Items):
        if not all(isinstance(key, str) for key, _ in value.pairs):
            raise Unverifiable("a dtype whose fields cannot be read")
        return {key: _plain(one, depth + 1) for key, one in value.pairs}
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    raise Unverifiable("a dtype whose state cannot be read")
