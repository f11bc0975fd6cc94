"""What every audit of training data promises, over the registry."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hauberk import Data, Split
from hauberk.core.card import Card
from hauberk.core.errors import DataError
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("audit"))
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def test_one_finite_score_per_sample_and_nothing_is_changed(card: Card, digits: Data, digits_model: nn.Module) -> None:
    train = Split(*digits.train.first(300))
    x, y = (part.clone() for part in train.tensors())
    weights = copy.deepcopy(digits_model.state_dict())
    for model in (None, digits_model):
        scores = card.function(train, model)
        assert scores.shape == (300,) and scores.dtype == torch.float64
        assert bool(scores.isfinite().all()) and float(scores.std()) > 0
        assert torch.equal(scores, card.function(train, model))
    assert torch.equal(train.tensors()[0], x) and torch.equal(train.y, y)
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), digits_model.state_dict().values(), strict=True))


def test_the_order_of_the_samples_does_not_matter(card: Card, digits: Data) -> None:
    train = Split(*digits.train.first(200))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled = card.function(Split(*train.take(order)))
    torch.testing.assert_close(shuffled, card.function(train)[order], rtol=1e-6, atol=1e-9)


def test_regression_is_refused(card: Card, digits: Data) -> None:
    x, y = digits.train.first(20)
    with pytest.raises(DataError, match="not classes"):
        card.function(Split(x, y.double()))
