"""What every poison promises, over the registry."""

from __future__ import annotations

import copy

import pytest
import torch

from hauberk import Data
from hauberk.core.card import Card
from hauberk.core.errors import DataError, UsageError
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("poison"))
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def test_the_rate_is_met_and_the_mask_tells_the_truth(card: Card, digits: Data) -> None:
    clean = copy.deepcopy(digits)
    x, y = clean.train.tensors()
    for rate in (0.0, 0.01, 0.05, 0.3):
        poisoned = card.function(digits, rate=rate)
        z, labels = poisoned.train.tensors()
        assert len(poisoned.mask) == len(poisoned.train)
        assert int(poisoned.mask.sum()) == round(rate * len(x))
        changed = (labels[: len(y)] != y) | (z[: len(x)] != x).flatten(1).any(1)
        assert torch.equal(changed, poisoned.mask[: len(x)])
        assert z.dtype == x.dtype and float(z.min()) >= 0 and float(z.max()) <= 1
        assert int(labels.min()) >= 0 and int(labels.max()) < 10


def test_only_the_train_split_changes_and_the_original_stays(card: Card, digits: Data) -> None:
    before = copy.deepcopy(digits)
    poisoned = card.function(digits, rate=0.1)
    assert poisoned.data.test is digits.test
    for role in ("train", "test"):
        old, new = before.splits()[role], digits.splits()[role]
        assert torch.equal(old.y, new.y) and torch.equal(old.tensors()[0], new.tensors()[0])


def test_same_seed_same_poison_and_the_global_stream_is_left_alone(card: Card, digits: Data) -> None:
    state = torch.get_rng_state()
    first, second, third = (card.function(digits, rate=0.1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.mask, second.mask) and torch.equal(first.train.y, second.train.y)
    assert not torch.equal(first.mask, third.mask)
    assert torch.equal(torch.get_rng_state(), state)


def test_reading_in_parts_gives_the_same(card: Card, digits: Data) -> None:
    poisoned = card.function(digits, rate=0.1)
    whole, _ = poisoned.train.tensors()
    parts = torch.cat([x for x, _ in poisoned.train.batches(100)])
    assert torch.equal(whole, parts)
    assert poisoned.train.x.shape == tuple(whole.shape)


def test_a_trigger_can_be_put_on_any_inputs(card: Card, digits: Data) -> None:
    poisoned = card.function(digits, rate=0.1)
    if poisoned.trigger is None:
        assert poisoned.data.train is not digits.train
        return
    x, _ = digits.train.tensors()
    z, labels = poisoned.train.tensors()
    assert torch.equal(z[poisoned.mask], poisoned.trigger(x[poisoned.mask]))
    assert bool((labels[poisoned.mask] == poisoned.target_label).all())


def test_bad_input_is_refused(card: Card, digits: Data) -> None:
    for rate in (-0.1, 1.5):
        with pytest.raises(UsageError, match="rate"):
            card.function(digits, rate=rate)
    with pytest.raises(DataError, match="no train split"):
        card.function(Data(digits.test, classes=10))
    with pytest.raises(UsageError, match="label 10"):
        card.function(digits, target_label=10)
