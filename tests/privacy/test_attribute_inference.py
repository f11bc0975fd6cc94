"""Attribute inference: rules on a model that can be read, an attribute that nothing depends on, and verdicts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Target
from hauberk.core.errors import AccessDenied, DataError, UsageError
from hauberk.core.stats import paired_difference
from hauberk.privacy.inference import (
    Guesses,
    Sensitive,
    csmia,
    imputation,
    judge_attributes,
    learned_attribute,
    likelihood_attribute,
)
from hauberk.privacy.inference.judge import order_of


def table(n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Records whose column 2 is a fair coin that nothing else tells of, their labels by column 0, and that coin."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 4, generator=draw, dtype=torch.float64)
    coin = torch.randint(0, 2, (n,), generator=draw)
    x[:, 2] = coin.double()
    return x, (x[:, 0] > 0.5).long(), coin


class Rule(nn.Module):
    """Logits that read column 2 with a weight, beside column 0."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        score = 6 * (x[:, 0] - 0.5) + self.weight * (x[:, 2] - 0.5)
        return torch.stack([-score, score], 1)


class TestSensitive:
    def test_values_codes_and_columns(self) -> None:
        x = torch.tensor([[5.0, 0.0, 1.0], [6.0, 1.0, 0.0], [7.0, 0.0, 1.0]])
        found = Sensitive.of(x, (1, 2))
        assert found.values.tolist() == [[0, 1], [1, 0]] and found.codes(x).tolist() == [0, 1, 0]
        assert found.put(x, torch.tensor([1, 1, 0])).tolist() == [[5, 1, 0], [6, 1, 0], [7, 0, 1]]
        assert found.without(x).tolist() == [[5], [6], [7]]

    @pytest.mark.parametrize("columns", [3, (), (0, 7), 0])
    def test_columns_that_cannot_be_are_refused(self, columns: object) -> None:
        with pytest.raises(DataError):
            Sensitive.of(torch.ones(4, 3), columns)  # type: ignore[arg-type]


class TestRules:
    def test_csmia_by_its_three_cases(self) -> None:
        answers = {  # by the value in column 1: the probability of class 1
            0: {0.0: 0.9, 1.0: 0.3}, 1: {0.0: 0.6, 1.0: 0.8}, 2: {0.0: 0.1, 1.0: 0.4},
        }

        def model(x: Tensor) -> Tensor:
            p = torch.tensor([answers[int(one[0])][float(one[1])] for one in x], dtype=torch.float64)
            return torch.stack([1 - p, p], 1)

        x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
        sensitive = Sensitive((1,), torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        found = csmia(Target(model, outputs="probabilities"), x, torch.ones(3).long(), sensitive=sensitive)
        # One value is right: that one. Both: the surer. None: the less sure, .6 of class 0 against .9.
        assert found.codes.tolist() == [0, 1, 1]
        doubt = torch.tensor([[0.1, 0.3], [0.4, 0.2], [0.1, 0.4]], dtype=torch.float64).log()
        right = torch.tensor([[-1, 1], [-1, -1], [1, 1]])
        torch.testing.assert_close(found.scores, doubt * right)
        assert found.x[:, 1].tolist() == [0.0, 1.0, 1.0]

    def test_csmia_orders_values_of_a_model_that_is_very_sure(self) -> None:
        def model(x: Tensor) -> Tensor:  # right with every value, surest with the one that is true of all, 2
            return torch.stack([60.0 + 10 * (x[:, 0] == 2), torch.zeros(len(x))], 1).double()

        x, y = torch.rand(9, 3), torch.zeros(9, dtype=torch.long)
        sensitive = Sensitive((0,), torch.tensor([[0.0], [1.0], [2.0]]))
        assert csmia(Target(model, outputs="logits"), x, y, sensitive=sensitive).codes.tolist() == [2] * 9
        wrong = csmia(Target(model, outputs="logits"), x, y + 1, sensitive=sensitive)
        assert wrong.codes.tolist() == [0] * 9  # never right: the least sure, and the first of equals

    def test_the_likelihood_is_bayes_rule(self) -> None:
        x, y, _ = table(50)
        sensitive, model = Sensitive.of(x, 2), Rule(1.5)
        prior = torch.tensor([0.3, 0.7])
        scores = likelihood_attribute(model, x, y, sensitive=sensitive, prior=prior).scores.softmax(1)
        both = []
        for value in (0.0, 1.0):
            z = x.clone()
            z[:, 2] = value
            both.append(model(z).softmax(1)[torch.arange(50), y])
        joint = torch.stack(both, 1) * prior
        torch.testing.assert_close(scores, joint / joint.sum(1, keepdim=True), rtol=1e-6, atol=1e-8)

    def test_what_the_records_hold_is_never_looked_at(self) -> None:
        x, y, _ = table()
        sensitive, known = Sensitive.of(x, 2), table(seed=1)[:2]
        hidden = x.clone()
        hidden[:, 2] = 77.0
        for attack in (
            lambda z: csmia(Rule(3.0), z, y, sensitive=sensitive),
            lambda z: likelihood_attribute(Rule(3.0), z, y, sensitive=sensitive),
            lambda z: learned_attribute(Rule(3.0), z, y, sensitive=sensitive, known=known, learner="logistic"),
            lambda z: imputation(z, y, sensitive=sensitive, known=known, learner="logistic"),
        ):
            assert torch.equal(attack(x).scores, attack(hidden).scores)

    def test_score_access_suffices_and_less_is_refused(self) -> None:
        x, y, _ = table(20)
        target, sensitive = Target(Rule(1.0)), Sensitive.of(x, 2)
        csmia(target.seen_at(Access.SCORE), x, y, sensitive=sensitive)
        assert target.ledger.queries == 40
        with pytest.raises(AccessDenied):
            csmia(target.seen_at(Access.LABEL), x, y, sensitive=sensitive)

    def test_other_records_learners_and_priors_are_refused(self) -> None:
        x, y, _ = table(20)
        sensitive = Sensitive.of(x, 2)
        with pytest.raises(DataError, match="table"):
            csmia(Rule(1.0), x[:, :2], y, sensitive=sensitive)
        with pytest.raises(DataError, match="prior"):
            likelihood_attribute(Rule(1.0), x, y, sensitive=sensitive, prior=torch.ones(3))
        with pytest.raises(UsageError, match="learner"):
            imputation(x, y, sensitive=sensitive, known=(x, y), learner="oracle")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="one value"):
            imputation(x, y, sensitive=sensitive, known=(sensitive.put(x, 0), y))


class TestAgainstTheBaseline:
    def test_of_an_independent_attribute_that_the_model_ignores_nothing_is_learnt(self) -> None:
        x, y, coin = table(400)
        sensitive, known = Sensitive.of(x, 2), table(400, seed=1)[:2]
        base = imputation(x, y, sensitive=sensitive, known=known, learner="logistic")
        found = likelihood_attribute(Rule(0.0), x, y, sensitive=sensitive, prior=base.scores.exp())
        verdict = judge_attributes(found, base, coin)
        # The likelihood is the same for both values: the attack is its prior.
        assert verdict.advantage == 0 and verdict.p == 1 and verdict.advantage_interval.low < 0 < verdict.advantage_interval.high
        learned = learned_attribute(Rule(0.0), x, y, sensitive=sensitive, known=known, learner="logistic")
        verdict = judge_attributes(learned, base, coin)
        assert abs(verdict.advantage) < 0.12 and verdict.p > 1e-3

    def test_a_label_that_is_the_attribute_gives_it_away_to_anybody(self) -> None:
        x, _, coin = table(300)
        sensitive, (u, _, other) = Sensitive.of(x, 2), table(300, seed=1)
        base = imputation(x, coin, sensitive=sensitive, known=(u, other), learner="logistic")
        found = csmia(Rule(60.0), x, coin, sensitive=sensitive)
        verdict = judge_attributes(found, base, coin)
        assert verdict.accuracy == verdict.baseline == 1.0 and verdict.advantage == 0.0

    def test_where_the_truth_is_in_the_model_and_the_baseline_cannot_know_it_the_advantage_shows(self) -> None:
        # Labels are an exclusive or of the attribute and column 0: the label alone, to a linear guess, tells nothing.
        x, _, coin = table(400)
        y = (x[:, 0] > 0.5).long() ^ coin

        def model(z: Tensor) -> Tensor:
            side = ((z[:, 0] > 0.5).long() ^ (z[:, 2] > 0.5).long()).double()
            return torch.stack([1 - side, side], 1) * 0.8 + 0.1

        u, _, other = table(400, seed=1)
        known = u, (u[:, 0] > 0.5).long() ^ other
        sensitive, target = Sensitive.of(x, 2), Target(model, outputs="probabilities")
        base = imputation(x, y, sensitive=sensitive, known=known, learner="logistic")
        for found in (
            csmia(target, x, y, sensitive=sensitive), likelihood_attribute(target, x, y, sensitive=sensitive),
        ):
            verdict = judge_attributes(found, base, coin, positive=1, top=50)
            assert verdict.accuracy == 1.0 and verdict.ppv == 1.0
            assert verdict.advantage_interval.low > 0.3 and verdict.p < 1e-6
        assert verdict.advantage == pytest.approx(verdict.accuracy - verdict.baseline)


class TestJudge:
    def test_by_hand(self) -> None:
        x, y = torch.zeros(4, 1), torch.zeros(4).long()

        def guesses(p: list[float]) -> Guesses:
            return Guesses(x, y, None, torch.tensor([[1 - one, one] for one in p], dtype=torch.float64))

        attack, base = guesses([0.9, 0.6, 0.2, 0.8]), guesses([0.1, 0.9, 0.8, 0.3])
        verdict = judge_attributes(attack, base, torch.tensor([1, 0, 0, 1]), positive=1, top=2)
        assert (verdict.n, verdict.accuracy, verdict.baseline, verdict.advantage) == (4, 0.75, 0.0, 0.75)
        assert (verdict.ppv, verdict.baseline_ppv, verdict.share) == (1.0, 0.0, 0.5)
        assert order_of(attack, 1).tolist() == [0, 3, 1, 2]
        assert verdict.p == 0.25  # 3 of 3 disagreements for the attack

    def test_other_numbers_of_guesses_are_refused(self) -> None:
        one = Guesses(torch.zeros(1, 1), None, None, torch.zeros(1, 2, dtype=torch.float64))
        with pytest.raises(DataError):
            judge_attributes(one, one, torch.zeros(2).long())


def test_the_paired_interval_holds_the_difference_at_least_as_often_as_it_says() -> None:
    draw = torch.Generator().manual_seed(0)
    n, a, b = 60, 0.25, 0.1
    held = 0
    for _ in range(2000):
        u = torch.rand(n, generator=draw)
        first, second = int((u < a).sum()), int(((u >= a) & (u < a + b)).sum())
        span = paired_difference(first, second, n)
        held += span.low <= a - b <= span.high
    assert held / 2000 > 0.935
    # Bonett and Price 2012 by hand: counts 10 and 5 of 60.
    span = paired_difference(10, 5, 60)
    p, q = 11 / 62, 6 / 62
    half = 1.959963985 * ((p + q - (p - q) ** 2) / 62) ** 0.5
    assert (span.low, span.high) == pytest.approx((p - q - half, p - q + half))
