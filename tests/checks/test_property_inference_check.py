"""Shares of groups told from models: where a group has a rule of its own they are, where it changes nothing they are not."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import hauberk
from hauberk import Access, Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.errors import DataError
from hauberk.core.finding import Status, Table
from hauberk.methods import load_methods
from hauberk.privacy.inference import property_by_answers

CARD = load_methods().get("privacy/property-inference", "check")


def records(n: int, seed: int, own_rule: bool) -> Split:
    """Two classes told by the first number; with `own_rule`, in one group by the second."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 4, generator=draw)
    sex = torch.randint(0, 2, (n,), generator=draw)
    place = sex if own_rule else torch.zeros_like(sex)
    return Split(x, (x.gather(1, place[:, None])[:, 0] > 0.5).long(), {"sex": sex})


def perceptron(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 2))


def people(own_rule: bool, seed: int = 0) -> Data:
    test, train = records(700, 10 + seed, own_rule), records(900, 50 + seed, own_rule)
    return Data(test, train, bounds=(0.0, 1.0), classes=2, group_names={"sex": ["woman", "man"]})


def run(model: object, data: Data, preset: str = "standard", seed: int = 0, access: Access | None = None) -> hauberk.Finding:
    target = Target(model, access=access)  # type: ignore[arg-type]
    return run_check(CARD, target, data, Settings(preset=preset, seed=seed))


def trained(data: Data) -> nn.Module:
    model = perceptron()
    assert data.train is not None
    hauberk.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), 1e-2), epochs=8)
    return model


def test_the_share_of_a_group_with_a_rule_of_its_own_is_told() -> None:
    data = people(True)
    found = run(trained(data), data)
    assert found.status in (Status.WARN, Status.FAIL) and found.value is not None and found.value > 0.75 and found.n == 24
    assert found.interval is not None and found.interval.confidence == pytest.approx(1 - 0.05 / 2)  # two attacks were tried
    table = found.evidence[0]
    assert isinstance(table, Table)
    rarer = int(data.test.groups["sex"].double().mean() < 0.5)  # of two values the rarer is asked for
    name = f"sex {('woman', 'man')[rarer]}"
    assert [row[:2] for row in table.rows[:2]] == [(name, "the answers"), (name, "the weights")]
    assert data.train is not None
    assert table.rows[0][-1] == f"{float((data.train.groups['sex'] == rarer).double().mean()):.0%}"
    assert "control" in str(table.rows[2][0]) and found.queries > 0
    blind = run(trained(data), data, access=Access.SCORE)
    assert isinstance(blind.evidence[0], Table) and {row[1] for row in blind.evidence[0].rows} == {"the answers"}


def test_a_group_that_changes_nothing_is_not_told_and_the_class_is() -> None:
    found = []
    for seed in range(4):
        data = people(False, seed)
        found.append(run(perceptron(seed), data, "quick" if seed else "standard", seed))
    assert [one.status for one in found].count(Status.PASS) >= 3
    table = found[0].evidence[0]
    assert isinstance(table, Table)
    control = [row for row in table.rows if "control" in str(row[0])]
    assert any(float(str(row[2]).split("%")[0]) >= 80 for row in control)
    assert not any("the attack is weak" in note for note in found[0].notes)


def test_estimators_are_judged_by_their_answers() -> None:
    data = people(True)
    assert data.train is not None
    x, y = data.train.tensors()
    linear = LogisticRegression().fit(x.numpy(), y.numpy())
    found = run_check(CARD, hauberk.load_model(linear), data, Settings(preset="standard"))
    assert found.status in (Status.WARN, Status.FAIL) and isinstance(found.evidence[0], Table)
    assert {row[1] for row in found.evidence[0].rows} == {"the answers"}


def test_what_cannot_be_told_is_not_run() -> None:
    data = people(True)
    bare = Data(Split(data.test.x, data.test.y), data.train, classes=2)
    assert "data.groups" in run(perceptron(), bare, "quick").reason
    rare = Data(Split(data.test.x, data.test.y, {"sex": (torch.arange(700) < 9).long()}), classes=2)
    assert "enough records" in run(perceptron(), rare, "quick").reason

    def answers(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0], 1 - x[:, 0]], 1)

    assert "cannot be trained anew" in run(answers, data, "quick").reason
    halves = Data(data.test, Split(data.train.x, data.train.y), classes=2)  # type: ignore[union-attr]
    for model in (perceptron(), perceptron().half()):  # what is trained like it has single precision
        found = run(model, halves, "quick")
        assert found.n == 8 and isinstance(found.evidence[0], Table) and found.evidence[0].rows[0][-1] == "–"


def test_answers_alone_tell_a_shift_and_nothing_where_there_is_none() -> None:
    draw = torch.Generator().manual_seed(0)
    holds, truth = torch.arange(40) % 2 == 1, torch.arange(30) % 2 == 0
    shadows, victims = (torch.randn(n, 50, 3, generator=draw) for n in (40, 30))
    assert abs(float((property_by_answers(victims, shadows, holds) > 0.5).eq(truth).double().mean()) - 0.5) < 0.3
    for answers, side in ((shadows, holds), (victims, truth)):
        answers[..., 0] += 1.5 * side[:, None].float()
    told = property_by_answers(victims, shadows, holds)
    assert bool((told > 0.5).eq(truth).all())
    lifted = property_by_answers(victims + 7.0, shadows - 3.0, holds)  # a constant on all logits says nothing
    assert torch.allclose(told, lifted, atol=1e-6)
    with pytest.raises(DataError, match="inputs, classes"):
        property_by_answers(victims[:, :4], shadows, holds)
    with pytest.raises(DataError, match="at least 2 of each"):
        property_by_answers(victims, shadows, torch.zeros(40))
