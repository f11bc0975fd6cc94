"""The checks of faults: figures against the plain functions, and what they say of models that cannot be struck."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hauberk import Data, Finding, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.checks.faults import SHARE
from hauberk.core import rng
from hauberk.core.finding import Status
from hauberk.integrity.faults import fault_campaign, fewest_flips
from hauberk.methods import load_methods


def run(name: str, model: Any, data: Data) -> Finding:
    return run_check(load_methods().get(name, "check"), Target(model), data, Settings())


def sample(data: Data, n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(len(data.test), generator=rng.generator(0, "evaluation sample"))
    return data.test.take(order[:n])


def test_the_worst_kind_is_the_one_a_campaign_finds(digits: Data, digits_model: nn.Module) -> None:
    finding = run("integrity/fault-kinds", digits_model, digits)
    outcomes = fault_campaign(digits_model, *sample(digits), share=SHARE, trials=3)
    worst = max(outcomes, key=lambda one: float(one.silent.mean()))
    assert finding.value == pytest.approx(float(worst.silent.mean())) and f"'{worst.kind}'" in finding.summary
    assert finding.n == 3 and len(finding.evidence[0].rows) == 24
    assert finding.interval.low <= finding.value <= finding.interval.high


def test_chosen_bits_are_searched_on_one_half_and_counted_on_the_other(digits: Data, digits_model: nn.Module) -> None:
    finding = run("integrity/fewest-flips", digits_model, digits)
    x, y = sample(digits)
    guess = float(y.bincount().max()) / len(y)
    search = fewest_flips(digits_model, x[:128], y[:128], until=guess, flips=10)
    struck, held = copy.deepcopy(digits_model), []
    weights = dict(struck.named_parameters())
    for flip in search.flips:
        with torch.no_grad():
            weights[flip.parameter].view(-1)[flip.position] = flip.after
        logits = struck(x[128:])  # an answer that is no number is no right one
        held.append(float(((logits.argmax(1) == y[128:]) & logits.isfinite().all(1)).double().mean()))
    fewest = next(count for count, rate in enumerate(held, 1) if rate <= 1.1 * guess)
    assert finding.value == fewest <= 3 and finding.status is Status.WARN and finding.n == 128
    clean = float((digits_model(x[128:]).argmax(1) == y[128:]).double().mean())
    assert finding.evidence[0].series[0].y == pytest.approx([clean, *held])
    assert f"leave {held[fewest - 1]:.1%} accuracy" in finding.summary
    assert [row[0] for row in finding.evidence[1].rows] == [flip.parameter for flip in search.flips]


def test_a_model_without_weights_is_not_run(digits: Data) -> None:
    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10]

    for name in ("integrity/fault-kinds", "integrity/fewest-flips"):
        assert run(name, Sums(), digits).status is Status.NOT_RUN
