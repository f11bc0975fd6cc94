"""What every recipe promises, over the registry. Recipes that need a threat take it first; the others have defaults only."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hauberk import Data, Linf, Schedule, fit
from hauberk.core.card import Card
from hauberk.core.train import Loss
from hauberk.methods import load_methods

# A recipe that trains only models with a part of their own is tested beside that part.
CARDS = [card for card in load_methods().cards("recipe") if "needs" not in card.facts]
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def made(card: Card) -> Loss:
    first = next(iter(inspect.signature(card.function).parameters.values()))
    loss: Loss = card.function(Linf(0.05)) if first.name == "threat" else card.function()
    return loss


def noisy_cnn() -> nn.Sequential:
    """A CNN with batch norm and dropout, whose mode shows."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(512, 10)
    )


def test_the_loss_is_a_finite_differentiable_scalar(card: Card, digits: Data, digits_model: nn.Module) -> None:
    model = copy.deepcopy(digits_model)
    value = made(card)(model, *digits.train.first(32))
    assert value.shape == () and bool(value.isfinite()) and float(value.detach()) > 0
    value.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_mode_gradients_and_inputs_are_left_as_they_were(card: Card, digits: Data) -> None:
    x, y = digits.train.first(32)
    before = x.clone()
    for training in (True, False):
        model = noisy_cnn().train(training)
        made(card)(model, x, y)
        assert all(part.training is training for part in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not x.requires_grad and torch.equal(x, before)


def test_batch_statistics_see_the_training_batches_alone(card: Card, digits: Data) -> None:
    """The search for hard inputs must not count as batches: at most two forward passes move the statistics."""
    model = noisy_cnn().train()
    made(card)(model, *digits.train.first(32))
    assert 1 <= int(model[1].num_batches_tracked) <= 2


def test_a_run_of_fit_repeats_itself_bit_by_bit(card: Card, digits: Data) -> None:
    weights = []
    for disturbance in (0, 1):
        model = noisy_cnn()
        torch.manual_seed(disturbance)  # the state of the caller's stream does not matter
        state = torch.get_rng_state()
        fit(model, digits.train, loss=made(card), schedule=Schedule(epochs=1, batch_size=256, seed=3))
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_training_works(card: Card, digits: Data, fresh_cnn: Callable[..., nn.Module]) -> None:
    model = fresh_cnn()
    fit(model, digits.train, loss=made(card), schedule=Schedule(epochs=4, batch_size=64))
    x, y = digits.test.tensors()
    with torch.no_grad():
        assert float((model(x).argmax(1) == y).double().mean()) > 0.8
