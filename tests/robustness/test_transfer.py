"""Transfer: what it asks, what it leaves alone, and that its examples carry over."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk import Access, Data, Linf, Target
from hauberk.robustness.attack import random_noise, transfer


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def test_examples_carry_over_to_a_model_seen_by_labels_alone(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(150)
    target = Target(digits_model).seen_at(Access.LABEL)
    z = transfer(target, x, y, Linf(0.2), rounds=1)
    assert held(digits_model, z, y) < 0.5 < held(digits_model, random_noise(digits_model, x, y, Linf(0.2)), y)
    assert (target.ledger.queries, target.ledger.gradients) == (300, 0)


def test_every_label_is_counted(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(30)
    own = digits.train.first(50)[0]
    for rounds, queries in ((0, 30 + 50), (1, 30 + 50 + 50), (2, 30 + 50 + 50 + 100)):
        target = Target(digits_model)
        transfer(target, x, y, Linf(0.1), data=own, rounds=rounds, epochs=1, steps=1)
        assert target.ledger.queries == queries


def test_a_perfect_substitute_is_as_good_as_the_gradient(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(100)
    weights = {name: value.clone() for name, value in digits_model.state_dict().items()}
    z = transfer(digits_model, x, y, Linf(0.2), substitute=digits_model, rounds=0, epochs=1)
    assert held(digits_model, z, y) < 0.1
    assert all(torch.equal(value, weights[name]) for name, value in digits_model.state_dict().items())


def test_features_of_any_scale_are_learned() -> None:
    draw = torch.Generator().manual_seed(3)
    scale = torch.logspace(-3, 3, 20, dtype=torch.float64)
    model = nn.Linear(20, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 20, generator=draw, dtype=torch.float64) / scale)
        model.bias.copy_(-model.weight @ (0.5 * scale))
    x = torch.rand(200, 20, generator=draw, dtype=torch.float64) * scale
    y = model(x).argmax(1)
    z = transfer(model, x, y, Linf(float("inf"), bounds=(torch.zeros(20, dtype=torch.float64), scale)), epochs=30)
    assert held(model, z, y) < 0.1


def test_what_is_wrong_already_is_left_alone(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(20)
    wrong = (digits_model(x).argmax(1) + 1) % 10
    assert torch.equal(transfer(digits_model, x, wrong, Linf(0.1), rounds=0, epochs=1), x)
