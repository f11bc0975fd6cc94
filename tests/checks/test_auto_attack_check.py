"""The AutoAttack check: its figure, its table of members, and the version it takes for a model that answers at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk import Access, Data, Linf, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Finding, Status, Table
from hauberk.core.stats import wilson
from hauberk.methods import load_methods


def run(model: nn.Module, data: Data, eps: float, access: Access = Access.GRADIENT) -> tuple[Finding, Target]:
    target = Target(model, access=access)
    card = load_methods().get("robustness/auto-attack", "check")
    assert not card.runs_at("standard") and card.runs_at("thorough")
    return run_check(card, target, data, Settings(threats=(Linf(eps),))), target


def few(data: Data, count: int) -> Data:
    x, y = data.test.first(count)
    return Data(Split(x, y), bounds=(0.0, 1.0), classes=10, name="few digits")


def test_the_table_adds_up_to_the_figure(digits: Data, digits_model: nn.Module) -> None:
    finding, target = run(digits_model, few(digits, 10), 0.3)
    table = next(one for one in finding.evidence if isinstance(one, Table))
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["member"] for row in rows] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert finding.value is not None and finding.n == 10
    assert sum(row["broken"] for row in rows) == 10 and finding.value == 0 and finding.status is Status.FAIL
    assert rows[1]["samples it was given"] + rows[0]["broken"] == 10 and rows[-1]["samples it was given"] == 0
    assert rows[-1]["accuracy left after it"] == f"{finding.value:.1%}"
    assert finding.interval == wilson(round(finding.value * 10), 10)
    assert (finding.queries, finding.gradients) == (target.ledger.queries, target.ledger.gradients)
    assert "AutoAttack (standard)" in finding.summary


class Noisy(nn.Module):
    """A model that adds noise to its answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return out + 0.1 * torch.randn_like(out)


def test_a_model_that_answers_at_random_gets_the_version_for_it(digits: Data, digits_model: nn.Module) -> None:
    finding, _ = run(Noisy(digits_model), few(digits, 8), 0.3)
    assert "AutoAttack (rand)" in finding.summary and any("in two ways" in note for note in finding.notes)
    assert finding.value == 0.0 and finding.status is Status.FAIL


def test_without_gradients_it_is_not_run(digits: Data, digits_model: nn.Module) -> None:
    finding, target = run(digits_model, few(digits, 8), 0.1, Access.SCORE)
    assert finding.status is Status.NOT_RUN and target.ledger.queries == 0
    assert finding.queries == 0
