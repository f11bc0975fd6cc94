"""Layers that wait for their first input pass whole; `getattr` passes for nothing else."""

from __future__ import annotations

import io
import json
import pickle

import pytest
import torch
from corpus.asm import four, name, old_name, short, zipped
from torch import nn

from hauberk.assets import safe_load
from hauberk.assets.scan import Level, scan_bytes
from hauberk.core.errors import UnsafeFile

CLASS, LINEAR = name("torch.nn.modules.linear", "LazyLinear"), name("torch.nn.modules.linear", "Linear")
LAZY = CLASS + b")\x81\x940"  # memo 0
GET = name("builtins", "getattr")
HOOK = GET + b"h\x00" + short("_infer_parameters") + b"\x86R"
RUN = name("os", "system")


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("layers", [
    [nn.LazyLinear(3)], [nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyInstanceNorm2d(), nn.LazyConvTranspose2d(2, 2)],
])
def test_lazy_layers_pass_whole(layers: list[nn.Module]) -> None:
    for content in (saved(nn.Sequential(*layers)), pickle.dumps(layers), pickle.dumps(layers[0], 2)):
        found = scan_bytes(content)
        assert found.level is Level.FRAMEWORK, found.issues
    changed = nn.LazyLinear(3)
    changed.extra = eval
    assert scan_bytes(saved(changed)).level is Level.DANGEROUS


def test_a_lazy_layer_is_loaded_behind_both_locks(tmp_path) -> None:
    (tmp_path / "lazy.pkl").write_bytes(pickle.dumps(nn.LazyLinear(3)))
    layer = safe_load(tmp_path / "lazy.pkl")
    assert layer(torch.zeros(2, 5)).shape == (2, 3) and layer.in_features == 5
    from hauberk.assets.scan.load import _Listed

    for owner, method in ((name("torch", "device"), "type"), (LAZY[:-2], "forward")):
        with pytest.raises(UnsafeFile, match="looks up"):
            _Listed(io.BytesIO(four(GET + owner + short(method) + b"\x86R")), frozenset()).load()


HARMLESS = {"kept": four(LAZY + HOOK), "named only": four(GET)}
HOSTILE = {
    "another method": LAZY + GET + b"h\x00" + short("forward") + b"\x86R",
    "a hidden one": LAZY + GET + b"h\x00" + short("__class__") + b"\x86R",
    "of a class": GET + CLASS + short("_infer_parameters") + b"\x86R",
    "of a layer that is not lazy": LINEAR + b")\x81\x940" + HOOK,
    "of a layer that is filled": CLASS + b")\x81}" + short("_infer_parameters") + b"]sb\x940" + HOOK,
    "of a text": GET + short("x") + short("_infer_parameters") + b"\x86R",
    "of a module": GET + name("torch", "device") + short("_infer_parameters") + b"\x86R",
    "a default": LAZY + GET + b"h\x00" + short("_infer_parameters") + b"N\x87R",
    "a name that is put together": LAZY + GET + b"h\x00" + name("builtins", "str") + short("forward") + b"\x85R\x86R",
    "called": LAZY + HOOK + b"h\x00N\x86R",
    "filled": LAZY + HOOK + b"}" + short("a") + b"K\x01sb",
    "appended to": LAZY + HOOK + b"K\x01a",
    "made without a call": LAZY + GET + b"h\x00" + short("forward") + b"\x86\x81",
    "handed on": GET + b"\x85", "handed on in a list": b"]" + GET + b"a",
    "as a hook": name("torch.nn.modules.module", "_WrappedHook") + b")\x81}" + short("hook") + GET + b"sb",
    "prepared": name("functools", "partial") + GET + b"\x85R",
    "of something that runs": LAZY + GET + RUN + short("_infer_parameters") + b"\x86R",
    "old": old_name("__builtin__", "getattr") + b"(" + old_name("os", "system") + short("__call__") + b"tR",
}


@pytest.mark.parametrize("how", HARMLESS)
def test_the_method_may_be_kept(how: str) -> None:
    assert scan_bytes(HARMLESS[how]).safe


@pytest.mark.parametrize("how", HOSTILE)
def test_no_other_use_passes(how: str) -> None:
    assert not scan_bytes(four(HOSTILE[how])).safe


ORDERED = name("collections", "OrderedDict") + b")R"
HANDLE = name("torch.utils.hooks", "RemovableHandle") + b")\x81"
STATES = {
    "a number": (ORDERED + b"K\x07" + b"\x86", True), "none": (b"NK\x07\x86", True), "others": (b"NK\x07N\x85\x87", True),
    "a number without end": (b"NG\x7f\xf0\x00\x00\x00\x00\x00\x00\x86", False),
    "a huge one": (b"N\x8a\x09" + bytes(8) + b"\x01\x86", False), "below zero": (b"NJ\xff\xff\xff\xff\x86", False),
    "a truth": (b"N\x88\x86", False), "a text": (b"N" + short("a") + b"\x86", False), "a table": (b"}", False),
    "an object": (b"N" + LINEAR + b")\x81\x86", False), "too short": (b"N\x85", False), "too long": (b"(NK\x07NNt", False),
    "hooks of a class": (LINEAR + b"K\x07\x86", False), "hooks that are a layer": (LINEAR + b")\x81K\x07\x86", False),
    "others in a list": (b"NK\x07](Ne\x87", False), "others that are layers": (b"NK\x07" + LINEAR + b")\x81\x85\x87", False),
}


@pytest.mark.parametrize("how", STATES)
def test_a_handle_is_filled_as_torch_fills_it(how: str) -> None:
    """Its number is counted up and kept in the class: whatever is added to 1 there stays for all hooks of the process."""
    state, fine = STATES[how]
    found = scan_bytes(four(HANDLE + state + b"b"))
    assert found.safe == fine, found.issues


def test_getattr_is_listed_for_no_other_format() -> None:
    for content in ({"__loader__": "FunctionNode", "content": {"module_path": "builtins", "function": "getattr"}},
                    {"__loader__": "ReduceNode", "__module__": "builtins", "__class__": "getattr"}):
        assert not scan_bytes(zipped({"schema.json": json.dumps(content).encode()})).safe
    assert not scan_bytes(b"model:\n  _target_: builtins.getattr\n", name="a.yaml").safe
