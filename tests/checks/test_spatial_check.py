"""The check of turns and shifts: its figure against a plain loop over the whole grid."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from hauberk import Access, Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core import rng
from hauberk.core.finding import Status
from hauberk.methods import load_methods
from hauberk.robustness.attack.physical.transformations import Pose, view

CARD = load_methods().get("robustness/spatial", "check")


def test_the_figure_is_that_of_a_plain_loop(digits: Data, digits_model: nn.Module) -> None:
    finding = run_check(CARD, Target(digits_model, access=Access.LABEL), digits, Settings(preset="standard"))
    order = torch.randperm(len(digits.test), generator=rng.generator(0, "evaluation sample"))
    x, y = digits.test.take(order[:200])
    with torch.no_grad():
        held = digits_model(x).argmax(1) == y
        turns = [-30 + 6 * step for step in range(11)]
        for turn, down, right in itertools.product(turns, (-0.8, 0.0, 0.8), (-0.8, 0.0, 0.8)):
            pose = Pose.of(x, degrees=float(turn), down=down, right=right)
            held &= digits_model(view(x, pose, torch.zeros(1)).clamp(0, 1)).argmax(1) == y
    # The unturned, unmoved point of the loop goes through the interpolation; the check asks about the image itself.
    assert finding.value == pytest.approx(float(held.double().mean())) and finding.n == 200
    assert finding.status is Status.FAIL and finding.gradients == 0
    assert 200 < finding.queries <= 200 * (11 * 9 + 2)


def test_the_bounds_are_those_of_the_data(digits: Data, digits_model: nn.Module) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return digits_model((x + 2) / 4)

    x, y = digits.test.first(60)
    moved = Data(Split(x * 4 - 2, y), bounds=(-2.0, 2.0), classes=10)
    plain = Data(Split(x, y), bounds=(0.0, 1.0), classes=10)
    figures = [
        run_check(CARD, Target(model), data, Settings(preset="quick")).value
        for model, data in ((Scaled(), moved), (digits_model, plain))
    ]
    assert figures[0] == figures[1]


def test_without_bounds_it_does_not_run(digits: Data, digits_model: nn.Module) -> None:
    open_ended = dataclasses.replace(digits, bounds=(0.0, float("inf")))
    finding = run_check(CARD, Target(digits_model), open_ended, Settings())
    assert finding.status is Status.NOT_RUN and "finite bounds" in finding.reason
