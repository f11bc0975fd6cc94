"""The inert pickle machine: what would run is named, by whatever trick it is hidden; nothing here is ever loaded."""

from __future__ import annotations

import collections
import datetime
import io
import pathlib
import pickle
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from hauberk.assets.scan import Level, Limits, scan_bytes

SYSTEM = b"cos\nsystem\n(S'true'\ntR."


def name(module: str, attribute: str) -> bytes:
    """Pushes a name the modern way, through STACK_GLOBAL."""
    texts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)]
    return texts[0] + texts[1] + b"\x93"


def four(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def short(content: bytes) -> bytes:
    return b"C" + bytes([len(content)]) + content


LOADS = name("torch.storage", "_load_from_bytes")
DANGEROUS = {
    "reduce": SYSTEM,
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "stack global": four(name("posix", "system") + b"\x8c\x04true\x85R"),
    "memo": four(b"\x8c\x05posix\x940\x8c\x06system\x940h\x00h\x01\x93\x8c\x04true\x85R"),
    "long memo": four(b"\x8c\x05posixr\x00\x01\x00\x000\x8c\x06systemq\x050j\x00\x01\x00\x00h\x05\x93\x8c\x04true\x85R"),
    "dup": four(b"\x8c\x06system0\x8c\x05posix2\x940\x8c\x06system\x93\x8c\x04true\x85R"),
    "python 2 name": b"c__builtin__\neval\n(S'1'\ntR.",
    "old spelling": b"ccommands\ngetoutput\n(S'true'\ntR.",
    "named, never called": four(name("builtins", "exec")),
    "called, thrown away": four(name("os", "system") + b"\x8c\x04true\x85R0N"),
    "getattr": four(name("builtins", "getattr") + name("collections", "OrderedDict") + b"\x8c\x08__init__\x86R"),
    "new": four(name("subprocess", "Popen") + b")\x81"),
    "new ex": four(name("subprocess", "Popen") + b")}\x92"),
    "pickle in pickle": four(name("pickle", "loads") + short(SYSTEM) + b"\x85R"),
    "tensor bytes": four(LOADS + short(SYSTEM) + b"\x85R"),
    "tensor bytes later": four(name("functools", "partial") + LOADS + short(SYSTEM) + b"\x86R"),
    "default factory": four(name("collections", "defaultdict") + LOADS + b"\x85R"),
    "handed on in a list": four(b"]" + LOADS + b"a"),
    "handed on as state": four(name("collections", "OrderedDict") + b")R" + LOADS + b"b"),
    "copyreg": four(name("copyreg", "_reconstructor") + name("os", "system") + name("builtins", "object") + b"N\x87R"),
    "copyreg base": four(name("copyreg", "_reconstructor") + name("torch", "Tensor") + name("torch", "Tensor") + b"]\x87R"),
    "rebuild by another": four(
        name("torch._tensor", "_rebuild_from_type_v2") + b"(" + name("os", "system") + name("torch", "Tensor")
        + b"\x8c\x01a\x85NtR"
    ),
    "class patched": four(name("torch.nn.modules.linear", "Linear") + b"}\x8c\x07forwardNsb"),
    "environment": four(name("os", "environ") + b"\x8c\x01a\x8c\x01bs"),
    "result called": four(name("collections", "OrderedDict") + b")R)R"),
    "codec": four(name("_codecs", "encode") + b"\x8c\x01a\x8c\x03rot\x86R"),
    "second pickle": pickle.dumps({"a": 1}) + SYSTEM,
    "cut off after the call": SYSTEM[:-1],
    "junk after the call": SYSTEM + b"\xff\xff",
    "torch helper": four(name("torch.utils.collect_env", "run") + b"\x8c\x04true\x85R"),
    "hub": four(name("torch.hub", "load") + b"\x8c\x01a\x8c\x01b\x86R"),
    "numpy helper": four(name("numpy.testing._private.utils", "runstring") + b"\x8c\x01a}\x86R"),
    "memory": four(name("builtins", "bytearray") + b"\x8a\x05\x00\x00\x00\x00\x10\x85R"),
    "range unrolled": four(name("builtins", "list") + name("builtins", "range") + b"J\xff\xff\xff\x7f\x85R\x85R"),
    "legacy class of torch": four(b"(\x8c\x06module" + name("os", "system") + b"NNtQ)R"),
}
UNKNOWN = {
    "somebody's class": four(name("mypackage.nets", "Net") + b")\x81"),
    "walks attributes": four(name("torch.nn.modules.linear", "Linear.forward")),
    "extension": b"\x82\x01.",
    "class with arguments": four(name("torch.nn.modules.linear", "Linear") + b"K\x01K\x02\x86R"),
    "lower case in a listed package": four(name("sklearn.svm._base", "warnings")),
    "numpy chain": four(name("numpy", "__builtins__")),
}
UNVERIFIABLE = {
    "empty": b"",
    "cut off": pickle.dumps([1, 2, 3])[:-1],
    "no start": b"\x80\x04.",
    "two left": four(b"NN"),
    "mark left": four(b"(N")[:-1] + b"(.",
    "memo not written": four(b"h\x05"),
    "negative memo": b"Np-1\n.",
    "underflow": b"\x80\x02R.",
    "unknown opcode": b"\x80\x04\xffN.",
    "protocol 9": b"\x80\x09N.",
    "protocol twice, the second unknown": b"\x80\x04\x80\x77N.",
    "length beyond the end": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc",
    "junk at the end": pickle.dumps(1) + b"\x00",
    "name of a number": four(b"K\x01\x8c\x01a\x93"),
    "name from a call": four(name("builtins", "str") + b")R\x8c\x01a\x93"),
    "odd dictionary": b"(Nd.",
    "name with escapes": b"co\\x73\nsystem\n.",
    "name with spaces": b"cos system\nx y\n.",
    "arguments from a call": four(LOADS + name("builtins", "bytes") + b")R\x85R"),
}


@pytest.mark.parametrize("content", DANGEROUS.values(), ids=DANGEROUS)
def test_what_runs_code_is_dangerous(content: bytes) -> None:
    found = scan_bytes(content)
    assert found.level is Level.DANGEROUS, found


@pytest.mark.parametrize("content", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_listed_is_unknown_code(content: bytes) -> None:
    assert scan_bytes(content).level is Level.UNKNOWN


@pytest.mark.parametrize("content", UNVERIFIABLE.values(), ids=UNVERIFIABLE)
def test_what_cannot_be_followed_is_never_clean(content: bytes) -> None:
    assert scan_bytes(content).level is Level.UNVERIFIABLE


def test_the_issue_names_the_call_and_its_place() -> None:
    (issue,) = scan_bytes(pickle.dumps([1]) + SYSTEM).issues
    assert issue.what == "imports os.system"
    assert issue.where == f"@{len(pickle.dumps([1]))}"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_safe(protocol: int) -> None:
    value = {
        "scalars": [1, -1, 2**70, 2.5, None, True, "é\n", b"\x00\xff", 1j], "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [{1, 2}, frozenset({3})],
        "arrays": [np.arange(3), np.float32(1), np.array(["a", "bb"]), np.array([{}, 1], dtype=object)],
        "others": [collections.OrderedDict(a=1), collections.defaultdict(list), collections.Counter("ab"), range(3), slice(1, 2),
                   bytearray(b"x"), datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), pathlib.PurePosixPath("a/b")],
        "random": [np.random.default_rng(0)],
    }
    value["again"] = [value["scalars"], value["arrays"]]
    found = scan_bytes(pickle.dumps(value, protocol=protocol))
    assert found.issues == [] and found.format == "pickle"


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))


def torch_values() -> dict[str, object]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    types = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64,
             torch.float8_e4m3fn)
    return {
        "state dict": model.state_dict(), "optimizer": optimizer.state_dict(), "module": model, "lstm": nn.LSTM(3, 4),
        "transformer": nn.TransformerEncoderLayer(8, 2), "types": {str(one): torch.ones(2).to(one) for one in types},
        "parameter": nn.Parameter(torch.ones(2)), "sparse": torch.eye(3).to_sparse(),
        "checkpoint": {"epoch": 3, "size": torch.Size([1, 2]), "device": torch.device("cpu"), "rng": torch.get_rng_state()},
    }


@pytest.mark.parametrize("kind", torch_values())
def test_what_torch_saves_is_safe(kind: str) -> None:
    value = torch_values()[kind]
    whole = scan_bytes(saved(value))
    assert whole.issues == [] and whole.format == "zip"
    assert scan_bytes(pickle.dumps(value)).issues == []
    if kind != "types":  # the legacy format has no storage for every type
        legacy = scan_bytes(saved(value, _use_new_zipfile_serialization=False))
        assert legacy.issues == [] and legacy.format == "pickle"


def test_a_legacy_torch_file_is_followed_to_its_last_byte() -> None:
    whole = saved(network().state_dict(), _use_new_zipfile_serialization=False)
    assert scan_bytes(whole).level is Level.SAFE
    assert scan_bytes(whole + b"\x00").level is Level.UNVERIFIABLE
    assert scan_bytes(whole[:-1]).level is Level.UNVERIFIABLE


ESTIMATORS = (
    LogisticRegression(max_iter=1000), SGDClassifier(), RandomForestClassifier(3), GradientBoostingClassifier(n_estimators=2),
    HistGradientBoostingClassifier(max_iter=2), SVC(), GaussianNB(), MLPClassifier((4,), max_iter=400, tol=0.1),
    make_pipeline(StandardScaler(), KNeighborsClassifier(algorithm="kd_tree")),
)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)
def test_what_scikit_learn_pickles_is_safe(estimator: object) -> None:
    x, y = load_iris(return_X_y=True)
    fitted = estimator.fit(x, y)  # type: ignore[attr-defined]
    assert scan_bytes(pickle.dumps(fitted)).issues == []
    joblib = pytest.importorskip("joblib")
    for compress in (0, 3, ("bz2", 3), ("xz", 3)):
        buffer = io.BytesIO()
        joblib.dump(fitted, buffer, compress=compress)
        assert scan_bytes(buffer.getvalue()).issues == [], compress


def test_code_in_the_raw_bytes_of_a_joblib_array_is_found() -> None:
    """joblib steps over them, but plain pickle would run them: a file must be safe for both."""
    numpy_pickle = pytest.importorskip("joblib.numpy_pickle")
    for raw, level in ((b"\x00" * 40, Level.SAFE), (SYSTEM[:-1] + b"0" + b"N" * 17, Level.DANGEROUS)):
        wrapper = numpy_pickle.NumpyArrayWrapper(np.ndarray, (len(raw),), "C", np.dtype("u1"), numpy_array_alignment_bytes=None)
        assert scan_bytes(pickle.dumps(wrapper, protocol=2)[:-1] + raw + b".").level is level


def test_limits_end_as_cannot_be_verified() -> None:
    content = pickle.dumps(list(range(1000)))
    assert scan_bytes(content).level is Level.SAFE
    assert scan_bytes(content, limits=Limits(opcodes=100)).level is Level.UNVERIFIABLE
    assert scan_bytes(content, limits=Limits(seconds=0)).level is Level.UNVERIFIABLE
    assert scan_bytes(pickle.dumps(b"x" * 5000), limits=Limits(read=1000)).level is Level.UNVERIFIABLE
    nested = pickle.dumps(1)
    for _ in range(6):
        nested = four(LOADS + b"B" + struct.pack("<I", len(nested)) + nested + b"\x85R")
    assert scan_bytes(nested).level is Level.UNVERIFIABLE
    assert scan_bytes(nested, limits=Limits(depth=8)).level is Level.SAFE
