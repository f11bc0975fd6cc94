"""Square in L1: the whole radius, an exact budget, and strength beside the gradient."""

from __future__ import annotations

import torch
from torch import nn

from hauberk import L1, L2, Data, Target
from hauberk.core.rng import generator
from hauberk.robustness.attack import apgd, square
from hauberk.robustness.attack.square import _moved, _room


def held(model: nn.Module, z: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def test_it_uses_the_whole_radius(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(30)
    y = digits_model(x).argmax(1)
    z = square(digits_model, x, y, L1(0.05, bounds=(-5.0, 5.0)), queries=40)
    size = (z.double() - x.double()).flatten(1).abs().sum(1)
    assert float(size.min()) > 0.05 * (1 - 1e-4) and float(size.max()) <= 0.05


def test_moving_mass_keeps_it_and_empties_the_second_window() -> None:
    """With room on all sides the mass in the norm is what it was, plus what the radius had left."""
    x = torch.full((200, 1, 8, 8), 0.5, dtype=torch.float64)
    for threat, power in ((L1(0.3, bounds=(-5.0, 5.0)), 1), (L2(0.3, bounds=(-5.0, 5.0)), 2)):
        ball, noise = threat.around(x), generator(1, "moved", power)
        z = _moved(ball, _room(ball), x, 0.3, noise)
        for _ in range(3):
            before, z = z, _moved(ball, _room(ball), z, 0.3, noise)
            size = (z - x).flatten(1).norm(power, dim=1)
            assert float(size.min()) > 0.3 * (1 - 1e-6) and float(size.max()) <= 0.3
            assert bool((((z == x) & (before != x)).flatten(1).any(1)).double().mean() > 0.3)  # what was there has gone


def test_with_queries_enough_it_comes_near_the_gradient(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(150)
    start, white = held(digits_model, x, y), held(digits_model, apgd(digits_model, x, y, L1(4.0), steps=40), y)
    few, many = (held(digits_model, square(digits_model, x, y, L1(4.0), queries=count), y) for count in (60, 1000))
    assert start > 0.9 and white <= 0.02
    assert many <= white + 0.05 < few < start


def test_the_budget_is_spent_to_the_last_query(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(7)
    y = digits_model(x).argmax(1)
    target = Target(digits_model)
    square(target, x, y, L1(1e-4), queries=37)
    assert target.ledger.queries == 7 * 37


def test_flat_inputs_are_one_row_of_pixels() -> None:
    model, draw = nn.Linear(20, 4).double(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 20, generator=draw, dtype=torch.float64))
        model.bias.copy_(-model.weight @ torch.full((20,), 0.5, dtype=torch.float64))
    x = torch.rand(64, 20, generator=draw, dtype=torch.float64)
    y = model(x).argmax(1)
    assert held(model, apgd(model, x, y, L1(1.2)), y) <= 0.02
    assert held(model, square(model, x, y, L1(1.2), queries=500), y) <= 0.15
