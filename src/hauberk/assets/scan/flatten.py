"""The tree of stand-ins that a pickle leaves, laid flat: tensors and plain values by the path that leads to them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from torch import Tensor

from hauberk.assets.scan import rebuild
from hauberk.assets.scan.rebuild import Storages, Unkept
from hauberk.assets.scan.scanner import Scan
from hauberk.assets.scan.values import Global, Items, Made
from hauberk.assets.scan.verdict import Unverifiable

_LONGEST, _MOST_LISTED = 10_000, 1000
_MODULE = ("_parameters", "_buffers", "_modules")
_MAPPINGS = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"})
_LISTS = frozenset({"builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset", "collections.deque", "torch.Size"})


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """One thing that was not kept: where it was, and why."""

    where: str
    what: str


@dataclasses.dataclass
class Flattened:
    """What a file holds, laid flat; tensors may take `room` bytes more."""

    room: int = 2**26
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)

    def tensor(self, value: Tensor, name: str) -> None:
        """Keep a tensor under a name that is free."""
        self.tensors[_free(name or "value", self.tensors)] = value

    def value(self, value: Any, name: str) -> None:
        """Keep a plain value."""
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        if isinstance(value, str) and len(value) > _LONGEST:
            self.leave(name, f"a text of {len(value)} characters")
        elif isinstance(value, int) and abs(value) >= 2**63:
            self.leave(name, "a whole number of more than 64 bits")
        else:
            text = value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
            self.values[_free(name or "value", self.values)] = text

    def array(self, value: Any, name: str) -> None:
        """Keep an array: numbers as a tensor, each field of a table by itself, short texts as a list."""
        if value.dtype.names is not None:
            for field in value.dtype.names:
                self.array(value[field], _joined(name, field))
            return
        if value.dtype.kind in "US" and value.size <= _MOST_LISTED:
            flat = [one.decode("latin1") if isinstance(one, bytes) else one for one in value.ravel().tolist()]
            self.value_list(flat, name)
            return
        try:
            self.tensor(rebuild.to_tensor(value), name)
        except Unkept as error:
            self.leave(name, str(error))

    def value_list(self, values: list[Any], name: str) -> None:
        """Keep a list of plain values."""
        made = [str(one) if isinstance(one, float) and not math.isfinite(one) else one for one in values]
        self.values[_free(name or "value", self.values)] = [
            one.encode("utf-8", "replace").decode("utf-8") if isinstance(one, str) else one for one in made
        ]

    def leave(self, name: str, why: str) -> None:
        """Note what was not kept."""
        self.left_out.append(LeftOut(name[:300], why))


def flatten(
    scan: Scan, value: Any, made: Flattened, storages: Storages, source: BinaryIO | None, name: str = ""
) -> None:
    """Lay a stand-in flat.

    Arguments:
        scan: whose limits count.
        value: what the machine left.
        made: where tensors, values and what is left out go.
        storages: where the numbers of tensors are.
        source: the stream of joblib's arrays.
        name: that paths begin with.

    Raises:
        Unverifiable: when there are more things, or more numbers, than the limits allow.
    """
    walk = _Walk(scan, made, storages, source)
    left = [(name, value)]
    while left:
        scan.meter.hold()
        scan.meter.clock()
        path, one = left.pop()
        left.extend(list(walk.visit(path, one))[::-1])


class _Walk:
    def __init__(self, scan: Scan, made: Flattened, storages: Storages, source: BinaryIO | None) -> None:
        self.scan, self.made, self.storages, self.source = scan, made, storages, source
        self.seen: dict[int, str] = {}

    def visit(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Keep what is plain, and yield the parts of what is not, with their paths."""
        if value is None or isinstance(value, (bool, int, float, str)):
            self.made.value(value, path)
            return
        if isinstance(value, (bytes, bytearray)):
            self.made.leave(path, f"{len(value)} raw bytes")
            return
        if isinstance(value, Global):
            if value.ruling.level == 0 and value.full.startswith("torch.") and value.full.count(".") == 1:
                self.made.value(value.full, path)
            else:
                self.made.leave(path, f"the name {value.full[:200]}, which would be imported")
            return
        if isinstance(value, Made) and (rebuild.is_tensor(value) or rebuild.is_array(value)):
            yield from self._numbers(path, value)
            return
        if value != () and id(value) in self.seen:
            self.made.leave(path, f"the same object as {self.seen[id(value)] or 'the whole'}")
            return
        self.seen[id(value)] = path
        yield from self._parts(path, value)

    def _numbers(self, path: str, made: Made) -> Iterator[tuple[str, Any]]:
        try:
            if made.of.startswith(rebuild.TENSORS):
                found = rebuild.tensor(made, self.storages, self.made.room)
                self.made.room -= found.nbytes
                self.made.tensor(found, path)
                return
            found = rebuild.array(made, self.source)
        except (Unkept, Unverifiable, KeyError) as error:
            self.made.leave(path, str(error))
            return
        if isinstance(found, (list, Made, Items)):
            yield path, found
        elif found.ndim == 0 and not isinstance(found, type(None)) and made.of.endswith(".scalar"):
            plain = found.item()
            if isinstance(plain, (bool, int, float, str)):
                self.made.value(plain, path)
            else:
                self.made.leave(path, f"a number of type {found.dtype}")
        else:
            self.made.array(found, path)

    def _parts(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Items):
            yield from self._pairs(path, value.pairs)
        elif isinstance(value, (list, tuple)):
            yield from self._list(path, value)
        elif isinstance(value, Made) and value.of in _MAPPINGS:
            listed = value.args[0] if value.args and isinstance(value.args[0], (list, tuple)) else ()
            pairs = [one for one in listed if isinstance(one, (list, tuple)) and len(one) == 2]
            inner = next((one.pairs for one in value.args if isinstance(one, Items)), [])
            yield from self._pairs(path, [*map(tuple, pairs), *inner, *(one for one in value.held if isinstance(one, tuple))])
        elif isinstance(value, Made) and value.of in _LISTS:
            first = value.args[0] if len(value.args) == 1 and isinstance(value.args[0], (list, tuple)) else value.args
            yield from self._list(path, [*first, *value.held])
        elif isinstance(value, Made):
            yield from self._object(path, value)
        else:
            self.made.leave(path, f"a {type(value).__name__}")

    def _list(self, path: str, values: Any) -> Iterator[tuple[str, Any]]:
        if len(values) <= _MOST_LISTED and all(
            one is None or isinstance(one, (bool, float)) or (isinstance(one, str) and len(one) <= _LONGEST)
            or (isinstance(one, int) and abs(one) < 2**63) for one in values
        ):
            self.made.value_list(list(values), path)
            return
        for index, one in enumerate(values):
            yield _joined(path, str(index)), one

    def _pairs(self, path: str, pairs: list[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
        for key, one in pairs:
            if isinstance(key, (str, int, float, bool)):
                yield _joined(path, str(key)[:300]), one
            else:
                self.made.leave(_joined(path, "?"), f"an entry whose key is a {type(key).__name__}")

    def _object(self, path: str, value: Made) -> Iterator[tuple[str, Any]]:
        """An instance: what it was filled with is kept, what it is, is not."""
        state = value.state
        if value.of in ("torch.device", "pathlib.PosixPath", "pathlib.PurePosixPath") and all(
            isinstance(one, (str, int)) for one in value.args
        ):
            self.made.value(("/" if value.of.startswith("pathlib") else ":").join(map(str, value.args)), path)
            return
        self.made.leave(path, f"an object of {value.of[:200]}; its numbers are kept under the names of its attributes")
        if isinstance(state, tuple) and len(state) == 2 and all(isinstance(one, (Items, type(None))) for one in state):
            state = Items([pair for one in state if one is not None for pair in one.pairs])
        if isinstance(state, Items):
            module = {key for key, _ in state.pairs if isinstance(key, str)} >= set(_MODULE)
            for key, one in state.pairs:
                if module and key in _MODULE:
                    yield from self._module(path, one)
                elif not module or isinstance(one, (bool, int, float, str)):
                    yield from self._pairs(path, [(key, one)])
        elif state is not None:
            yield _joined(path, "state"), state
        if value.of != "persistent" and value.args:
            yield _joined(path, "args"), value.args
        for index, one in enumerate(value.held):
            pair = isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], (str, int))
            yield (_joined(path, str(one[0])), one[1]) if pair else (_joined(path, str(index)), one)

    def _module(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """The parameters, buffers and modules of a module: named as in its state dict."""
        pairs = value.pairs if isinstance(value, Items) else value.held if isinstance(value, Made) else []
        yield from self._pairs(path, [one for one in pairs if isinstance(one, tuple) and len(one) == 2 and one[1] is not None])


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _free(name: str, taken: dict[str, Any]) -> str:
    made = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", name)[:500]
    if made not in taken and made != "__metadata__":
        return made
    return next(one for number in range(2, len(taken) + 3) if (one := f"{made}#{number}") not in taken)
