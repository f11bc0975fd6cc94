"""Membership against models and records that are out of the ordinary: the broken gives nothing away, the odd still works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk import Schedule, Split, fit
from hauberk.core.errors import DataError, UsageError
from hauberk.core.overlap import fingerprints
from hauberk.core.rng import isolated
from hauberk.core.roc import roc
from hauberk.core.target import Target
from hauberk.privacy.membership import (
    References,
    augmentation_membership,
    boundary_membership,
    gap_membership,
    gradient_norm_membership,
    learned_membership,
    lira,
    loss_membership,
    quantile,
    quantile_regression,
    rmia,
    shadow_membership,
    train_references,
    variance_prior,
    white_box_membership,
)
from hauberk.privacy.membership.evidence import beyond
from hauberk.privacy.membership.matching import matched_schedule
from hauberk.privacy.membership.white_box import gradient_norms, inside_features

Pair = tuple[Tensor, Tensor]
Attack = Callable[..., Any]
ALL = (
    gradient_norm_membership, learned_membership, lira, loss_membership, quantile_regression, rmia, shadow_membership,
    variance_prior, white_box_membership,
)


def noise(n: int, seed: int) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, 10, generator=draw), torch.randint(0, 3, (n,), generator=draw)


def area(scores: Any) -> float:
    return roc(scores.members, scores.non_members).auc


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, Pair, Pair]:
    """A model that learnt 150 records of noise by heart, and 150 others."""
    with isolated(1):
        model = nn.Sequential(nn.Linear(10, 128), nn.ReLU(), nn.Linear(128, 3))
    members, others = noise(150, 0), noise(150, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    fit(model, Split(*members), optimizer=optimizer, schedule=Schedule(epochs=100, batch_size=50))
    return model, members, others


class Spoilt(nn.Module):
    """A model whose answer to some records holds another value."""

    def __init__(self, inner: nn.Module, value: float, above: float) -> None:
        super().__init__()
        self.inner, self.value, self.above = inner, value, above

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.inner(x)
        spoilt = torch.zeros_like(answer, dtype=torch.bool)
        spoilt[:, 2] = x[:, 0] > self.above
        return torch.where(spoilt, self.value, answer)


@pytest.mark.parametrize("attack", ALL)
def test_an_answer_of_nan_is_no_sign_of_membership(attack: Attack, learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    scores = attack(Spoilt(model, torch.nan, 0.95), members, others)
    for side, (x, _) in ((scores.members, members), (scores.non_members, others)):
        broken = x[:, 0] > 0.95
        assert 0 < int(broken.sum()) < 30
        assert bool((side[broken] == -torch.inf).all()) and bool(side[~broken].isfinite().all())


@pytest.mark.parametrize("attack", ALL)
def test_infinite_logits_leave_the_other_records_their_scores(attack: Attack, learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    scores = attack(Spoilt(model, -torch.inf, 0.9), members, others)
    assert not bool(torch.cat([scores.members, scores.non_members]).isnan().any())
    plain = [x[:, 0] <= 0.9 for x, _ in (members, others)]
    whole = roc(scores.members[plain[0]], scores.non_members[plain[1]]).auc
    assert whole > 0.6


def test_infinity_lies_beyond_every_finite_log_odds() -> None:
    assert beyond(torch.tensor([3.0, torch.inf]), torch.tensor([])) == 700
    assert beyond(torch.tensor([-torch.inf, -2e4]), torch.tensor([torch.nan])) == 2e4


def test_shadows_tell_a_wrong_answer_from_a_right_one(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    pool = torch.cat([members[0], others[0]]), torch.cat([members[1], others[1]])
    made = train_references(model, pool, count=4, schedule=Schedule(epochs=100, batch_size=50), lr=1e-2)
    found = shadow_membership(model, members, others, references=made)
    assert area(found) > area(gap_membership(model, members, others)) + 0.03
    assert roc(found.members, found.non_members).tpr_at(0.05) > 0.1  # not tied where they are surest


def refer(make: object, pool: Pair, *, epochs: int = 2, batch_size: int = 64) -> References:
    return train_references(make, pool, count=2, schedule=Schedule(epochs=epochs, batch_size=batch_size))


@pytest.mark.parametrize("alone", [False, True])
def test_layers_that_normalise_over_the_batch_never_meet_a_batch_of_one(alone: bool) -> None:
    with isolated(0):
        model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    n = 130 + alone  # halves of 65, which is one more than a batch; of 65 and 66, so that each trains by itself
    assert bool(refer(model, noise(n, 2)).logits.isfinite().all())
    assert bool(refer(model, noise(n, 2), batch_size=32).logits.isfinite().all())


def test_frozen_layers_are_kept_and_a_frozen_model_is_trained_whole() -> None:
    with isolated(0):
        model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    pool = noise(40, 3)
    first, second = (one.module for one in refer(model, pool).models)  # type: ignore[attr-defined]
    assert torch.equal(first[0].weight, model[0].weight) and torch.equal(second[0].bias, model[0].bias)
    assert not torch.equal(first[2].weight, second[2].weight) and not torch.equal(first[2].weight, model[2].weight)
    model.requires_grad_(False)
    first, second = (one.module for one in refer(model, pool).models)  # type: ignore[attr-defined]
    assert not torch.equal(first[0].weight, second[0].weight) and all(one.requires_grad for one in first.parameters())
    assert not any(one.requires_grad for one in model.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_models_of_half_precision_are_trained_in_single(kind: torch.dtype, learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    short = copy.deepcopy(model).to(kind)
    pool = torch.cat([members[0], others[0]]), torch.cat([members[1], others[1]])
    torch.testing.assert_close(refer(short, pool).logits, refer(model, pool).logits, rtol=0, atol=0)
    assert matched_schedule(short, pool, 0.2)[0].epochs == 5 and next(short.parameters()).dtype is kind


def test_a_factory_must_make_new_models_and_leaves_the_global_stream_alone() -> None:
    pool, state = noise(20, 4), torch.get_rng_state()

    def seeded(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Linear(10, 3)

    refer(seeded, pool)
    assert torch.equal(state, torch.get_rng_state())
    # One that draws from the global stream is seeded all the same.
    assert torch.equal(refer(lambda _: nn.Linear(10, 3), pool).logits, refer(lambda _: nn.Linear(10, 3), pool).logits)
    mine = nn.Linear(10, 3)
    before = mine.weight.detach().clone()
    for same in (lambda _: mine, lambda _: nn.Sequential(mine, nn.Linear(3, 3))):
        with pytest.raises(UsageError, match="the same model"):
            refer(same, pool)
    assert torch.equal(mine.weight, before)


def test_quantiles_are_not_learnt_from_the_record_they_judge(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    # Two copies of one member: both are judged by what others teach, so that they score as the record by itself would.
    twice = torch.cat([members[0], members[0][:40]]), torch.cat([members[1], members[1][:40]])
    learned_from: list[Pair] = []
    original = quantile._quantiles

    def watched(fit: Pair, s: Tensor, asked: Pair, *rest: Any) -> Tensor:
        learned_from.append((fit[0], asked[0]))
        return original(fit, s, asked, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantile, "_quantiles", watched)
        quantile_regression(model, twice, others)
    assert len(learned_from) == 2
    for known, asked in learned_from:
        assert len(known) > 100 and not bool(torch.isin(fingerprints(asked), fingerprints(known)).any())
    for public in (others, (others[0][:, :4], others[1]), (others[0][:0], others[1][:0])):
        with pytest.raises(DataError, match="public records"):
            quantile_regression(model, members, others, public=public)


def test_records_of_whole_numbers_are_served_or_refused_in_words() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names, self.out = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.out(self.names(x.long()).mean(1))
            return answer

    draw = torch.Generator().manual_seed(0)
    sides = [(torch.randint(0, 50, (30, 6), generator=draw), torch.randint(0, 3, (30,), generator=draw)) for _ in range(2)]
    model = Tokens()
    for attack in (gradient_norm_membership, white_box_membership, lira, quantile_regression):
        assert len(attack(model, *sides).members) == 30
    with pytest.raises(DataError, match="floating point numbers"):
        augmentation_membership(model, *sides)
    with pytest.raises(DataError, match="floating point numbers"):
        boundary_membership(model, *sides)
    swapped = augmentation_membership(model, *sides, change=lambda x, g: x[:, torch.randperm(6, generator=g)])
    assert len(swapped.members) == 30
    far = boundary_membership(model, *sides, distance=lambda view, x, y: torch.ones(len(x)))
    assert set(far.members.tolist()) <= {0.0, 1.0}


def test_a_model_that_is_only_served_has_gradients_too(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    served = copy.deepcopy(model).requires_grad_(False)
    target = Target(served)
    for attack in (gradient_norm_membership, white_box_membership):
        assert torch.equal(attack(served, members, others).members, attack(model, members, others).members)
    gradient_norm_membership(target, members, others)
    assert target.ledger.gradients == 300 and not any(one.requires_grad for one in served.parameters())


def test_records_that_are_not_finite_are_named_and_spoil_no_others(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    x = members[0].clone()
    x[3, 2], x[7, 0] = torch.nan, torch.inf
    with pytest.raises(DataError, match="2 of 300 records hold NaN or infinity"):
        refer(model, (torch.cat([x, others[0]]), torch.cat([members[1], others[1]])))
    scores = quantile_regression(model, (x, members[1]), others)
    assert int(scores.members.isinf().sum()) <= 2 and area(scores) > 0.6


def test_the_first_and_the_last_layer_are_whole_layers(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, (x, y), _ = learnt
    norms, logits = gradient_norms(Target(model), (x[:5], y[:5]))  # by parameter: weight, bias, weight, bias
    found = inside_features(model, norms, logits, y[:5])[:, :3]
    squares = norms.square()
    wanted = torch.stack([squares.sum(1), squares[:, :2].sum(1), squares[:, 2:].sum(1)], 1).sqrt().log()
    torch.testing.assert_close(torch.from_numpy(found), wanted)
