"""The GAN attack in joint training: the judge counts what is drawn and what is not, and on digits it really is drawn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import hauberk
from hauberk import Data, Split, Target
from hauberk.checks import federated_gan as checked
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Status, Table
from hauberk.core.kinds import Reconstruction
from hauberk.methods import load_methods

CARD = load_methods().get("privacy/federated-gan", "check")


def run(model: nn.Module, data: Data, preset: str = "thorough") -> hauberk.Finding:
    return run_check(CARD, Target(model), data, Settings(preset=preset))


class Drawing:
    """In place of the attack: every other time, where the class is held by somebody, it draws it, if `draws`; gray otherwise."""

    def __init__(self, data: Data, draws: bool) -> None:
        assert data.train is not None
        self.x, self.y = data.train.tensors()
        self.draws = draws
        self.labels: list[int] = []
        self.held: list[list[set[int]]] = []  # by training: the classes of each participant in each round

    def __call__(self, rounds: object, label: int, **options: object) -> Reconstruction:
        self.held.append([])
        own = self.x[self.y == label][:40]
        made = own if self.draws and len(self.labels) % 2 == 0 else torch.full_like(own, 0.5)
        for _ in rounds:  # type: ignore[attr-defined]
            options["send"](made)  # type: ignore[operator]
        self.labels.append(label)
        return Reconstruction(made, y=torch.full((len(made),), label))

    def fit(self, model: nn.Module, split: Split, **options: object) -> None:
        self.held[-1].append(set(split.y.tolist()))
        hauberk.fit(model, split, **options)  # type: ignore[arg-type]


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.parametrize("draws", [True, False])
def test_a_class_counts_where_it_is_recognised_and_the_control_never_saw_it(
    digits: Data, digits_model: nn.Module, monkeypatch: pytest.MonkeyPatch, draws: bool
) -> None:
    monkeypatch.setattr(checked, "evaluator_of", lambda *_: (digits_model, 0.95))
    drawing = Drawing(digits, draws)
    monkeypatch.setattr(checked, "federated_gan", drawing)
    monkeypatch.setattr(checked, "fit", drawing.fit)
    monkeypatch.setattr(checked, "ROUNDS", 3)
    monkeypatch.setattr(checked, "TRIALS", 6)
    found = run(perceptron() if draws else perceptron().half(), digits)  # joint training has single precision at least
    table = found.evidence[0]
    assert isinstance(table, Table) and len(table.rows) == 6 and len({row[0] for row in table.rows}) == 6
    for number, (label, parties) in enumerate(zip(drawing.labels, drawing.held, strict=True)):
        honest, adversary = parties[0::2], parties[1::2]
        assert len(honest) == len(adversary) == 3 and all(label not in one for one in adversary)
        assert all((label in one) is (number % 2 == 0) for one in honest)  # in the control nobody holds the class
    grays = sum(row[2] != "0%" for row in table.rows)  # the evaluator calls gray by one class, asked for at most once
    assert grays <= 1 and found.n == 6
    if draws:
        assert found.status is Status.WARN and found.value == 1.0
        assert all(float(str(row[3])) < float(str(row[4])) for row in table.rows)  # nearer than the mean image is
        p = "0.016" if not grays else "0.031"  # 2 to the power of minus 6, or minus 5
        assert any(f"p = {p}" in note for note in found.notes)
    else:
        assert found.status is Status.PASS and found.value == grays / 6  # what the control has as well is not held against it
        assert [row[1] for row in table.rows] == [row[2] for row in table.rows]


def test_what_cannot_be_simulated_is_not_run(
    digits: Data, digits_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "evaluator_of", lambda *_: (digits_model, 0.95))
    assert "'thorough' alone" in run(linear(), digits, "standard").reason
    two = Data(Split(digits.test.x, digits.test.y % 2), digits.train and Split(digits.train.x, digits.train.y % 2), classes=2)
    assert "2 classes" in run(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), two).reason
    assert "data.train" in run(linear(), dataclasses.replace(digits, train=None)).reason

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight

    assert "cannot be trained anew" in run(Odd(), digits).reason
    monkeypatch.setattr(checked, "BUDGET", 10**6)
    assert "TFLOP" in run(linear(), digits).reason
    monkeypatch.setattr(checked, "BUDGET", 10**14)
    monkeypatch.setattr(checked, "federated_gan", Drawing(digits, False))
    monkeypatch.setattr(checked, "ROUNDS", 1)
    shuffled = torch.randint(0, 10, (len(digits.train),), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    lost = dataclasses.replace(digits, train=Split(digits.train.x, shuffled))  # type: ignore[union-attr]
    assert "too weak for anything" in run(linear(), lost).reason


@pytest.mark.slow
def test_digits_are_drawn_from_the_rounds_of_joint_training(digits: Data) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        ).eval()
    found = run(model, digits)
    table = found.evidence[0]
    assert isinstance(table, Table) and found.n == 10 and found.value is not None
    assert found.value > sum(float(str(row[2])[:-1]) > 50 for row in table.rows) / 10  # the control
