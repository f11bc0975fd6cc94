"""Substitutes: what they cost, how far they agree, and attacks through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Budget, Data, Linf, Target
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, UsageError
from hauberk.core.stats import wilson
from hauberk.robustness.attack import mi_fgsm, pgd, train_substitute, transfer


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def test_the_agreement_is_what_a_count_by_hand_gives_and_every_query_is_counted(digits: Data, digits_model: nn.Module) -> None:
    x, fresh = digits.test.first(100)[0], digits.train.first(300)[0]
    target = Target(digits_model)
    found = train_substitute(target, x, held_out=fresh, rounds=2)
    same = int((found.module(fresh).argmax(1) == digits_model(fresh).argmax(1)).sum())
    assert (found.agreement, found.n) == (same / 300, 300) and found.interval == wilson(same, 300)
    assert found.queries == target.ledger.queries == 100 + 100 + 200 + 300
    assert target.ledger.gradients == 0 and found.agreement > 0.7
    inner = train_substitute(digits_model, x, rounds=1)  # every fifth is held out, and trained on no more
    assert (inner.n, inner.queries) == (20, 80 + 80 + 20)


@pytest.mark.slow  # that a few dozen inputs teach enough is tried by default
def test_augmentation_and_scores_bring_the_substitute_nearer(digits: Data, digits_model: nn.Module) -> None:
    x, fresh = digits.test.first(60)[0], digits.train.first(1000)[0]
    plain, labels = (train_substitute(digits_model, x, held_out=fresh, rounds=rounds) for rounds in (0, 2))
    assert labels.agreement >= plain.agreement + 0.02
    with torch.no_grad():  # a caller's block does not switch the training off
        clear = train_substitute(digits_model, x, held_out=fresh, rounds=2, scores=True)
        wanted = digits_model(fresh).softmax(1)
        far = [float((one.module(fresh).softmax(1) - wanted).abs().sum(1).mean()) for one in (clear, labels)]
    assert far[0] < far[1]  # it learns how sure the target is


def test_access_and_budget_are_kept(digits: Data, digits_model: nn.Module) -> None:
    x = digits.test.first(20)[0]
    with pytest.raises(AccessDenied, match="SCORE"):
        train_substitute(Target(digits_model, access=Access.LABEL), x, scores=True)
    target = Target(digits_model, budget=Budget(queries=30))
    with pytest.raises(BudgetExceeded):
        train_substitute(target, x, rounds=3)
    assert target.ledger.queries <= 30


def test_same_seed_same_bits_and_the_global_state_untouched(digits: Data, digits_model: nn.Module) -> None:
    x = digits.test.first(40)[0]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, two, other = (train_substitute(digits_model, x, rounds=1, epochs=2, seed=seed).module(x) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


def test_classes_seen_late_are_learned_and_a_model_too_narrow_is_refused() -> None:
    """Below .5 there are classes 0 and 1; the augmented inputs reach beyond, where the label is 4."""
    def answers(x: Tensor) -> Tensor:
        label = (x[:, 0] > 0.3).long()
        return torch.where(x.amax(1) > 0.5, torch.full_like(label, 4), label)

    x = 0.5 * torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    target = Target(answers, outputs="labels")
    assert int(target.labels(x).max()) == 1
    found = train_substitute(target, x, held_out=torch.rand(200, 6, generator=torch.Generator().manual_seed(1)))
    assert found.module(x).shape == (200, 5) and found.agreement > 0.6
    narrow = nn.Linear(6, 2)
    with pytest.raises(DataError, match="has 2 classes, the target 5"):
        train_substitute(target, x, model=narrow)


def test_answers_of_nan_teach_nothing(digits: Data, digits_model: nn.Module) -> None:
    x = digits.test.first(50)[0]

    def flaky(z: Tensor) -> Tensor:
        with torch.no_grad():
            logits = digits_model(z)
        return torch.where(z[:, :, 4, 4] > 0.5, torch.full_like(logits, torch.nan), logits)

    silent = int((x[torch.arange(50) % 5 == 4][:, 0, 4, 4] > 0.5).sum())
    found = train_substitute(Target(flaky), x, rounds=1, scores=True)
    assert found.n == 10 - silent > 0
    assert all(bool(value.isfinite().all()) for value in found.module.state_dict().values())
    with pytest.raises(DataError, match="none of 40 answers"):
        train_substitute(Target(lambda z: torch.full((len(z), 3), torch.nan)), x)
    with pytest.raises(DataError, match="none of 0 answers"):
        train_substitute(digits_model, x[:0])


def test_transfer_runs_any_attack_through_the_substitute(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(60)
    left = {name: held(digits_model, transfer(digits_model, x, y, Linf(0.2), method=name), y) for name in ("pgd", "mi-fgsm")}
    assert max(left.values()) < 0.45
    with pytest.raises(UsageError, match="Did you mean 'mi-fgsm'"):
        transfer(digits_model, x, y, Linf(0.2), method="mi_fgsm")


def test_a_ready_substitute_is_taken_as_it_is(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(60)
    right = digits_model(x).argmax(1) == y
    x, y = x[right], y[right]
    ready = train_substitute(digits_model, digits.train.first(200)[0])
    target = Target(digits_model)
    z = transfer(target, x, y, Linf(0.2), substitute=ready.module, rounds=0, epochs=0, method="mi-fgsm", steps=10)
    assert target.ledger.queries == len(x)
    assert torch.equal(z, mi_fgsm(ready.module, x, y, Linf(0.2), steps=10, early_stop=False))


def test_a_few_dozen_inputs_teach_enough(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(24)
    exact = held(digits_model, pgd(digits_model, x, y, Linf(0.25)), y)
    left = [held(digits_model, transfer(digits_model, x, y, Linf(0.25), seed=seed), y) for seed in range(2)]
    assert max(left) <= exact + 0.25
