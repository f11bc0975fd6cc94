"""What a check is given: grading, samples, shared results and who pays for them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Linf, Patch, Target, Threat
from hauberk.checks.context import Context, Memo, NotRun, Settings, grade
from hauberk.checks.engine import run_check, run_checks, select_checks
from hauberk.core.access import Access
from hauberk.core.card import Card
from hauberk.core.errors import UsageError
from hauberk.core.finding import Interval, Status
from hauberk.methods import load_methods

FACTS = {"pillar": "trust", "unit": "rate", "better": "higher", "warn": 0.8, "fail": 0.5, "advice": ()}


def answer(context: Context) -> object:
    """Stand in for a check."""
    return context.finding("fine")


def card(function: object = answer, **facts: object) -> Card:
    return Card("trust/test", "check", function, "Is it so?", Access.SCORE, preset="quick", facts={**FACTS, **facts})


@pytest.fixture
def context(digits: Data, digits_model: nn.Module) -> Context:
    return Context(Target(digits_model), digits, Settings(), card())


@pytest.mark.parametrize(
    ("value", "interval", "gate", "status"),
    [
        (0.9, (0.85, 0.95), {}, Status.PASS),
        (0.7, (0.6, 0.8), {}, Status.WARN),
        (0.4, (0.3, 0.6), {}, Status.FAIL),
        (0.85, (0.45, 0.99), {}, Status.WARN),        # the interval crosses the fail limit
        (0.4, (0.35, 0.45), {"min": 0.3}, Status.PASS),  # a gate replaces both limits
        (0.4, (0.25, 0.55), {"min": 0.3}, Status.WARN),
        (0.2, (0.1, 0.3), {"min": 0.3}, Status.FAIL),
        (0.9, (0.8, 1.0), {"max": 0.5}, Status.FAIL),
        (math.nan, None, {}, Status.WARN),
    ],
)
def test_grading(value: float, interval: tuple[float, float] | None, gate: dict[str, float], status: Status) -> None:
    found, note = grade(value, Interval(*interval) if interval else None, FACTS, gate)
    assert found is status
    assert ("crosses" in note) == (interval is not None and found is Status.WARN and value > 0.3 and value != 0.7)


def test_lower_is_better_is_graded_the_other_way_round() -> None:
    facts = {**FACTS, "better": "lower", "warn": 0.1, "fail": 0.3}
    assert [grade(value, None, facts, {})[0] for value in (0.05, 0.2, 0.4)] == [Status.PASS, Status.WARN, Status.FAIL]


def test_smaller_samples_are_the_beginning_of_larger_ones(context: Context) -> None:
    few, many = context.sample(quick=10)[0], context.sample(quick=50)[0]
    assert torch.equal(few, many[:10])
    assert len(context.sample(quick=10**6)[0]) == len(context.data.test)


def test_a_shared_result_is_made_once_and_charged_to_all_that_rest_on_it(digits: Data, digits_model: nn.Module) -> None:
    target, memos, made = Target(digits_model), {}, []
    x, _ = digits.test.first(8)

    def base(view: Target) -> Tensor:
        made.append("base")
        return view.labels(x)

    def second(context: Context, view: Target) -> Tensor:
        made.append("second")
        return context.shared("base", base) + view.labels(x[:3]).sum()

    found = []
    for _ in range(2):
        context = Context(target, digits, Settings(), card(), memos)
        context.shared("second", lambda view, context=context: second(context, view))
        context.target.labels(x[:1])
        found.append(context.finding("so", value=1.0, n=8))
    assert made == ["second", "base"]
    assert [one.queries for one in found] == [8 + 3 + 1] * 2
    assert target.ledger.queries == 8 + 3 + 1 + 1
    assert all(isinstance(memo, Memo) for memo in memos.values())


def test_radii_in_other_norms_are_derived_and_said(context: Context) -> None:
    assert context.threat_in("linf").eps == 0.1
    assert context.threat_in("l2").eps == pytest.approx(0.25 * 0.1 * math.sqrt(64))
    assert context.threat_in("l1").eps == pytest.approx(0.125 * 0.1 * 64)
    assert context.threat_in("l0").eps == 1
    assert len(context.notes) == 3
    both = Settings(threats=(Linf(0.1), dataclasses.replace(Linf(2.0), norm="l2")))
    named = Context(context.target, context.data, both, card())
    assert named.threat_in("l2").eps == 2.0
    assert named.notes == []
    back = Context(
        context.target, context.data, Settings(threats=(dataclasses.replace(Linf(0.2), norm="l2"),)), card()
    )
    assert back.threat_in("linf").eps == pytest.approx(0.1)  # the same pair of radii, the other way round


def test_no_radius_is_ever_derived_as_zero_and_a_patch_stays_a_patch(context: Context) -> None:
    few = Context(context.target, context.data, Settings(threats=(Threat("l0", 4),)), card())
    assert few.threat_in("l0").eps == 4
    assert [few.threat_in(norm).eps for norm in ("linf", "l2", "l1")] == pytest.approx([0.1, 0.2, 0.8])
    assert "a tenth of the input range" in few.notes[0]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 0, 0] = True
    patch = Context(context.target, context.data, Settings(threats=(Patch(mask),)), card()).threat_in("l2")
    assert patch.eps == math.inf
    assert patch.mask is not None
    assert int(patch.mask.sum()) == 1


def test_what_goes_wrong_in_a_check_is_in_its_finding(digits: Data, digits_model: nn.Module) -> None:
    def broken(context: Context) -> object:
        """Break."""
        raise ZeroDivisionError("by zero")

    def silent(context: Context) -> object:
        """Do not run."""
        raise NotRun("there is no moon")

    target = Target(digits_model)
    error = run_check(card(broken), target, digits, Settings())
    assert (error.status, error.reason) == (Status.ERROR, "ZeroDivisionError: by zero")
    assert "in broken" in error.notes[-1]
    assert (quiet := run_check(card(silent), target, digits, Settings())).status is Status.NOT_RUN
    assert quiet.reason == "there is no moon"
    gated = run_check(card(silent), target, digits, Settings(gates={"trust/test": {"run": True}}))
    assert gated.status is Status.FAIL
    assert "there is no moon" in gated.reason
    low = run_check(card(), target.seen_at(Access.LABEL), digits, Settings())
    assert (low.status, low.reason) == (Status.NOT_RUN, "it needs SCORE access, LABEL is granted")


def test_a_limit_in_the_plan_has_the_last_word_also_over_a_status_the_check_sets_itself(context: Context) -> None:
    gated = Context(context.target, context.data, Settings(gates={"trust/test": {"min": 0.5}}), card())
    assert gated.finding("so", value=0.9, n=10, status=Status.FAIL).status is Status.PASS
    assert gated.finding("so", value=0.1, n=10, status=Status.PASS).status is Status.FAIL
    must_run = Context(context.target, context.data, Settings(gates={"trust/test": {"run": True}}), card())
    assert must_run.finding("so", status=Status.PASS).status is Status.PASS


def test_checks_are_selected_by_name_pillar_and_glob() -> None:
    names = [one.name for one in load_methods().cards("check")]
    assert [one.name for one in select_checks("quick", ["robustness/pgd-linf"])] == ["robustness/pgd-linf"]
    pillar = [one.name for one in select_checks("quick", ["robustness"])]
    assert pillar == [name for name in names if name.startswith("robustness/")]
    assert [one.name for one in select_checks("quick", ["*/pgd-l*"])] == [name for name in names if "/pgd-l" in name]
    assert "robustness/pgd-linf" not in [one.name for one in select_checks("quick", (), ["*pgd*"])]
    with pytest.raises(UsageError, match="Did you mean 'robustness/pgd-linf'"):
        select_checks("quick", ["robustness/pgd-lnf"])


def test_a_spent_time_budget_leaves_the_rest_as_not_run(digits: Data, digits_model: nn.Module) -> None:
    from hauberk.core.access import Budget

    cards = select_checks("quick", ["robustness/clean-accuracy", "robustness/pgd-linf"])
    found = list(run_checks(cards, Target(digits_model), digits, Settings(), budget=Budget(seconds=0.0)))
    assert [one.status for one in found] == [Status.NOT_RUN] * 2
    assert "time budget of 0 s" in found[0].reason
