"""Jagged tensors pass where their offsets lie within their values; torch itself never looks."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from corpus.asm import four, name, short, zipped
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor, _rebuild_njt

from hauberk.assets import convert_safe, safe_load
from hauberk.assets.scan import Level, ScanResult, scan_bytes


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def jagged() -> NestedTensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged)


def test_jagged_tensors_pass_and_load(tmp_path) -> None:
    values, offsets = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 1, 6])
    of_jagged = torch.nested.nested_tensor_from_jagged
    honest = {
        "list": jagged(), "by offsets": of_jagged(values, offsets),
        "bounds": of_jagged(values, offsets, min_seqlen=0, max_seqlen=9),
        "short": of_jagged(values, torch.tensor([0, 3, 6]), torch.tensor([2, 1])),
        "whole": of_jagged(values.T, offsets, jagged_dim=2),
        "trained": jagged().requires_grad_(),
    }
    for held in (honest, {"a": [honest["list"], honest["list"]]}):
        content = saved(held)
        found = scan_bytes(content)
        assert found.level is Level.SAFE, found.issues
        (tmp_path / "jagged.pt").write_bytes(content)
        safe_load(tmp_path / "jagged.pt")
    assert torch.equal(safe_load(tmp_path / "jagged.pt")["a"][1].values(), honest["list"].values())


def test_offsets_are_not_read_elsewhere() -> None:
    for content in (saved(jagged(), _use_new_zipfile_serialization=False), pickle.dumps(jagged())):
        found = scan_bytes(content)
        assert found.level is Level.UNVERIFIABLE
        assert any("save it with torch.save" in one.what for one in found.issues), found.issues


class Rebuilt:
    """Is pickled as torch pickles a jagged tensor, with changes."""

    def __init__(self, change: Callable[..., None]) -> None:
        parts = {"values": torch.ones(6, 3), "offsets": torch.tensor([0, 2, 6]), "lengths": None, "_ragged_idx": 1,
                 "_metadata_cache": {}, "requires_grad": False}
        state = {f"_{key}": parts[key] for key in ("values", "offsets", "lengths")}
        state |= {"_metadata_cache": parts["_metadata_cache"], "_ragged_idx": 1}
        self.call = [_rebuild_njt, NestedTensor, (parts,), state]
        change(self.call, parts, state)

    def __reduce__(self) -> Any:
        return torch._tensor._rebuild_from_type_v2, tuple(self.call)


def _scan(change: Callable[..., None]) -> ScanResult:
    return scan_bytes(saved(Rebuilt(change)))


def _parts(**new: Any) -> Callable[..., None]:
    def change(call: list[Any], parts: dict[str, Any], state: dict[str, Any]) -> None:
        parts.update(new)
        state.update({f"_{key}": value for key, value in new.items() if f"_{key}" in state})
        state.update({key: value for key, value in new.items() if key in state})

    return change


def _state(**new: Any) -> Callable[..., None]:
    return lambda call, parts, state: state.update(new)


def _call(at: int, new: Any) -> Callable[..., None]:
    return lambda call, parts, state: call.__setitem__(at, new)


def test_the_frame_of_the_attacks_is_harmless() -> None:
    assert _scan(lambda *_: None).level is Level.SAFE
    assert _scan(_parts(lengths=torch.tensor([1, 4]))).level is Level.SAFE


LONG = torch.tensor
HOSTILE = {
    "beyond the values": _parts(offsets=LONG([0, 2, 7])), "far beyond": _parts(offsets=LONG([0, 2, 2**62])),
    "before them": _parts(offsets=LONG([-1, 2, 6])), "falling": _parts(offsets=LONG([0, 5, 2, 6])),
    "wrapped around": _parts(offsets=LONG([0, 2**63 - 1, -(2**63)])), "none": _parts(offsets=LONG([], dtype=torch.int64)),
    "not whole": _parts(offsets=LONG([0.0, 2.0, 6.0])), "a table": _parts(offsets=LONG([[0, 2, 6]])),
    "lengths beyond": _parts(lengths=LONG([3, 4])), "lengths below": _parts(lengths=LONG([-1, 4])),
    "a length too many": _parts(lengths=LONG([1, 4, 0])),
    "no such dimension": _parts(_ragged_idx=3), "dimension 0": _parts(_ragged_idx=0),
    "a dimension that is true": _parts(_ragged_idx=True), "no truth": _parts(requires_grad=1),
    "longest is too short": _parts(_metadata_cache={"max_seqlen": torch.zeros(3, 0)}),
    "shortest is too long": _parts(_metadata_cache={"min_seqlen": torch.zeros(3, 0)}),
    "something else cached": _parts(_metadata_cache={"evil": torch.zeros(3, 0)}),
    "a cache that is none": _parts(_metadata_cache=[]),
    "a number cached": _parts(_metadata_cache={"max_seqlen": 4}), "a part more": _parts(more=1),
    "values that are none": _parts(values=[1.0] * 6), "values that are sparse": _parts(values=torch.ones(6, 3).to_sparse()),
    "a jagged tensor of jagged ones": _parts(values=jagged()),
    "other offsets set": _state(_offsets=LONG([0, 2, 99])), "other values set": _state(_values=torch.ones(1)),
    "other lengths set": _state(_lengths=LONG([99, 99])), "another dimension set": _state(_ragged_idx=2),
    "another cache set": _state(_metadata_cache={"max_seqlen": torch.zeros(1, 0)}), "a method set": _state(values=torch.ones(1)),
    "its numbers set": _state(data=torch.ones(1)), "a state that is none": _call(3, []),
    "a state in two": _call(3, ({}, {"_offsets": LONG([9])})),
    "of another class": _call(1, Tensor), "of no parts": _call(2, ()), "of two parts": _call(2, ({}, {})),
    "rebuilt plainly": _call(0, torch._utils._rebuild_tensor_v2),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_offsets_that_lead_elsewhere_are_refused(how: str) -> None:
    found = _scan(HOSTILE[how])
    assert not found.safe


class Later:
    """A second object that changes the first one's parts once they were judged."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def test_what_was_judged_cannot_be_changed_later() -> None:
    set_state = torch._utils._set_obj_state
    for attribute in ("data", "real", "grad", "_offsets"):
        rebuilt = Rebuilt(lambda *_: None)
        offsets = rebuilt.call[2][0]["offsets"]
        for target in (offsets, rebuilt):
            assert not scan_bytes(saved([rebuilt, Later(set_state, target, {attribute: LONG([0, 2, 99])})])).safe
            assert not scan_bytes(saved([rebuilt, Later(set_state, target, (None, {attribute: LONG([0, 2, 99])}))])).safe
    rebuilt = Rebuilt(lambda *_: None)
    cache = rebuilt.call[2][0]["_metadata_cache"]
    assert scan_bytes(saved([rebuilt, cache])).safe
    content = bytearray(saved([rebuilt, cache]))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read("archive/data.pkl")
        rest = {one: archive.read(one) for one in archive.namelist() if not one.endswith(".pkl")}
    assert pickled.endswith(b"e.")  # up to here the cache is on top of the stack, before it joins the list
    changed = pickled[:-2] + b"X\x0a\x00\x00\x00max_seqlenK\x01s" + b"e."
    assert not scan_bytes(zipped({"archive/data.pkl": changed, **rest})).safe
    assert scan_bytes(zipped({"archive/data.pkl": pickled, **rest})).safe


def test_numbers_that_torch_turns_around_are_not_believed() -> None:
    with zipfile.ZipFile(io.BytesIO(saved(jagged()))) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    assert scan_bytes(zipped(members)).safe
    assert not scan_bytes(zipped({**members, "archive/byteorder": b"big"})).safe
    del members["archive/data/1"]
    assert not scan_bytes(zipped(members)).safe


def test_conversion_leaves_it_out_and_says_what_to_keep(tmp_path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"plain": torch.ones(2), "jagged": jagged()}))
    made = convert_safe(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert list(made.tensors) == ["plain"] and [one.what for one in made.left_out] == [
        "a jagged tensor, which safetensors do not have: keep its values() and offsets() in its place"]


def test_the_names_pass_nowhere_else() -> None:
    module = "torch.nested._internal.nested_tensor"
    ranged = name("torch._dynamo.decorators", "_DimRange") + b")\x81"
    for body, safe in (
        (ranged + b"(K\x00NNlb", True), (ranged + b"(K\x00N" + short("x") + b"lb", False), (ranged + b"K\x00b", False),
        (ranged + b"(((K\x00tt" + b"NNlb", False), (name(module, "_rebuild_njt") + b"}\x85R", False),
        (name(module, "NestedTensor") + b")\x81", False), (name(module, "NestedTensor") + b"N\x85\x81", False),
        (name(module, "_rebuild_njt"), True), (name(module, "NestedTensor") + b"N\x85R", False),
    ):
        assert scan_bytes(four(body)).safe == safe, body
    assert not scan_bytes(f"model:\n  _target_: {module}._rebuild_njt\n".encode(), name="a.yaml").safe
