"""Tensors and classes in a pickled object, found among its stand-ins."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from hauberk.assets.tensors.inert import Made, Stored
from hauberk.assets.tensors.torch_zip import DTYPES, STORAGES

MOST_NODES = 2_000_000
_INNER = ("_modules", "_parameters", "_buffers")  # where a torch module keeps what it is made of
_NUMPY = re.compile(r"numpy(\._core|\.core)?\.(multiarray\._reconstruct|_core\.multiarray\._reconstruct)")


@dataclasses.dataclass(frozen=True)
class Row:
    """A tensor as it is shown: name, type, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass
class Found:
    """What an object is made of.

    Arguments:
        tensors: in the order met.
        classes: by place, the class that is named there, such as `torch.nn.modules.linear.Linear`.
        complete: whether all of it was walked.
    """

    tensors: list[Row] = dataclasses.field(default_factory=list)
    classes: dict[str, str] = dataclasses.field(default_factory=dict)
    complete: bool = True


def walk(value: Any) -> Found:
    """Return the tensors and classes in an object, whatever holds what; a shared part is shown once."""
    found, seen, left = Found(), set[int](), [("", value)]
    while left:
        name, one = left.pop()
        if id(one) in seen:
            continue
        if isinstance(one, (Made, dict, list, tuple)):
            seen.add(id(one))
        if len(seen) > MOST_NODES:
            found.complete = False
            break
        row = _tensor(name, one)
        if row is not None:
            found.tensors.append(row)
            continue
        if isinstance(one, Made) and one.of and not one.of.startswith("collections."):
            found.classes[name] = one.of
        left += [(_joined(name, key), child) for key, child in reversed(list(_children(one)))]
    return found


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key)[:200], child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(place), child) for place, child in enumerate(value))
    elif isinstance(value, Made):
        yield from ((str(key)[:200], child) for key, child in value.pairs)
        yield from ((str(place), child) for place, child in enumerate(value.entries))
        state = value.state
        if isinstance(state, (dict, Made)):
            yield from _children(state)
        elif isinstance(state, (list, tuple)):
            yield from (("", child) for child in state)
        yield from (("", child) for child in value.args if isinstance(child, (Made, dict, list, tuple)))


def _tensor(name: str, value: Any) -> Row | None:
    if not isinstance(value, Made):
        return None
    if value.of.startswith("torch._utils._rebuild_parameter") and value.args:
        return _tensor(name, value.args[0])
    if re.fullmatch(r"torch\._utils\._rebuild_tensor(_v2|_v3)?", value.of) and len(value.args) >= 3:
        stored, shape = value.args[0], value.args[2]
        kind = "?"
        if value.of.endswith("v3") and len(value.args) > 6:
            kind = DTYPES.get(getattr(value.args[6], "of", "").removeprefix("torch."), "?")
        elif isinstance(stored, Stored) and isinstance(stored.key, tuple) and len(stored.key) > 1:
            kind = STORAGES.get(getattr(stored.key[1], "of", "").removeprefix("torch.").removesuffix("Storage"), "?")
        return Row(name, kind, _shape(shape))
    if _NUMPY.fullmatch(value.of) and isinstance(value.state, tuple) and len(value.state) >= 3:
        dtype = value.state[2]
        kind = str(dtype.args[0])[:20] if isinstance(dtype, Made) and dtype.args else "?"
        return Row(name, kind, _shape(value.state[1]))
    return None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(one for one in value if isinstance(one, int))[:64] if isinstance(value, tuple) else ()


def _joined(name: str, key: str) -> str:
    if not key or key in _INNER:
        return name
    return f"{name}.{key}"[:1000] if name else key
