"""Looking into model files without loading them: the same tensors as the loader sees, kinds of layers, hostile files."""

from __future__ import annotations

import contextlib
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hauberk.assets.encryption import RawKey, encrypt_file
from hauberk.assets.inspection import inspect_file
from hauberk.assets.inspection.kinds import kind_of
from hauberk.assets.inspection.objects import Row
from hauberk.assets.signing.semantic import semantic_digest
from hauberk.cli.inspect import describe
from hauberk.core.errors import HauberkError, UsageError

TYPES = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16"}


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4)),
        nn.LayerNorm(4),
    )


def rows(state: dict[str, torch.Tensor]) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(name, TYPES[one.dtype], tuple(one.shape)) for name, one in state.items()}


def seen(path: Path) -> set[tuple[str, str, tuple[int, ...]]]:
    return {(one.name, one.dtype, one.shape) for one in inspect_file(path).tensors}


def test_every_format_shows_the_tensors_that_loading_shows(tmp_path: Path) -> None:
    model = net()
    model[4].bfloat16()
    state = model.state_dict()
    torch.save(state, tmp_path / "state.pt")
    torch.save(model, tmp_path / "module.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors")
    for name, form in {
        "state.pt": "torch", "module.pt": "torch", "legacy.pt": "torch (legacy)", "a.safetensors": "safetensors",
    }.items():
        found = inspect_file(tmp_path / name)
        assert (found.format, seen(tmp_path / name)) == (form, rows(state)), name
        assert found.parameters == sum(one.numel() for one in state.values()) and not found.notes
    arrays = {"x": np.zeros((2, 3), np.float32), "y": np.zeros(4, np.int64)}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    np.save(tmp_path / "one.npy", arrays["x"])
    assert seen(tmp_path / "a.npz") == {("x", "F32", (2, 3)), ("y", "I64", (4,))}
    assert seen(tmp_path / "one.npy") == {("one", "f4", (2, 3))}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"w": arrays["x"], "more": [arrays["y"]]}))
    assert {(name, shape) for name, _, shape in seen(tmp_path / "p.pkl")} == {("w", (2, 3)), ("more.0", (4,))}


def test_layers_are_named_or_inferred(tmp_path: Path) -> None:
    model = net()
    torch.save(model, tmp_path / "module.pt")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    named = {one.place: (one.kind, one.count, one.parameters) for one in inspect_file(tmp_path / "module.pt").layers()}
    assert named["1"] == ("BatchNorm2d(8)", 1, 33) and named["0"] == ("Conv2d(1 → 8, 3×3)", 1, 80)
    inferred = {one.place: (one.kind, one.count, one.parameters) for one in inspect_file(tmp_path / "state.pt").layers()}
    assert inferred == {
        "0": ("Conv2d(1 → 8, 3×3)", 1, 80), "1": ("BatchNorm(8)", 1, 33), "4.*": ("Linear(8 → 4)", 2, 72),
        "5": ("LayerNorm(4)", 1, 8),
    }


@pytest.mark.parametrize(("module", "place", "kind"), [
    (nn.Linear(3, 5), "fc", "Linear(3 → 5)"), (nn.Conv1d(2, 4, 7), "c", "Conv1d(2 → 4, 7)"),
    (nn.Conv3d(2, 4, 1), "c", "Conv3d(2 → 4, 1×1×1)"), (nn.Embedding(10, 4), "embed_tokens", "Embedding(10, 4)"),
    (nn.LSTM(3, 5), "r", "LSTM(3 → 5)"), (nn.GRU(3, 5), "r", "GRU(3 → 5)"), (nn.RNN(3, 5), "r", "RNN(3 → 5)"),
    (nn.MultiheadAttention(4, 2), "a", "MultiheadAttention(4)"), (nn.RMSNorm(6), "n", "RMSNorm(6)"),
    (nn.BatchNorm1d(3, affine=False), "b", "BatchNorm(3)"), (nn.ParameterList([nn.Parameter(torch.ones(2))]), "p", "parameters"),
])
def test_kinds_of_layers(module: nn.Module, place: str, kind: str) -> None:
    members = [Row(f"{place}.{name}", "F32", tuple(one.shape)) for name, one in module.state_dict().items() if "." not in name]
    assert kind_of(place, members) == kind


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("open('ran', 'w')",))


def test_hostile_files_are_shown_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the code in the files would leave its mark
    torch.save({"a": torch.ones(2), "b": Evil()}, tmp_path / "evil.pt")
    found = inspect_file(tmp_path / "evil.pt")
    assert found.scan.level.words == "dangerous" and found.classes["b"].endswith(".exec")
    assert [one.name for one in found.tensors] == ["a"]
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    assert inspect_file(tmp_path / "evil.pkl").scan.level.words == "dangerous"
    shared = {"x": [torch.ones(1)]}
    loop: list[Any] = [shared]
    loop.append(loop)
    for _ in range(100):  # each list holds the one before twice: 2^100 paths to one tensor
        loop = [loop, loop]
    torch.save(loop, tmp_path / "bomb.pt")
    assert len(inspect_file(tmp_path / "bomb.pt").tensors) == 1
    assert not (tmp_path / "ran").exists()
    for name, content in {
        "cut.pt": (tmp_path / "evil.pt").read_bytes()[:300], "empty": b"", "text": b"hello world", "zip": b"PK\3\4xxxx",
        "gguf": b"GGUF\3\0\0\0" + b"\xff" * 16, "npy": b"\x93NUMPY\1\0\xff\xff", "st": b"\x10" + b"\0" * 7 + b"{" * 20,
    }.items():
        (tmp_path / name).write_bytes(content)
        found = inspect_file(tmp_path / name)
        assert found.notes and not found.tensors and found.scan.level.words == "cannot be verified", name
    with pytest.raises(UsageError):
        inspect_file(tmp_path / "none")


def test_gguf_has_its_table_of_contents(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    body = b"GGUF" + struct.pack("<IQQ", 3, 2, 3)
    body += text("general.architecture") + struct.pack("<I", 8) + text("llama") + text("n") + struct.pack("<II", 4, 7)
    body += text("list") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    body += text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 64, 32, 12, 0)
    body += text("norm.weight") + struct.pack("<IQIQ", 1, 32, 0, 999)
    place = tmp_path / "m.gguf"
    place.write_bytes(body)
    found = inspect_file(place)
    assert found.facts == {"general.architecture": "llama", "n": "7"} and found.format == "gguf"
    place.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("\nscan  \x1b[1m") + struct.pack("<I", 8) + text("safe"))
    shown = describe(inspect_file(place), {"words": "none"})
    ours, _, theirs = shown.partition("the file says of itself")  # its words cannot pass for what was found
    assert "\x1b" not in shown and sum(row.startswith("scan") for row in ours.splitlines()) == 1
    assert theirs.strip().startswith("scan") and all(row.startswith("  ") for row in theirs.splitlines() if row)
    place.write_bytes(body)
    assert seen(place) == {("blk.0.attn_q.weight", "Q4_K", (32, 64)), ("norm.weight", "F32", (32,))}


def test_onnx_shows_its_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weight = numpy_helper.from_array(np.zeros((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, ["n", 4])], [helper.make_tensor_value_info("y", 1, ["n", 3])], [weight],
    )
    place = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(place))
    found = inspect_file(place)
    assert seen(place) == {("w", "F32", (4, 3))} and found.format == "onnx"
    assert found.facts["operators"] == "MatMul ×1, Relu ×1" and found.facts["inputs"] == "x (n, 4)"
    assert found.facts["opset"] == "ai.onnx 17"


def test_an_encrypted_file_is_called_that(tmp_path: Path) -> None:
    plain, place = tmp_path / "m.pt", tmp_path / "m.enc"
    torch.save(net().state_dict(), plain)
    encrypt_file(plain, place, [RawKey(bytes(range(32)))])
    found = inspect_file(place)
    assert found.encrypted and not found.tensors and not found.notes and found.to_dict()["encrypted"] is True
    assert found.facts["content (said)"] == "torch" and "AES-256-GCM" in found.facts["cipher (said)"].upper()
    place.write_bytes(b"HBKE" + bytes(100))
    damaged = inspect_file(place)
    assert damaged.encrypted and damaged.notes and not damaged.facts


def test_whatever_the_bytes_nothing_but_our_errors_comes_out(tmp_path: Path) -> None:
    model, made = net(), random.Random(0)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save(model, tmp_path / "b.pt")
    torch.save(model.state_dict(), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    np.savez_compressed(tmp_path / "z.npz", x=np.zeros(300))
    np.save(tmp_path / "a.npy", np.ones(3))
    for file in sorted(tmp_path.iterdir()):
        original, place = file.read_bytes(), tmp_path / f"changed{file.suffix}"
        for _ in range(25):
            changed = bytearray(original)
            for _ in range(made.choice([1, 2, 8])):
                at = made.randrange(len(changed))
                changed[at : at + made.choice([0, 1, 8])] = made.choice([b"\xff" * 8, b"\0", made.randbytes(1)])
            place.write_bytes(changed)
            assert inspect_file(place).size == len(changed)
            with contextlib.suppress(HauberkError):
                semantic_digest(place)
