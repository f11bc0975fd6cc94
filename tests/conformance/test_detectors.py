"""What every detector promises, over the registry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from hauberk import Access, Data, Linf, Split, Target
from hauberk.core.card import Card
from hauberk.core.errors import DataError, UsageError
from hauberk.core.roc import roc
from hauberk.methods import load_methods
from hauberk.robustness.attack import pgd

CARDS = list(load_methods().cards("detector"))
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def halves(digits: Data, seed: int = 0) -> tuple[Split, Split]:
    order = torch.randperm(len(digits.test), generator=torch.Generator().manual_seed(seed))
    return tuple(Split(*digits.test.take(part)) for part in order.split(250))  # type: ignore[return-value]


def fitted(card: Card, split: Split, model: nn.Module, **options: Any) -> Any:
    return card.function(**options).fit(split, Target(model, access=card.access))


def test_false_positives_stay_at_the_rate_stated(card: Card, digits: Data, digits_model: nn.Module) -> None:
    """Over 20 random halves the mean rate is at most that stated; each half shares samples with the others, so that the
    spread is bounded by that of one half."""
    for fpr in (0.05, 0.2):
        alarms = []
        for seed in range(20):
            clean, held_out = halves(digits, seed)
            alarms.append(float(fitted(card, clean, digits_model, fpr=fpr).flag(held_out.tensors()[0]).double().mean()))
        assert sum(alarms) / 20 <= fpr + 0.01
        clean, held_out = halves(digits)
        hits = int(fitted(card, clean, digits_model, fpr=fpr).flag(held_out.tensors()[0]).sum())
        # With the k-th of 250 clean scores as the threshold, alarms among 250 more follow a beta-binomial law.
        k = math.ceil(251 * (1 - fpr) - 1e-9)
        assert stats.betabinom(250, 251 - k, k).sf(hits - 1) > 1e-3


def test_scores_are_per_sample(card: Card, digits: Data, digits_model: nn.Module) -> None:
    clean, held_out = halves(digits)
    detector = fitted(card, clean, digits_model)
    x, _ = held_out.first(40)
    whole = detector.score(x)
    assert whole.shape == (40,) and bool(whole.isfinite().all())
    torch.testing.assert_close(torch.cat([detector.score(x[i : i + 1]) for i in range(40)]), whole, rtol=1e-5, atol=1e-6)
    assert torch.equal(detector.score(x.flip(0)).flip(0) > detector.threshold, detector.flag(x))
    assert detector.score(x[:0]).shape == (0,)


def test_notices_attacks_better_than_chance(card: Card, digits: Data, digits_model: nn.Module) -> None:
    clean, held_out = halves(digits)
    detector = fitted(card, clean, digits_model)
    x, y = held_out.tensors()
    z = pgd(digits_model, x, y, Linf(0.1), steps=20)
    with torch.no_grad():
        fooled = digits_model(z).argmax(1) != y
    assert int(fooled.sum()) > 50
    assert roc(detector.score(z[fooled]).numpy(), detector.score(x).numpy()).auc > 0.8


def test_spends_through_the_target_and_no_more_access(card: Card, digits: Data, digits_model: nn.Module) -> None:
    clean, held_out = halves(digits)
    target = Target(digits_model, access=card.access or Access.SCORE)
    seen = []
    handle = digits_model.register_forward_hook(lambda _module, inputs, _out: seen.append(len(inputs[0])))
    try:
        detector = card.function().fit(clean, target)
        detector.flag(held_out.first(30)[0])
    finally:
        handle.remove()
    assert sum(seen) == target.ledger.queries > 0


def test_refuses_what_cannot_be_promised(card: Card, digits: Data, digits_model: nn.Module) -> None:
    clean, _ = halves(digits)
    with pytest.raises(DataError, match="cannot promise"):
        fitted(card, Split(*clean.first(18)), digits_model, fpr=0.05)
    fitted(card, Split(*clean.first(19)), digits_model, fpr=0.05)
    with pytest.raises(UsageError, match="fit"):
        card.function().flag(clean.first(2)[0])
    for fpr in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match="fpr"):
            card.function(fpr=fpr)
