"""The checks of corruptions: figures against a plain count, of images and of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn

from hauberk import Access, Data, Finding, Linf, Schedule, Split, Target, Threat, fit
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core import rng
from hauberk.core.finding import Status
from hauberk.core.structure import Structure
from hauberk.methods import load_methods
from hauberk.robustness.inputs import Columns


def run(name: str, model: Any, data: Data, memos: dict[Any, Any] | None = None, **settings: Any) -> Finding:
    return run_check(load_methods().get(name, "check"), Target(model), data, Settings(**settings), memos)


def evidence(finding: Finding, kind: str, title: str = "") -> Any:
    return next(one for one in finding.evidence if one.kind == kind and title in one.title)


def sample(data: Data, n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    return data.test.take(torch.randperm(len(data.test), generator=rng.generator(0, "evaluation sample"))[:n])


def test_flips_are_counted_between_neighbours_and_cost_nothing_more(digits: Data, digits_model: nn.Module) -> None:
    memos: dict[Any, Any] = {}
    mean = run("robustness/corruptions", digits_model, digits, memos)
    finding = run("robustness/corruption-flips", digits_model, digits, memos)
    x, _ = sample(digits)
    cards = [card for card in load_methods().cards("corruption") if card.runs_at("quick")]
    table = np.zeros((len(cards), 5))
    for row, card in enumerate(cards):
        with torch.no_grad():
            answers = torch.stack([
                digits_model(card.function(x, severity, generator=rng.generator(0, "corruption", card.name))).argmax(1)
                for severity in range(6)
            ])
        table[row] = (answers[1:] != answers[:-1]).double().mean(1)
    heat = evidence(finding, "heatmap")
    np.testing.assert_allclose(np.array(heat.values), table, atol=1e-12)
    assert heat.columns == ["0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"] and heat.better == "lower"
    assert finding.value == pytest.approx(table.mean(), abs=1e-12)
    assert finding.interval is not None and finding.interval.low < finding.value < finding.interval.high
    assert cards[int(table.mean(1).argmax())].name in finding.summary
    assert finding.queries == mean.queries == 256 * (1 + 5 * len(cards))
    assert len(memos) == 1


def test_the_tables_of_the_report_say_what_was_measured(digits: Data, digits_model: nn.Module) -> None:
    finding = run("robustness/corruptions", digits_model, digits, {})
    heat = evidence(finding, "heatmap")
    each = evidence(finding, "table", "Each corruption")
    assert [row[0] for row in each.rows] == list(heat.rows)
    for row, values in zip(each.rows, heat.values, strict=True):
        assert row[1] == f"{np.mean(values[1:]):.1%}" and " to " in row[2]
    overall = {row[0]: row for row in evidence(finding, "table", "Over all").rows}
    error = next(row for name, row in overall.items() if "mCE" in name and "relative mCE" not in name)
    assert "not normalised" in error[0] and float(error[1]) == pytest.approx(1 - (finding.value or 0), abs=6e-4)
    relative = next(row for name, row in overall.items() if name.startswith("relative mCE"))
    clean = float(overall["clean accuracy"][1])
    assert float(relative[1]) == pytest.approx(clean - (finding.value or 0), abs=2e-3)


def test_all_corruptions_run_at_standard(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(40)
    finding = run("robustness/corruptions", digits_model, Data(Split(x, y), classes=10), preset="standard")
    heat = evidence(finding, "heatmap")
    assert list(heat.rows) == [card.name for card in load_methods().cards("corruption") if card.preset != "thorough"]
    assert len(heat.rows) >= 30 and {len(row) for row in heat.values} == {6}
    captions = [picture.caption for picture in evidence(finding, "gallery").pictures]
    assert captions and all("read as" in caption for caption in captions)


@pytest.fixture(scope="module")
def wine() -> tuple[nn.Module, Data]:
    """Wine: 13 measurements scaled to [0, 1], three classes, and a model that is right on nearly all."""
    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    scaled = torch.tensor(((x - x.min(0)) / np.ptp(x, axis=0))[order], dtype=torch.float32)
    data = Data(Split(scaled[100:], torch.tensor(y[order][100:])), Split(scaled[:100], torch.tensor(y[order][:100])), name="wine")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 3))
    assert data.train is not None
    fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), 1e-2), schedule=Schedule(epochs=30, batch_size=32))
    return model, data


def test_figures_of_tables_are_those_of_a_plain_loop(wine: tuple[nn.Module, Data]) -> None:
    model, data = wine
    finding = run("robustness/table-corruptions", model, data, {})
    x, y = sample(data)
    assert data.train is not None
    columns = Columns.of(data.train.tensors()[0], bounds=(0.0, 1.0), seed=0)
    cards = list(load_methods().cards("table-corruption"))
    assert len(cards) >= 8
    table = np.zeros((len(cards), 5))
    for row, card in enumerate(cards):
        for severity in range(1, 6):
            z = card.function(x, severity, columns, generator=rng.generator(0, "table corruption", card.name))
            with torch.no_grad():
                table[row, severity - 1] = float((model(z).argmax(1) == y).double().mean())
    heat = evidence(finding, "heatmap")
    assert list(heat.rows) == [card.name for card in cards]
    np.testing.assert_allclose(np.array(heat.values)[:, 1:], table, atol=1e-12)
    assert finding.value == pytest.approx(table.mean(), abs=1e-12) and 0.6 < finding.value < 0.97
    assert finding.n == len(x) and finding.queries == len(x) * (1 + 5 * len(cards))
    assert f"{cards[int(table.mean(1).argmin())].name} costs most" in finding.summary
    assert finding.access == Access.LABEL.name


def test_accidents_keep_to_the_structure_of_the_threat() -> None:
    """The model is right only on whole numbers from 0 to 9: nothing else may reach it."""
    x = torch.randint(0, 10, (80, 3), generator=torch.Generator().manual_seed(0)).float()
    asked: list[torch.Tensor] = []

    def whole(inputs: torch.Tensor) -> torch.Tensor:
        asked.append(inputs)
        return torch.nn.functional.one_hot(inputs[:, 0].long() % 2, 2).float()

    data = Data(Split(x, x[:, 0].long() % 2), bounds=(0.0, 9.0), classes=2)
    threat = Threat("linf", 1.0, structure=Structure(step=1.0))
    finding = run("robustness/table-corruptions", whole, data, threats=(threat,))
    assert finding.status is not Status.ERROR, finding.reason
    seen = torch.cat(asked)
    assert torch.equal(seen, seen.round()) and float(seen.min()) >= 0 and float(seen.max()) <= 9
    assert any("learned from the test rows" in note for note in finding.notes)


def test_images_and_regression_have_no_table_to_corrupt(
    digits: Data, digits_model: nn.Module, wine: tuple[nn.Module, Data]
) -> None:
    finding = run("robustness/table-corruptions", digits_model, digits)
    assert finding.status is Status.NOT_RUN and "image" in finding.reason
    model, data = wine
    numbers = Data(Split(data.test.x, data.test.y.double()))
    assert run("robustness/table-corruptions", model, numbers).status is Status.NOT_RUN
    tables = run("robustness/corruption-flips", model, data, threats=(Linf(0.1),))
    assert tables.status is Status.NOT_RUN and "tabular" in tables.reason
