"""What every universal attack promises, run over the registry."""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from counting_net import Net, inputs, labels
from torch import Tensor

from hauberk import Access, Budget, Goal, Target, Threat
from hauberk.core.card import Card
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, UsageError
from hauberk.core.kinds import Universal
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("universal"))
CASES = [pytest.param(card, norm, id=f"{card.name}-{norm}") for card in CARDS for norm in card.facts["norms"]]
RADIUS = {"linf": 0.2, "l2": 1.0}
EFFORT = {"steps": 12, "rounds": 1}
each_case = pytest.mark.parametrize(("card", "norm"), CASES)
each = pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in CARDS])


def corner() -> Tensor:
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, 1:4, 2:6] = True
    return mask


def threat(card: Card, norm: str, eps: float | None = None, **facts: Any) -> Threat:
    if card.facts["masked"]:
        facts.setdefault("mask", corner())
    return Threat(norm, (math.inf if card.facts["images"] else RADIUS[norm]) if eps is None else eps, **facts)


def play(card: Card, *arguments: Any, **options: Any) -> Universal:
    effort = {name: size for name, size in EFFORT.items() if name in card.options}
    return card.function(*arguments, **{**effort, **options})


def size(z: Tensor, x: Tensor, norm: str) -> Tensor:
    delta = (z.double() - x.double()).flatten(1).abs()
    return delta.amax(1) if norm == "linf" else delta.square().sum(1).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("eps", [None, 0.07])
@each_case
def test_what_is_applied_is_allowed_to_the_last_bit(card: Card, norm: str, eps: float | None, dtype: torch.dtype) -> None:
    net = Net()
    x = inputs(20)
    made = play(card, net, x, labels(net, x), threat(card, norm, eps, mask=corner()))
    unseen = inputs(33, seed=4).to(dtype)
    z = made.apply(unseen)
    assert (z.shape, z.dtype, z.device) == (unseen.shape, dtype, unseen.device) and bool(z.isfinite().all())
    assert bool((size(z, unseen, norm) <= made.threat.eps).all())
    assert float(z.double().min()) >= 0 and float(z.double().max()) <= 1
    assert torch.equal(made.mask, corner()) and torch.equal(z[:, ~made.mask], unseen[:, ~made.mask])
    assert not z.requires_grad and (eps is not None or not torch.equal(z, unseen))
    assert torch.equal(z, made.apply(unseen))


@each_case
def test_the_rate_is_what_apply_reaches(card: Card, norm: str) -> None:
    net = Net()
    x = inputs(40)
    y = labels(net, x)
    made = play(card, net, x, y, threat(card, norm))
    fooled = labels(net, made.apply(x)) != y
    assert torch.equal(made.fooled, fooled)
    assert made.rate == pytest.approx(float(fooled.double().mean())) and made.interval.low <= made.rate <= made.interval.high


@each_case
def test_the_model_and_the_random_state_stay_as_they_were(card: Card, norm: str) -> None:
    net = Net()
    x = inputs(12)
    y = labels(net, x)
    net.train()
    net.last.eval()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    kept = x.clone(), y.clone()
    play(card, net, x, y, threat(card, norm))
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.full_like(parameter, 3.0)) for parameter in net.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1]) and x.grad is None and not x.requires_grad


@each_case
def test_one_seed_gives_the_same_bits_and_another_others(card: Card, norm: str) -> None:
    net = Net()
    x = inputs(30)
    y = labels(net, x)
    options = {"batch": 7} if "batch" in card.options else {"wanted": 1.0}
    first, again, other = (play(card, net, x, y, threat(card, norm), seed=seed, **options) for seed in (3, 3, 4))
    assert torch.equal(first.pattern, again.pattern) and torch.equal(first.apply(x), again.apply(x))
    assert not torch.equal(first.pattern, other.pattern)
    carried = pickle.loads(pickle.dumps(first))
    assert torch.equal(carried.apply(x), first.apply(x))


@each_case
def test_the_ledger_is_what_hooks_count_and_a_budget_is_kept(card: Card, norm: str) -> None:
    net = Net()
    x = inputs(20)
    y = labels(net, x)
    target = Target(net, batch_size=8)
    net.rows = 0
    play(card, target, x, y, threat(card, norm))
    assert target.ledger.queries == net.rows > 0 and target.ledger.gradients == net.differentiated > 0
    net.rows = 0
    tight = Target(net, budget=Budget(queries=25))
    with pytest.raises(BudgetExceeded):
        play(card, tight, x, y, threat(card, norm))
    assert net.rows == tight.ledger.queries <= 25


@each_case
def test_the_declared_access_suffices_and_less_is_refused(card: Card, norm: str) -> None:
    net = Net()
    x = inputs(12)
    y = labels(net, x)
    granted = play(card, Target(net, access=card.access), x, y, threat(card, norm))
    with torch.no_grad():  # a caller's block must not switch the gradients off
        assert torch.equal(granted.pattern, play(card, net, x, y, threat(card, norm)).pattern)
    for access in (Access.LABEL, Access.SCORE):
        with pytest.raises(AccessDenied, match=f"{card.name} needs GRADIENT access"):
            play(card, Target(net, access=access), x, y, threat(card, norm))


@each_case
def test_two_classes_no_radius_and_no_samples(card: Card, norm: str) -> None:
    net = Net(classes=2)
    x = inputs(24)
    y = labels(net, x)
    assert card.function(net, x, y, threat(card, norm)).rate > 0
    assert torch.equal(play(card, net, x, y, threat(card, norm, 0.0)).apply(x), x)
    target = Target(net)
    empty = play(card, target, x[:0], y[:0], threat(card, norm))
    assert target.ledger.queries == 0 and empty.rate == 0 and (empty.interval.low, empty.interval.high) == (0, 1)
    assert empty.apply(x).shape == x.shape and empty.apply(x[:0]).shape == (0, 1, 6, 6)


@each_case
def test_a_chosen_label_is_reached_more_often_than_by_chance(card: Card, norm: str) -> None:
    net = Net()
    x = inputs(60)
    x = x[labels(net, x) != 2]
    y = torch.full((len(x),), 2)
    aim = threat(card, norm, mask=corner()) if card.facts["images"] else threat(card, norm, 2 * RADIUS[norm])
    made = card.function(net, x, y, aim.targeted())
    clean = float((labels(net, x) == 2).double().mean())
    assert clean == 0 and made.rate >= 0.3
    assert torch.equal(made.fooled, labels(net, made.apply(x)) == 2)


@each
def test_several_labels_at_once(card: Card) -> None:
    net = Net()
    x = inputs(30)
    with torch.no_grad():
        y = (net(x) > 0).long()
    norm = card.facts["norms"][0]
    made = play(card, Target(net, outputs="multilabel"), x, y, threat(card, norm))
    with torch.no_grad():
        assert torch.equal(made.fooled, ((net(made.apply(x)) > 0).long() != y).any(1))


@pytest.mark.parametrize(
    ("spoil", "error", "word"),
    [
        (lambda x, y: (x.masked_fill(x > 0.5, math.nan), y), DataError, "NaN"),
        (lambda x, y: (x * 2, y), DataError, "outside the bounds"),
        (lambda x, y: ((x * 255).byte(), y), DataError, "floating point"),
        (lambda x, y: (x, y[:-1]), DataError, "shape"),
        (lambda x, y: (x, y.float()), DataError, "integer"),
        (lambda x, y: (x, y - 5), DataError, "label -"),
        (lambda x, y: (x[:, 0, 0, 0], y), DataError, "batch of samples"),
    ],
    ids=["nan", "outside", "bytes", "labels short", "labels real", "labels negative", "no axis"],
)
@each
def test_bad_input_is_refused_before_anything_is_asked(card: Card, spoil: Any, error: type[Exception], word: str) -> None:
    net = Net()
    x = inputs(6)
    target, y = Target(net), labels(net, x)
    with pytest.raises(error, match=word):
        play(card, target, *spoil(x, y), threat(card, card.facts["norms"][0]))
    assert target.ledger.queries == 0


@each
def test_bad_threats_and_options_are_refused(card: Card) -> None:
    net = Net()
    x = inputs(6)
    target, y = Target(net), labels(net, x)
    norm = card.facts["norms"][0]
    refused = [
        (threat(card, norm, torch.rand(6)), "radius per sample"), (Threat("l0", 3.0), "the norm"), (0.1, "Threat"),
        (Threat(norm, 0.1, mask=corner().expand(6, 1, 6, 6)), "one for all"),
    ]
    for wrong, word in refused:
        with pytest.raises(UsageError, match=word):
            play(card, target, x, y, wrong)
    with pytest.raises(UsageError, match="no option 'stepz'"):
        play(card, target, x, y, threat(card, norm), stepz=3)
    if card.facts["masked"]:
        with pytest.raises(UsageError, match="no feature to change"):
            play(card, target, x, y, Threat(norm, math.inf))
    if card.facts["images"]:
        with pytest.raises(DataError, match="images"):
            play(card, target, x.flatten(1), y, threat(card, norm, mask=corner().flatten()))
    for goal in set(Goal) - set(card.facts["goals"]):
        with pytest.raises(UsageError, match="was given the goal"):
            play(card, target, x, y, threat(card, norm, goal=goal))
    assert target.ledger.queries == 0


@each
def test_apply_refuses_what_it_was_not_made_for(card: Card) -> None:
    net = Net()
    x = inputs(8)
    made = play(card, net, x, labels(net, x), threat(card, card.facts["norms"][0]))
    for wrong in (x[:, :, :5], x.long(), x * 2, x.masked_fill(x > 0.5, math.nan)):
        with pytest.raises(DataError):
            made.apply(wrong)
