"""What every semantic attack promises, run over the registry."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from counting_net import Net, inputs, labels

from hauberk import Access, Budget, Target
from hauberk.core.card import Card
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, UsageError
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("semantic"))
STRONG = {"brightness": 0.6, "contrast": 0.6, "eps": 0.3, "shift": 0.3}
each = pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in CARDS])


def play(card: Card, *arguments: Any, **options: Any) -> torch.Tensor:
    strong = {name: size for name, size in STRONG.items() if name in card.options}
    return card.function(*arguments, **{**strong, **options})



@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each
def test_images_stay_inside_and_keep_their_form(card: Card, dtype: torch.dtype) -> None:
    net = Net()
    x = inputs(30).to(dtype)
    y = labels(net, x.float())
    z = play(card, Target(net, bounds=(0.0, 1.0)), x, y)
    assert (z.shape, z.dtype, z.device) == (x.shape, dtype, x.device) and bool(z.isfinite().all()) and not z.requires_grad
    assert float(z.double().min()) >= 0 and float(z.double().max()) <= 1
    assert not torch.equal(z, x)


@each
def test_other_bounds_give_the_same_pictures(card: Card) -> None:
    if card.access is Access.GRADIENT:
        pytest.skip("the function of these bounds has no gradient")
    x = inputs(20).double()
    net = Net().double()
    y = labels(net, x)
    low, high = -3.0, 5.0
    plain = play(card, Target(lambda one: net(one)), x, y)
    scaled = play(card, Target(lambda one: net((one - low) / (high - low)), bounds=(low, high)), low + x * (high - low), y)
    torch.testing.assert_close((scaled - low) / (high - low), plain, rtol=0, atol=1e-9)


@each
def test_success_is_no_luck_of_the_return(card: Card) -> None:
    net = Net()
    x = inputs(60)
    y = labels(net, x)
    y[::10] = (y[::10] + 1) % 3  # wrong from the start: they come back as they are
    z = play(card, net, x, y)
    assert torch.equal(z[::10], x[::10])
    assert float((labels(net, z) != y).double().mean()) >= 0.3
    wanted = (labels(net, x) + 1) % 3
    reached = play(card, net, x, wanted, targeted=True)
    assert float((labels(net, reached) == wanted).double().mean()) >= 0.15


@each
def test_the_model_and_the_random_state_stay_as_they_were(card: Card) -> None:
    net = Net()
    x = inputs(12)
    y = labels(net, x)
    net.train()
    net.last.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    kept = x.clone()
    play(card, net, x, y)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()
    assert torch.equal(x, kept) and not x.requires_grad


@each
def test_one_seed_gives_the_same_bits(card: Card) -> None:
    net = Net()
    x = inputs(20)
    y = labels(net, x)
    assert torch.equal(play(card, net, x, y), play(card, net, x, y))
    if "seed" in card.options:
        assert not torch.equal(play(card, net, x, y, seed=1), play(card, net, x, y, seed=2))


@each
def test_a_sample_does_not_feel_the_batch_it_is_in(card: Card) -> None:
    net = Net().double()
    x = inputs(32).double()
    y = labels(net, x)
    together = play(card, net, x, y)
    if "seed" not in card.options:
        alone = torch.cat([play(card, net, x[i : i + 1], y[i : i + 1]) for i in range(32)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(together, play(card, Target(net, batch_size=7), x, y), rtol=0, atol=1e-12)
        return
    rates = [
        float((labels(net, z) != y).double().mean())
        for z in (together, play(card, Target(net, batch_size=7), x, y))
    ]
    assert abs(rates[0] - rates[1]) <= 6 / 32


@each
def test_the_ledger_is_what_hooks_count_and_a_budget_is_kept(card: Card) -> None:
    net = Net()
    x = inputs(20)
    y = labels(net, x)
    target = Target(net, batch_size=8)
    net.rows = 0
    play(card, target, x, y)
    assert target.ledger.queries == net.rows > 0
    assert target.ledger.gradients == net.differentiated and (net.differentiated > 0) == (card.access is Access.GRADIENT)
    net.rows = 0
    tight = Target(net, budget=Budget(queries=25))
    with pytest.raises(BudgetExceeded):
        play(card, tight, x, y)
    assert net.rows == tight.ledger.queries <= 25


@each
def test_the_declared_access_suffices_and_less_is_refused(card: Card) -> None:
    net = Net()
    x = inputs(12)
    y = labels(net, x)
    granted = play(card, Target(net, access=card.access), x, y)
    with torch.no_grad():
        assert torch.equal(granted, play(card, net, x, y))
    for access in Access:
        if access < card.access:
            with pytest.raises(AccessDenied, match=f"{card.name} needs {card.access.name} access"):
                play(card, Target(net, access=access), x, y)
    if card.access is Access.LABEL:
        assert torch.equal(granted, play(card, Target(lambda one: labels(net, one), outputs="labels"), x, y))


@each
def test_two_classes_and_no_samples(card: Card) -> None:
    net = Net(classes=2)
    x = inputs(24)
    y = labels(net, x)
    assert bool((labels(net, play(card, net, x, y)) != y).any())
    target = Target(net)
    empty = play(card, target, x[:0], y[:0])
    assert empty.shape == (0, 1, 6, 6) and target.ledger.queries == 0


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda x, y: (x.masked_fill(x > 0.5, math.nan), y), "NaN"), (lambda x, y: (x * 2, y), "outside the bounds"),
        (lambda x, y: ((x * 255).byte(), y), "floating point"), (lambda x, y: (x, y[:-1]), "shape"),
        (lambda x, y: (x, y.float()), "integer"), (lambda x, y: (x, y - 5), "label -"),
        (lambda x, y: (x.flatten(1), y), "images"),
    ],
    ids=["nan", "outside", "bytes", "labels short", "labels real", "labels negative", "flat"],
)
@each
def test_bad_input_is_refused_before_anything_is_asked(card: Card, spoil: Any, word: str) -> None:
    net = Net()
    x = inputs(6)
    target, y = Target(net), labels(net, x)
    with pytest.raises(DataError, match=word):
        play(card, target, *spoil(x, y))
    with pytest.raises(UsageError, match="no option 'stepz'"):
        play(card, target, x, y, stepz=3)
    assert target.ledger.queries == 0
