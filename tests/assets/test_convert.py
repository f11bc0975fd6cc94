"""Conversion to safetensors: the numbers are those that were saved, bit for bit, and nothing in the file was run."""

from __future__ import annotations

import collections
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hauberk.assets.scan import scan_file
from hauberk.assets.scan.convert import Conversion, convert_safe, sidecar
from hauberk.core.errors import ModelError, UnsafeFile


class Runs:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (str(self.mark),)


def converted(path: Path) -> tuple[Conversion, dict[str, torch.Tensor], dict[str, Any]]:
    output = path.with_name("out.safetensors")
    made = convert_safe(path, output)
    assert scan_file(output).level == 0 and scan_file(sidecar(output)).level == 0
    return made, load_file(output), json.loads(sidecar(output).read_text())


def saved(tmp_path: Path, value: object, **options: Any) -> Path:
    torch.save(value, tmp_path / "a.pt", **options)
    return tmp_path / "a.pt"


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False)))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_keeps_its_tensors_and_loses_its_code(tmp_path: Path, zipped: bool) -> None:
    model = network()
    base = torch.arange(24, dtype=torch.float64)
    value = {
        "model": model.state_dict(), "epoch": 3, "name": "net", "view": base[2:20].view(3, 6).t()[1:, ::2],
        "types": [torch.ones(3, dtype=one) for one in (torch.bfloat16, torch.int8, torch.bool, torch.float16)],
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "wide": torch.ones(1, 3).expand(4, 3),
        "evil": Runs(tmp_path / "ran"),
    }
    made, tensors, note = converted(saved(tmp_path, value, _use_new_zipfile_serialization=zipped))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], tensor)
    assert torch.equal(tensors["view"], value["view"]) and tensors["empty"].shape == (0, 3) and tensors["scalar"].item() == 2.5
    assert torch.equal(tensors["wide"], torch.ones(4, 3))
    assert [tensors[f"types.{index}"].dtype for index in range(4)] == [torch.bfloat16, torch.int8, torch.bool, torch.float16]
    assert note["values"]["epoch"] == 3 and note["values"]["name"] == "net"
    assert any("os.mkdir" in one["what"] or "posix.mkdir" in one["what"] for one in note["left_out"])
    assert not (tmp_path / "ran").exists() and len(made.tensors) == len(tensors)


def test_a_whole_module_becomes_its_state_dict(tmp_path: Path) -> None:
    model = network()
    _, tensors, note = converted(saved(tmp_path, model))
    assert set(tensors) == set(model.state_dict())
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    fresh = network()
    fresh.load_state_dict(tensors)
    assert any("torch.nn.modules.container.Sequential" in one["what"] for one in note["left_out"])


def test_a_plain_pickle_with_tensors_inside(tmp_path: Path) -> None:
    place = tmp_path / "a.pkl"
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    place.write_bytes(pickle.dumps({"w": tensor, "p": nn.Parameter(tensor[0])}))
    _, tensors, _ = converted(place)
    assert torch.equal(tensors["w"], tensor) and torch.equal(tensors["p"], tensor[0])


ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "big": np.arange(3, dtype=">i4"),
    "s": np.array(["x", "yy"]), "t": np.array([(1, 2.5)], dtype=[("n", "i8"), ("v", "f4")]), "c": np.ones(2, complex),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    place = tmp_path / "a.pkl"
    more = {"n": np.float32(1.5), "o": np.array([{"x": np.ones(2)}, 1], dtype=object)}
    place.write_bytes(pickle.dumps({**ARRAYS, **more}, protocol))
    _, tensors, note = converted(place)
    assert torch.equal(tensors["a"], torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    assert torch.equal(tensors["f"], torch.arange(6).reshape(2, 3))
    assert torch.equal(tensors["big"], torch.arange(3, dtype=torch.int32))
    assert tensors["t.n"].tolist() == [1] and tensors["t.v"].tolist() == [2.5] and tensors["o.0.x"].tolist() == [1, 1]
    assert note["values"] == {"s": ["x", "yy"], "n": 1.5, "o.1": 1}
    assert [one["where"] for one in note["left_out"]] == ["c"]


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_joblib_files(tmp_path: Path, compress: Any) -> None:
    joblib = pytest.importorskip("joblib")
    place = tmp_path / "a.joblib"
    joblib.dump({"x": ARRAYS["a"], "deep": [ARRAYS["f"], np.array([{"y": np.zeros(2)}], dtype=object)]}, place, compress=compress)
    _, tensors, _ = converted(place)
    assert tensors["x"].tolist() == ARRAYS["a"].tolist() and tensors["deep.0"].tolist() == ARRAYS["f"].tolist()
    assert tensors["deep.1.0.y"].tolist() == [0, 0]


def test_an_estimator_keeps_the_numbers_of_its_attributes(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.tree import DecisionTreeClassifier

    x = np.arange(12.0).reshape(6, 2)
    line, tree = LinearRegression().fit(x, x.sum(1)), DecisionTreeClassifier(max_depth=2).fit(x, [0, 0, 0, 1, 1, 1])
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([line, tree]))
    _, tensors, note = converted(tmp_path / "a.pkl")
    assert tensors["0.coef_"].tolist() == line.coef_.tolist() and note["values"]["0.fit_intercept"] is True
    assert tensors["1.tree_.nodes.threshold"].tolist() == tree.tree_.threshold.tolist()


def test_npy_and_npz_files(tmp_path: Path) -> None:
    objects = np.array([{"w": np.ones(3)}, None], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    _, tensors, _ = converted(tmp_path / "a.npy")
    assert tensors["0.w"].tolist() == [1, 1, 1]
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(4), o=objects, allow_pickle=True)
    _, tensors, _ = converted(tmp_path / "a.npz")
    assert tensors["x"].tolist() == [0, 1, 2, 3] and tensors["o.0.w"].tolist() == [1, 1, 1]


def test_what_is_shared_is_kept_once_and_tied_weights_twice(tmp_path: Path) -> None:
    weight, inner = torch.ones(2), [1, torch.zeros(1)]
    made, tensors, _ = converted(saved(tmp_path, {"a": weight, "b": weight, "x": inner, "y": inner}))
    assert set(tensors) == {"a", "b", "x.1"} and [one.what for one in made.left_out] == ["the same object as x"]
    doubled: list[Any] = [torch.ones(1)]
    for _ in range(40):
        doubled = [doubled, doubled]
    made, tensors, _ = converted(saved(tmp_path, doubled))
    assert len(tensors) == 1 and len(made.left_out) == 40


def test_files_without_numbers_or_an_end_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "a.pkl"
    for content, error in (
        (pickle.dumps({"a": 1}), ModelError), (b"cos\nsystem\n(S'true'\ntR.", ModelError), (pickle.dumps([1])[:-1], UnsafeFile),
        (b"", UnsafeFile), (b"no model", UnsafeFile), (b"PK\x03\x04 cut", UnsafeFile),
    ):
        place.write_bytes(content)
        with pytest.raises(error):
            convert_safe(place, tmp_path / "o.safetensors")
        assert not (tmp_path / "o.safetensors").exists()
    with pytest.raises(ModelError):
        convert_safe(tmp_path / "missing.pt", tmp_path / "o.safetensors")


def test_a_tensor_that_lies_about_its_size_is_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(collections.OrderedDict(good=torch.ones(2), bad=torch.ones(5)), buffer)
    content = buffer.getvalue()
    import zipfile

    with zipfile.ZipFile(buffer) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    assert b"K\x05\x85" in content
    for size in (b"K\x07\x85", b"M\xff\xff\x85"):  # beyond the storage
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            for name, body in members.items():
                archive.writestr(name, body.replace(b"K\x05\x85", size, 2) if name.endswith("data.pkl") else body)
        made, tensors, _ = converted(tmp_path / "a.pt")
        assert set(tensors) == {"good"} and "beyond its storage" in made.left_out[0].what
    # A stride of zero makes any size out of one number: more room than four times the file and 64 MiB is not given.
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, body in members.items():
            huge = body.replace(b"K\x05\x85", b"J\xff\xff\xff\x7f\x85").replace(b"K\x01\x85", b"K\x00\x85")
            archive.writestr(name, huge if name.endswith("data.pkl") else body)
    made, tensors, _ = converted(tmp_path / "a.pt")
    assert set(tensors) == {"good"} and any("out of a storage" in one.what for one in made.left_out)
