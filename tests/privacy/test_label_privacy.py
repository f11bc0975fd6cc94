"""Randomised response: its ε by enumeration of every answer, its law by counting, its losses by their exact expectation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import PrivacyLedger
from hauberk.privacy.dp.mechanisms import forward_loss, randomized_response, rr_with_prior, transition, unbiased_loss
from hauberk.privacy.dp.mechanisms.randomized_response import keep_probability
from hauberk.privacy.dp.noise import SecureSource, SeededSource

PRIOR = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05], dtype=torch.float64)


class Fixed(nn.Module):
    """Answers its logits, whatever is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def spent(table: Tensor) -> float:
    """The ε of a table of answers: the largest ratio of one answer's chances over all pairs of labels."""
    worst = 0.0
    for answer in range(table.shape[1]):
        chances = table[:, answer].tolist()
        for a, b in itertools.permutations(chances, 2):
            if a or b:
                worst = max(worst, math.log(a / b) if b else math.inf)
    return worst


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_table_of_answers_costs_epsilon_exactly(epsilon: float, k: int) -> None:
    table = transition(epsilon, PRIOR, k)
    assert table.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert spent(table) == pytest.approx(epsilon, abs=1e-12)


def counts(labels: Tensor, label: int, answers: Tensor) -> list[int]:
    return torch.bincount(answers[labels == label], minlength=5).tolist()


def agrees(seen: list[int], chances: list[float]) -> float:
    assert all(not n for n, p in zip(seen, chances, strict=True) if p == 0)
    n = sum(seen)
    statistic = sum((a - n * p) ** 2 / (n * p) for a, p in zip(seen, chances, strict=True) if p)
    return float(stats.chi2.sf(statistic, max(1, sum(p > 0 for p in chances) - 1)))


@pytest.mark.parametrize("source", [SecureSource(), SeededSource(0)], ids=["secure", "seeded"])
def test_answers_have_the_chances_of_the_table(source: SeededSource) -> None:
    labels = torch.arange(5).repeat(8_000)
    plain = randomized_response(labels, 5, 1.2, source=source)
    table = transition(1.2, torch.full((5,), 0.2), 5)
    for label in range(5):
        assert agrees(counts(labels, label, plain.labels), table[label].tolist()) > 1e-6
    prior = rr_with_prior(labels, PRIOR, 1.2, source=source)
    assert prior.k is not None and len(prior.k.unique()) == 1
    table = transition(1.2, PRIOR, int(prior.k[0]))
    for label in range(5):
        assert agrees(counts(labels, label, prior.labels), table[label].tolist()) > 1e-6


def test_the_number_of_candidates_keeps_the_truth_most_often() -> None:
    draw = torch.Generator().manual_seed(1)
    priors = torch.rand(50, 6, generator=draw) ** 4
    priors = priors / priors.sum(1, keepdim=True)
    for epsilon in (0.1, 1.0, 3.0):
        found = rr_with_prior(torch.zeros(50, dtype=torch.long), priors, epsilon, source=SeededSource(2)).k
        assert found is not None
        for prior, k in zip(priors.double(), found.tolist(), strict=True):
            order, rate = prior.sort(descending=True).values, [keep_probability(epsilon, j) for j in range(1, 7)]
            kept = [rate[j] * float(order[: j + 1].sum()) for j in range(6)]
            assert kept[k - 1] == pytest.approx(max(kept))


def test_a_prior_that_knows_keeps_more_labels_at_the_same_cost() -> None:
    labels = torch.arange(4_000) % 10
    sure = torch.full((4_000, 10), 0.01).scatter(1, labels[:, None], 0.91)
    with_prior = rr_with_prior(labels, sure, 0.5, source=SeededSource(3))
    without = randomized_response(labels, 10, 0.5, source=SeededSource(3))
    assert with_prior.releases == without.releases
    # Nearly always the answer is the prior's own guess: k = 1.
    assert float((with_prior.labels == labels).double().mean()) == 1.0
    assert abs(float((without.labels == labels).double().mean()) - keep_probability(0.5, 10)) < 5 * math.sqrt(0.25 / 4_000)


def test_labels_once_noised_cost_one_epsilon_together() -> None:
    ledger = PrivacyLedger()
    for one in randomized_response(torch.arange(5), 5, 1.5, source=SeededSource(0)).releases:
        ledger.add(one)
    found = ledger.epsilon(0.0)
    assert found.epsilon == pytest.approx(1.5) and found.relation == "replace-one"


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 5.0])
def test_the_corrected_loss_is_right_on_average(epsilon: float) -> None:
    model, loss = Fixed(torch.randn(5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)), unbiased_loss(epsilon)
    table, x = transition(epsilon, torch.full((5,), 0.2), 5), torch.zeros(1, 1)
    with torch.no_grad():
        for label in range(5):
            expected = sum(float(table[label, answer]) * float(loss(model, x, torch.tensor([answer]))) for answer in range(5))
            assert expected == pytest.approx(float(functional.cross_entropy(model(x), torch.tensor([label]))), rel=1e-9)


def test_the_forward_loss_is_least_at_the_true_probabilities() -> None:
    truth, table = torch.tensor([0.6, 0.25, 0.1, 0.04, 0.01], dtype=torch.float64), transition(1.0, torch.full((5,), 0.2), 5)
    answered, loss = truth @ table, forward_loss(table)
    model, x = Fixed(truth.log()), torch.zeros(5, 1)
    each = [loss(model, x[:1], torch.tensor([answer])) for answer in range(5)]
    total = sum(float(p) * one for p, one in zip(answered, each, strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    assert model.logits.grad is not None and float(model.logits.grad.abs().max()) < 1e-12
    assert float(total.detach()) == pytest.approx(float(-(answered * answered.log()).sum()))


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(DataError, match="labels"):
        randomized_response(torch.tensor([0, 5]), 5, 1.0)
    with pytest.raises(DataError, match="labels"):
        randomized_response(torch.tensor([0.5]), 5, 1.0)
    with pytest.raises(DataError, match="prior"):
        rr_with_prior(torch.tensor([0]), torch.tensor([0.5, 0.6]), 1.0)
    for bad in (-1.0, math.nan):
        with pytest.raises(UsageError, match="ε"):
            randomized_response(torch.tensor([0]), 5, bad)
    with pytest.raises(UsageError, match="classes"):
        randomized_response(torch.tensor([0]), 1, 1.0)
    with pytest.raises(UsageError, match="ε"):
        unbiased_loss(0.0)


def test_infinite_epsilon_keeps_and_no_labels_give_none() -> None:
    labels = torch.arange(5)
    assert torch.equal(randomized_response(labels, 5, math.inf, source=SeededSource(0)).labels, labels)
    assert len(randomized_response(labels[:0], 5, 1.0).labels) == len(rr_with_prior(labels[:0], PRIOR, 1.0).labels) == 0


def test_labels_and_priors_of_another_kind_are_named() -> None:
    with pytest.raises(DataError, match="labels are a list"):
        randomized_response([0, 1, 2], 3, 1.0)
    with pytest.raises(DataError, match="prior has shape"):
        rr_with_prior(torch.zeros(4, dtype=torch.long), torch.full((2, 3), 1 / 3), 1.0)
