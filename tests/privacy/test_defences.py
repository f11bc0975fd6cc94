"""Defences: labels kept and distortion bounded, who sees what in a distillation, and a judge that is not fooled by masking."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Access, Data, Schedule, Split, Target, fit
from hauberk.core.errors import AccessDenied, DataError, ModelError, UsageError
from hauberk.core.rng import isolated
from hauberk.core.target import evaluating
from hauberk.privacy.defence import (
    Bottleneck,
    dmp,
    judge_defence,
    label_smoothing,
    labels_alone,
    memguard,
    mid,
    rounded,
    selena,
    top_scores,
    with_bottleneck,
)
from hauberk.privacy.defence.memguard import coins, membership_classifier, noise_for
from hauberk.privacy.defence.verdict import utility

Pair = tuple[Tensor, Tensor]


def pair(n: int, seed: int, classes: int = 3) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, 10, generator=draw), torch.randint(0, classes, (n,), generator=draw)


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, Pair, Pair]:
    """A net that learnt 160 random labels by heart, those records, and 160 others."""
    members, others = pair(160, 0), pair(160, 1)
    with isolated(1):
        model = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    fit(model, Split(*members), optimizer=optimizer, schedule=Schedule(epochs=80, batch_size=40))
    return model, members, others


@pytest.fixture(scope="module")
def guarded(learnt: tuple[nn.Module, Pair, Pair]) -> Callable[[str, float], Target]:
    made: dict[tuple[str, float], Target] = {}

    def make(bound: str, distortion: float) -> Target:
        if (bound, distortion) not in made:
            model, members, others = learnt
            made[bound, distortion] = memguard(
                model, members, others, bound=bound, distortion=distortion, steps=40, key=b"k" * 32,  # type: ignore[arg-type]
            )
        return made[bound, distortion]

    return make


class TestOutputs:
    scores = torch.tensor([[0.34, 0.33, 0.33], [0.06, 0.9, 0.04], [0.26, 0.26, 0.48], [0.333, 0.333, 0.334]])

    def target(self) -> Target:
        return Target(lambda x: self.scores[x[:, 0].long()], outputs="probabilities")

    def asked(self, target: Target) -> Tensor:
        return target.predictor(torch.arange(4.0)[:, None])

    def test_rounding_by_hand_keeps_the_label_in_front(self) -> None:
        found = self.asked(rounded(self.target(), digits=1))
        torch.testing.assert_close(found, torch.tensor([[0.4, 0.3, 0.3], [0.1, 0.9, 0.0], [0.3, 0.3, 0.5], [0.3, 0.3, 0.4]]))
        assert found.argmax(1).tolist() == self.scores.argmax(1).tolist()
        assert float((found * 10 - (found * 10).round()).abs().max()) < 1e-5

    def test_top_scores_by_hand(self) -> None:
        found = self.asked(top_scores(self.target(), k=1))
        torch.testing.assert_close(found[1], torch.tensor([0.05, 0.9, 0.05]))
        torch.testing.assert_close(found[2], torch.tensor([0.26, 0.26, 0.48]))
        two = self.asked(top_scores(Target(lambda x: torch.tensor([[0.5, 0.3, 0.15, 0.05]]).expand(len(x), -1)), k=2))
        torch.testing.assert_close(two[0], torch.tensor([0.5, 0.3, 0.1, 0.1]))
        torch.testing.assert_close(self.asked(top_scores(self.target(), k=3)), self.scores)

    def test_labels_alone_refuses_scores_and_queries_are_counted_at_the_owner(self) -> None:
        owner = self.target()
        with pytest.raises(AccessDenied):
            labels_alone(owner).scores(torch.zeros(1, 1))
        with pytest.raises(AccessDenied):
            rounded(labels_alone(owner))
        defended = rounded(owner)
        defended.scores(torch.zeros(5, 1))
        assert defended.ledger.queries == owner.ledger.queries == 5
        assert defended.access is Access.SCORE

    def test_bad_options_are_refused(self) -> None:
        for wrong in (lambda: rounded(self.target(), digits=0), lambda: top_scores(self.target(), k=0)):
            with pytest.raises(UsageError):
                wrong()


class TestMemGuard:
    @pytest.mark.parametrize("bound", ["expected", "each"])
    def test_labels_are_kept_and_scores_stay_a_distribution(
        self, bound: str, learnt: tuple[nn.Module, Pair, Pair], guarded: Callable[[str, float], Target]
    ) -> None:
        model, (x, _), (u, _) = learnt
        both = torch.cat([x, u])
        given, true = guarded(bound, 0.3).scores(both), model(both).softmax(1).detach()
        assert torch.equal(given.argmax(1), true.argmax(1))
        torch.testing.assert_close(given.sum(1), torch.ones(len(both)))
        apart = (given - true).abs().sum(1)
        assert float(apart.max()) > 0.05, "it does something"
        if bound == "each":
            assert float(apart.max()) <= 0.3 + 1e-5
        else:  # the mean over the coin is bounded; over these records with their coins it is so within chance
            assert float(apart.mean()) <= 0.3 + 3 * float(apart.std()) / math.sqrt(len(both))

    def test_the_expected_distortion_is_bounded_record_by_record(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        model, (x, _), (u, _) = learnt
        members, others = (model(one).softmax(1).detach().double() for one in (x, u))
        judge = membership_classifier(members, others)
        noisy = noise_for(judge, torch.cat([members, others]), 40)
        apart = (noisy - torch.cat([members, others])).abs().sum(1)
        share = (0.3 / apart.clamp_min(1e-12)).clamp(max=1.0)
        assert float((share * apart).max()) <= 0.3 + 1e-12
        before, after = (judge(one.sort(1, descending=True).values).abs() for one in (torch.cat([members, others]), noisy))
        assert bool((after <= before + 1e-12).all()), "the noise never leaves the classifier surer"
        assert float(after.mean()) < 0.5 * float(before.mean())

    def test_a_question_always_gets_the_same_answer(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        model, members, others = learnt
        target = memguard(model, members, others, distortion=0.2, steps=20, key=b"one")
        x = members[0][:40]
        first = target.scores(x)
        for _ in range(3):
            torch.testing.assert_close(target.scores(x), first, rtol=0, atol=1e-6)
        torch.testing.assert_close(target.scores(x.flip(0)).flip(0), first, rtol=0, atol=1e-5)

    def test_the_coin_is_fair_and_keyed(self) -> None:
        x = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
        tossed = coins(x, b"key")
        assert torch.equal(tossed, coins(x, b"key")) and not torch.equal(tossed, coins(x, b"other"))
        for share in (0.1, 0.5, 0.9):
            assert abs(float((tossed < share).double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / 4000)

    def test_no_distortion_changes_nothing(
        self, guarded: Callable[[str, float], Target], learnt: tuple[nn.Module, Pair, Pair]
    ) -> None:
        model, (x, _), _ = learnt
        torch.testing.assert_close(guarded("each", 0.0).scores(x), model(x).softmax(1).detach())
        with pytest.raises(UsageError):
            guarded("each", 3.0)


class TestTraining:
    def test_label_smoothing_is_torchs_and_goes_below_zero(self) -> None:
        model = nn.Linear(10, 3)
        x, y = pair(20, 0)
        expected = functional.cross_entropy(model(x), y, label_smoothing=0.3)
        torch.testing.assert_close(label_smoothing(amount=0.3)(model, x, y), expected)
        log_p = model(x).log_softmax(1)
        soft = 1.2 * functional.one_hot(y, 3) - 0.2 / 3
        torch.testing.assert_close(label_smoothing(amount=-0.2)(model, x, y), -(soft * log_p).sum(1).mean())
        with pytest.raises(UsageError):
            label_smoothing(amount=1.0)

    def test_the_bottleneck_pays_the_divergence_of_the_closed_form(self) -> None:
        part = Bottleneck(4, 3)
        x = torch.randn(30, 4)
        part.train()(x)
        law = torch.distributions.Normal(part.mean(x), (part.spread(x) / 2).exp())
        expected = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
        torch.testing.assert_close(part.divergence, expected)
        assert torch.equal(part.eval()(x), part.mean(x))

    def test_mid_trains_and_a_larger_beta_lets_less_through(self, digits: Data, fresh_cnn: Callable[..., nn.Module]) -> None:
        assert digits.train is not None
        told = []
        for beta in (1e-3, 1.0):
            model = with_bottleneck(fresh_cnn(), width=8)
            fit(model, digits.train, loss=mid(beta=beta), schedule=Schedule(epochs=3, batch_size=64))
            x, y = digits.test.tensors()
            with torch.no_grad(), evaluating(model):
                right = float((model(x).argmax(1) == y).double().mean())
                bottleneck = next(one for one in model.modules() if isinstance(one, Bottleneck))
                told.append((float(bottleneck.divergence or 0.0), right))
        assert told[0][1] > 0.4 and told[1][0] < 0.3 * told[0][0]
        with pytest.raises(ModelError, match="bottleneck"):
            mid()(fresh_cnn(), *digits.train.first(4))
        with pytest.raises(ModelError, match="no linear layer"):
            with_bottleneck(nn.Linear(2, 2))

    def test_dmp_gives_the_student_the_sure_references_alone(self) -> None:
        seen: list[Tensor] = []

        class Student(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x.detach())
                return super().forward(x)

        teacher = nn.Linear(10, 3)
        reference = pair(40, 3)[0]
        dmp(teacher, Student(10, 3), reference, keep=0.25, schedule=Schedule(epochs=1, batch_size=64))
        entropy = torch.special.entr(teacher(reference).softmax(1)).sum(1)
        expected = reference[entropy.argsort()[:10]]
        (batch,) = seen
        assert sorted(map(tuple, batch.tolist())) == sorted(map(tuple, expected.tolist()))
        with pytest.raises(DataError):
            dmp(teacher, nn.Linear(10, 3), reference[:1])

    def test_a_student_reaches_the_soft_answers_it_is_given(self) -> None:
        with isolated(0):
            teacher, student = nn.Linear(10, 3), nn.Linear(10, 3)
        reference = pair(400, 3)[0]
        dmp(teacher, student, reference, schedule=Schedule(epochs=30, batch_size=20))
        x = pair(50, 4)[0]
        torch.testing.assert_close(student(x).softmax(1), teacher(x).softmax(1), atol=0.05, rtol=0)

    def test_selena_teaches_of_a_record_what_models_say_that_never_saw_it(self) -> None:
        trained_on: list[set[int]] = []

        class Heart(nn.Module):
            """Answers class 1 surely for what it was trained on, and class 0 for all else."""

            def __init__(self) -> None:
                super().__init__()
                self.known: set[int] = set()
                self.weight = nn.Parameter(torch.zeros(1))

            def forward(self, x: Tensor) -> Tensor:
                seen = torch.tensor([float(int(one) in self.known) for one in x[:, 0]])
                return torch.stack([-seen * 50, (seen - 1) * 50], 1) + 0 * self.weight

        def train(model: nn.Module, split: Split) -> None:
            model.known = set(split.tensors()[0][:, 0].long().tolist())
            trained_on.append(model.known)

        data = Split(torch.arange(30.0)[:, None], torch.zeros(30).long())
        made = selena(Heart, data, models=6, outside=2, train=train, schedule=Schedule(epochs=1))
        assert made.outside.sum(1).tolist() == [2] * 30
        for index, known in enumerate(trained_on):
            assert known == set((~made.outside[:, index]).nonzero()[:, 0].tolist())
        torch.testing.assert_close(made.soft, torch.tensor([[1.0, 0.0]]).double().expand(30, -1))
        with pytest.raises(UsageError):
            selena(Heart, data, models=3, outside=3)


class TestJudge:
    def test_masking_stops_the_usual_attacks_and_not_those_that_ask_for_labels(
        self, learnt: tuple[nn.Module, Pair, Pair]
    ) -> None:
        model, members, others = learnt
        verdict = judge_defence(model, labels_alone(model), members, others, references=0, copies=4)
        rows = {row.attack: row for row in verdict.rows}
        assert rows["loss"].defended is None and rows["loss"].plain is not None and rows["loss"].plain.roc.auc > 0.75
        gap = rows["label alone"]
        assert gap.plain is not None and gap.defended is not None and gap.defended.roc.auc == gap.plain.roc.auc > 0.7
        strongest = verdict.strongest()
        assert strongest.adaptive and strongest.defended is not None and strongest.defended.roc.auc > 0.7
        table = verdict.table()
        assert len(table.rows) == 8 and table.rows[0][3] == "refused"
        assert table.rows[-1][2:] == ("not run",) * 6 and verdict.unheard and verdict.helps is not True

    def test_a_monotone_transform_is_undone(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        model, members, others = learnt
        flat = nn.Sequential(model, nn.Softmax(1), _Power(0.02))  # confidences all look alike to the eye
        verdict = judge_defence(model, Target(flat, outputs="probabilities"), members, others, copies=0)
        row = next(row for row in verdict.rows if row.attack.startswith("classifier"))
        assert row.plain is not None and row.defended is not None
        assert row.defended.roc.auc > row.plain.roc.auc - 0.05

    def test_a_model_that_says_nothing_is_at_one_half(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        _, members, others = learnt
        mute = Target(lambda x: torch.tensor([[0.2, 0.3, 0.5]]).expand(len(x), -1))
        verdict = judge_defence(mute, mute, members, others, copies=2)
        assert verdict.rows[-1].defended is None  # a function cannot be trained anew
        for row in verdict.rows[:-1]:
            assert row.defended is not None
            assert row.defended.auc_interval.low <= 0.5 <= row.defended.auc_interval.high

    def test_what_is_judged_was_not_prepared_on(self) -> None:
        """Records alike on both sides: an attack that scored what it was trained on would tell them apart."""
        x, y = pair(400, 5)
        with isolated(0):
            model = nn.Linear(10, 3)
        verdict = judge_defence(model, model, (x[:200], y[:200]), (x[200:], y[200:]), references=0, copies=0)
        row = verdict.rows[-3]
        assert row.attack.startswith("classifier") and row.plain is not None and abs(row.plain.roc.auc - 0.5) < 0.12

    def test_utility_by_hand(self) -> None:
        scores = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        found = utility(Target(lambda x: scores[x[:, 0].long()]), (torch.arange(4.0)[:, None], torch.tensor([0, 1, 1, 1])))
        assert found.right == 2 and found.accuracy == 0.5
        # Three bins: |.9 + .9 - 1|, |.8 - 1|, |.6 - 0|, over 4 records.
        assert found.calibration == pytest.approx((0.8 + 0.2 + 0.6) / 4)

    def test_too_few_records_are_refused(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        model, members, _ = learnt
        with pytest.raises(DataError):
            judge_defence(model, model, members, pair(5, 0))


class _Power(nn.Module):
    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        y = x**self.power
        return y / y.sum(1, keepdim=True)
