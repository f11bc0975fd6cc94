"""What every bound promises, over the registry."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from hauberk import L2, Data, Linf
from hauberk.core.card import Card
from hauberk.methods import load_methods
from hauberk.robustness.attack import pgd

CARDS = list(load_methods().cards("bound"))
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def reached(module: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = module(z)
    return logits.gather(1, y[:, None]) - logits


def test_never_above_what_an_attack_reaches(card: Card, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(60)
    for threat in (Linf(0.003), Linf(0.05), L2(0.05), Linf(torch.linspace(0, 0.1, 60))):
        bounds = card.function(digits_model, x, threat, labels=y)
        assert bounds.shape == (60, 10)
        for loss in ("margin", "ce"):
            z = pgd(digits_model, x, y, threat, loss=loss, early_stop=False, steps=10)
            assert bool((bounds <= reached(digits_model, z, y) + 1e-12).all())


def test_falls_with_the_radius_and_meets_the_margin_at_zero(card: Card, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(20)
    found = [card.function(digits_model, x, Linf(eps), labels=y) for eps in (0.0, 0.01, 0.02, 0.1)]
    for narrow, wide in itertools.pairwise(found):
        assert bool((wide <= narrow).all())
    torch.testing.assert_close(found[0], reached(digits_model, x, y).double(), rtol=0, atol=1e-2)
    assert bool((found[0] <= reached(digits_model, x, y)).all())


def test_one_linear_layer_is_exact(card: Card, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    """Inside the bounds the least margin of a linear model is its margin less eps times the L1 norm of the weights."""
    x, y = linear_samples
    x = 0.25 + x / 2  # so far from the ends that they do not matter
    rows = linear_model.weight.detach()[y][:, None] - linear_model.weight.detach()
    expected = reached(linear_model, x, y) - 0.1 * rows.abs().sum(2)
    torch.testing.assert_close(card.function(linear_model, x, Linf(0.1), labels=y), expected, rtol=0, atol=1e-12)


def test_model_and_inputs_are_left_as_they_were(card: Card, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(5)
    before, values = x.clone(), [value.clone() for value in digits_model.state_dict().values()]
    digits_model.train()
    try:
        card.function(digits_model, x, Linf(0.1), labels=y)
        assert digits_model.training
    finally:
        digits_model.eval()
    assert torch.equal(x, before)
    assert all(torch.equal(a, b) for a, b in zip(values, digits_model.state_dict().values(), strict=True))


def test_parts_and_empty_batches(card: Card, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(7)
    whole = card.function(digits_model, x, Linf(0.01), labels=y)
    alone = torch.cat([card.function(digits_model, x[i : i + 1], Linf(0.01), labels=y[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-9)
    assert len(card.function(digits_model, x[:0], Linf(0.01))) == 0
