"""Reference models under a defence: they see what a forest cannot, and a verdict ranks by few false alarms and says its gaps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Schedule, Split, Target, fit
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.kinds import MembershipScores
from hauberk.core.rng import isolated
from hauberk.core.roc import roc
from hauberk.privacy.defence import (
    Repeated,
    answering,
    defended_references,
    judge_defence,
    labels_alone,
    memguard,
    rounded,
    selena,
    top_scores,
)
from hauberk.privacy.defence import alike as alike_module
from hauberk.privacy.defence.change import change_of
from hauberk.privacy.defence.judge import halved
from hauberk.privacy.defence.repeated import output_defence, protected, read
from hauberk.privacy.defence.verdict import DefenceVerdict, Row, Utility
from hauberk.privacy.membership import train_references, variance_prior
from hauberk.privacy.membership.measure import Exposure, exposure

Pair = tuple[Tensor, Tensor]
N = 400  # records of each side of the toy
SIDES: tuple[Pair, Pair] = (
    (torch.arange(N).float()[:, None], torch.zeros(N, dtype=torch.long)),
    (torch.arange(N, 2 * N).float()[:, None], torch.zeros(N, dtype=torch.long)),
)
HARD = 4 * torch.randn(2 * N, generator=torch.Generator().manual_seed(0))  # how sure all models are of a record


def toy(split: Split, seed: int) -> Target:
    """A training after which a record's log-odds are its own, plus 1.5 for a member, plus noise of .5."""
    odds = HARD + 0.5 * torch.randn(2 * N, generator=torch.Generator().manual_seed(seed))
    odds[split.tensors()[0][:, 0].long()] += 1.5
    return Target(lambda x: torch.stack([odds[x[:, 0].long()], torch.zeros(len(x))], 1), outputs="logits")


def exposed(members: list[float], others: list[float]) -> Exposure:
    return exposure(MembershipScores(torch.tensor(members).double(), torch.tensor(others).double()))


def pair(n: int, seed: int) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, 10, generator=draw), torch.randint(0, 3, (n,), generator=draw)


@dataclasses.dataclass
class Hiding:
    """The answers of a module with their confidence turned upside down."""

    module: nn.Module
    access: Access = Access.SCORE
    outputs: str = "logits"

    def __call__(self, x: Tensor) -> Tensor:
        return -self.module(x).detach()


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, Pair, Pair]:
    """A net that learnt 120 random labels by heart, those records, and 120 others."""
    members, others = pair(120, 0), pair(120, 1)
    with isolated(1):
        model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    fit(model, Split(*members), optimizer=optimizer, schedule=Schedule(epochs=40, batch_size=40))
    return model, members, others


class TestJudge:
    def test_references_see_what_a_forest_is_blind_to(self) -> None:
        model = toy(Split(*SIDES[0]), 99)
        verdict = judge_defence(model, model, *SIDES, references=Repeated(toy, plain=toy, count=8), copies=0)
        rows = {row.attack: row for row in verdict.rows}
        blind, seeing = rows["classifier trained on its answers"].defended, rows["LiRA, references"].defended
        # Over records the log-odds have a deviation of 4, of a record's own mean one of .5: Phi(1.5 / 4 / sqrt 2) = .60 of the
        # score alone, and Phi(1.5 / .5 / sqrt 2) = .983 where every mean is known. Four models tell it to within .25.
        assert blind is not None and blind.roc.auc < 0.72
        assert seeing is not None and 0.93 < seeing.roc.auc < 0.995
        assert verdict.strongest().attack.endswith("references") and not verdict.unheard
        assert verdict.rows[-1].plain is not None
        assert verdict.notes == ("8 reference models repeat the defence", "not run: the labels of noisy copies (copies is 0)")

    def test_a_defence_that_does_nothing_is_judged_equal(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        model, members, others = learnt
        verdict = judge_defence(model, model, members, others, references=2, copies=1)
        assert not verdict.unheard and verdict.helps is False
        for row in verdict.rows:
            assert row.plain is not None and row.defended is not None
            assert row.plain.roc.auc == row.defended.roc.auc and row.plain.tpr == row.defended.tpr
        assert (verdict.change.value, verdict.change.interval.low, verdict.change.interval.high) == (0, 0, 0)
        assert verdict.loss.low <= 0 <= verdict.loss.high and "not shown to help" in verdict.summary

    def test_models_that_say_nothing_are_at_one_half(self) -> None:
        mute = Target(lambda x: torch.full((len(x), 2), 0.5))
        verdict = judge_defence(mute, mute, *SIDES, references=Repeated(lambda *_: mute, plain=lambda *_: mute), copies=1)
        for row in verdict.rows:
            assert row.defended is not None and row.defended.roc.auc == 0.5 and row.defended.tpr == 0, row.attack

    def test_what_hides_everything_helps_and_only_where_references_were_run(self) -> None:
        model, mute = toy(Split(*SIDES[0]), 99), Target(lambda x: torch.full((len(x), 2), 0.5))
        knows = Repeated(lambda *_: mute, plain=toy)
        verdict = judge_defence(model, mute, *SIDES, references=knows, copies=0)
        assert verdict.helps is True and verdict.change.interval.high < -0.3 and verdict.change.defended == 0
        assert ": it helps;" in verdict.summary
        # A defence in training repeats itself only by who says how; without, the verdict is open and says so.
        crowd = DefenceVerdict(verdict.rows, verdict.plain, verdict.defended, verdict.change, unheard=True)
        assert crowd.helps is None and "not run" in crowd.summary
        silent = judge_defence(model, mute, *SIDES, copies=0)
        assert silent.unheard and silent.helps is not True and silent.rows[-1].absent == ("not run", "not run")
        assert "not run: reference models under the defence" in silent.notes[0] and "Repeated" in silent.notes[0]
        half = judge_defence(model, mute, *SIDES, references=Repeated(lambda *_: mute), copies=0)
        assert half.rows[-1].plain is None and half.rows[-1].absent[0] == "not run" and "plain model" in half.notes[1]

    def test_labels_against_references_tell_what_scores_denied(self) -> None:
        """The noise of the copies moves the answer, and hardly the record: how often the label stays shows its log-odds."""

        def train(split: Split, seed: int) -> Target:
            odds = HARD / 8 + 0.2 * torch.randn(2 * N, generator=torch.Generator().manual_seed(seed))
            odds[split.tensors()[0][:, 0].long()] += 1.0

            def answer(x: Tensor) -> Tensor:
                place = x[:, 0].floor().long().clamp(0, 2 * N - 1)
                return torch.stack([odds[place] + 10 * x[:, 1], torch.zeros(len(x))], 1)

            return labels_alone(Target(answer, outputs="logits"))

        # Of a thousand columns one tells the record: the mean deviation, which scales the noise, is a thousandth of its own.
        sides = tuple((torch.cat([x + 0.5, torch.zeros(N, 999)], 1), y) for x, y in SIDES)
        model = train(Split(*sides[0]), 99)
        found = judge_defence(model, model, *sides, references=Repeated(train, plain=train), copies=8)
        rows = {row.attack: row.defended for row in found.rows}
        assert rows["LiRA, references"] is None  # refused
        alone, noisy, against = (
            rows[name] for name in ("label alone", "labels of noisy copies", "labels of noisy copies, references")
        )
        assert alone is not None and noisy is not None and against is not None
        deaf = judge_defence(model, model, *sides, references=Repeated(train, plain=train, count=2), copies=0)
        assert not found.unheard and deaf.unheard and deaf.helps is not True
        assert alone.tpr == 0 and against.roc.auc > max(alone.roc.auc, noisy.roc.auc) + 0.03

    def test_training_unasked_keeps_to_its_budget(
        self, learnt: tuple[nn.Module, Pair, Pair], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, members, others = learnt
        found = alike_module.references_for(Target(model), rounded(model), (members, others), None, 0)
        assert found.plain is not None and found.defended is not None and len(found.plain) == 4
        for one, other in zip(found.plain.models, found.defended.models, strict=True):
            assert torch.equal(other.logits(members[0]), read(rounded(one)).logits(members[0]))
        monkeypatch.setattr(alike_module, "LIMIT", 10)
        verdict = judge_defence(model, rounded(model), members, others, copies=0)
        assert verdict.unheard and "ask for them (references=4)" in verdict.notes[0]
        with pytest.raises(UsageError, match="a Repeated"):
            judge_defence(model, answering(model, lambda s, _: s, name="secret"), members, others, references=4)
        with pytest.raises(UsageError, match="an even number"):
            judge_defence(model, rounded(model), members, others, references=3)

    def test_copies_of_a_record_stay_together_and_what_is_on_both_sides_is_not_judged(self) -> None:
        x = torch.arange(20.0).repeat(3)[:, None]
        members = x, torch.arange(60)
        others = torch.cat([torch.arange(5.0), torch.arange(100.0, 130.0)])[:, None], torch.arange(35)
        for seed in range(5):
            (known, judged), (known_out, judged_out) = halved(members, others, seed)
            assert not set(known[0][:, 0].tolist()) & set(judged[0][:, 0].tolist())
            assert sorted([*known[1].tolist(), *judged[1].tolist()]) == list(range(60)) and len(known[1]) == 30
            assert set(range(5)) <= set(known[0][:, 0].tolist()) and set(range(5)) <= set(known_out[0][:, 0].tolist())
            assert len(known_out[1]) + len(judged_out[1]) == 35
        with pytest.raises(DataError, match="7 different members"):
            halved((x % 7, torch.arange(60)), others, 0)
        with pytest.raises(DataError, match="on the other side too"):
            halved(members, (x, torch.arange(60)), 0)


class TestVerdict:
    def test_the_strongest_tells_most_at_few_false_alarms_whatever_its_area(self) -> None:
        low = [float(k) for k in range(20)]
        broad = exposed([15.5] * 20, low)  # an area of .8; nobody beyond all but one of the others
        narrow = exposed([50.0] * 4 + [-1.0] * 16, low)  # an area of .2, four found for certain
        wide = exposed([50.0] * 4 + [3.0] * 16, low)  # four as well, and a larger area
        assert broad.roc.auc > wide.roc.auc > narrow.roc.auc and narrow.tpr == wide.tpr == 0.2 > broad.tpr
        hits = Utility(torch.ones(4, dtype=torch.bool), None)
        same = [MembershipScores(torch.ones(3), torch.ones(3))]
        none = change_of(same, same, seed=0)
        rows = [
            Row("broad", False, broad, broad), Row("narrow", True, narrow, None), Row("wide", True, narrow, wide),
            Row("unheard", True, None, None),
        ]
        for order in itertools.permutations(rows):
            verdict = DefenceVerdict(order, hits, hits, none, unheard=False)
            assert verdict.strongest().attack == "wide"
            assert verdict.strongest(defended=False).attack in ("narrow", "wide")
            assert verdict.interval() == wide.roc.tpr_interval(wide.fpr, 1 - 0.05 / 2)  # of two that were run
            assert verdict.interval(defended=False) == narrow.roc.tpr_interval(narrow.fpr, 1 - 0.05 / 3)

    def test_the_accuracy_given_up_is_paired(self) -> None:
        before = torch.tensor([1, 1, 1, 0] * 50).bool()
        after = torch.tensor([1, 1, 0, 0] * 50).bool()
        row = Row("one", False, exposed([1.0, 2.0], [1.0, 2.0]), exposed([1.0, 2.0], [1.0, 2.0]))
        same = [MembershipScores(torch.ones(3), torch.ones(3))]
        verdict = DefenceVerdict(
            (row,), Utility(before, None), Utility(after, None), change_of(same, same, seed=0), unheard=False
        )
        assert (verdict.plain.accuracy, verdict.defended.accuracy) == (0.75, 0.5)
        # (51 - 1) / 202, and 1.96 sqrt((52 / 202 - (50 / 202)^2) / 202).
        half = 1.959964 * np.sqrt((52 / 202 - (50 / 202) ** 2) / 202)
        assert verdict.loss.low == pytest.approx(50 / 202 - half, abs=1e-6)
        assert verdict.loss.high == pytest.approx(50 / 202 + half, abs=1e-6)

    @pytest.mark.parametrize("levels", [12, 10**6])
    def test_the_change_is_that_of_the_best_curves_with_and_without_ties(self, levels: int) -> None:
        dice = np.random.default_rng(0)
        scores = [
            MembershipScores(*(
                torch.from_numpy(dice.integers(0, levels, n) + shift * levels / 12) for n, shift in ((70, up), (55, 0.0))
            )) for up in (0.0, 3.0, 1.0, 2.0)
        ]
        found = change_of(scores[:2], scores[2:], seed=1, draws=50)
        assert found.fpr == pytest.approx(10 / 55)
        best = [max(roc(one.members.numpy(), one.non_members.numpy()).tpr_at(10 / 55) for one in side)
                for side in (scores[:2], scores[2:])]
        assert (found.plain, found.defended) == tuple(best) and found.value == best[1] - best[0]
        assert found.interval.low <= found.value <= found.interval.high

    def test_chance_is_not_called_a_change(self) -> None:
        """Two attacks each, of one law: at most one in twenty says that the defence moved something, in either direction."""
        wrong = 0
        for seed in range(60):
            dice = np.random.default_rng(seed)
            sides = [[MembershipScores(*(torch.from_numpy(dice.normal(up, 1, 120)) for up in (1.0, 0.0))) for _ in range(2)]
                     for _ in range(2)]
            span = change_of(*sides, seed=seed, draws=200).interval
            wrong += not span.low <= 0 <= span.high
        assert wrong <= 8  # P(more than 8 of 60 at one in twenty) = .002

    def test_fewer_attacks_are_no_defence(self) -> None:
        """The best of eleven attacks that find nothing beats that of two by chance: no change, and a true one is still seen."""

        def scores(dice: np.random.Generator, count: int, up: float = 0.0) -> list[MembershipScores]:
            return [MembershipScores(*(torch.from_numpy(dice.normal(mean, 1, 200)) for mean in (up, 0.0))) for _ in range(count)]

        wrong = seen = 0
        for seed in range(30):
            dice = np.random.default_rng(seed)
            many, few = scores(dice, 11), scores(dice, 2)
            fewer, more = (change_of(*sides, seed=seed, draws=200).interval for sides in ((many, few), (few, many)))
            wrong += (fewer.high < 0) + (more.low > 0)
            seen += change_of([*many, *scores(dice, 1, 1.5)], few, seed=seed, draws=200).interval.high < 0
        assert wrong <= 5 and seen == 30  # P(more than 5 of 60 at one in forty) = .004


class TestReferences:
    def test_every_one_repeats_the_whole_procedure_on_half_of_the_records(self) -> None:
        x, y = pair(40, 3)
        seen: list[Tensor] = []

        def build() -> nn.Module:
            return nn.Linear(10, 3)

        def train(split: Split, seed: int) -> nn.Module:
            seen.append(split.tensors()[0])
            plan = Schedule(epochs=1)
            return selena(build, split, models=3, outside=1, train=lambda *_: None, schedule=plan, seed=seed).student

        state = torch.get_rng_state()
        made = defended_references(train, (x, y), count=4, seed=5)
        assert torch.equal(torch.get_rng_state(), state)
        assert [len(one) for one in seen] == [20] * 4
        for inside, records in zip(made.inside, seen, strict=True):
            assert torch.equal(x[inside], records)
        assert torch.equal(made.inside[0], ~made.inside[1]) and torch.equal(made.inside[2], ~made.inside[3])
        again = defended_references(train, (x, y), count=4, seed=5)
        assert torch.equal(made.logits, again.logits) and not torch.equal(made.logits[0], made.logits[1])
        assert torch.equal(made.logits[1], made.models[1].logits(x))

    def test_what_cannot_be_trained_is_refused(self) -> None:
        x, y = pair(8, 0)
        for train, count, records, told in (
            (lambda *_: nn.Linear(10, 3), 3, (x, y), UsageError), (lambda *_: None, 2, (x, y), ModelError),
            (lambda *_: nn.Linear(10, 3), 2, (x[:3], y[:3]), DataError), (lambda *_: nn.Linear(10, 3), 2, (x, y - 1), DataError),
        ):
            with pytest.raises(told):
                defended_references(train, records, count=count)  # type: ignore[arg-type]

    def test_an_output_defence_is_put_around_another_model_as_around_the_owners(
        self, learnt: tuple[nn.Module, Pair, Pair]
    ) -> None:
        model, members, others = learnt
        with isolated(7):
            other = Target(nn.Linear(10, 3))
        x = members[0]
        plain = Target(model)
        for made, wanted in (
            (rounded(plain, digits=2), rounded(other, digits=2)), (top_scores(plain, k=2), top_scores(other, k=2)),
            (rounded(top_scores(model, k=2)), rounded(top_scores(other, k=2))),
        ):
            around = output_defence(made, plain)
            assert around is not None and torch.equal(around(other, members, others).scores(x), wanted.scores(x))
        mute = output_defence(labels_alone(model), plain)
        assert mute is not None and mute(other, members, others).access is Access.LABEL
        assert output_defence(other, plain) is None
        assert output_defence(answering(model, lambda s, _: s, name="secret"), plain) is None
        # The same model twice is no defence; a predictor that holds it, and answers something else, is one that nobody knows.
        same = output_defence(Target(model), plain)
        assert same is not None and same(other, members, others) is other
        assert output_defence(Target(Hiding(model)), plain) is None and output_defence(plain, Target(Hiding(model))) is None
        # MemGuard again: the same bound, labels kept, a key and a classifier of its own.
        guard = output_defence(memguard(model, members, others, distortion=0.3, steps=10, key=b"owner"), plain)
        assert guard is not None
        guarded = guard(other, members, others)
        first, second = other.scores(x).double(), guarded.scores(x).double()
        assert torch.equal(first.argmax(1), second.argmax(1)) and float((first - second).abs().sum(1).mean()) < 0.5

    def test_rounded_scores_are_read_with_what_they_lost(self) -> None:
        given = torch.tensor([[0.41, 0.04, 0.03, 0.52], [0.97, 0.01, 0.01, 0.01], [0.44, 0.44, 0.04, 0.08]])
        told = rounded(Target(lambda x: given[x[:, 0].long()], outputs="probabilities"))
        x = torch.arange(3.0)[:, None]
        seen = read(told).logits(x).exp()
        # .4, 0, 0, .5 lost .1; 1, 0, 0, 0 lost nothing; .5, .4, 0, .1. Half a step of .1 is then shared by four classes.
        for row, scores in zip(seen, ([0.425, 0.025, 0.025, 0.525], [1, 0, 0, 0], [0.5, 0.4, 0, 0.1]), strict=True):
            wanted = 0.95 * torch.tensor(scores) + 0.05 / 4
            assert torch.allclose(row.double(), wanted.double(), atol=1e-6)
        assert read(labels_alone(told)).access is Access.LABEL and read(top_scores(told)) is not told

    @pytest.mark.parametrize("digits", [1, 2])
    def test_the_signal_survives_scores_that_are_all_zeros_and_ones(self, digits: int) -> None:
        """Log-odds rounded to 0 and 1 on most records: finite scores, and members are still told."""
        model = toy(Split(*SIDES[0]), 99)
        pool = torch.cat([SIDES[0][0], SIDES[1][0]]), torch.cat([SIDES[0][1], SIDES[1][1]])
        made = defended_references(toy, pool, count=8, protect=lambda one, *_: rounded(one, digits=digits))
        assert bool(made.logits.isfinite().all())
        found = variance_prior(read(rounded(model, digits=digits)), *SIDES, references=made)
        assert bool(found.members.isfinite().all()) and bool(found.non_members.isfinite().all())
        assert roc(found.members.numpy(), found.non_members.numpy()).auc > 0.65

    def test_labels_alone_leave_references_that_answer_labels(self, learnt: tuple[nn.Module, Pair, Pair]) -> None:
        model, members, _ = learnt
        made = train_references(model, members, count=2, schedule=Schedule(epochs=1))
        sides: list[tuple[Pair, Pair]] = []

        def silenced(one: Target, inside: Pair, outside: Pair) -> Target:
            sides.append((inside, outside))
            return labels_alone(one)

        mute = protected(made, silenced)
        for inside, (own, other) in zip(made.inside, sides, strict=True):  # each is protected as by its owner
            assert torch.equal(own[0], made.x[inside]) and torch.equal(other[1], made.y[~inside])
        assert all(one.access is Access.LABEL for one in mute.models)
        assert torch.equal(mute.logits.argmax(2), made.logits.argmax(2))
        assert torch.equal(mute.holding(members), made.inside) and protected(made, None) is made
