"""A stateful defence, what it stops, and what passes it all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Data, Linf, Target
from hauberk.core.errors import DataError, UsageError
from hauberk.core.threat import REFUSED
from hauberk.robustness.attack import square
from hauberk.robustness.attack.adaptive import oars
from hauberk.robustness.detect import Blacklight, refusing
from hauberk.robustness.evaluate import worst_case

SECRET = b"a secret of the tests"


def defence(**options: object) -> Blacklight:
    return Blacklight(window=8, secret=SECRET, **options)


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def test_honest_inputs_pass_and_what_resembles_an_earlier_query_does_not(digits: Data) -> None:
    x = digits.train.tensors()[0]
    guard = defence()
    assert float(guard.flag(x).double().mean()) <= 0.01
    again = defence()
    near = x[:50] + 0.002 * torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not bool(again.flag(x[:50]).any()) and bool(again.flag(near.clamp(0, 1)).all())
    assert bool(defence().flag(torch.cat([x[:1], x[:1]])).equal(torch.tensor([False, True])))  # in one batch as well
    assert again.score(x[:50]).eq(1).all()
    again.forget()
    assert not bool(again.flag(x[:50]).any())


def test_the_score_is_the_largest_share_of_pieces_in_common() -> None:
    """Twelve features in pieces of 3 make 10 hashes; one feature changed changes the pieces that hold it."""
    row = (torch.arange(12.0)[None] / 12).clamp(0, 1)
    for place, hit in ((0, 1), (1, 2), (5, 3), (11, 1)):
        guard = Blacklight(window=3, quantum=0.02, secret=SECRET)
        guard.score(row)
        other = row.clone()
        other[0, place] = 1.0 - other[0, place] + (0.03 if place == 6 else 0.0)
        assert float(guard.score(other)) == pytest.approx((10 - hit) / 10)
    kept = Blacklight(window=3, quantum=0.02, secret=SECRET, keep=4)
    assert float(kept.score(row)) == 0.0 and float(kept.score(row)) == 1.0
    shorter = Blacklight(window=50, secret=SECRET)  # a window wider than the input is the input
    assert shorter.score(row).item() == 0.0 and shorter.score(row).item() == 1.0


def test_memory_is_bounded_and_secrets_differ(digits: Data) -> None:
    x = digits.train.first(30)[0]
    guard = defence(memory=10)
    guard.score(x)
    assert len(guard._prints) == 10 and {one for owners in guard._owners.values() for one in owners} == set(range(20, 30))
    assert float(guard.score(x[:1])) < 1.0 and float(guard.score(x[29:])) == 1.0
    known, other = (Blacklight(window=8, secret=key)._fingerprints(x)[0] for key in (SECRET, b"another"))
    assert not set(known) & set(other)
    assert known == defence()._fingerprints(x)[0]


def test_a_guarded_target_refuses_and_does_not_ask_the_model(digits: Data, digits_model: nn.Module) -> None:
    x = digits.test.first(20)[0]
    inner = Target(digits_model)
    target = refusing(inner, defence())
    torch.testing.assert_close(target.logits(x), inner.logits(x))
    spent = inner.ledger.queries
    assert bool((target.logits(x) == -torch.inf).all()) and inner.ledger.queries == spent
    mixed = target.logits(torch.cat([x[:3], 1 - x[:3]]))
    assert (mixed == -torch.inf).all(1).tolist() == [True] * 3 + [False] * 3
    assert target.access is Access.SCORE


def test_square_is_stopped_and_the_adaptive_search_is_not(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(100)
    right = digits_model(x).argmax(1) == y
    x, y, threat = x[right], y[right], Linf(0.3)
    assert held(digits_model, square(digits_model, x, y, threat, queries=200), y) <= 0.02
    stopped = held(digits_model, square(refusing(digits_model, defence()), x, y, threat, queries=200), y)
    guarded = refusing(digits_model, defence())
    passed = held(digits_model, oars(guarded, x, y, threat, queries=200), y)
    assert stopped >= 0.45 and passed <= 0.05
    assert guarded.ledger.queries <= 30 * len(x)


@pytest.mark.slow  # why it works; that it works is tried by default
def test_larger_steps_after_refusals_are_what_helps(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(100)
    right = digits_model(x).argmax(1) == y
    x, y, threat = x[right], y[right], Linf(0.2)
    left = [
        held(digits_model, oars(refusing(digits_model, defence()), x, y, threat, queries=200, grow=grow), y)
        for grow in (1.5, 1 + 1e-9)
    ]
    assert left[0] <= left[1] - 0.05


def test_refusals_of_another_kind_are_understood_and_never_taken_for_success() -> None:
    """A defence that answers zeros to every second query: with `refused` none of them is a success."""
    calls: list[int] = []

    def answers(x: Tensor) -> Tensor:
        calls.append(len(x))
        logits = torch.stack([x.sum(1) + 5, -x.sum(1)], 1)  # always class 0
        return torch.zeros_like(logits) if len(calls) % 2 else logits

    x, y = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(4, dtype=torch.long)
    wrong = torch.zeros(4, dtype=torch.long)
    z = oars(Target(answers, outputs="logits"), x, wrong, Linf(0.1), queries=20, refused=lambda one: (one == 0).all(1))
    assert len(calls) == 20 and torch.equal(z, z.clamp(0, 1))
    calls.clear()
    closed = Target(lambda at: torch.full_like(answers(at), -torch.inf), outputs="logits")
    assert torch.equal(oars(closed, x, y, Linf(0.1), queries=9), x)
    assert len(calls) == 9  # refused to the end: nothing won, nothing moved


def test_what_makes_no_sense_is_refused(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(4)
    for options in ({"share": 0.0}, {"grow": 1.0}, {"shrink": 1.0}):
        with pytest.raises(UsageError, match="share is"):
            oars(digits_model, x, y, Linf(0.1), **options)
    for options in ({"window": 0}, {"quantum": 0.0}, {"threshold": 1.5}, {"memory": 0}):
        with pytest.raises(UsageError, match="window is"):
            Blacklight(**options)
    with pytest.raises(UsageError, match="finite bounds"):
        Blacklight(bounds=(0.0, float("inf"))).score(x)
    with pytest.raises(DataError, match="NaN"):
        Blacklight().score(x * torch.nan)


def test_a_refusal_is_no_success_of_anybody(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(20)
    y = Target(digits_model).labels(x)
    guarded = refusing(digits_model, defence())
    guarded.labels(x)
    assert guarded.labels(x).tolist() == [REFUSED] * 20 and any("refused 20" in note for note in guarded.notices)
    logits = guarded.logits(x)
    assert not bool(Linf(0.1).reached(guarded.labels(x), y).any() | Linf(0.1).success(logits, y).any())
    assert not bool(Linf(0.1).targeted().success(logits, y).any()) and bool((Linf(0.1).margin(logits, y) > 1e30).all())
    guarded = refusing(digits_model, defence())
    assert worst_case(guarded, x, y, Linf(1e-9), [("random-noise", {"draws": 3})]).accuracy.value == 1.0
