"""Streams of joblib that plain pickle reads in another way, saves that need not be blocked, and files that take long."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from corpus.asm import Call, Ref, encode, four, name, short, zipped
from torch import nn

from hauberk.assets import convert_safe
from hauberk.assets.scan import Level, Limits, scan_bytes, scan_file
from hauberk.core.errors import ModelError

OBJECTS = np.array([1, "a", None], dtype=object)
NESTED = np.array([np.arange(2), np.arange(3)], dtype=object)


def dumped(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer, **options)
    return buffer.getvalue()


class Surprise:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1",)


def evil() -> Any:
    return np.array([Surprise(), None], dtype=object)


SHAPES = {
    "bare": lambda one: one, "table": lambda one: {"v": one, "w": one}, "third": lambda one: {"a": 1, "b": one},
    "word": lambda one: {"a": 1, "train": 2, "categories": one}, "list": lambda one: [1, 2.5, one, {"x": one}],
    "module": lambda one: {"a": 1, "b": 2, "test": one}, "numbers": lambda one: {"n": np.arange(4.0), "o": one},
    "tuple": lambda one: ("a", "b", "c", one), "array": lambda one: np.array([one, None], dtype=object),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_objects_pass_in_joblib_files(shape: str) -> None:
    for held in (OBJECTS, NESTED):
        for options in ({}, {"compress": 3}, {"protocol": 2}):
            content = dumped(SHAPES[shape](held), **options)
            found = scan_bytes(content, name="a.joblib")
            assert found.safe, (shape, options, found.issues)
    # The same places with a call in the array: joblib would make it, and it is found.
    for options in ({}, {"compress": 3}):
        assert scan_bytes(dumped(SHAPES[shape](evil()), **options), name="a.joblib").level is Level.DANGEROUS


def test_plain_pickle_fails_where_the_scan_says_so() -> None:
    """The oracle: what the scan takes for the end of the plain reading is an error of pickle, or its end."""
    for shape in ("bare", "table", "third", "word", "module", "tuple"):
        content = dumped(SHAPES[shape](NESTED))
        with pytest.raises((ModuleNotFoundError, AttributeError, pickle.UnpicklingError)):
            pickle.loads(content)
    assert not hasattr(joblib.numpy_pickle, "dtype")


def test_estimators_with_arrays_of_objects_pass() -> None:
    from sklearn.preprocessing import KBinsDiscretizer, MultiLabelBinarizer, OneHotEncoder, SplineTransformer

    x = np.arange(24.0).reshape(12, 2)
    fitted = (
        KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf").fit(x), SplineTransformer().fit(x),
        MultiLabelBinarizer().fit([["a", "b"], ["c"]]), OneHotEncoder().fit([["a"], ["b"]]),
    )
    for one in fitted:
        for content in (dumped(one), dumped({"model": one}), pickle.dumps(one)):
            assert scan_bytes(content, name="a.joblib").level is Level.FRAMEWORK, (one, scan_bytes(content).issues)
    fitted[1].bsplines_[0]._asarray = Surprise()
    assert scan_bytes(pickle.dumps(fitted[1])).level is Level.DANGEROUS


def wrapper() -> bytes:
    """Opcodes of joblib's description of an array of objects, without memo entries."""
    dtype = Call(Ref("numpy", "dtype"), ("O8", False, True), (3, "|", None, None, None, -1, -1, 63))
    state = {"subclass": Ref("numpy", "ndarray"), "shape": (1,), "order": "C", "dtype": dtype, "allow_mmap": False}
    return encode(Call(Ref("joblib.numpy_pickle", "NumpyArrayWrapper"), (), state, new=True))


def outer(entries: list[bytes], nested: bytes) -> bytes:
    """A stream that fills the memo with entries, and then holds an array of objects whose pickle is given."""
    return b"\x80\x04N\x940" + b"".join(one + b"\x940" for one in entries) + wrapper() + nested + b"."


def array(before_end: bytes = b"", module: bytes = b"h\x03") -> bytes:
    """An array of one object; entry 3 of its own memo is `numpy`, which it asks for its dtype."""
    made = name("numpy._core.multiarray", "_reconstruct") + encode((Ref("numpy", "ndarray"), (0,), b"b")) + b"R"
    dtype = module + short("dtype") + b"\x93" + encode(("O8", False, True)) + b"R"
    dtype += encode((3, "|", None, None, None, -1, -1, 63)) + b"b"
    start = b"N\x940" + short("collections") + b"\x940" + short("OrderedDict") + b"\x940" + short("numpy") + b"\x940"
    return four(start + made + b"(K\x01K\x01\x85" + dtype + b"\x89]" + before_end + b"atb")


def test_names_that_only_plain_pickle_reads_are_found() -> None:
    fine = outer([short("a"), short("b"), short("categories")], array(b"h\x01h\x02\x93"))
    crafted = outer([short("os"), short("system"), short("categories")], array(b"h\x01h\x02\x93"))
    called = outer([short("os"), short("system"), short("cupy")], array(b"h\x01h\x02\x93" + short("true") + b"\x85R"))
    # To joblib all three hold collections.OrderedDict; to plain pickle, where the module has a dtype, two reach os.system.
    assert scan_bytes(crafted).level is Level.DANGEROUS and scan_bytes(called).level is Level.DANGEROUS
    assert not scan_bytes(fine).safe  # a name that is on no list
    harmless = outer([short("a"), short("b"), short("categories")], array(b"K\x01"))
    assert scan_bytes(harmless).safe
    # A name before the wrapper's array is asked for its dtype, and one in front of a number that pickle would run as opcodes.
    early = outer([short("os"), short("system"), short("x")], four(
        b"N\x940" + short("collections") + b"\x940" + short("OrderedDict") + b"\x940h\x01h\x02\x93)R"))
    assert scan_bytes(early).level is Level.DANGEROUS


@pytest.mark.parametrize("module", ["antigravity", "idlelib.idle", "pip.__main__", "_own", "a.b"])
def test_asking_a_module_for_its_dtype_must_not_run_it(module: str) -> None:
    assert not scan_bytes(outer([short("a"), short("b"), short(module)], array(b"K\x01"))).safe
    # The same word as the attribute of something else is a name like any other.
    assert not scan_bytes(outer([short("a"), short("b"), short("categories")], array(b"K\x01").replace(
        short("dtype"), short("shape")))).safe


def test_a_module_beside_the_file_would_be_run(tmp_path: Path) -> None:
    place = tmp_path / "model.pkl"
    place.write_bytes(dumped(SHAPES["word"](OBJECTS)))
    assert scan_file(place).safe
    (tmp_path / "categories.py").write_text("print('run')\n")
    assert not scan_file(place).safe
    (tmp_path / "categories.py").rename(tmp_path / "others.py")
    assert scan_file(place).safe
    (tmp_path / "categories").mkdir()
    assert not scan_file(place).safe


# Saves of the libraries that were blocked without need


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_rows_with_names_pass() -> None:
    rows = np.array([(1, 2.0, "x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U3")]).view(np.recarray)
    for content in (*(pickle.dumps(rows, protocol) for protocol in range(2, 6)), dumped(rows), pickle.dumps(rows[0])):
        assert scan_bytes(content).safe, scan_bytes(content).issues
    held = np.array([(Surprise(),)], dtype=[("a", "O")]).view(np.recarray)
    assert scan_bytes(pickle.dumps(held)).level is Level.DANGEROUS
    # Objects under a dtype of rows, and rows under a width that is not theirs.
    empty = np.array([(None,)], dtype=[("a", "O")]).view(np.recarray)
    assert scan_bytes(pickle.dumps(empty)).level is Level.UNVERIFIABLE
    width = pickle.dumps(rows.dtype, 4)
    assert scan_bytes(width).safe and not scan_bytes(width.replace(b"K\x18K\x01", b"K\x10K\x01")).safe
    assert scan_bytes(four(encode(Call(Ref("numpy", "record"), ("x",))))).level is Level.UNKNOWN


def test_layouts_in_memory_pass_and_other_dotted_names_do_not() -> None:
    assert scan_bytes(pickle.dumps(torch.channels_last)).safe
    for dotted in ("torch.load", "torch.channels_last.__class__", "torch.os.system"):
        assert not scan_bytes(four(name("torch._utils", dotted))).safe
    assert not scan_bytes(four(name("torch._utils", "torch.channels_last") + b")R")).safe


def test_state_of_lazy_layers_and_spectral_norms_pass() -> None:
    assert scan_bytes(saved(nn.LazyLinear(3).state_dict())).safe
    layer = nn.utils.spectral_norm(nn.Linear(2, 2))  # the older of the two, which torch still writes
    assert scan_bytes(saved(layer)).level is Level.FRAMEWORK, scan_bytes(saved(layer)).issues
    hook = next(iter(layer._load_state_dict_pre_hooks.values()))
    hook.hook = eval
    assert scan_bytes(saved(layer)).level is Level.DANGEROUS
    hook.hook = print
    assert not scan_bytes(saved(layer)).safe


# Files that once took minutes: work is counted, so that they end


def test_keys_are_counted_as_they_come() -> None:
    long = b"(" + b"N" * 900 + b"t\x940"
    for content in (
        four(long + b"\x8f(" + b"h\x00" * 500 + b"\x90"), four(long + b"(" + b"h\x00" * 500 + b"\x91"),
        four(long + b"}(" + b"h\x00N" * 500 + b"u"),
    ):
        found = scan_bytes(content, limits=Limits(opcodes=100_000))
        assert found.level is Level.UNVERIFIABLE and "instructions" in found.issues[0].what
        assert scan_bytes(content).safe  # 500 keys of 900 parts are within the default


def test_nested_brackets_of_a_template_are_counted() -> None:
    deep = b"{{" + b"x[" * 4000 + b"y]" * 4000 + b"}}"
    found = scan_bytes(deep, name="a.jinja", limits=Limits(opcodes=1_000_000))
    assert found.level is Level.UNVERIFIABLE and "instructions" in found.issues[0].what
    assert scan_bytes(b"{{ x[y[z[0]]] }}", name="a.jinja").safe


def test_expressions_and_long_headers_are_counted() -> None:
    def program(count: int) -> bytes:
        sizes = [{"expr_str": f"s{one}+" * 200 + "1"} for one in range(count)]
        return zipped({"a/models/model.json": json.dumps({"x": sizes * 2}).encode(), "a/version": b"0"})

    assert scan_bytes(program(20), limits=Limits(opcodes=250_000)).safe  # a size that stands twice is read once
    found = scan_bytes(program(40), limits=Limits(opcodes=250_000))
    assert found.level is Level.UNVERIFIABLE and "instructions" in found.issues[0].what
    evil = zipped({"a/models/model.json": json.dumps({"x": [{"expr_str": "__import__('os')"}] * 2}).encode(), "a/version": b"0"})
    assert scan_bytes(evil).level is Level.DANGEROUS

    def archive(head: bytes) -> bytes:
        made = b""
        for kind, held, path in ((tarfile.XHDTYPE, head, "x"), (tarfile.REGTYPE, b"{}", "y.json")):
            entry = tarfile.TarInfo(path)
            entry.type, entry.size = kind, len(held)
            made += entry.tobuf(tarfile.USTAR_FORMAT) + held + bytes(-len(held) % 512)
        return made + bytes(1024)

    many = b"12 path=abc\n" * 60_000
    assert scan_bytes(archive(many + b"15 path=b.json\n")).safe
    for broken in (b"99 path=abc\n", b"x", b"12 path=abc\n1", b" 12 path=abc\n", b"2 path=abc\n", b"20 GNU.sparse.a=1\n"):
        assert not scan_bytes(archive(many[:24] + broken)).safe, broken
    assert scan_bytes(archive(b"14 path=../ab\n")).level is Level.DANGEROUS


@pytest.mark.parametrize("content", [b"\n" * 400_000, b"{" * 400_000, (b"\n" + b" " * 10) * 40_000])
def test_blank_yaml_is_gone_over_once(content: bytes) -> None:
    assert scan_bytes(content, name="a.yaml").safe  # once for each line, it would take hours
    assert scan_bytes(content + b"\n_target_: os.system\n", name="a.yaml").level is Level.DANGEROUS
    assert scan_bytes(b"net: {lr: 1, _target_: os.system}\n", name="a.yaml").level is Level.DANGEROUS
    assert scan_bytes(b"my_target_: os.system\n", name="a.yaml").safe


def test_a_conversion_without_numbers_says_what_the_scan_found(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Surprise()))
    with pytest.raises(ModelError, match=r"holds no tensors or arrays to keep; the scan says: dangerous: imports builtins\.eval"):
        convert_safe(tmp_path / "a.pkl", tmp_path / "a.safetensors")


def test_arrays_of_objects_are_converted(tmp_path: Path) -> None:
    (tmp_path / "a.joblib").write_bytes(dumped({"categories": NESTED}))
    kept = convert_safe(tmp_path / "a.joblib", tmp_path / "a.safetensors")
    assert sorted(one.tolist() for one in kept.tensors.values()) == [[0, 1], [0, 1, 2]] and not kept.left_out
