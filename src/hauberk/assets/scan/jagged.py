"""Jagged (nested) tensors: values in a row, and offsets that say where each part begins. torch believes the offsets unseen.

Its kernels read and write where the offsets point. So they are read here, out of the archive's own numbers: they rise from 0 or
later, and end within the values. What could change them afterwards (`data`, `real`, … of a tensor) may be set nowhere.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from typing import Any

from hauberk.assets.scan.values import Global, Items, Made
from hauberk.assets.scan.verdict import Unverifiable

Archive = tuple[zipfile.ZipFile, str]

REBUILD = "torch.nested._internal.nested_tensor._rebuild_njt"
CLASS = "torch.nested._internal.nested_tensor.NestedTensor"
RANGE = "torch._dynamo.decorators._DimRange"
LARGEST = 2**26  # bytes of the offsets of one tensor
WRAPPED = "torch._tensor._rebuild_from_type_v2"
_PLAIN = "torch._utils._rebuild_tensor_v2"
_GIVEN = {"values", "offsets", "lengths", "_ragged_idx", "_metadata_cache", "requires_grad"}
_KEPT = {"_values": "values", "_offsets": "offsets", "_lengths": "lengths", "_metadata_cache": "_metadata_cache"}
# Attributes of a tensor that are more than what it carries along: setting them changes its numbers, or what runs on them.
ACTING = frozenset(
    """data real imag names grad _grad requires_grad grad_fn _backward_hooks _post_accumulate_grad_hooks
    _values _offsets _lengths _ragged_idx _metadata_cache _size _strides""".split()  # noqa: SIM905
)


def rebuilt(args: tuple[Any, ...]) -> bool:
    """Whether these are the arguments of `_rebuild_from_type_v2` for a jagged tensor."""
    return bool(args) and isinstance(args[0], Global) and args[0].full == REBUILD


def refusal(args: tuple[Any, ...]) -> str:
    """Return why a jagged tensor is not rebuilt as torch rebuilds it: from plain tensors, with nothing else set."""
    given = args[2][0] if len(args) == 4 and isinstance(args[2], tuple) and len(args[2]) == 1 else None
    named = given is not None and isinstance(args[1], Global) and args[1].full == CLASS
    if not named or not isinstance(given, Items) or not isinstance(args[3], Items):
        return "rebuilds a jagged tensor of something else than its parts"
    parts, state = _table(given), _table(args[3])
    if parts is None or state is None or set(parts) != _GIVEN:
        return "rebuilds a jagged tensor whose parts cannot be read"
    tensors = [parts["values"], parts["offsets"], *([] if parts["lengths"] is None else [parts["lengths"]])]
    cache = _table(parts["_metadata_cache"]) if isinstance(parts["_metadata_cache"], Items) else None
    if cache is None or not set(cache) <= {"min_seqlen", "max_seqlen"} or not all(map(_plain, [*tensors, *cache.values()])):
        return "rebuilds a jagged tensor of something else than plain tensors"
    if type(parts["_ragged_idx"]) is not int or type(parts["requires_grad"]) is not bool:
        return "rebuilds a jagged tensor whose parts cannot be read"
    for key, value in state.items():
        same = value is parts[_KEPT[key]] if key in _KEPT else value == parts["_ragged_idx"] if key == "_ragged_idx" else None
        if same is False or (same is None and not key.startswith("_dynamo_")):
            return "sets something else in a jagged tensor than it was rebuilt from"
    return ""


def check(args: tuple[Any, ...], archive: Archive | None, spend: Callable[[int], None]) -> None:
    """Raise Unverifiable unless the offsets of a jagged tensor, whose parts were found right, lie within its values.

    Arguments:
        args: of `_rebuild_from_type_v2`.
        archive: of torch, that holds the numbers, and its topmost folder; None outside one.
        spend: told of the bytes that are gone through.
    """
    if archive is None:
        raise Unverifiable("a jagged tensor outside an archive of torch, where its offsets are not read: save it with torch.save")
    parts = _table(args[2][0]) or {}
    shape, ragged = _shape(parts["values"]), parts["_ragged_idx"]
    if not 1 <= ragged <= len(shape):
        raise Unverifiable(f"a jagged tensor whose dimension {ragged} is ragged, of {len(shape) + 1}")
    offsets = _numbers(parts["offsets"], archive, spend)
    inside = len(offsets) > 0 and bool(((offsets >= 0) & (offsets <= shape[ragged - 1])).all())
    lengths = offsets.diff()
    if not inside or bool((lengths < 0).any()):
        raise Unverifiable("a jagged tensor whose offsets reach beyond its values")
    if parts["lengths"] is not None:
        stated = _numbers(parts["lengths"], archive, spend)
        if len(stated) != len(lengths) or bool(((stated < 0) | (stated > lengths)).any()):
            raise Unverifiable("a jagged tensor whose lengths reach beyond its offsets")
        lengths = stated
    bounds = {key: (*_shape(value), 0)[0] for key, value in (_table(parts["_metadata_cache"]) or {}).items()}
    if len(lengths):
        least, most = int(lengths.min()), int(lengths.max())
        if bounds.get("min_seqlen", 0) > least or bounds.get("max_seqlen", most) < most:
            raise Unverifiable("a jagged tensor whose parts are shorter or longer than it says")
    parts["_metadata_cache"].closed = True  # the tensor keeps this very table


def dimension(state: object) -> str:
    """Refuse what torch does not fill the range of a dimension with: it is hashed, whatever it holds."""
    fine = isinstance(state, (list, tuple)) and len(state) == 3 and all(one is None or type(one) is int for one in state)
    return "" if fine else "is filled as torch does not"


def acts(state: object) -> bool:
    """Whether a state that is set attribute by attribute changes the tensor itself, or cannot be read."""
    if isinstance(state, tuple):
        return len(state) != 2 or any(map(acts, state))
    if state is None or isinstance(state, Items):
        return any(not isinstance(key, str) or key in ACTING for key, _ in ([] if state is None else state.pairs))
    if not isinstance(state, Made) or state.of != "collections.OrderedDict" or state.args:
        return True
    return any(not isinstance(one, tuple) or not isinstance(one[0], str) or one[0] in ACTING for one in state.held)


def _table(items: Items) -> dict[str, Any] | None:
    keys = [key for key, _ in items.pairs]
    return dict(items.pairs) if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys) else None


def _plain(value: object) -> bool:
    """Whether a stand-in is for a tensor over a storage of the archive, and no class of its own."""
    if not isinstance(value, Made):
        return False
    if value.of == WRAPPED:
        func, kind, inner = (*value.args[:3], None, None, None)[:3]
        named = isinstance(func, Global) and func.full == _PLAIN and isinstance(kind, Global) and kind.full == "torch.Tensor"
        return named and _plain(Made(_PLAIN, inner)) if isinstance(inner, tuple) else False
    return value.of == _PLAIN and len(value.args) >= 4


def _shape(made: Made) -> tuple[int, ...]:
    from hauberk.assets.scan.rebuild import counts

    return counts((made.args[2] if made.of == WRAPPED else made.args)[2])


def _numbers(made: Made, archive: Archive, spend: Callable[[int], None]) -> Any:
    from hauberk.assets.scan.rebuild import ZipStorages, check_order, tensor

    check_order(*archive)
    found = tensor(made, ZipStorages(*archive, most=LARGEST), LARGEST)
    spend(found.nbytes)
    if found.ndim != 1 or found.is_floating_point() or found.is_complex():
        raise Unverifiable("a jagged tensor whose offsets are no whole numbers in a row")
    return found.long()
