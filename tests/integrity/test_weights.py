"""Gains, dead units and odd units on networks whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hauberk.integrity.weights import dead_units, layer_states, non_finite


@pytest.fixture
def net() -> nn.Sequential:
    """Twice the input, of which one unit is switched off and one is ten times the others."""
    made = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        made[0].weight.copy_(2 * torch.eye(8))
    return made.eval()


def test_gain_is_the_ratio_of_root_mean_squares(net: nn.Sequential) -> None:
    x = torch.rand(600, 8, generator=torch.Generator().manual_seed(0))  # more than one part of 256
    states = {state.name: state for state in layer_states(net, x)}
    assert list(states) == ["0", "2"]
    assert states["0"].gain == pytest.approx(2, rel=1e-6)
    assert states["0"].weights == 64
    out = net(x).detach().double()
    expected = out.square().mean().sqrt() / (2 * x).double().square().mean().sqrt()
    assert states["2"].gain == pytest.approx(float(expected), rel=1e-6)


def test_a_dead_unit_is_counted_over_all_parts(net: nn.Sequential) -> None:
    x = torch.rand(600, 8, generator=torch.Generator().manual_seed(0)) + 0.01
    assert int(dead_units(net, x)["1"].sum()) == 0
    with torch.no_grad():
        net[0].weight[3] *= -1
    assert dead_units(net, x)["1"].nonzero().tolist() == [[3]]
    x[-1, 3] = -1.0  # one sample of the last part switches it on
    assert int(dead_units(net, x)["1"].sum()) == 0


def test_channels_are_units(fresh_cnn: object) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([0.0, -100.0, 0.0, 0.0]))
    assert dead_units(net, torch.rand(5, 1, 6, 6))["1"].tolist() == [False, True, False, False]


def test_an_implanted_unit_stands_out(net: nn.Sequential) -> None:
    """All norms are 2: the deviation is floored at 5 % of the median, .1; a norm of 20 is 180 of those away."""
    assert layer_states(net, torch.rand(4, 8))[0].outlier == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        net[0].weight[5] *= 10
    assert layer_states(net, torch.rand(4, 8))[0].outlier == pytest.approx(18 / 0.1, rel=1e-6)


def test_non_finite_values_are_counted_in_buffers_too() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert non_finite(net) == 0
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
        net[1].running_var[1] = torch.inf
    assert non_finite(net) == 2
