"""What every membership attack promises, over the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk import Schedule, Split, Target, fit
from hauberk.core.access import Access
from hauberk.core.card import Card
from hauberk.core.errors import AccessDenied
from hauberk.core.rng import isolated
from hauberk.core.roc import auc_interval, roc
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("inference"))
Pair = tuple[Tensor, Tensor]


def pairs(seed: int, n: int = 60, classes: int = 3) -> tuple[Pair, Pair]:
    draw = torch.Generator().manual_seed(seed)
    sides = [(torch.rand(n, 10, generator=draw), torch.randint(0, classes, (n,), generator=draw)) for _ in range(2)]
    return sides[0], sides[1]


def network(seed: int = 0) -> nn.Module:
    with isolated(seed):
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))


@pytest.fixture(scope="module")
def learnt_by_heart() -> tuple[nn.Module, Pair, Pair]:
    members, others = pairs(0)
    with isolated(1):
        model = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    fit(model, Split(*members), optimizer=optimizer, schedule=Schedule(epochs=150, batch_size=30))
    return model, members, others


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
class TestEveryInference:
    def test_it_finds_members_of_a_model_that_learnt_them_by_heart(
        self, card: Card, learnt_by_heart: tuple[nn.Module, Pair, Pair]
    ) -> None:
        model, members, others = learnt_by_heart
        scores = card.function(model, members, others)
        assert scores.members.dtype == scores.non_members.dtype == torch.float64
        assert scores.members.shape == (60,) and scores.non_members.shape == (60,)
        assert roc(scores.members, scores.non_members).auc > 0.65

    def test_a_constant_model_gives_one_half(self, card: Card) -> None:
        members, others = pairs(1)
        if card.access is Access.GRADIENT:
            model = network()
            with torch.no_grad():
                for one in model.parameters():
                    one.zero_()
            target = Target(model)
        else:
            target = Target(lambda x: torch.zeros(len(x), 3), outputs="logits")
        scores = card.function(target, members, others)
        if card.facts.get("references") or card.access is not Access.SCORE:
            # A label that is right by chance, the size of an input, and models of the attack's own differ by record.
            span = auc_interval(scores.members, scores.non_members)
            assert span.low <= 0.5 <= span.high
        else:
            assert roc(scores.members, scores.non_members).auc == 0.5

    def test_shuffled_membership_gives_one_half(self, card: Card, learnt_by_heart: tuple[nn.Module, Pair, Pair]) -> None:
        model, (x, y), (u, v) = learnt_by_heart
        x, y = torch.cat([x, u]), torch.cat([y, v])
        order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
        left, right = order[:60], order[60:]
        scores = card.function(model, (x[left], y[left]), (x[right], y[right]))
        span = auc_interval(scores.members, scores.non_members)
        assert span.low <= 0.5 <= span.high

    def test_membership_does_not_enter_the_score(self, card: Card) -> None:
        members, others = pairs(2)
        model = network()
        there, back = card.function(model, members, others), card.function(model, others, members)
        torch.testing.assert_close(there.members, back.non_members, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(there.non_members, back.members, rtol=1e-5, atol=1e-7)

    def test_the_declared_access_suffices_and_less_is_refused(self, card: Card) -> None:
        members, others = pairs(3)
        assert card.access is not None
        whole = Target(network())
        whole_scores = card.function(whole, members, others)
        narrow = card.function(whole.seen_at(card.access), members, others)
        assert torch.equal(narrow.members, whole_scores.members)
        if card.access > Access.LABEL:
            with pytest.raises(AccessDenied):
                card.function(whole.seen_at(Access(card.access - 1)), members, others)

    def test_the_ledger_equals_what_a_hook_sees(self, card: Card) -> None:
        members, others = pairs(4)
        model, seen = network(), []
        # What an adversary works out on a copy of the weights is no question to the model.
        handle = model.register_forward_hook(lambda m, inputs, _o: seen.append(len(inputs[0])) if m is model else None)
        target = Target(model, batch_size=32)
        card.function(target, members, others)
        handle.remove()
        assert target.ledger.queries == sum(seen) >= 120

    def test_model_and_global_randomness_stay_as_they_were(self, card: Card) -> None:
        members, others = pairs(5)
        model = network().train()
        before, state = [one.clone() for one in model.parameters()], torch.get_rng_state()
        first = card.function(model, members, others)
        second = card.function(model, members, others)
        assert torch.equal(first.members, second.members)
        assert torch.equal(state, torch.get_rng_state()) and model.training
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))

    @pytest.mark.parametrize("empty", [0, 1])
    def test_an_empty_side_is_an_empty_answer(self, card: Card, empty: int) -> None:
        members, others = pairs(6)
        sides: list[Any] = [members, others]
        sides[empty] = (torch.zeros(0, 10), torch.zeros(0, dtype=torch.long))
        scores = card.function(network(), *sides)
        assert len((scores.members, scores.non_members)[empty]) == 0


def test_there_are_several() -> None:
    names = {card.name for card in CARDS}
    assert {"loss-membership", "entropy-membership", "modified-entropy", "confidence-membership"} <= names
    assert {"gap-membership", "learned-membership", "shadow-membership", "lira", "rmia", "variance-prior"} <= names
    assert {"quantile-regression", "augmentation-membership", "boundary-membership"} <= names
    assert {"gradient-norm-membership", "white-box-membership"} <= names
    assert all(isinstance(card.function, Callable) and card.paper and card.tags for card in CARDS)  # type: ignore[arg-type]
