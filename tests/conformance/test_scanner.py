"""What the scanner promises whatever it is given: it never crashes, and it never calls safe what it could not follow."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.assets.scan import Level, Limits, scan_bytes
from hauberk.assets.scan.allowlist import CALLS, CLASSES, VALUES, judge
from hauberk.assets.scan.machine import CONSTANTS, PLAIN, Machine
from hauberk.assets.scan.scanner import FORMATS

OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
ARGUMENTS = st.sampled_from([
    b"", b"\x00", b"\x01", b"\x04true", b"os\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"collections\nOrderedDict\n", b"1\n",
    b"'x'\n", b"\x02\x00\x00\x00", b"\x8c\x02os", b"\x8c\x06system", b"N\x94", b"(", b")R",
])
PROGRAMS = st.lists(st.tuples(st.sampled_from(OPCODES), ARGUMENTS), max_size=25).map(
    lambda steps: b"\x80\x04" + b"".join(code + arg for code, arg in steps) + b"."
)
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


def samples() -> dict[str, bytes]:
    buffer, array, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(3), "n": 2}, buffer)
    np.save(array, np.arange(4))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x.npy", array.getvalue())
    from safetensors.torch import save

    return {
        "torch": buffer.getvalue(), "npy": array.getvalue(), "npz": archive.getvalue(), "safetensors": save({"w": torch.ones(3)}),
        "pickle": pickle.dumps({"a": [1, 2.0, "x", np.arange(3)]}),
    }


def genops_raises(content: bytes) -> bool:
    try:
        for _ in pickletools.genops(content):
            pass
    except Exception:
        return True
    return False


class Inert:
    """Takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...
    def __setstate__(self, _: object) -> None: ...
    def __setitem__(self, *_: object) -> None: ...
    def append(self, _: object) -> None: ...
    def extend(self, _: object) -> None: ...
    def add(self, _: object) -> None: ...


class Witness(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """The real machine of the standard library, with every name replaced: says what it would have imported."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.names: list[str] = []

    def find_class(self, module: str, name: str) -> type:
        self.names.append(f"{module}.{name}")
        return Inert

    def persistent_load(self, _: object) -> object:
        return Inert()

    def get_extension(self, code: int) -> None:
        self.append(Inert)


@settings(max_examples=400, deadline=None)
@given(PROGRAMS)
def test_random_programs_import_nothing_that_the_scan_does_not_name(content: bytes) -> None:
    found = scan_bytes(content, limits=Limits(opcodes=10_000))
    if genops_raises(content):
        assert found.level is not Level.SAFE
    witness = Witness(content)
    with contextlib.suppress(Exception):
        witness.load()
    # Where the scan gave up it says so; up to there, and everywhere else, it has named all that the real machine imports.
    assert set(witness.names) <= set(found.globals) or any(one.level is Level.UNVERIFIABLE for one in found.issues)
    if found.level is Level.SAFE:
        assert all(judge(*name.rsplit(".", 1)).level is Level.SAFE for name in found.globals)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash_it(content: bytes) -> None:
    found = scan_bytes(content)
    if found.format == "pickle" and genops_raises(content):
        assert found.level is not Level.SAFE


@settings(max_examples=100, deadline=None)
@given(PLAIN_VALUES, st.integers(0, 5))
def test_plain_values_are_safe_and_cut_off_ones_are_not(value: object, protocol: int) -> None:
    content = pickle.dumps(value, protocol=protocol)
    assert scan_bytes(content).level is Level.SAFE
    assert scan_bytes(content[:-1]).level is not Level.SAFE


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(samples())), st.data())
def test_cut_off_files_are_never_safe(kind: str, data: st.DataObject) -> None:
    content = samples()[kind]
    cut = data.draw(st.integers(0, len(content) - 1))
    assert scan_bytes(content[:cut]).level is not Level.SAFE


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["torch", "npz", "pickle", "npy", "safetensors"]), st.data())
def test_damaged_files_never_crash_it(kind: str, data: st.DataObject) -> None:
    content = bytearray(samples()[kind])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    found = scan_bytes(bytes(content))
    assert found.level is not Level.DANGEROUS or found.issues


def test_the_machine_knows_every_opcode_of_this_python() -> None:
    missing = [
        opcode.name for opcode in pickletools.opcodes
        if opcode.name not in CONSTANTS and opcode.name not in PLAIN and opcode.name != "STOP"
        and not hasattr(Machine, f"_{opcode.name.lower()}")
    ]
    assert missing == []


@pytest.mark.parametrize("kind", samples())
def test_samples_are_safe_in_the_format_they_have(kind: str) -> None:
    found = scan_bytes(samples()[kind])
    assert found.level is Level.SAFE
    assert found.format == {"torch": "zip", "npz": "zip"}.get(kind, kind)


def test_the_lists_do_not_overlap_and_name_nothing_that_acts() -> None:
    assert not (CALLS & CLASSES or CALLS & VALUES or CLASSES & VALUES)
    for name in (
        "os.system", "builtins.eval", "builtins.getattr", "builtins.__import__", "pickle.loads", "torch.load", "torch.jit.load",
        "numpy.load", "joblib.load", "sys.exit",
    ):
        assert judge(*name.rsplit(".", 1)).level is not Level.SAFE, name


def test_every_format_states_whether_it_can_hold_code() -> None:
    assert {one.name: one.carries_code for one in FORMATS} == {
        "npy": True, "compressed": True, "safetensors": False, "zip": True, "onnx": False, "pickle": True, "tar": True,
        "closed": True, "hdf5": True, "program": True, "gguf": False, "image": False, "json": False,
    }
