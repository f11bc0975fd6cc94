"""The checks of membership by references, labels, known halves and gradients: what leaks fails, what cannot be asked says why."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from hauberk import Data, Schedule, Split, Target, fit
from hauberk.checks import membership as checks
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.access import Access
from hauberk.core.finding import Finding, Status
from hauberk.core.rng import isolated
from hauberk.io.sklearn_models import SklearnPredictor
from hauberk.methods import load_methods
from hauberk.privacy.membership import train_references

ALL = ("privacy/membership-references", "privacy/membership-labels", "privacy/membership-learned", "privacy/membership-gradients")


def run(name: str, model: nn.Module | Target, data: Data, **settings: object) -> Finding:
    target = model if isinstance(model, Target) else Target(model)
    return run_check(load_methods().get(name, "check"), target, data, Settings(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def memorised() -> tuple[nn.Module, Data]:
    """150 records of noise with random labels, learnt by heart, in two groups, and 150 that were not seen."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 20, generator=draw), torch.randint(0, 4, (300,), generator=draw)
    with isolated(0):
        model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 4))
    group = torch.arange(150) % 2
    train, test = Split(x[:150], y[:150], {"side": group}), Split(x[150:], y[150:], {"side": group})
    data = Data(test, train, group_names={"side": ["left", "right"]})
    fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), lr=5e-3), schedule=Schedule(epochs=80, batch_size=50))
    return model, data


@pytest.mark.parametrize("name", ALL)
def test_a_model_that_learnt_by_heart_fails(name: str, memorised: tuple[nn.Module, Data]) -> None:
    found = run(name, *memorised, preset="standard")
    assert found.status is Status.FAIL, found.reason
    titles = [one.title for one in found.evidence]
    assert titles[0].startswith("Members told") and titles[2].startswith("Control")
    if name != "privacy/membership-learned":
        assert any(title.startswith("The most exposed by side") for title in titles)
    assert float(found.evidence[0].rows[0][4].split()[0]) > 0.75  # type: ignore[union-attr]
    assert "make_private" in found.advice[0].text and found.advice[0].command.startswith("hauberk calibrate")


@pytest.mark.parametrize("name", ALL)
def test_an_untrained_model_gives_nothing_away(name: str, memorised: tuple[nn.Module, Data]) -> None:
    with isolated(5):
        model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4))
    assert run(name, model, memorised[1]).status in (Status.PASS, Status.WARN)


def test_the_preset_sets_how_many_references(memorised: tuple[nn.Module, Data], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(*args: object, **options: object) -> object:
        counts.append(options["count"])
        return train_references(*args, **{**options, "count": 2, "schedule": Schedule(epochs=1)})  # type: ignore[arg-type]

    monkeypatch.setattr(checks, "train_references", counted)
    monkeypatch.setattr(checks, "matched_schedule", lambda *_, **__: (Schedule(epochs=1), 1.0))
    for preset in ("quick", "standard", "thorough"):
        run(ALL[0], *memorised, preset=preset)
    assert counts == [2, 4, 16]


def test_an_estimator_is_cloned_and_fitted_anew(memorised: tuple[nn.Module, Data]) -> None:
    data = memorised[1]
    x, y = data.train.tensors()
    forest = RandomForestClassifier(20, random_state=0).fit(x.numpy(), y.numpy())
    found = run(ALL[0], Target(SklearnPredictor(forest)), data)
    assert found.status is Status.FAIL and any("clone of the estimator" in note for note in found.notes)


def test_what_cannot_be_trained_anew_says_why(memorised: tuple[nn.Module, Data]) -> None:
    model, data = memorised

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = model, nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale

    with isolated(0):
        large = nn.Sequential(nn.Linear(20, 200_000), nn.ReLU(), nn.Linear(200_000, 4))
    for target, told in (
        (Target(lambda x: model(x)), "give a torch module or an estimator"), (Target(Raw()), "no reset_parameters"),
        (Target(large), "beyond the budget of the preset 'quick'"),
    ):
        found = run(ALL[0], target, data)
        assert found.status is Status.NOT_RUN and told in found.reason


def test_labels_alone_suffice_for_the_check_of_labels(memorised: tuple[nn.Module, Data]) -> None:
    model, data = memorised
    assert run(ALL[1], Target(model, access=Access.LABEL), data).status is Status.FAIL
    for name in (ALL[0], ALL[2], ALL[3]):
        assert run(name, Target(model, access=Access.LABEL), data).status is Status.NOT_RUN
    assert run(ALL[1], model, dataclasses.replace(data, train=None)).status is Status.NOT_RUN
