"""Archives, arrays, safetensors, ONNX and compressed files: honest ones are safe, doctored ones never are."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from hauberk.assets.scan import Level, Limits, scan_bytes, scan_file

SYSTEM = b"cos\nsystem\n(S'true'\ntR."


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0)}, buffer)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def numpy_file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


TORCH = torch_zip()
LOCAL = TORCH.index(b"PK\x03\x04")
CENTRAL = TORCH.index(b"PK\x01\x02")


def patched(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


ZIP_TRICKS = {
    "pickle swapped": zipped({"a/data.pkl": SYSTEM, "a/data/0": b"1234"}),
    "hidden beside": zipped({"a/data.pkl": pickle.dumps(1), "a/extra.p": SYSTEM}),
    "hidden without suffix": zipped({"a/data.pkl": pickle.dumps(1), "a/weights": SYSTEM}),
    "zip in zip": zipped({"inner.pt": zipped({"a/data.pkl": SYSTEM})}),
    "npy in npz": zipped({"x.npy": numpy_file(np.zeros(1))[:-8] + b"", "y.npy": SYSTEM}),
    "bytes in front": b"\x00" * 16 + TORCH,
    "pickle in front": pickle.dumps(1) + TORCH,
    "malicious pickle in front": SYSTEM + TORCH,
    "bytes behind": TORCH + b"x",
    "cut off": TORCH[:-10],
    "encrypted flag": patched(TORCH, CENTRAL + 8, struct.pack("<H", 1)),
    "other name inside": patched(TORCH, LOCAL + 30, b"b"),
    "other method inside": patched(TORCH, LOCAL + 8, struct.pack("<H", 8)),
    "wrong sum": patched(TORCH, CENTRAL + 16, b"\x00\x00\x00\x00"),
    "climbs out": zipped({"../a/data.pkl": pickle.dumps(1)}),
    "absolute": zipped({"/a/data.pkl": pickle.dumps(1)}),
    "bytes between": zipped({"a/data.pkl": pickle.dumps(1)}).replace(b"PK\x01\x02", b"junkjunkPK\x01\x02", 1),
}


@pytest.mark.parametrize("content", ZIP_TRICKS.values(), ids=ZIP_TRICKS)
def test_doctored_archives_are_never_safe(content: bytes) -> None:
    assert scan_bytes(content).level is not Level.SAFE


def test_two_members_of_one_name_cannot_be_verified() -> None:
    once = zipped({"a/data.pkl": pickle.dumps(1), "b/data.pkl": SYSTEM})
    found = scan_bytes(once.replace(b"b/data.pkl", b"a/data.pkl"))
    assert found.level is Level.UNVERIFIABLE and "one name" in found.issues[0].what


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zipped({"x.npy": numpy_file(np.zeros(2**21))}, zipfile.ZIP_DEFLATED)  # 16 MiB in 16 KiB
    found = scan_bytes(bomb)
    assert found.level is Level.UNVERIFIABLE and "times its size" in found.issues[0].what
    assert scan_bytes(bomb, limits=Limits(ratio=5000)).level is Level.SAFE
    packed = zlib.compress(numpy_file(np.zeros(2**21)), 9)
    assert "times its size" in scan_bytes(packed).issues[0].what
    assert "2000 bytes to read" in scan_bytes(zlib.compress(bytes(range(256)) * 64), limits=Limits(read=2000)).issues[0].what
    many = zipped({f"{index}.txt": b"" for index in range(50)})
    assert "50 members" in scan_bytes(many, limits=Limits(members=20)).issues[0].what


def test_archives_as_numpy_and_skops_write_them_are_safe() -> None:
    for writer in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        writer(buffer, a=np.arange(5), b=np.array(["x", "yy"]), c=np.array(True))
        assert scan_bytes(buffer.getvalue()).issues == []
    skops = pytest.importorskip("skops.io")
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    content = skops.dumps(RandomForestClassifier(3).fit(*load_iris(return_X_y=True)))
    assert scan_bytes(content).issues == []
    hostile = {"__module__": "os", "__class__": "system", "__loader__": "TypeNode", "content": {}}
    assert scan_bytes(zipped({"schema.json": json.dumps(hostile).encode()})).level is Level.DANGEROUS


def test_exported_programs_are_safe_and_their_code_is_found() -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 + 1

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Sequential(nn.Linear(3, 2), Scale()), (torch.zeros(2, 3),)), buffer)
    content = buffer.getvalue()
    assert scan_bytes(content).issues == []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    (program,) = [one for one in members if one.endswith("models/model.json")]
    evil = json.loads(members[program])
    evil["range"] = {"expr_str": "__import__('os').system('true')"}
    assert scan_bytes(zipped({**members, program: json.dumps(evil).encode()})).level is Level.DANGEROUS
    (config,) = [one for one in members if one.endswith("model_weights_config.json")]
    pickled = members[config].replace(b'"use_pickle": false', b'"use_pickle": true')
    hidden = {one: SYSTEM if one.endswith("weight_0") else body for one, body in members.items()}
    assert scan_bytes(zipped({**hidden, config: pickled})).level is Level.DANGEROUS


def scripted(code: bytes) -> bytes:
    return zipped({"a/data.pkl": pickle.dumps(1), "a/code/__torch__.py": code, "a/constants.pkl": pickle.dumps(())})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_read_and_only_computes() -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 3))[0]), buffer)
    found = scan_bytes(buffer.getvalue())
    assert found.issues == [] and found.level is Level.FRAMEWORK
    assert scan_bytes(scripted(b"def forward(self):\n  return torch.add(self, 1)  # torch.save")).issues == []
    for code, level in (
        (b"torch.save(x, 'a')", Level.DANGEROUS), (b"(torch.  # why\n from_file)('a')", Level.DANGEROUS),
        (b"x.save('a')", Level.DANGEROUS), (b"getattr(torch, 'save')(x)", Level.DANGEROUS), (b"ops.mine.run(x)", Level.UNKNOWN),
        (b"ops . mine . run(x)", Level.UNKNOWN), (b"y = ops\ny.mine.run(x)", Level.UNKNOWN), (b"'open", Level.UNVERIFIABLE),
        (b"def __setstate__(self, a): pass", Level.UNKNOWN), (b"ops.prim.rpc_sync('a', 'b')", Level.DANGEROUS),
        ("торч".encode(), Level.UNVERIFIABLE),
    ):
        assert scan_bytes(scripted(code)).level is level, code


def test_npy_files() -> None:
    for array in (np.arange(6).reshape(2, 3), np.array(["a", "bcd"]), np.zeros(2, dtype=[("a", "<f4"), ("b", "<i8", (2,))]),
                  np.array([], dtype=bool), np.array(["2020-01-01"], dtype="M8[D]"), np.array([{}, [1]], dtype=object)):
        assert scan_bytes(numpy_file(array)).issues == [], array.dtype
    good = numpy_file(np.arange(6))
    assert scan_bytes(good + b"\x00").level is Level.UNVERIFIABLE
    assert scan_bytes(good[:-1]).level is Level.UNVERIFIABLE
    assert scan_bytes(good.replace(b"'<i8'", b"'<q8'")).level is Level.UNVERIFIABLE
    objects = numpy_file(np.array([1], dtype=object))
    assert scan_bytes(objects[:128] + SYSTEM).level is Level.DANGEROUS
    header = b"{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1,)}"
    assert scan_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header).level is Level.UNVERIFIABLE


def tensors(header: object, data: bytes = b"\x00" * 8) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "overlap": tensors({"a": entry(), "b": entry()}),
    "hole": tensors({"a": entry("U8", (2,), (0, 2)), "b": entry("U8", (2,), (6, 8))}),
    "beyond the end": tensors({"a": entry("F32", (4,), (0, 16))}),
    "bytes behind": tensors({"a": entry()}) + b"x",
    "wrong size": tensors({"a": entry("F64")}),
    "unknown type": tensors({"a": entry("PY")}),
    "negative": tensors({"a": entry("F32", (-2,), (0, 8))}),
    "extra key": tensors({"a": {**entry(), "code": "x"}}),
    "metadata not text": tensors({"__metadata__": {"a": {"b": 1}}, "a": entry()}),
    "no table": struct.pack("<Q", 12) + b"{not json!!}" + b"\x00" * 8,
    "name twice": struct.pack("<Q", 112) + (
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}'.ljust(112)
    ) + b"\x00" * 8,
    "deep": struct.pack("<Q", 200_006) + b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}" + b"\x00" * 8,
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_lying_safetensors_header_is_not_safe(content: bytes) -> None:
    found = scan_bytes(content)
    assert found.level is Level.UNVERIFIABLE and found.format == "safetensors"


def test_safetensors_as_written_are_safe() -> None:
    content = save({"a": torch.zeros(3, 2), "b": torch.zeros(0), "c": torch.ones(5, dtype=torch.bfloat16)}, {"note": "x"})
    found = scan_bytes(content)
    assert found.issues == [] and not found.carries_code
    assert scan_bytes(content, limits=Limits(header=10)).level is Level.UNVERIFIABLE


def test_onnx_files() -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT

    def model(domain: str = "", location: str = "") -> bytes:
        weight = helper.make_tensor("w", kind, [2], [1.0, 2.0])
        if location:
            weight.ClearField("float_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=location)
        node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", kind, [2])],
                                  [helper.make_tensor_value_info("y", kind, [2])], [weight])
        made: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 20)]).SerializeToString()
        return made

    found = scan_bytes(model())
    assert (found.issues, found.format, found.carries_code) == ([], "onnx", False)
    assert scan_bytes(model(location="weights.bin")).level is Level.SAFE
    for outside in ("../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x"):
        assert scan_bytes(model(location=outside)).level is Level.DANGEROUS, outside
    assert scan_bytes(model(domain="my.plugin")).level is Level.UNKNOWN
    assert scan_bytes(model()[:-3]).level is Level.UNVERIFIABLE


def test_files_on_disk(tmp_path: Path) -> None:
    place = tmp_path / "model.pt"
    place.write_bytes(TORCH)
    found = scan_file(place)
    assert (found.level, found.path) == (Level.SAFE, str(place)) and found.parts == 3
    assert "torch._utils._rebuild_tensor_v2" in found.globals
    for bad in (tmp_path, tmp_path / "missing.pt"):
        assert scan_file(bad).level is Level.UNVERIFIABLE
    (tmp_path / "text.model").write_text("hello, this is no model")
    assert scan_file(tmp_path / "text.model").level is Level.UNVERIFIABLE
    (tmp_path / "text.txt").write_text("hello, this is no model")
    assert (scan_file(tmp_path / "text.txt").level, scan_file(tmp_path / "text.txt").format) == (Level.SAFE, "text")


def test_nothing_is_imported_or_run(tmp_path: Path) -> None:
    """A payload that would leave a file behind, in every wrapping that is opened here."""
    mark = tmp_path / "was-run"
    payload = f"cpathlib\nPath\n(S'{mark}'\ntR.".encode() + f"cos\nmkdir\n(S'{mark}'\ntR.".encode()
    module = b"cthis\nd\n."
    for content in (payload, zipped({"a/data.pkl": payload}), zlib.compress(payload), module):
        assert scan_bytes(content).level is not Level.SAFE
    import sys

    assert not mark.exists() and "this" not in sys.modules
