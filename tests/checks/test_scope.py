"""scope and fingerprint: hashes that change with what they cover and with nothing else, in plain JSON."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import hauberk
from hauberk import L2, Data, Goal, Linf, Split, Target
from hauberk.checks import scope as module
from hauberk.checks.context import Settings
from hauberk.checks.scope import fingerprint, hash_data, hash_files, hash_module, scope
from hauberk.io.http import HttpModel
from hauberk.methods import load_methods

X = torch.rand(30, 4, generator=torch.Generator().manual_seed(2))
Y = torch.arange(30) % 3
DATA = Data(Split(X, Y), Split(X[:6], Y[:6]), name="toys")
CARDS = list(load_methods().cards("check"))[:2]


def net() -> nn.Module:
    made = nn.Linear(4, 3)
    with torch.no_grad():
        made.weight.copy_(torch.arange(12.0).reshape(3, 4))
        made.bias.zero_()
    return made.eval()


def test_the_hash_of_a_model_is_the_one_stated() -> None:
    made = net()
    bias = b"bias|torch.float32|(3,)|" + struct.pack("<3f", 0, 0, 0)
    weight = b"weight|torch.float32|(3, 4)|" + struct.pack("<12f", *range(12))
    assert hash_module(made) == hashlib.sha256(bias + weight).hexdigest()


def test_the_hash_of_a_model_sees_every_bit_name_and_type_and_no_mode() -> None:
    made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    seen = {hash_module(made)}
    assert hash_module(copy.deepcopy(made).train()) in seen
    flipped = copy.deepcopy(made)
    flipped[1].running_mean.view(torch.int32)[0] ^= 1
    for other in (flipped, copy.deepcopy(made).double(), nn.ModuleDict({"a": made[0], "b": made[1]}), made.bfloat16()):
        digest = hash_module(other)
        assert digest not in seen
        seen.add(digest)


def test_a_normalisation_changes_the_hash() -> None:
    digests = {hash_module(hauberk.load_model(net(), normalize=(0.5, std)).module) for std in (0.2, 0.3)}
    assert len(digests) == 2


def test_files_are_hashed_as_sha256sum_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"weights")
    two.write_bytes(b"code")
    single = hashlib.sha256(b"weights").hexdigest()
    assert hash_files([one]) == single
    assert hash_files([one, two]) == hashlib.sha256((single + hashlib.sha256(b"code").hexdigest()).encode()).hexdigest()


def test_every_sample_and_label_of_small_data_is_in_its_hash() -> None:
    digest, covered = hash_data(DATA)
    assert covered == "all samples and labels" and hash_data(Data(Split(X, Y), Split(X[:6], Y[:6])))[0] == digest
    seen = {digest, hash_data(Data(Split(X, Y)))[0], hash_data(Data(Split(X, Y), trusted=Split(X[:6], Y[:6])))[0]}
    for at in range(30):
        x, y = X.clone(), Y.clone()
        x.view(torch.int32)[at, at % 4] ^= 1
        y[at] = (y[at] + 1) % 3
        seen |= {hash_data(Data(Split(x, Y)))[0], hash_data(Data(Split(X, y)))[0]}
    assert len(seen) == 3 + 60


class Rows:
    """Samples that count how often they are read."""

    def __init__(self, n: int) -> None:
        self.shape, self.read, self.most = (n, 5000), 0, 0

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: Tensor) -> Tensor:
        self.read += len(index)
        self.most = max(self.most, len(index))
        return index[:, None].float().expand(-1, self.shape[1])


def test_large_data_is_hashed_by_a_part_that_holds_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(5000)  # 100 MB
    index, whole = module._hashed_positions(Split(rows, torch.zeros(5000)))
    assert not whole and len(index) == len(index.unique()) == 2048 and (int(index[0]), int(index[-1])) == (0, 4999)
    digest, covered = hash_data(Data(Split(rows, torch.zeros(5000, dtype=torch.long))))
    assert covered.startswith("labels, and 2048 evenly spaced samples") and rows.read == 2048 and rows.most <= 256
    changed = torch.zeros(5000, dtype=torch.long)
    changed[1] = 1  # labels are all hashed
    assert hash_data(Data(Split(rows, changed), classes=2))[0] != digest


def test_the_scope_is_plain_and_says_what_was_assessed(tmp_path: Path) -> None:
    target = Target(net(), name="toy net", bounds=(0, 1))
    settings = Settings(threats=(Linf(8 / 255), L2(0.5)), seed=7, queries=100)
    found = scope(target, DATA, settings, notices=["one", "two", "one"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["model"] == {
        "name": "toy net", "outputs": "auto", "files": [], "type": "Linear", "parameters": 15,
        "sha256": hash_module(target.module), "covered": "parameters and buffers",
    }
    assert found["data"]["samples"] == {"test": 30, "train": 6} and found["data"]["shape"] == [4]
    assert (found["data"]["name"], found["data"]["classes"], found["data"]["bounds"]) == ("toys", 3, [0.0, 1.0])
    assert found["threats"] == ["Linf, ε = 0.03137, untargeted, inputs in [0, 1]", "L2, ε = 0.5, untargeted, inputs in [0, 1]"]
    assert (found["access"], found["preset"], found["seed"], found["queries"]) == ("GRADIENT", "quick", 7, 100)
    assert found["notices"] == ["one", "two"] and found["versions"]["torch"] == torch.__version__
    when = datetime.datetime.fromisoformat(found["date"])
    assert when.utcoffset() == datetime.timedelta(0)


def test_the_scope_of_every_kind_of_model() -> None:
    def made(model: Any, **given: Any) -> dict[str, Any]:
        return scope(hauberk.load_model(model, **given), DATA, Settings(), notices=[])["model"]

    wrapped = made(net(), normalize=(0.5, 0.5))
    assert (wrapped["type"], wrapped["parameters"]) == ("Linear", 15)
    function = made(lambda x: x)
    assert function["sha256"] == "" and function["parameters"] is None and "nothing" in function["covered"]
    fitted = LogisticRegression().fit(X.numpy(), Y.numpy())
    first, again = made(fitted), made(copy.deepcopy(fitted))
    assert first["type"] == "LogisticRegression" and first["sha256"] == again["sha256"]
    fitted.coef_[0, 0] *= 1 + 1e-6
    assert made(fitted)["sha256"] != first["sha256"]
    endpoint = made(HttpModel("https://host/v1?key=secret", headers={"Authorization": "TOKEN"}))
    assert endpoint["name"] == "host/v1" and len(endpoint["sha256"]) == 64 and "secret" not in json.dumps(endpoint)


def test_bounds_per_feature_are_told_in_words() -> None:
    data = dataclasses.replace(DATA, bounds=(torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0])))
    found = scope(Target(net()), data, Settings(), notices=[])
    assert found["data"]["bounds"] == "per feature, from 0 to 4"
    assert json.loads(json.dumps(found)) == found


def test_a_fingerprint_is_the_same_tomorrow_and_changes_with_what_counts() -> None:
    settings = Settings(threats=(Linf(0.1),), gates={"a": {"min": 0.4}})

    def made(target: Target | None = None, data: Data = DATA, cards: list[Any] = CARDS, **changed: Any) -> dict[str, Any]:
        return fingerprint(target or Target(net()), data, dataclasses.replace(settings, **changed), cards)

    base = made()
    assert made() == base and json.loads(json.dumps(base)) == base
    cases: list[tuple[str, dict[str, Any]]] = [
        ("model", made(Target(nn.Linear(4, 3)))), ("model", made(Target(nn.Sequential(net())))),
        ("model", made(Target(net(), bounds=(0, 2)))), ("access", made(Target(net(), access="score"))),
        ("data", made(data=Data(Split(X, Y)))), ("data", made(data=dataclasses.replace(DATA, bounds=(0, 2)))),
        ("threats", made(threats=(Linf(0.1 + 1e-9),))), ("threats", made(threats=(Linf(0.1), L2(1)))),
        ("threats", made(threats=(Linf(0.1, goal=Goal.TARGETED),))),
        ("threats", made(threats=(Linf(0.1, mask=torch.tensor([1, 0, 0, 0])),))), ("radii", made(radii=(0.1,))),
        ("gates", made(gates={"a": {"min": 0.5}})), ("preset", made(preset="standard")), ("seed", made(seed=1)),
        ("queries", made(queries=5)), ("trust", made(trust=True)), ("checks", made(cards=CARDS[:1])),
    ]
    for key, other in cases:
        assert [name for name in base if base[name] != other[name]] == [key]
    per_sample = [made(threats=(Linf(torch.tensor([0.1, eps])),)) for eps in (0.1, 0.2)]
    assert per_sample[0] != per_sample[1]


def test_activations_without_weights_are_told_apart(fresh_cnn: Callable[..., nn.Module]) -> None:
    one, two = nn.Sequential(net(), nn.ReLU()).eval(), nn.Sequential(net(), nn.Tanh()).eval()
    prints = [fingerprint(Target(model), DATA, Settings(), CARDS)["model"] for model in (one, two)]
    assert prints[0]["sha256"] == prints[1]["sha256"] and prints[0]["structure"] != prints[1]["structure"]
