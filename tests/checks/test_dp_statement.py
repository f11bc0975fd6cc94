"""privacy/dp-statement: the claim beside what its releases give, and what an untrue one looks like."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from hauberk import Data, Finding, Split, Target
from hauberk.checks import engine
from hauberk.checks.context import Settings
from hauberk.core.finding import Status
from hauberk.io.plan import parse_plan
from hauberk.methods import load_methods
from hauberk.privacy.dp.accounting import PrivacyLedger, PrivacyStatement, Release

CARD = load_methods().get("privacy/dp-statement", "check")
X = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
DATA = Data(Split(X, torch.arange(40) % 2), Split(X, torch.arange(40) % 2), bounds=(0, 1))
CLAIM = PrivacyLedger([Release("gaussian", 1.0, "poisson", 0.01, 1000)]).statement(1e-5)


def run(place: Path | None, data: Data = DATA, target: Target | None = None) -> Finding:
    target = target or Target(nn.Linear(3, 2), bounds=(0, 1))
    return engine.run_check(CARD, target, data, Settings(statement=str(place) if place else ""), None)


def written(folder: Path, **changes: object) -> Path:
    CLAIM.model_copy(update=changes).write(folder / "privacy.json")
    return folder / "privacy.json"


def test_a_true_claim_passes_with_its_threat(tmp_path: Path) -> None:
    found = run(written(tmp_path))
    assert found.status is Status.PASS and found.value == pytest.approx(1.82824, rel=1e-4) and found.n is None
    assert "all but one example, added or removed" in found.threat and "give no more" in found.summary
    assert any("an audit measures" in note for note in found.notes)


def test_a_claim_below_its_releases_fails_and_tells_the_truth(tmp_path: Path) -> None:
    found = run(written(tmp_path, epsilon=1.0))
    assert found.status is Status.FAIL and found.value == pytest.approx(1.82824, rel=1e-4) and "give 1.828" in found.summary


def test_what_is_weak_warns_and_what_is_unbounded_fails(tmp_path: Path) -> None:
    assert run(written(tmp_path, accountant="gdp", bound=False, epsilon=1.9)).status is Status.WARN
    wide = dataclasses.replace(DATA, train=Split(torch.rand(200, 3), torch.arange(200) % 2))
    loose = PrivacyLedger([Release("gaussian", 1.0, "poisson", 0.01, 1000)]).statement(0.01)
    loose.write(tmp_path / "loose.json")
    found = run(tmp_path / "loose.json", wide)
    assert found.status is Status.WARN and any("1 / 200" in note for note in found.notes)
    PrivacyLedger([Release("gaussian", 0.0)]).statement(1e-5).write(tmp_path / "none.json")
    assert run(tmp_path / "none.json").status is Status.FAIL
    PrivacyLedger([Release("gaussian", 0.3)]).statement(1e-5).write(tmp_path / "high.json")
    assert run(tmp_path / "high.json").status is Status.WARN


def test_a_delta_that_publishes_records_warns_without_the_training_data(tmp_path: Path) -> None:
    for delta, population, said in ((0.05, 100, "1 / 100 records"), (0.99, None, "nothing is promised")):
        made = PrivacyLedger([Release("gaussian", 1.0, "poisson", 0.01, 100, population)]).statement(delta)
        made.write(tmp_path / "privacy.json")
        found = run(tmp_path / "privacy.json")
        assert found.status is Status.WARN and any(said in note for note in found.notes)


def test_a_claim_that_no_release_stands_behind_or_that_a_seed_undoes_does_not_pass(tmp_path: Path) -> None:
    for releases in ([], [Release("gaussian", 1.0, "poisson", 0.0, 1000)]):
        PrivacyLedger(releases).statement(1e-5).write(tmp_path / "nothing.json")
        assert run(tmp_path / "nothing.json").status is not Status.PASS
    empty = CLAIM.model_copy(update={"releases": [], "epsilon": 0.0})
    empty.write(tmp_path / "empty.json")
    found = run(tmp_path / "empty.json")
    assert found.status is Status.WARN and any("no release" in note for note in found.notes)
    PrivacyLedger([Release("gaussian", 1.0, "poisson", 0.01, 10)]).statement(1e-5, seeded=True).write(tmp_path / "seeded.json")
    found = run(tmp_path / "seeded.json")
    assert found.status is Status.WARN and any("seeded" in note for note in found.notes)


def test_a_statement_about_more_records_than_there_are_is_told_of(tmp_path: Path) -> None:
    PrivacyLedger([Release("gaussian", 1.0, "poisson", 0.01, 10, 60_000)]).statement(1e-6).write(tmp_path / "other.json")
    small = dataclasses.replace(DATA, train=Split(torch.rand(200, 3), torch.arange(200) % 2))
    assert any("60000 records" in note and "200" in note for note in run(tmp_path / "other.json", small).notes)


def test_without_a_statement_it_does_not_run_and_says_how(tmp_path: Path) -> None:
    found = run(None)
    assert found.status is Status.NOT_RUN and "[privacy] statement" in found.reason and "hauberk account" in found.reason


def test_a_statement_beside_the_model_is_found(tmp_path: Path) -> None:
    written(tmp_path)
    target = Target(nn.Linear(3, 2), bounds=(0, 1))
    target.files = (str(tmp_path / "weights.safetensors"),)
    found = run(None, target=target)
    assert found.status is Status.PASS and any("beside the model" in note for note in found.notes)


def test_a_broken_statement_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "privacy.json").write_text("{}")
    assert run(tmp_path / "privacy.json").status is Status.ERROR


def test_the_plan_names_it() -> None:
    plan = parse_plan({"model": {"path": "a.pt2"}, "data": {"test": "t.npz"}, "privacy": {"statement": "privacy.json"}})
    assert plan.privacy is not None and plan.privacy.statement == "privacy.json"
    assert isinstance(CLAIM, PrivacyStatement)
