"""Canaries in the assessment: planted ones stand out where the model learnt by heart, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hauberk
from hauberk import Data, Schedule, Split, Target
from hauberk.checks.canaries import exposures, label_exposures
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Status
from hauberk.io.canaries import read_canaries, save_canaries
from hauberk.methods import load_methods
from hauberk.privacy.inference import plant_canaries, rank_exposure

CARD = load_methods().get("privacy/canary-exposure", "check")


def records(n: int, seed: int, width: int = 8) -> Split:
    """Three classes told by the largest of the first three numbers."""
    x = torch.rand(n, width, generator=torch.Generator().manual_seed(seed))
    return Split(x, x[:, :3].argmax(1))


def run(model: nn.Module, canaries: Split | None, train: Split | None = None, seed: int = 0) -> hauberk.Finding:
    test = records(60, 9, canaries.shape[0] if canaries is not None else 8)
    data = Data(test, train, bounds=(0.0, 1.0), classes=3, canaries=canaries)
    return run_check(CARD, Target(model), data, Settings(seed=seed))


class Rule(nn.Module):
    """The rule behind the labels, and `heart` more for the label of an input that it was given."""

    def __init__(self, known: Split, heart: float) -> None:
        super().__init__()
        self.x, self.y = known.tensors()
        self.heart = heart

    def forward(self, x: Tensor) -> Tensor:
        same = (x[:, None] == self.x).all(2)
        place = same.int().argmax(1)
        return 8 * x[:, :3] + self.heart * same.any(1)[:, None] * nn.functional.one_hot(self.y[place], 3)


@pytest.mark.parametrize("kind", ["mislabelled", "noise"])
def test_half_of_the_canaries_are_planted_and_the_others_are_nowhere(kind: str) -> None:
    train = records(200, 0)
    train.groups = {"side": torch.arange(200)}
    planting = plant_canaries(train, count=20, kind=kind, copies=2, classes=3)  # type: ignore[arg-type]
    x, y = planting.canaries.tensors()
    planted = planting.canaries.groups["planted"].bool()
    held, labels = planting.train.tensors()
    assert int(planted.sum()) == 20 and len(y) == 40 and set(y.tolist()) <= {0, 1, 2}
    there = (x[:, None] == held).all(2).sum(1)
    assert there[planted].tolist() == [2] * 20 and there[~planted].tolist() == [0] * 20
    assert torch.equal(labels[-40:], y[planted].repeat(2))
    if kind == "mislabelled":
        assert len(planting.train) == 200 and bool((x[:, :3].argmax(1) != y).all())
        own = train.x.take(planting.train.groups["side"])
        assert torch.equal(own, held)
    else:
        assert len(planting.train) == 240 and bool(((x >= 0) & (x <= 1)).all())
    again = plant_canaries(train, count=20, kind=kind, copies=2, classes=3)  # type: ignore[arg-type]
    assert torch.equal(again.canaries.tensors()[0], x)


def test_exposures_are_those_of_each_among_the_spares_and_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    planted, spares = (torch.rand(n, generator=draw).double().mul(5).round() for n in (12, 30))
    want = [rank_exposure(torch.cat([spares, one[None]]), float(one)).bits for one in planted]
    assert exposures(planted, spares).tolist() == pytest.approx(want)
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert label_exposures(logits, torch.tensor([2, 0])).tolist() == pytest.approx([1.0, 0.0])


def test_what_was_learnt_by_heart_fails_and_a_model_that_knows_the_rule_alone_passes() -> None:
    planting = plant_canaries(records(400, 1), count=40, classes=3)
    planted = planting.canaries.groups["planted"].bool()
    x, y = planting.canaries.tensors()
    found = run(Rule(Split(x[planted], y[planted]), 20.0), planting.canaries, planting.train)
    assert found.status is Status.FAIL and found.n == 40
    assert found.value == pytest.approx(math.log2(41)) and found.interval is not None
    assert found.interval.low == pytest.approx(found.value * 0.025 ** (1 / 40))  # 40 of 40, Clopper and Pearson
    assert found.queries == 80
    statuses = [
        run(Rule(Split(x[:1] + 5, y[:1]), 20.0), one.canaries, one.train).status
        for one in (plant_canaries(records(400, seed), count=40, classes=3, seed=seed) for seed in range(20))
    ]
    assert statuses.count(Status.PASS) >= 18  # each warns by chance once in a hundred


@pytest.mark.parametrize("kind", ["mislabelled", "noise"])
def test_a_perceptron_trained_for_long_gives_its_canaries_away(kind: str) -> None:
    planting = plant_canaries(records(300, 2, width=60), count=30, classes=3, kind=kind)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(60, 128), nn.ReLU(), nn.Linear(128, 3))
    before = run(model, planting.canaries, planting.train)
    assert before.status is Status.PASS
    learn = torch.optim.Adam(model.parameters(), 1e-2)
    hauberk.fit(model, planting.train, optimizer=learn, schedule=Schedule(epochs=60, batch_size=64))
    after = run(model, planting.canaries, planting.train)
    assert after.status in (Status.WARN, Status.FAIL) and after.value is not None and before.value is not None
    assert after.value > before.value + 0.7, (before.value, after.value)


def test_without_spares_labels_are_ranked() -> None:
    planting = plant_canaries(records(400, 3), count=40, classes=3)
    planted = planting.canaries.groups["planted"].bool()
    x, y = (one[planted] for one in planting.canaries.tensors())
    heart = run(Rule(Split(x, y), 20.0), Split(x, y))
    assert heart.status is Status.WARN and heart.value == pytest.approx(math.log2(3))
    assert any("no spare canaries" in note for note in heart.notes)
    assert run(Rule(Split(x + 5, y), 20.0), Split(x, y)).status is Status.PASS


def test_what_cannot_be_told_is_not_run() -> None:
    planting = plant_canaries(records(400, 4), count=40, classes=3)
    model = Rule(planting.train, 0.0)
    assert "plant_canaries" in run(model, None).reason
    assert "none of the canaries" in run(model, planting.canaries, records(50, 5)).reason
    x, y = planting.canaries.tensors()
    few = Split(x[:3], y[:3])
    assert "3 canaries are marked as planted" in run(model, few).reason


def test_files_and_arguments_are_refused_in_words(tmp_path: Path) -> None:
    planting = plant_canaries(records(100, 6), count=10, classes=3)
    planting.save(tmp_path / "canaries.npz")
    back = read_canaries(tmp_path / "canaries.npz")
    assert all(torch.equal(a, b) for a, b in zip(back.tensors(), planting.canaries.tensors(), strict=True))
    assert torch.equal(back.groups["planted"], planting.canaries.groups["planted"])
    save_canaries(Split(torch.rand(4, 2), torch.arange(4)), tmp_path / "all.npz")
    assert read_canaries(tmp_path / "all.npz").groups["planted"].tolist() == [1, 1, 1, 1]
    for name, arrays in {
        "words": {"x": np.zeros((2, 3)), "y": np.array(["a", "b"])}, "short": {"x": np.zeros((2, 3)), "y": np.array([1])},
        "marks": {"x": np.zeros((2, 3)), "y": np.array([1, 0]), "planted": np.array([2, 0])}, "none": {"a": np.zeros(2)},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError):
            read_canaries(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match=r"no \.npz"):
        read_canaries(tmp_path / "gone.npz")
    with pytest.raises(UsageError, match="kind 'loud'"):
        plant_canaries(records(100, 0), kind="loud")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at most half"):
        plant_canaries(records(100, 0), count=40)


def test_a_plan_names_them(tmp_path: Path) -> None:
    planting = plant_canaries(records(200, 7), count=20, classes=3)
    planting.save(tmp_path / "canaries.npz")
    for name, split in (("train", planting.train), ("test", records(40, 8))):
        x, y = split.tensors()
        np.savez(tmp_path / f"{name}.npz", x=x.numpy(), y=y.numpy())
    (tmp_path / "model.py").write_text("import torch\n\ndef build():\n    return torch.nn.Linear(8, 3)\n")
    (tmp_path / "plan.toml").write_text(
        '[model]\npath = "model.py:build"\n[data]\ntest = "test.npz"\ntrain = "train.npz"\ncanaries = "canaries.npz"\n'
    )
    planned = hauberk.load_plan(tmp_path / "plan.toml")
    assert planned.data.canaries is not None and len(planned.data.canaries) == 40
    finding = run_check(CARD, planned.target, planned.data, Settings())
    assert finding.status is not Status.ERROR and finding.n == 20


class Broken(nn.Module):
    """A model that answers NaN to some inputs."""

    def __init__(self, model: nn.Module, at: Tensor) -> None:
        super().__init__()
        self.model, self.at = model, at

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).masked_fill((x[:, None] == self.at).all(2).any(1)[:, None], math.nan)  # type: ignore[no-any-return]


def test_one_answer_of_nan_does_not_hide_the_others() -> None:
    planting = plant_canaries(records(200, 0), count=20, kind="noise", classes=3)
    x, y = planting.canaries.tensors()
    planted = planting.canaries.groups["planted"].bool()
    for side in (planted, ~planted):
        found = run(Broken(Rule(Split(x[planted], y[planted]), 20.0), x[side][:1]), planting.canaries)
        assert found.status is Status.FAIL and found.n == 20 - int(side is planted)
        assert any(note.startswith("1 canaries that the model answers with NaN") for note in found.notes)
    found = run(Broken(Rule(Split(x[planted], y[planted]), 0.0), x[planted][:3]), planting.canaries)
    assert found.status is Status.PASS and found.n == 17
    lost = run(Broken(Rule(Split(x[planted], y[planted]), 20.0), x[planted][:16]), planting.canaries)
    assert lost.status is Status.NOT_RUN and "4 canaries are marked as planted and answered" in lost.reason
