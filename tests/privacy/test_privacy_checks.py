"""The privacy checks: on a model that memorised, on one that did not, and where there is nothing to compare."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from hauberk import Data, Schedule, Split, Target, fit
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.access import Access
from hauberk.core.finding import Finding, Status
from hauberk.core.rng import isolated
from hauberk.core.stats import newcombe
from hauberk.methods import load_methods


def run(name: str, model: nn.Module | Target, data: Data, **settings: object) -> Finding:
    target = model if isinstance(model, Target) else Target(model)
    return run_check(load_methods().get(name, "check"), target, data, Settings(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def memorised() -> tuple[nn.Module, Data]:
    """200 records of pure noise with random labels, learnt by heart, and 200 that were not seen."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(400, 20, generator=draw), torch.randint(0, 4, (400,), generator=draw)
    with isolated(0):
        model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 4))
    data = Data(Split(x[200:], y[200:]), Split(x[:200], y[:200]))
    fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), lr=5e-3), schedule=Schedule(epochs=80, batch_size=50))
    return model, data


@pytest.mark.parametrize("name", ["privacy/membership-loss", "privacy/membership-entropy"])
def test_a_model_that_learnt_by_heart_fails(name: str, memorised: tuple[nn.Module, Data]) -> None:
    found = run(name, *memorised)
    assert found.status is Status.FAIL
    model, data = memorised
    inside, outside = (
        -functional.cross_entropy(model(split.tensors()[0]).double(), split.y, reduction="none")
        for split in (data.train, data.test)
    )
    if name.endswith("loss"):  # one false alarm among 200: members above the second-best non-member
        assert found.value == int((inside > outside.sort().values[-2]).sum()) / 200 > 0.02
    assert found.n == 200
    assert float(found.evidence[0].rows[0][3]) > 0.9  # type: ignore[union-attr]
    assert any("one false alarm" in note for note in found.notes)
    control = found.evidence[2].rows[1]  # type: ignore[union-attr]
    assert 0.4 < float(control[1]) < 0.6  # the inputs alone tell nothing


def test_an_untrained_model_gives_nothing_away(memorised: tuple[nn.Module, Data]) -> None:
    with isolated(1):
        model = nn.Linear(20, 4)
    found = run("privacy/membership-loss", model, memorised[1])
    assert found.status is Status.PASS
    assert found.value is not None and found.value < 0.06


def test_exchanging_the_sides_does_not_turn_protection_into_leakage(digits_model: nn.Module, digits: Data) -> None:
    found = run("privacy/membership-loss", digits_model, digits)
    assert found.status is Status.PASS
    assert found.queries == 2000  # 500 of each side for the scores, and again for the table of records
    area = float(found.evidence[0].rows[0][3])  # type: ignore[union-attr]
    assert 0.45 < area < 0.58


def test_without_training_data_nothing_is_claimed(digits_model: nn.Module, digits: Data) -> None:
    alone = dataclasses.replace(digits, train=None)
    for name in ("privacy/membership-loss", "privacy/membership-entropy", "privacy/generalisation-gap"):
        found = run(name, digits_model, alone)
        assert found.status is Status.NOT_RUN and "no train data" in found.reason
    found = run("privacy/membership-loss", Target(digits_model, access=Access.LABEL), digits)
    assert found.status is Status.NOT_RUN and "SCORE" in found.reason


def test_newcombe_gives_the_published_interval() -> None:
    # Newcombe 1998, table II (a): 56/70 against 48/80, method 10.
    span = newcombe(56, 70, 48, 80)
    assert (round(span.low, 4), round(span.high, 4)) == (0.0524, 0.3339)


def test_the_gap_is_the_difference_of_accuracies(memorised: tuple[nn.Module, Data]) -> None:
    model, data = memorised
    found = run("privacy/generalisation-gap", model, data)
    with torch.no_grad():
        rates = [float((model(split.tensors()[0]).argmax(1) == split.y).double().mean()) for split in (data.train, data.test)]
    assert found.value == pytest.approx(rates[0] - rates[1])
    assert found.status is Status.FAIL and found.interval is not None and found.interval.low > 0.15


def test_gradients_hand_over_whole_images_of_a_perceptron(digits: Data) -> None:
    with isolated(2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    found = run("privacy/gradient-leakage", model, digits)
    assert (found.status, found.value, found.n) == (Status.WARN, 1.0, 64)
    rows = dict(found.evidence[0].rows)  # type: ignore[union-attr]
    assert rows["what is recovered"] == "the whole input" and float(rows["mean PSNR in dB"]) > 100
    assert len(found.evidence[1].pictures) == 8  # type: ignore[union-attr]
    assert (found.queries, found.gradients) == (65, 65)  # one to see which layers answer


def test_gradients_hand_over_features_of_a_cnn_and_the_report_says_so(digits_model: nn.Module, digits: Data) -> None:
    found = run("privacy/gradient-leakage", digits_model, digits)
    assert (found.status, found.value) == (Status.WARN, 1.0)
    assert "512 features" in found.summary and "does not see the input" in found.notes[0]
    labels = run("privacy/label-leakage", digits_model, digits)
    assert (labels.status, labels.value) == (Status.WARN, 1.0)


def test_a_model_without_linear_layers_is_not_called_safe(digits: Data) -> None:
    model = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    found = run("privacy/gradient-leakage", model, digits)
    assert found.status is Status.NOT_RUN and "no nn.Linear" in found.reason
