"""The check on fuzzing: its figure is that of the campaign, and random mutation stands beside it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from hauberk import Data, Split, Target
from hauberk.checks.context import Context, NotRun, Settings
from hauberk.core.card import registry
from hauberk.core.finding import Status
from hauberk.core.stats import wilson
from hauberk.robustness.fuzz import Options, fuzz

CARD = registry.get("robustness/fuzzing", "check")


def context(model: object, data: Data) -> Context:
    return Context(Target(model), data, Settings(seed=2), CARD)  # type: ignore[arg-type]


def test_the_figure_is_the_share_of_seeds_broken(digits: Data, digits_model: nn.Module) -> None:
    found = CARD.function(context(digits_model, digits))
    names = [card.name for card in registry.cards("corruption")]
    campaign = fuzz(digits_model, digits, seeds=50, options=Options(budget=500, seed=2), with_mutators=names)
    broken, n = campaign.guided.seeds_broken, len(campaign.guided.broken)
    assert (found.value, found.n) == (broken / n, n)
    assert found.interval == wilson(broken, n)
    assert f"{campaign.guided.distinct} distinct failures in 500 valid mutants" in found.summary
    assert any("never as security" in note for note in found.notes)
    assert any(f"random control found {campaign.control.distinct} " in note for note in found.notes)
    figures = {row[0]: row[1:] for row in found.evidence[0].rows}
    assert figures["distinct failures"] == (campaign.guided.distinct, campaign.control.distinct)
    assert found.status is (Status.WARN if broken / n > 0.25 else Status.PASS)
    assert found.queries > 1000  # both searches are paid for


def test_a_constant_model_has_no_failures_to_find(digits: Data) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[2.0, 0.0]]).expand(len(x), 2) + 0 * x.flatten(1)[:, :2]

    x, _ = digits.test.first(60)
    data = dataclasses.replace(digits, test=Split(x, torch.zeros(60).long()), train=None, classes=2)
    found = CARD.function(context(Constant(), data))
    assert (found.value, found.status) == (0.0, Status.PASS)


def test_it_is_not_run_where_nothing_is_to_be_found(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(20)
    with torch.no_grad():
        wrong = (digits_model(x).argmax(1) + 1) % 10
    with pytest.raises(NotRun, match="fails on all"):
        CARD.function(context(digits_model, dataclasses.replace(digits, test=Split(x, wrong))))
    table = Data(Split(torch.rand(20, 4), torch.zeros(20).long()), classes=2)
    with pytest.raises(NotRun, match="not images"):
        CARD.function(context(nn.Linear(4, 2), table))
