"""The gradient of the hinge, said to the model directly, is that of the margin's own graph."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from hauberk import L2, Threat
from hauberk.core.gradients import input_gradient
from hauberk.core.threat import Goal
from hauberk.robustness.attack.losses import hinge_gradient

CLASSES = 5


@pytest.fixture
def setting() -> tuple[nn.Module, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Linear(12, CLASSES)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    x = torch.rand(40, 7, generator=draw, dtype=torch.float64)
    return model, x, torch.randint(CLASSES, (40,), generator=draw)


UNSURE = dataclasses.replace(L2(math.inf), goal=Goal.CONFIDENCE, confidence=0.3)


@pytest.mark.parametrize("threat", [L2(math.inf), L2(math.inf).targeted(), UNSURE])
def test_equal_to_the_gradient_of_the_margin(threat: Threat, setting: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = setting
    z = x.clone().requires_grad_()
    margin = threat.margin(model(z), y)
    wanted = input_gradient(margin.relu(), z)
    assert bool((margin > 0).any()) and bool((margin < 0).any())
    torch.testing.assert_close(hinge_gradient(model(z), y, threat, z), wanted, rtol=1e-12, atol=1e-14)
    assert bool((wanted[margin < 0] == 0).all())


def test_answers_that_are_no_numbers_push_nowhere() -> None:
    z = torch.zeros(4, CLASSES).requires_grad_()
    offset = torch.zeros(4, CLASSES)
    offset[0], offset[1, 2], offset[2, 0], offset[3] = torch.nan, torch.nan, 1.0, -torch.inf
    y = torch.zeros(4, dtype=torch.long)
    for threat in (L2(math.inf), L2(math.inf).targeted()):
        found = hinge_gradient(z + offset, y, threat, z)
        assert bool((found[[0, 1, 3]] == 0).all())
        assert bool((found[2] == 0).all()) == (threat.goal.value == "targeted")


def test_nothing_where_the_graph_is_cut(setting: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = setting
    z = x.clone().requires_grad_()
    assert bool((hinge_gradient(model(z).detach(), y, L2(math.inf), z) == 0).all())
