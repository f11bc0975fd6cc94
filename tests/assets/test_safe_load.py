"""The guards for Python code: what is safe loads as ever, what is not never runs, and every function is put back."""

from __future__ import annotations

import io
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LinearRegression
from torch import nn

from hauberk.assets import guard_pickle, safe_load
from hauberk.core.errors import ModelError, UnsafeFile, UsageError


class Runs:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.mkdir, (str(self.mark),)


def test_safe_files_load_as_ever(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    tensors = {"w": torch.arange(3.0)}
    save_file(tensors, str(tmp_path / "a.safetensors"))
    torch.save(tensors, tmp_path / "a.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt", "old.pt"):
        assert torch.equal(safe_load(tmp_path / name)["w"], tensors["w"])
    np.save(tmp_path / "a.npy", np.arange(3))
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    assert safe_load(tmp_path / "a.npy").tolist() == safe_load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]
    fitted = LinearRegression().fit(np.arange(4.0).reshape(4, 1), np.arange(4.0))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(fitted))
    joblib.dump(fitted, tmp_path / "a.joblib", compress=3)
    joblib.dump(fitted, tmp_path / "b.joblib")
    for name in ("a.pkl", "a.joblib", "b.joblib"):
        assert safe_load(tmp_path / name).coef_ == pytest.approx([1])


def test_one_clear_error_names_the_finding(tmp_path: Path) -> None:
    for name, save in (("a.pt", lambda at: torch.save(Runs(tmp_path / "ran"), at)),
                       ("a.pkl", lambda at: at.write_bytes(pickle.dumps(Runs(tmp_path / "ran"))))):
        save(tmp_path / name)
        with pytest.raises(UnsafeFile, match=r"was not opened: dangerous, imports (os|posix)\.mkdir at .*hauberk convert"):
            safe_load(tmp_path / name)
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps([1])[:-1])
    with pytest.raises(UnsafeFile, match="cannot be verified"):
        safe_load(tmp_path / "cut.pkl")
    with pytest.raises(ModelError, match="cannot be read"):
        safe_load(tmp_path / "missing.pkl")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ModelError, match="no loader"):
        safe_load(tmp_path / "text.txt")
    # A whole module is safe by the scan, and torch's weights_only refuses it: never a fall back to the other way.
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(ModelError, match="convert"):
        safe_load(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_names_that_are_vouched_for(tmp_path: Path) -> None:
    place = tmp_path / "a.pkl"
    place.write_bytes(b"ctomllib\nTOMLDecodeError\n.")
    with pytest.raises(UnsafeFile, match="unknown code"):
        safe_load(place)
    import tomllib

    assert safe_load(place, allow=["tomllib:TOMLDecodeError"]) is tomllib.TOMLDecodeError
    for name in ("os:system", "builtins:eval", "tomllib", "a b:c", "importlib:import_module"):
        with pytest.raises(UsageError):
            safe_load(place, allow=[name])


def test_the_guard_reaches_every_loader_and_lets_go_of_it(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    evil, good = pickle.dumps(Runs(tmp_path / "ran")), pickle.dumps({"a": [1]})
    torch.save(Runs(tmp_path / "ran"), tmp_path / "e.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "g.pt")
    joblib.dump(Runs(tmp_path / "ran"), tmp_path / "e.joblib")
    np.save(tmp_path / "e.npy", np.array([Runs(tmp_path / "ran")], dtype=object), allow_pickle=True)
    np.save(tmp_path / "g.npy", np.arange(3))
    before = [pickle.load, pickle.loads, pickle.Unpickler, torch.load, joblib.load, np.load]
    with guard_pickle() as guard:
        for load in (
            lambda: pickle.loads(evil), lambda: pickle.load(io.BytesIO(evil)), lambda: pickle.Unpickler(io.BytesIO(evil)).load(),
            lambda: torch.load(tmp_path / "e.pt", weights_only=False), lambda: joblib.load(tmp_path / "e.joblib"),
            lambda: torch.load(io.BytesIO((tmp_path / "e.pt").read_bytes()), weights_only=False),
            lambda: np.load(tmp_path / "e.npy", allow_pickle=True),
        ):
            with pytest.raises(UnsafeFile, match="mkdir"):
                load()
        assert guard.refused == 7 and guard.passed == 0
        assert pickle.loads(good) == {"a": [1]} and torch.load(tmp_path / "g.pt")["w"].tolist() == [1, 1]
        assert np.load(tmp_path / "g.npy").tolist() == [0, 1, 2]
        two = io.BytesIO(good + good)
        assert pickle.load(two) == pickle.load(two) == {"a": [1]} and two.read() == b""
        raised: list[BaseException] = []

        def other() -> None:
            try:
                pickle.loads(evil)
            except UnsafeFile as error:
                raised.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(raised) == 1
    assert before == [pickle.load, pickle.loads, pickle.Unpickler, torch.load, joblib.load, np.load]
    assert not (tmp_path / "ran").exists()


def test_guards_nest_and_are_put_back_after_an_error() -> None:
    before = pickle.loads
    with guard_pickle(), guard_pickle(allow=["tomllib:TOMLDecodeError"]) as inner:
        pickle.loads(b"ctomllib\nTOMLDecodeError\n.")
        assert inner.passed == 1
    with pytest.raises(UnsafeFile), guard_pickle():
        pickle.loads(b"cmypackage\nNet\n.")
    assert pickle.loads is before
    with pytest.raises(UsageError), guard_pickle(allow=["os:system"]):
        pass
    assert pickle.loads is before
