"""The fuzzer: validity, lineage, objectives, replay, minimal failures, the corpus on disk, and the random control."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Split, Target
from hauberk.core.access import Access
from hauberk.core.errors import DataError, HauberkError, UsageError
from hauberk.robustness.fuzz import Failure, Options, Rule, fuzz, load_failures, mutators, objectives, own
from hauberk.robustness.fuzz.campaign import prepare
from hauberk.robustness.fuzz.cluster import Faults
from hauberk.robustness.fuzz.corpus import read_arrays, write_arrays
from hauberk.robustness.fuzz.coverage import criterion
from hauberk.robustness.fuzz.loop import Search
from hauberk.robustness.fuzz.minimise import fails_again, minimised, replay
from hauberk.robustness.fuzz.mutate import AFFINE, ATTACKS, Job, Step, mutated
from hauberk.robustness.fuzz.results import scores

SMALL = Options(budget=240, batch=80, seed=3)
NATURAL = ("gaussian-noise", "rotate", "translate", "contrast", "salt-and-pepper")


# ---- validity


def test_few_pixels_may_take_any_value_and_many_only_small_changes() -> None:
    rule, x = Rule(alpha=0.02, beta=0.2), torch.zeros(5, 1, 10, 10)
    changed = x.clone()
    changed[0, 0, 0, 0] = 1.0  # one of 100 pixels, by the whole range
    changed[1] += 0.19  # all, by less than beta
    changed[2] += 0.21  # all, by more
    changed[3, 0, 0, :2] = 1.0  # two of 100: not below alpha
    changed[4, 0, 0, :2] = 0.1
    assert rule.holds(changed, x, (0.0, 1.0)).tolist() == [True, True, False, False, True]
    # The same on other bounds: the share of the range decides.
    assert rule.holds(changed * 255, x, (0.0, 255.0)).tolist() == [True, True, False, False, True]


def test_channels_of_a_pixel_count_once() -> None:
    x = torch.zeros(1, 3, 10, 10)
    changed = x.clone()
    changed[0, :, 0, 0] = 1.0
    assert Rule(alpha=0.02).holds(changed, x, (0.0, 1.0)).all()


@pytest.fixture(scope="module")
def searched(digits: Data, digits_model: nn.Module) -> Search:
    bench, known = prepare(Target(digits_model), digits, 40, SMALL, (), NATURAL)
    search = Search(bench, {"kmnc": criterion("kmnc", known), "nbc": criterion("nbc", known)}, guided=True)
    search.run()
    return search


def test_no_lineage_has_two_affine_steps_and_all_are_valid_against_the_reference(searched: Search) -> None:
    bench = searched.bench
    lineages = [*searched.queue, *searched.failures]
    affine = [sum(bench.mutators[step.mutator].kind == AFFINE for step in one.steps) for one in lineages]
    assert max(affine) == 1
    assert max(len(one.steps) for one in lineages) > 1
    images, references = (torch.stack([getattr(one, name) for one in lineages]) for name in ("image", "reference"))
    assert bench.options.rule.holds(images, references, (0.0, 1.0)).all()
    clean = torch.stack([bench.seeds.x[one.origin] for one in lineages])
    still = torch.tensor([not count for count in affine])
    assert torch.equal(references[still], clean[still])  # pixel changes never move the reference
    assert (references[~still] != clean[~still]).flatten(1).any(1).float().mean() > 0.9


def test_small_changes_do_not_add_up(digits: Data) -> None:
    """Against the last mutant each step of 0.15 would pass; against the reference the second does not."""
    bright = own("bright", lambda x, level, generator: x + 0.15)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = dataclasses.replace(digits, test=Split(torch.zeros(8, 1, 8, 8), model(torch.zeros(8, 1, 8, 8)).argmax(1)), train=None)
    options = Options(budget=64, batch=32)
    bench, known = prepare(Target(model), data, 8, options, (), [bright])
    search = Search(bench, {"kmnc": criterion("kmnc", known)}, guided=True)
    search.queue = [dataclasses.replace(one, image=one.image + 0.15) for one in search.queue]
    search._round()
    assert (search.made, search.done) == (32, 0)


# ---- replay


def test_every_mutant_is_made_again_from_its_seed_bit_by_bit(searched: Search) -> None:
    bench = searched.bench
    assert len(searched.failures) > 5
    for one in [*searched.failures, *searched.queue[-20:]]:
        at = slice(one.origin, one.origin + 1)
        image, reference = replay(one.steps, bench.seeds.x[at], bench.seeds.y[at], dict(bench.mutators), bench.job)
        assert torch.equal(image[0], one.image), one.steps
        assert torch.equal(reference[0], one.reference), one.steps


@pytest.mark.parametrize("shape", [(1, 8, 8), (6,)])
def test_every_mutator_keeps_bounds_and_makes_a_sample_again_alone(
    digits: Data, digits_model: nn.Module, shape: tuple[int, ...]
) -> None:
    x, y = digits.test.first(6)
    model: nn.Module = digits_model
    if len(shape) == 1:
        x, model = x.flatten(1)[:, 20:26].contiguous(), nn.Linear(6, 10)
    job = Job(Target(model), (0.0, 1.0), 0.1)
    known = mutators(shape, Access.GRADIENT)
    assert len(known) == (2 if len(shape) == 1 else len(known) - 3) + len(ATTACKS)
    for one in known.values():
        batch = mutated(one, x, y, (3, 11), job)
        assert batch.shape == x.shape and float(batch.min()) >= 0 and float(batch.max()) <= 1
        for place in (0, 4):
            alone = mutated(one, x[place : place + 1], y[place : place + 1], (3, 11), job, skip=place)
            assert (alone[0] - batch[place]).abs().max() < 1e-5, one.name


def test_attacks_need_gradients_and_corruptions_images() -> None:
    assert not set(ATTACKS) & set(mutators((1, 8, 8), Access.SCORE))
    assert set(ATTACKS) < set(mutators((1, 8, 8), Access.GRADIENT))
    with pytest.raises(UsageError, match="rotate"):
        mutators((6,), Access.SCORE, ["rotate"])


# ---- results


def test_distinct_failures_are_led_by_points_farther_apart_than_the_radius() -> None:
    faults = Faults(1.0)

    def add(at: float, answer: int = 1, kind: str = "misclassification") -> int:
        blank = torch.zeros(1)
        one = Failure(0, (), kind, 0, answer, blank, blank, torch.tensor([at]))
        faults.add(one)
        return one.cluster

    assert [add(0.0), add(0.9), add(1.1), add(2.2), add(0.0, answer=2), add(0.0, kind="crash"), add(2.1)] == [0, 0, 1, 2, 3, 4, 1]
    assert faults.count == 5


def test_accuracy_precision_and_recall_are_those_of_the_table() -> None:
    confusion = torch.tensor([[3, 1, 0, 0], [2, 2, 0, 1], [0, 0, 0, 0]])  # the third class was never there
    accuracy, precision, recall = scores(confusion)
    assert accuracy == pytest.approx(5 / 9)
    assert precision == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert recall == pytest.approx((3 / 4 + 2 / 5) / 2)


def test_a_campaign_counts_what_it_says(digits: Data, digits_model: nn.Module, tmp_path: Path) -> None:
    target = Target(digits_model)
    found = fuzz(target, digits, seeds=40, options=SMALL, with_mutators=NATURAL, folder=tmp_path)
    for one in (found.guided, found.control):
        assert one.mutants == 240
        assert sum(row.valid for row in one.mutators.values()) == 240
        assert sum(row.made for row in one.mutators.values()) == one.made
        assert sum(row.failing for row in one.mutators.values()) == one.failing == len(one.failures) == int(one.broken.sum())
        assert sum(row.fresh for row in one.mutators.values()) == one.distinct == sum(one.per_seed())
        assert one.accuracy == pytest.approx(1 - one.failing / 240)  # misclassification alone makes a mutant fail here
        assert one.after["kmnc"] > one.before["kmnc"] and one.before == found.control.before
    gained = found.guided.after["kmnc"] - found.guided.before["kmnc"]
    assert sum(row.gain for row in found.guided.mutators.values()) == pytest.approx(gained * 122 * 1000, abs=0.5)
    assert len(found.minimal) == found.guided.distinct > 3
    with torch.no_grad():
        images = torch.stack([one.image for one in found.minimal])
        assert digits_model(images).argmax(1).tolist() == [one.answer for one in found.minimal]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["guided"]["distinct"] == found.guided.distinct and written["control"]["distinct"] == found.control.distinct
    assert written["distinct_ratio"] == pytest.approx(found.ratio)
    assert "never as security" in found.describe()


def test_minimal_failures_fail_again_and_are_no_larger(
    digits: Data, digits_model: nn.Module, searched: Search, tmp_path: Path
) -> None:
    found = fuzz(digits_model, digits, seeds=40, options=SMALL, with_mutators=NATURAL, folder=tmp_path)
    bench = searched.bench
    first = {one.cluster: one for one in reversed(found.guided.failures)}
    smaller = 0
    for one, stored in zip(found.minimal, load_failures(tmp_path), strict=True):
        before = first[one.cluster]
        assert one.replays and fails_again(one, bench)
        assert len(one.steps) <= len(before.steps)
        assert torch.equal(stored.image, one.image) and stored.steps == one.steps and fails_again(stored, bench)
        smaller += one.blend < 1 or one.steps != before.steps
        for place in range(len(one.steps)):  # dropping any step that is left lets the model be right, or is not valid
            if one.blend < 1 or len(one.steps) == 1:
                continue
            rest = one.steps[:place] + one.steps[place + 1 :]
            at = slice(one.origin, one.origin + 1)
            image, reference = replay(rest, bench.seeds.x[at], bench.seeds.y[at], dict(bench.mutators), bench.job)
            right = digits_model(image).argmax(1) == bench.seeds.y[at]
            assert bool(right) or not bool(bench.options.rule.holds(image, reference, (0.0, 1.0)))
    assert smaller > 0.5 * len(found.minimal)


def test_minimal_failures_are_made_smaller_until_nothing_helps() -> None:
    """With b at level 5 no step can go; once b is at level 2, a is not needed any more."""

    class Told(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = (x[:, 0] * 100).round(), (x[:, 1] * 100).round()
            wrong = ((a > 0) & (b >= 2)) | (b == 2)
            return torch.stack([(~wrong).float(), wrong.float()], 1)

    def put(place: int) -> Callable[[Tensor, int, torch.Generator], Tensor]:
        def change(x: Tensor, level: int, _generator: torch.Generator) -> Tensor:
            made = x.clone()
            made[:, place] = level / 100
            return made

        return change

    data = table(torch.zeros(4, 4), torch.zeros(4).long())
    bench, _ = prepare(Target(Told()), data, 4, Options(), (), [own("a", put(0)), own("b", put(1))])
    blank, steps = torch.zeros(4), (Step("a", 1, 1, 0), Step("b", 5, 2, 0))
    small = minimised(Failure(0, steps, "misclassification", 0, 1, blank, blank, torch.zeros(4)), bench)
    assert small.steps == (Step("b", 2, 2, 0),) and small.replays and fails_again(small, bench)


def test_same_seed_same_campaign_and_no_trace(digits: Data, digits_model: nn.Module) -> None:
    state, before = torch.get_rng_state(), [one.clone() for one in digits_model.parameters()]
    little = dataclasses.replace(SMALL, budget=96)
    a, b = (fuzz(digits_model, digits, seeds=30, options=little).table() for _ in range(2))  # every mutator
    assert a == b
    c = fuzz(digits_model, digits, seeds=30, options=dataclasses.replace(little, seed=4), with_mutators=NATURAL).table()
    assert c["guided"]["curve"] != a["guided"]["curve"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(before, digits_model.parameters(), strict=True))
    assert all(not one._forward_hooks for one in digits_model.modules())


def test_the_guided_search_finds_more_than_random_mutation(digits: Data, digits_model: nn.Module) -> None:
    found = fuzz(digits_model, digits, options=Options(budget=1200, seed=7), with_mutators=NATURAL)
    assert found.guided.distinct > found.control.distinct
    span = found.ratio_interval
    assert span.low <= found.ratio <= span.high


def test_affine_mutators_alone_mutate_clean_seeds_alone(digits: Data, digits_model: nn.Module) -> None:
    bench, known = prepare(Target(digits_model), digits, 10, Options(budget=400, batch=64, seed=5), (), ["rotate", "translate"])
    search = Search(bench, {"kmnc": criterion("kmnc", known)}, guided=True)
    search.run()
    assert search.done == 400 and len(search.queue) == len(bench.seeds)
    assert all(len(one.steps) == 1 for one in search.failures)


def test_only_affine_maps_move_the_reference(digits: Data, digits_model: nn.Module) -> None:
    names = ["perspective", "curve", "elastic-transform", "rotate", "gaussian-noise"]
    bench, known = prepare(Target(digits_model), digits, 30, Options(budget=300, batch=100, seed=5), (), names)
    assert [name for name, one in bench.mutators.items() if one.kind == AFFINE] == ["rotate"]
    everything = mutators((1, 8, 8), Access.SCORE)
    assert {name for name, one in everything.items() if one.kind == AFFINE} == {"translate", "scale", "shear", "rotate"}
    search = Search(bench, {"kmnc": criterion("kmnc", known)}, guided=True)
    search.run()
    assert search.done == 300
    bent = [
        one for one in [*search.queue, *search.failures]
        if one.steps and all(step.mutator in names[:3] for step in one.steps)
    ]
    assert bent  # mild ones are valid
    for one in bent:
        clean = bench.seeds.x[one.origin]
        assert torch.equal(one.reference, clean)
        assert bench.options.rule.holds(one.image[None], clean[None], (0.0, 1.0)).all()


def test_aiming_at_coverage_covers_more_than_aiming_at_faults(digits: Data, digits_model: nn.Module) -> None:
    gained = {}
    for aim in ("faults", "coverage"):
        options = Options(budget=300, per_seed=1, batch=30, seed=1, aim=aim)
        bench, known = prepare(Target(digits_model), digits, 60, options, (), NATURAL)
        search = Search(bench, {"kmnc": criterion("kmnc", known)}, guided=True)
        search.run()
        gained[aim] = search.criteria["kmnc"].value - search.before["kmnc"]
        assert float(search.gained.sum()) == pytest.approx(gained[aim] * 122 * 1000, abs=0.5)
    assert gained["coverage"] > gained["faults"]
    with pytest.raises(UsageError, match="coverage"):
        fuzz(digits_model, digits, options=Options(aim="both"))


# ---- objectives


class Odd(nn.Module):
    """A linear model that fails where its first input is above a limit."""

    def __init__(self, limit: float, how: str) -> None:
        super().__init__()
        self.linear, self.limit, self.how = nn.Linear(4, 2), limit, how
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        bad = x[:, 0] > self.limit
        if self.how == "crash" and bool(bad.any()):
            raise RuntimeError("index out of range")
        return torch.where(bad[:, None], torch.full_like(out, float("nan")), out) if self.how == "nan" else out


def table(x: Tensor, y: Tensor) -> Data:
    return Data(Split(x, y), bounds=(0.0, 1.0), classes=None if y.is_floating_point() else 2)


@pytest.mark.parametrize(("how", "kind"), [("nan", "not-a-number"), ("crash", "crash")])
def test_nan_and_crashes_are_found_at_the_samples_that_cause_them(how: str, kind: str) -> None:
    x = torch.full((20, 4), 0.2)
    x[:, 0] = 0.45
    data = table(x, torch.zeros(20).long())
    limit = 0.5
    found = fuzz(Odd(limit, how), data, options=Options(budget=200, batch=50), with_mutators=["jitter"])
    failures = [one for one in (*found.guided.failures, *found.control.failures) if one.kind == kind]
    assert failures
    assert all(float(one.image[0]) > limit for one in failures)
    assert found.guided.failing + found.control.failing == len(failures)
    assert all(one.answer == -1 for one in failures)


def test_a_success_of_all_is_one_and_not_nothing() -> None:
    moved = objectives.Objective("moved", lambda case: (case.reading.answers != case.clean).any(1))
    x = torch.full((20, 4), 0.5)
    found = fuzz(
        Odd(2.0, "none"), table(x, torch.zeros(20).long()), options=Options(budget=60, batch=20), objectives=[moved],
        with_mutators=["jitter"],
    )
    assert found.guided.success == found.control.success == 1.0
    assert found.table()["guided"]["attack_success"] == 1.0
    assert "100.0%" in found.describe()


def test_differential_failures_are_where_two_models_differ(digits: Data, digits_model: nn.Module) -> None:
    pruned = copy.deepcopy(digits_model)
    with torch.no_grad():
        for weight in pruned.parameters():
            weight[weight.abs() < 0.05] = 0
    found = fuzz(
        digits_model, digits, seeds=40, options=SMALL, objectives=[objectives.disagreement(Target(pruned))], with_mutators=NATURAL
    )
    assert found.guided.failures
    images = torch.stack([one.image for one in found.guided.failures])
    with torch.no_grad():
        assert (digits_model(images).argmax(1) != pruned(images).argmax(1)).all()


def test_label_invariance_needs_no_true_labels(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(40)
    wrong = dataclasses.replace(digits, test=Split(x, torch.zeros(40).long()))
    found = fuzz(digits_model, wrong, options=SMALL, objectives=objectives.named(["label-invariance"]), with_mutators=NATURAL)
    assert len(found.guided.broken) == 40
    with torch.no_grad():
        before = digits_model(x).argmax(1)
    bench, _ = prepare(Target(digits_model), wrong, 100, SMALL, objectives.named(["label-invariance"]), NATURAL)
    assert torch.equal(bench.seeds.x, x)
    assert all(one.answer != int(before[one.origin]) for one in found.guided.failures)


def test_bounded_change_of_a_regression_is_the_published_inequality() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(30, 4, generator=draw) * 0.5
    weight = torch.tensor([1.0, 2.0, -1.0, 0.5])
    y = x @ weight + 0.01 * torch.randn(30, generator=draw)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.copy_(weight[None])
        model.bias.zero_()
    model.requires_grad_(False)
    mse = float((model(x)[:, 0] - y).square().mean())
    found = fuzz(
        model, table(x, y), options=Options(budget=200, batch=50), objectives=[objectives.bounded_change(factor=5, mse=mse)],
        with_mutators=["jitter"],
    )
    bench, _ = prepare(Target(model), table(x, y), 100, Options(), [objectives.bounded_change(factor=5, mse=mse)], ["jitter"])
    assert found.guided.failures
    for one in found.guided.failures:
        assert float((model(one.image[None])[0, 0] - bench.seeds.y[one.origin]) ** 2) > 5 * mse
    assert found.table()["guided"]["accuracy"] is None


def test_a_model_that_looks_across_the_batch_is_found() -> None:
    class Across(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] - x[:, 0].mean(), x[:, 1]], 1)

    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    relation = objectives.batch_invariance()
    for model, wanted in ((Across(), True), (nn.Linear(4, 2), False)):
        target = Target(model)
        case = objectives.Case(x, None, torch.zeros(6).long(), torch.zeros(6, 2), target)  # type: ignore[arg-type]
        assert relation.fails(case).tolist() == [wanted] * 6


@pytest.mark.parametrize(("rising", "wanted"), [(True, [False, False]), (False, [True, False])])
def test_monotone_features(rising: bool, wanted: list[bool]) -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
    x = torch.tensor([[0.5, 0.1, 0.1], [0.95, 0.1, 0.1]])  # the second would leave the bounds: not judged
    case = objectives.Case(
        x, None, torch.zeros(2).long(), torch.zeros(2, 2), Target(model, bounds=(0.0, 1.0))  # type: ignore[arg-type]
    )
    assert objectives.monotone(0, step=0.1, rising=rising).fails(case).tolist() == wanted
    (written,) = objectives.named(["monotone:0:0.1" if rising else "falling:0:0.1"])
    assert written.fails(case).tolist() == wanted


@pytest.mark.parametrize("name", [
    "monotone", "monotone:1", "monotone:one:0.1", "monotone:1:0", "monotone:0.5:1", "bounded-change:nan", "bounded-change:-1",
    "bounded-change:1:2", "monotone:inf:1",
])
def test_relations_with_wrong_figures_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r":FEATURE:STEP|:MSE|whole number"):
        objectives.named([name])


def test_monotone_of_a_regression_is_of_the_raw_number() -> None:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-2.0, 1.0, 0.0]]))
    x = torch.tensor([[0.5, 0.1, 0.1], [0.2, 0.3, 0.1]]).t().contiguous().t()  # strided, as a mutator may leave it
    target = Target(model, bounds=(0.0, 1.0))
    case = objectives.Case(x, None, torch.zeros(2), torch.zeros(2, 1), target)  # type: ignore[arg-type]
    assert objectives.monotone(0, step=0.1).fails(case).tolist() == [True, True]
    assert objectives.monotone(1, step=0.1).fails(case).tolist() == [False, False]
    assert target.ledger.queries == 8
    for wrong in (objectives.monotone(3, step=0.1), objectives.monotone(0, step=0.1, label=1)):
        with pytest.raises(UsageError, match=r"feature is 3|label is 1"):
            wrong.fails(case)


def test_batch_invariance_sees_answers_that_are_nan_alone_or_in_company() -> None:
    class Company(nn.Module):
        def __init__(self, always: bool) -> None:
            super().__init__()
            self.always = always

        def forward(self, x: Tensor) -> Tensor:
            return x / 0 * 0 if self.always or len(x) > 1 else x  # 0 * inf

    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    for always, wanted in ((True, False), (False, True)):
        case = objectives.Case(x, None, torch.zeros(3).long(), torch.zeros(3, 4), Target(Company(always)))  # type: ignore[arg-type]
        assert objectives.batch_invariance().fails(case).tolist() == [wanted] * 3


def test_black_boxes_are_fuzzed_on_their_answers(digits: Data, digits_model: nn.Module) -> None:
    for access in (Access.SCORE, Access.LABEL):
        found = fuzz(Target(digits_model, access=access), digits, seeds=20, options=SMALL, with_mutators=NATURAL)
        assert found.guided.mutants == 240 and found.guided.failing > 0


# ---- the corpus


class Killed(Exception):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    whole, left = Search._round, [rounds]

    def once(self: Search) -> object:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return whole(self)

    monkeypatch.setattr(Search, "_round", once)


def counted(whole: Callable[[Search], object], calls: list[int]) -> Callable[[Search], object]:
    def run(self: Search) -> object:
        calls.append(self.round)
        return whole(self)

    return run


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_campaign_that_was_killed_goes_on_to_the_same_result(
    digits: Data, digits_model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    def run(folder: str, resume: bool = False) -> dict[str, object]:
        return fuzz(
            digits_model, digits, seeds=30, options=SMALL, with_mutators=NATURAL, folder=tmp_path / folder, resume=resume
        ).table()

    whole = run("whole")
    with monkeypatch.context() as patch:
        killed_after(patch, rounds)
        with pytest.raises(Killed):
            run("killed")
    kept = sorted(path.name for path in (tmp_path / "killed").rglob("round-*.npz"))
    assert kept
    with pytest.raises(UsageError, match="--resume"):
        run("killed")
    again: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_round", counted(Search._round, again))
        assert run("killed", resume=True) == whole
    for path in sorted((tmp_path / "whole").rglob("*")):  # to the byte: a count that comes back as 42.0 is another file
        if path.is_file():
            assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path.name
    everything = len(list((tmp_path / "whole").rglob("round-*.npz")))
    assert len(again) <= everything + 2 - rounds  # no finished round is done again
    with pytest.raises(UsageError, match=r"differs in: answers, digest, (ranges, )?seed"):
        fuzz(
            digits_model, digits, seeds=30, options=dataclasses.replace(SMALL, seed=9), with_mutators=NATURAL,
            folder=tmp_path / "killed", resume=True,
        )


def test_a_campaign_does_not_go_on_with_a_model_that_changed_a_little(
    digits: Data, digits_model: nn.Module, tmp_path: Path
) -> None:
    def run(model: nn.Module) -> None:
        options = Options(budget=32, batch=32)
        fuzz(model, digits, seeds=10, options=options, with_mutators=["rotate"], folder=tmp_path, resume=True)

    run(digits_model)
    run(digits_model)
    rounded, scaled = copy.deepcopy(digits_model), copy.deepcopy(digits_model)
    with torch.no_grad():
        for one in rounded.parameters():
            one.mul_(1 + 2e-7 * torch.rand(one.shape, generator=torch.Generator().manual_seed(0)))
        for one in scaled.parameters():
            one.mul_(1.02)
    run(rounded)  # what another machine makes of the same model
    with pytest.raises(UsageError, match="differs in: answers, ranges"):
        run(scaled)


def _no_archive(path: Path) -> None:
    path.write_bytes(b"PK nothing")


def _objects(path: Path) -> None:
    np.savez(path, json=np.array([{"round": 1}], dtype=object))


def _no_header(path: Path) -> None:
    np.savez(path, x=np.zeros(3))


def _lying_header(path: Path) -> None:
    np.savez(path, json=np.frombuffer(b'{"head": {"round": -5}, "bits": {}}', np.uint8))


def _deep(path: Path) -> None:
    np.savez(path, json=np.frombuffer(b"[" * 100_000, np.uint8))


def _huge_flags(path: Path) -> None:
    text = b'{"head": {}, "bits": {"x": [1099511627776, 1099511627776]}}'
    np.savez(path, json=np.frombuffer(text, np.uint8), x=np.zeros(1, np.uint8))


@pytest.mark.parametrize("spoil", [_no_archive, _objects, _no_header, _lying_header, _deep, _huge_flags])
def test_a_hostile_corpus_is_refused(
    digits: Data, digits_model: nn.Module, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    run = lambda resume: fuzz(  # noqa: E731
        digits_model, digits, seeds=10, options=Options(budget=32, batch=32), with_mutators=["rotate"], folder=tmp_path,
        resume=resume,
    )
    run(False)
    state = tmp_path / "guided" / "state.npz"
    state.unlink()
    spoil(state)
    with pytest.raises(HauberkError):
        run(True)


@pytest.mark.parametrize(
    "row", [["rotate", 9, 1, 0], ["rotate", 1, -1, 0], ["rotate", 1, 1], [1, 1, 1, 1], "rotate", ["rotate", True, 1, 1], None]
)
def test_a_damaged_step_is_refused(row: object) -> None:
    with pytest.raises(DataError, match="step"):
        Step.read(row)
    assert Step.read(["rotate", 2, 5, 1]) == Step("rotate", 2, 5, 1)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {"flags": draw.random((7, 5)) < 0.5, "x": draw.random((3, 2)).astype(np.float32), "none": np.empty((0, 4))}
    write_arrays(tmp_path / "a.npz", {"round": 3}, arrays)
    head, found = read_arrays(tmp_path / "a.npz")
    assert head == {"round": 3}
    assert all(np.array_equal(found[name], one) and found[name].dtype == one.dtype for name, one in arrays.items())


def test_seeds_that_fail_unchanged_are_left_out(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(20)
    y = y.clone()
    y[:5] = (y[:5] + 1) % 10
    data = dataclasses.replace(digits, test=Split(x, y))
    with torch.no_grad():
        right = int((digits_model(x).argmax(1) == y).sum())
    assert len(fuzz(digits_model, data, options=Options(budget=32, batch=32), with_mutators=["rotate"]).guided.broken) == right
    with pytest.raises(DataError, match="all of 20 seeds"):
        fuzz(digits_model, dataclasses.replace(digits, test=Split(x, (digits_model(x).argmax(1) + 1) % 10)))
    for budget in (0, 20.5, True):
        with pytest.raises(UsageError, match="budget"):
            fuzz(digits_model, data, options=Options(budget=budget))  # type: ignore[arg-type]
