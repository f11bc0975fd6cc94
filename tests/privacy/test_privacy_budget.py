"""Calibration, the monitor and the statement: inside the budget, one step below it at most; across a resume; hostile files."""

from __future__ import annotations

import json
import math

import jsonschema
import pytest
import torch
from torch import nn

from hauberk import Schedule, Split, fit
from hauberk.core.errors import BudgetExceeded, DataError, UnsafeFile, UsageError
from hauberk.privacy.dp.accounting import (
    PrivacyLedger,
    PrivacyMonitor,
    PrivacyStatement,
    Release,
    epochs_for,
    epsilon,
    noise_for,
    read_statement,
    steps_for,
)
from hauberk.privacy.dp.accounting.statement import LARGEST, SEEDED, TUNING, statement_schema

STEP = Release("gaussian", 2.0, "poisson", 0.01)


@pytest.mark.parametrize(("budget", "rate", "count", "accountant", "value"), [
    (2, 0.01, 1000, "rdp", 1.02229), (8, 0.08192, 2450, "rdp", 2.70484), (8, 0.08192, 2450, "pld", 2.55222),
    (1, 0.01, 1, "pld", 0.67379294682),
])
def test_the_noise_for_a_budget(budget, rate, count, accountant, value):
    found = noise_for(budget, 1e-5, rate=rate, count=count, accountant=accountant)
    assert value * (1 - 1e-5) <= found <= value * 1.0008
    assert epsilon([Release("gaussian", found, "poisson", rate, count)], 1e-5, accountant=accountant).epsilon <= budget


def test_the_exact_noise_of_one_release():
    assert noise_for(1, 1e-5, accountant="analytic") == pytest.approx(3.730632, rel=2e-4)
    assert noise_for(3, 0, mechanism="laplace", count=6) == pytest.approx(2, rel=2e-4)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_last_step_inside_the_budget(accountant):
    step = Release("gaussian", 2.0, "poisson", 0.02)
    most = steps_for(0.8, 1e-5, step, accountant=accountant)
    inside, beyond = (
        epsilon([Release("gaussian", 2.0, "poisson", 0.02, count)], 1e-5, accountant=accountant).epsilon
        for count in (most, most + 1)
    )
    assert inside <= 0.8 < beyond and most > 100
    assert epochs_for(0.8, 1e-5, step, accountant=accountant) == most // 50
    if accountant == "rdp":
        before = [Release("gaussian", 2.0, "poisson", 0.02, 20)]
        assert steps_for(0.8, 1e-5, step, before=before, accountant=accountant) == most - 20


def test_budgets_that_are_none_are_refused():
    for budget in (0, -1, math.inf, math.nan):
        with pytest.raises(UsageError, match="the budget is"):
            steps_for(budget, 1e-5, STEP)
    with pytest.raises(UsageError, match="whose noise is its ε"):
        noise_for(1, 1e-5, mechanism="pure")
    with pytest.raises(UsageError, match="more than"):
        steps_for(5, 1e-5, Release("gaussian", 1.0, "poisson", 0.0), accountant="rdp")
    assert steps_for(0.01, 1e-5, Release("gaussian", 0.5)) == 0


def data(n=40):
    draw = torch.Generator().manual_seed(0)
    return Split(torch.rand(n, 3, generator=draw), torch.arange(n) % 2)


def train(epochs, monitor, checkpoint=None):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, data(), optimizer=optimizer, schedule=Schedule(epochs=epochs, batch_size=4, checkpoint=checkpoint),
        callbacks=[monitor])


def test_fifty_steps_count_fifty():
    told: list[str] = []
    monitor = PrivacyMonitor(Release("gaussian", 4.0), delta=1e-5, accountants=("zcdp", "rdp"), tell=told.append)
    train(5, monitor)
    rho = 50 / (2 * 4.0**2)
    assert monitor.ledger.count == 50 and len(told) == 5 and "after 50 steps" in told[-1]
    assert monitor.history[-1]["zcdp"] == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)))
    assert [one["step"] for one in monitor.history] == [10, 20, 30, 40, 50]


def test_the_run_stops_with_the_last_step_inside_the_budget_and_goes_on_there_after_a_resume(tmp_path):
    most = steps_for(0.55, 1e-5, STEP, accountant="rdp")
    monitor = PrivacyMonitor(STEP, delta=1e-5, budget=0.55, accountants=("rdp",))
    train(1000, monitor)
    assert monitor.ledger.count == most and not monitor.allows()
    place = tmp_path / "run.pt"
    parts = [PrivacyMonitor(STEP, delta=1e-5, budget=0.55, accountants=("rdp",)) for _ in range(2)]
    train(3, parts[0], place)
    train(1000, parts[1], place)
    assert (parts[0].ledger.count, parts[1].ledger.count) == (30, most)
    assert parts[1].history[:3] == parts[0].history


def test_a_budget_below_one_step_makes_no_step():
    monitor = PrivacyMonitor(Release("gaussian", 0.5), delta=1e-5, budget=0.5)
    before = nn.Linear(3, 2)
    kept = before.weight.detach().clone()
    fit(before, data(), optimizer=torch.optim.SGD(before.parameters(), lr=1.0), epochs=3, callbacks=[monitor])
    assert torch.equal(before.weight, kept) and monitor.ledger.count == 0


def test_the_own_loop_with_a_noise_that_decays():
    def decaying(step):
        return Release("gaussian", 3.0 / (1 + 0.01 * step))

    monitor = PrivacyMonitor(decaying, delta=1e-5, budget=9.0, accountants=("analytic",))
    count = 0
    while monitor.allows():
        monitor.step()
        count += 1
    made = [decaying(step) for step in range(count + 1)]
    assert epsilon(made[:-1], 1e-5, accountant="analytic").epsilon <= 9.0 < epsilon(made, 1e-5, accountant="analytic").epsilon
    with pytest.raises(BudgetExceeded, match="passes the budget"):
        monitor.step()


def test_a_monitor_of_the_trainers_ledger():
    ledger = PrivacyLedger()
    monitor = PrivacyMonitor(delta=1e-5, budget=0.5, accountants=("rdp",), ledger=ledger)
    while monitor.allows():
        ledger.add(STEP)
    assert ledger.count == steps_for(0.5, 1e-5, STEP, accountant="rdp") > 20


def test_monitors_that_cannot_answer_are_refused_before_any_step():
    with pytest.raises(UsageError, match="no ρ holds"):
        PrivacyMonitor(STEP, delta=1e-5, accountants=("zcdp",))
    with pytest.raises(UsageError, match="neither a step nor a ledger"):
        PrivacyMonitor(delta=1e-5)


def statement(**given):
    ledger = PrivacyLedger([Release("gaussian", 1.1, "poisson", 0.01, 300, 5000)])
    return ledger.statement(1e-5, **given)


def test_a_statement_comes_back_and_is_computed_again(tmp_path):
    made = statement(unit="patient", seeded=True, warnings=["the sampling was not audited"])
    made.write(tmp_path / "privacy.json")
    back = read_statement(tmp_path / "privacy.json")
    assert back == made and back.holds() and back.recompute().epsilon == pytest.approx(back.epsilon)
    assert back.warnings == [SEEDED, TUNING, "the sampling was not audited"] and back.steps == 300
    words = back.describe()
    assert "PLD, add-remove" in words and "one patient" in words and "300 × gaussian noise of 1.1, poisson" in words
    jsonschema.validate(json.loads((tmp_path / "privacy.json").read_text()), statement_schema())
    low = back.model_copy(update={"epsilon": back.epsilon * 0.99})
    assert not low.holds() and back.model_copy(update={"epsilon": back.epsilon * 2}).holds()


def test_an_estimate_is_computed_again_as_a_bound():
    made = statement(accountant="gdp")
    assert not made.bound and made.recompute().accountant == "pld" and not made.holds()


@pytest.mark.parametrize(("content", "kind", "message"), [
    ("", DataError, "not JSON"), ("[" * 100_000, DataError, "not JSON"), ('{"epsilon": NaN}', DataError, "NaN is no number"),
    ('{"epsilon": 1, "epsilon": 2}', DataError, "given twice"), ("[]", DataError, "is wrong"),
    (b"\xff\xfe", DataError, "not JSON"),
    (" " * (LARGEST + 1), UnsafeFile, "bytes"),
])
def test_files_that_are_no_statement(tmp_path, content, kind, message):
    place = tmp_path / "privacy.json"
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind, match=message):
        read_statement(place)


@pytest.mark.parametrize("change", [
    {"epsilon": "1"}, {"epsilon": -1}, {"delta": 1}, {"relation": "none"}, {"accountant": "best"}, {"extra": 1},
    {"format": "x/2"},
    {"releases": [{"mechanism": "gaussian", "noise": 1, "sampling": "full", "rate": 0.5, "count": 1}]},
    {"releases": [{"mechanism": "gaussian", "noise": 1, "sampling": "full", "rate": 1, "count": 10**13}]},
    {"releases": [{"mechanism": "tree", "noise": 1, "sampling": "full", "rate": 1, "count": 1}]}, {"unit": "x" * 5000},
])
def test_statements_with_a_wrong_value(tmp_path, change):
    place = tmp_path / "privacy.json"
    place.write_text(json.dumps({**json.loads(statement().model_dump_json()), **change}))
    with pytest.raises(DataError):
        read_statement(place)
    place.write_text(statement().model_dump_json())
    assert isinstance(read_statement(place), PrivacyStatement)


def test_nothing_bounds_a_run_without_noise():
    made = PrivacyLedger([Release("gaussian", 0.0)]).statement(1e-5)
    assert made.epsilon is None and made.holds() and "ε ≤ inf" in made.describe()


FORGED = {
    "releases": [{"mechanism": "gaussian", "noise": 0.5, "sampling": "poisson", "rate": 0.001, "count": 2000}], "delta": 1e-6,
}


@pytest.mark.parametrize("claim", [
    {"accountant": "gdp", "bound": True}, {"accountant": "gdp", "bound": False}, {"accountant": "zcdp", "bound": True},
    {"accountant": "analytic", "bound": True}, {"accountant": "pld", "bound": False},
])
def test_no_label_makes_a_claim_true(claim):
    # The central-limit figure of these releases is 1.42, the true one 4.66.
    made = PrivacyStatement.model_validate({**json.loads(statement().model_dump_json()), **FORGED, **claim, "epsilon": 1.43})
    again = made.recompute()
    assert again.bound and again.epsilon == pytest.approx(4.65512, rel=1e-4) and not made.holds(again)
    assert made.model_copy(update={"epsilon": 4.66}).holds()


@pytest.mark.parametrize(("change", "message"), [
    ({"accountant": "gdp", "bound": True}, "calls a central-limit estimate a bound"),
    ({"releases": [{"mechanism": "gaussian", "noise": 0.5, "sampling": "shuffled", "rate": 0.1, "count": 5}]}, "is fixed"),
])
def test_a_statement_at_odds_with_itself_is_refused(tmp_path, change, message):
    place = tmp_path / "privacy.json"
    place.write_text(json.dumps({**json.loads(statement().model_dump_json()), **change}))
    with pytest.raises(DataError, match=message):
        read_statement(place)
