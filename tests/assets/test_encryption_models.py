"""Models saved encrypted and loaded from memory: the same bits, tensor by tensor, and no byte of plaintext on the disk."""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from hauberk.assets.encryption import (
    EncryptedReader,
    EncryptedTensors,
    Identity,
    describe,
    encrypt_file,
    load_encrypted,
    open_encrypted,
    save_encrypted,
)
from hauberk.assets.encryption.tensors import DTYPES
from hauberk.core.errors import ModelError, UnsafeFile, UsageError

KEY, CHUNK = bytes(range(32)), 4096


def every_type() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = {
        name: torch.randint(0, 2, (5, 7), generator=draw).to(dtype) if dtype is torch.bool
        else (torch.rand(5, 7, generator=draw) * 100).to(dtype) for name, dtype in DTYPES.items()
    }
    return {**made, "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "turned": torch.rand(4, 6, generator=draw).T}


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.reshape(-1)

    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(raw(one), raw(two))


def test_tensors_of_every_type_come_back_and_are_safetensors(tmp_path: Path) -> None:
    tensors, file = every_type(), tmp_path / "w.hbke"
    save_encrypted(tensors, file, KEY, chunk=CHUNK)
    found = load_encrypted(file, KEY)
    peer = load_safetensors(EncryptedReader(file, KEY).read())
    assert describe(file).content == "safetensors"
    assert found.keys() == peer.keys() == tensors.keys()
    assert all(same(found[name], tensors[name]) and same(peer[name], tensors[name]) for name in tensors)


def test_a_tensor_costs_the_chunks_that_hold_it(tmp_path: Path) -> None:
    tensors = {f"layer{n}": torch.full((8, 512), float(n)) for n in range(10)}  # 16 KiB each: four chunks
    save_encrypted(tensors, tmp_path / "w.hbke", KEY, chunk=CHUNK)
    with open_encrypted(tmp_path / "w.hbke", KEY) as held:
        reader = held._reader
        at_first = sum(reader._seen)
        assert at_first <= 2  # the last chunk, which proves the end, and the first, which holds the table
        assert held.shape("layer4") == (8, 512)
        assert sum(reader._seen) == at_first
        assert torch.equal(held["layer4"], tensors["layer4"])
        assert sum(reader._seen) - at_first <= 5
        assert torch.equal(held.rows("layer7", 2, 4), tensors["layer7"][2:4])
        assert sum(reader._seen) - at_first <= 7
        with pytest.raises(UsageError, match="rows 7 to 9"):
            held.rows("layer7", 7, 9)
        held.verify()
        assert sum(reader._seen) == reader._chunks


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_and_forked_processes_read_one_file(tmp_path: Path) -> None:
    tensors = {f"layer{n}": torch.full((3000,), float(n)) for n in range(40)}
    save_encrypted(tensors, tmp_path / "w.hbke", KEY, chunk=CHUNK)
    with open_encrypted(tmp_path / "w.hbke", KEY) as held:
        def right(part: int) -> bool:
            return all(torch.equal(held[name], tensors[name]) for name in list(tensors)[part::4] * 3)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert all(pool.map(right, range(4)))
        children = []
        for part in range(3):
            children.append(os.fork())
            if not children[-1]:
                os._exit(0 if right(part) else 1)
        assert right(3)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_checkpoints_with_optimizer_state_come_back(tmp_path: Path) -> None:
    model = nn.Linear(30, 40)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    held = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    save_encrypted(held, tmp_path / "run.hbke", KEY, chunk=CHUNK, cipher="AES-CBC")
    found = load_encrypted(tmp_path / "run.hbke", KEY)
    assert describe(tmp_path / "run.hbke").cipher == "aes-256-cbc-hmac-sha256"
    assert found["epoch"] == 3
    assert all(torch.equal(found["model"][name], value) for name, value in model.state_dict().items())
    moments = optimizer.state_dict()["state"][0]
    assert all(torch.equal(found["optimizer"]["state"][0][name], moments[name]) for name in moments)
    save_encrypted(model, tmp_path / "module.hbke", KEY)
    assert torch.equal(load_encrypted(tmp_path / "module.hbke", KEY)["weight"], model.weight)


def test_files_of_torch_old_and_new_load_from_memory(tmp_path: Path) -> None:
    state = {"w": torch.arange(3000.0), "v": torch.ones(2, 2)}
    for number, zipped in enumerate((True, False)):
        torch.save({"state": state}, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=zipped)
        encrypt_file(tmp_path / f"{number}.pt", tmp_path / f"{number}.hbke", KEY, chunk=CHUNK)
    assert describe(tmp_path / "0.hbke").content == "torch"
    assert torch.equal(load_encrypted(tmp_path / "0.hbke", KEY)["state"]["w"], state["w"])
    old = EncryptedReader(tmp_path / "1.hbke", KEY)
    assert torch.equal(torch.load(old, weights_only=True)["state"]["w"], state["w"])


def test_what_would_run_code_does_not_load(tmp_path: Path) -> None:
    save_encrypted({"model": nn.Linear(2, 2)}, tmp_path / "m.hbke", KEY)
    with pytest.raises(UnsafeFile, match="more than tensors and plain values"):
        load_encrypted(tmp_path / "m.hbke", KEY)
    save_encrypted(b"PK\3\4 and then something else", tmp_path / "b.hbke", KEY)
    assert load_encrypted(tmp_path / "b.hbke", KEY) == b"PK\3\4 and then something else"
    (tmp_path / "c.pt").write_bytes(b"PK\3\4 and then something else")
    encrypt_file(tmp_path / "c.pt", tmp_path / "c.hbke", KEY)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encrypted(tmp_path / "c.hbke", KEY)


def test_an_altered_byte_anywhere_stops_the_load(tmp_path: Path) -> None:
    """Also where torch does not look: between the entries of the archive and in its directory."""
    save_encrypted({"a": {"w": torch.arange(9000.0)}}, tmp_path / "m.hbke", KEY, chunk=CHUNK)
    whole = (tmp_path / "m.hbke").read_bytes()
    for at in range(len(whole) - 1, 400, -2053):
        mutant = bytearray(whole)
        mutant[at] ^= 1
        (tmp_path / "m.hbke").write_bytes(mutant)
        with pytest.raises(ModelError, match="not authentic"):
            load_encrypted(tmp_path / "m.hbke", KEY)


@pytest.mark.parametrize("table", [
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, {"a": 1}, [1], {"a": {"dtype": "F32"}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"},
    {"a": {"dtype": "F32", "shape": [2**62] * 200_000, "data_offsets": [0, 8]}},  # their product would take hours
])
def test_a_wrong_table_is_refused(table: object) -> None:
    text = json.dumps(table).encode()
    out = io.BytesIO()
    from hauberk.assets.encryption import encrypt_stream

    encrypt_stream(len(text).to_bytes(8, "little") + text + bytes(8), out, KEY)
    with pytest.raises(ModelError, match="no safetensors"):
        EncryptedTensors(EncryptedReader(out.getvalue(), KEY))


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sparse"):
        save_encrypted({"a": torch.eye(3).to_sparse()}, tmp_path / "a", KEY, content="safetensors")
    with pytest.raises(UsageError, match="a list was given"):
        save_encrypted([1], tmp_path / "a", KEY, content="safetensors")
    with pytest.raises(UsageError, match="bytes were given"):
        save_encrypted(b"1", tmp_path / "a", KEY, content="torch")
    with pytest.raises(AttributeError):  # a function of a test cannot be pickled
        save_encrypted({"a": lambda: 1}, tmp_path / "a", KEY)
    assert list(tmp_path.iterdir()) == []
    save_encrypted({"a": torch.eye(3).to_sparse()}, tmp_path / "a", KEY)
    assert torch.equal(load_encrypted(tmp_path / "a", KEY)["a"].to_dense(), torch.eye(3))
    with pytest.raises(ModelError, match="holds torch"):
        open_encrypted(tmp_path / "a", KEY)


def onnx_bytes() -> bytes:
    onnx = pytest.importorskip("onnx")
    help_ = onnx.helper
    weight = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    kind = onnx.TensorProto.FLOAT
    graph = help_.make_graph(
        [help_.make_node("MatMul", ["x", "w"], ["y"])], "net", [help_.make_tensor_value_info("x", kind, [None, 3])],
        [help_.make_tensor_value_info("y", kind, [None, 2])], [weight],
    )
    return help_.make_model(graph, opset_imports=[help_.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_onnx_runs_from_memory(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(onnx_bytes())
    encrypt_file(tmp_path / "net.onnx", tmp_path / "net.onnx.hbke", KEY)
    session = load_encrypted(tmp_path / "net.onnx.hbke", KEY)
    assert session.run(None, {"x": np.ones((1, 3), dtype=np.float32)})[0].tolist() == [[6.0, 9.0]]
    save_encrypted(b"no model", tmp_path / "broken.onnx.hbke", KEY)
    with pytest.raises(ModelError, match="cannot be opened by onnxruntime"):
        load_encrypted(tmp_path / "broken.onnx.hbke", KEY)


WATCH = """
import ctypes, io, os, struct, sys
from pathlib import Path

import onnxruntime
import torch

from hauberk.assets.encryption import load_encrypted, open_encrypted

key, folder = bytes(range(32)), Path.cwd()
calls = ctypes.CDLL(None, use_errno=True)
handle = calls.inotify_init1(os.O_NONBLOCK)
places = [folder, folder / "tmp", folder / "home"]
# modified, closed after writing, moved to, created
assert handle >= 0 and all(calls.inotify_add_watch(handle, str(one).encode(), 0x2 | 0x8 | 0x80 | 0x100) >= 0 for one in places)
opened = []


def hook(event, given):
    if event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        opened.append(given[0])


def events():
    try:
        return len(os.read(handle, 65536))
    except BlockingIOError:
        return 0


def written():  # bytes that this process has handed to write, to whatever file, and by whichever library
    return int(open("/proc/self/io").read().split("wchar: ")[1].split()[0])


def load():
    tensors = load_encrypted("w.hbke", key)
    with open_encrypted("w.hbke", key) as lazy:
        assert torch.equal(lazy["w"], tensors["w"])
    assert load_encrypted("run.hbke", key)["epoch"] == 1
    assert load_encrypted("net.onnx.hbke", key).run(None, {"x": torch.ones(1, 3).numpy()})[0].tolist() == [[6.0, 9.0]]


load()  # what is imported late is imported now
events()
sys.addaudithook(hook)
before = written()
load()
after = written()
assert (after - before, events(), opened) == (0, 0, []), (after - before, opened)
with open("tmp/control", "wb") as file:  # the watch does see what is written
    file.write(bytes(1000))
assert written() - after >= 1000 and events() > 0 and opened == ["tmp/control"], opened
print("nothing was written")
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts written bytes by /proc/self/io, which this system lacks")
def test_no_byte_of_plaintext_reaches_the_disk_during_a_load(tmp_path: Path) -> None:
    for name in ("tmp", "home"):
        (tmp_path / name).mkdir()
    save_encrypted({"w": torch.arange(100_000.0)}, tmp_path / "w.hbke", KEY, chunk=CHUNK)
    save_encrypted({"w": {"w": torch.arange(100_000.0)}, "epoch": 1}, tmp_path / "run.hbke", KEY, chunk=CHUNK)
    save_encrypted(onnx_bytes(), tmp_path / "net.onnx.hbke", KEY)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )
    assert done.stdout == "nothing was written\n", done.stderr[-3000:]


def test_an_identity_saves_for_itself(tmp_path: Path) -> None:
    me = Identity.generate()
    save_encrypted({"w": torch.ones(2)}, tmp_path / "w.hbke", me)
    assert torch.equal(load_encrypted(tmp_path / "w.hbke", me)["w"], torch.ones(2))
