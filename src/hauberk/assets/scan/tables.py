"""What pandas pickles, and the Arrow arrays in them, may be made with; the names are in `pandas_names.py`."""

from __future__ import annotations

import itertools
import re
import struct
from typing import Any

from hauberk.assets.scan.values import Global, Items, Made, as_bytes

_INDEX = re.compile(r"pandas\.(core\.indexes\.\w+\.)?([A-Z]\w*)?Index")
_ARRAY = re.compile(r"pandas\.(arrays\.|core\.arrays(\.\w+)+\.)?[A-Z]\w*")
_ALIASES = {"string": 4, "utf8": 4, "large_string": 8, "large_utf8": 8}


def new_index(args: tuple[Any, ...]) -> str:
    """Refuse an index of something else than a listed class and its parts."""
    fine = len(args) == 2 and isinstance(args[0], Global) and _INDEX.fullmatch(args[0].full) and isinstance(args[1], Items)
    if not fine:
        return "makes an index of something that is not a listed class"
    unrolled = any(isinstance(one, Made) and one.of == "builtins.range" for _, one in args[1].pairs)
    return "unrolls a range into memory" if unrolled else ""


def new_array(args: tuple[Any, ...]) -> str:
    """Refuse an array of a class that is not listed; its state comes later, and pandas checks it."""
    fine = len(args) == 3 and isinstance(args[0], Global) and _ARRAY.fullmatch(args[0].full)
    plain = len(args) == 3 and type(args[1]) is int and args[2] is None
    return "" if fine and plain else "makes an array of something that is not a listed class"


def alias(args: tuple[Any, ...]) -> str:
    """Refuse an Arrow type that is not known here."""
    return "" if len(args) == 1 and isinstance(args[0], str) and args[0] in _ALIASES else "names an Arrow type that is not known"


def restore_array(args: tuple[Any, ...]) -> str:
    """Refuse Arrow buffers that would be read beyond their ends: Arrow itself does not look.

    A text array is (type, length, nulls, offset, [validity, places, bytes], children, dictionary).
    """
    parts = args[0] if len(args) == 1 and isinstance(args[0], tuple) else ()
    if len(parts) != 7 or not all(type(one) is int and 0 <= one < 2**40 for one in (parts[1], parts[3])):
        return "makes an Arrow array in a way that cannot be read"
    kind, length, _, offset, buffers, children, dictionary = parts
    known = isinstance(kind, Made) and kind.of == "pyarrow.lib.type_for_alias" and not alias(kind.args)
    if not known or children or dictionary is not None:
        return "makes an Arrow array of a type that is not known"
    if not isinstance(buffers, (list, tuple)) or len(buffers) != 3:
        return "makes an Arrow array without its buffers"
    valid, places, content = (_bytes(one) for one in buffers)
    width, end = _ALIASES[kind.args[0]], offset + length
    if (buffers[0] is not None and (valid is None or len(valid) * 8 < end)) or places is None or len(places) < (end + 1) * width:
        return "makes an Arrow array that reaches beyond its buffers"
    steps = struct.unpack_from(f"<{end + 1}{'q' if width == 8 else 'i'}", places)
    rising = all(a <= b for a, b in itertools.pairwise(steps))
    inside = steps[0] >= 0 and steps[-1] <= len(content or b"")
    return "" if rising and inside else "makes an Arrow array whose texts lie beyond its bytes"


def py_buffer(args: tuple[Any, ...]) -> str:
    """Refuse a buffer over something else than bytes."""
    return "" if len(args) == 1 and as_bytes(args[0]) is not None else "takes over memory of another object"


def _bytes(value: object) -> bytes | bytearray | None:
    if isinstance(value, Made) and value.of == "pyarrow.lib.py_buffer" and len(value.args) == 1:
        return as_bytes(value.args[0])
    return None


RULES = {
    "pandas.core.indexes.base._new_Index": new_index, "pandas.core.indexes.datetimes._new_DatetimeIndex": new_index,
    "pandas.core.indexes.period._new_PeriodIndex": new_index, "pandas.core.indexes.interval._new_IntervalIndex": new_index,
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": new_array, "pyarrow.lib.type_for_alias": alias,
    "pyarrow.lib._restore_array": restore_array,
    "pyarrow.lib.py_buffer": py_buffer,
}
