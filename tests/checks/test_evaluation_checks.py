"""Checks that rest on the evaluations: where they cannot answer they say so, and green needs more than a lack of evidence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk import L0, L2, Data, Linf, Patch, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Finding, Status
from hauberk.core.threat import Threat
from hauberk.methods import load_methods


def run(name: str, target: Target, data: Data, threat: Threat, **settings: Any) -> Finding:
    return run_check(load_methods().get(f"robustness/{name}", "check"), target, data, Settings(threats=(threat,), **settings))


def line(weight: float = 1.0) -> nn.Module:
    """Two classes, parted where the first of three features is .5."""
    net = nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [weight, 0.0, 0.0]]))
        net.bias.copy_(torch.tensor([0.0, -0.5 * weight]))
    return net.eval()


def rows(distances: Tensor) -> Data:
    """Samples that lie so far from the border, half of them on either side."""
    x = torch.full((len(distances), 3), 0.5)
    side = torch.arange(len(distances)) % 2
    x[:, 0] += distances.float() * (2 * side - 1)
    return Data(test=Split(x, side), classes=2, bounds=(0.0, 1.0))


class Blurred(torch.autograd.Function):
    """The same value, with no gradient to speak of where the third feature is above .9."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.where(x[:, 2:] > 0.9, torch.full_like(grad, math.nan), grad)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = line()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.line(Blurred.apply(x))  # type: ignore[no-untyped-call]
        return answer


NAMES = ("curve", "clever", "sandwich", "attack-metrics", "accuracy-vs-eps", "worst-case", "auto-attack", "pgd-linf", "transfer")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_several_labels_is_not_run(name: str) -> None:
    data = rows(torch.linspace(0.1, 0.4, 40))
    finding = run(name, Target(line(), outputs="multilabel"), data, Linf(0.1), preset="thorough")
    assert finding.status is Status.NOT_RUN and "several yes-or-no labels" in finding.reason


@pytest.mark.parametrize("name", ["curve", "clever", "sandwich", "attack-metrics", "accuracy-vs-eps"])
def test_a_radius_of_zero_is_not_run(name: str) -> None:
    finding = run(name, Target(line()), rows(torch.linspace(0.1, 0.4, 40)), Linf(0.0), preset="standard")
    assert finding.status is Status.NOT_RUN and "has the radius 0" in finding.reason


def test_a_main_threat_that_changes_no_feature_is_not_run() -> None:
    finding = run("clever", Target(line()), rows(torch.linspace(0.1, 0.4, 40)), L0(0), preset="standard")
    assert finding.status is Status.NOT_RUN and "has the radius 0" in finding.reason


def test_the_curve_without_a_radius_is_never_green() -> None:
    everywhere = Patch(torch.ones(3, dtype=torch.bool))
    finding = run("curve", Target(line()), rows(torch.linspace(0.1, 0.4, 40)), everywhere)
    assert finding.status is Status.FAIL and "nothing limits the change, and 40 are broken" in finding.summary
    # A mask without the feature that matters: nothing breaks.
    other = Patch(torch.tensor([False, True, True]))
    assert run("curve", Target(line()), rows(torch.linspace(0.1, 0.4, 40)), other).status is Status.WARN


@pytest.mark.parametrize(("eps", "status"), [(0.05, Status.PASS), (0.24, Status.WARN), (0.35, Status.FAIL)])
def test_the_curve_is_green_where_the_interval_is_above_the_radius(eps: float, status: Status) -> None:
    finding = run("curve", Target(line()), rows(torch.linspace(0.1, 0.4, 40)), Linf(eps))
    assert finding.value == pytest.approx(0.25, abs=0.01) and finding.status is status
    assert finding.interval is not None and (finding.interval.low > eps) == (status is Status.PASS)


@pytest.mark.parametrize(("eps", "status"), [(0.05, Status.PASS), (0.24, Status.WARN), (0.35, Status.WARN)])
def test_clever_is_green_where_the_interval_is_above_the_radius(eps: float, status: Status) -> None:
    mixed = torch.linspace(0.1, 0.4, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    finding = run("clever", Target(line()), rows(mixed), L2(eps), preset="standard")
    assert finding.status is status and finding.interval is not None
    assert (finding.interval.low > eps) == (status is Status.PASS)


def test_clever_without_a_radius_is_not_run() -> None:
    finding = run("clever", Target(line()), rows(torch.linspace(0.1, 0.4, 40)), Linf(math.inf), preset="standard")
    assert finding.status is Status.NOT_RUN and "no radius" in finding.reason


def test_clever_leaves_out_what_has_no_slope() -> None:
    data = rows(torch.full((20,), 0.2))
    x, y = data.test.first(20)
    x[:, 2] = 0.0
    x[:6, 2] = 1.0
    part = Data(test=Split(x, y), classes=2, bounds=(0.0, 1.0))
    finding = run("clever", Target(Broken()), part, L2(0.05), preset="thorough")
    assert finding.n == 14 and any("6 of 20 samples are left out" in one for one in finding.notes)
    assert finding.value == pytest.approx(0.2, rel=0.05)
    # Points are drawn up to the farthest example; a slope that is nowhere finite leaves no score at all.
    x[:, 2] = torch.where(torch.arange(20) < 18, 1.0, 0.0)
    x[18:, 0] = torch.tensor([0.4, 0.6])
    y[18:] = torch.tensor([1, 0])  # wrong undisturbed
    part = Data(test=Split(x, y), classes=2, bounds=(0.0, 1.0))
    finding = run("clever", Target(Broken()), part, L2(0.05), preset="thorough")
    assert finding.status is Status.NOT_RUN
