"""The registry: what a decorator records, and what it refuses."""

from __future__ import annotations

import pytest

from hauberk.core.access import Access, Budget, Ledger
from hauberk.core.card import KINDS, Card, Registry
from hauberk.core.errors import BudgetExceeded, HauberkError, UsageError, nearest
from hauberk.methods import load_methods


def documented(x: int, *, steps: int = 3) -> int:
    """Return x."""
    return x + steps


def undocumented(x: int) -> int:
    return x


def test_a_card_reads_options_and_summary_from_the_function() -> None:
    card = Card("one", "audit", documented, "What?")
    assert {name: option.default for name, option in card.options.items()} == {"steps": 3}
    assert card.summary == "Return x."
    assert card.runs_at("thorough")
    assert card.runs_at("standard")
    assert not card.runs_at("quick")


def test_the_registry_refuses_doubles_unknown_kinds_and_missing_docstrings() -> None:
    registry = Registry()
    registry.add(Card("one", "audit", documented, "What?"))
    registry.add(Card("one", "audit", documented, "What?"))  # the same function again: a module loaded twice
    with pytest.raises(ValueError, match="two audits"):
        registry.add(Card("one", "audit", undocumented, "What?"))
    with pytest.raises(ValueError, match="kind 'spell'"):
        registry.add(Card("two", "spell", documented, "What?"))
    with pytest.raises(ValueError, match="no docstring"):
        registry.add(Card("two", "audit", undocumented, "What?"))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'pgd'"):
        load_methods().get("pgdd", "attack")


def test_there_is_a_true_method_of_every_kind() -> None:
    registry = load_methods()
    assert [kind for kind in KINDS if not list(registry.cards(kind))] == []
    assert len(list(registry.cards("check"))) >= 25


def test_every_card_asks_a_question_and_names_a_source_or_is_our_own() -> None:
    for card in load_methods().cards():
        assert card.question.endswith("?"), card.name
        assert card.summary.endswith("."), card.name
        assert len(card.options) <= 8, card.name


def test_access_is_parsed_and_ordered() -> None:
    assert Access.LABEL < Access.SCORE < Access.GRADIENT
    assert Access.parse(" Score ") is Access.SCORE
    with pytest.raises(UsageError, match="Did you mean 'gradient'"):
        Access.parse("gradients")


def test_a_budget_refuses_before_spending() -> None:
    ledger = Ledger(queries=9)
    Budget(queries=10).check(ledger, queries=1)
    with pytest.raises(BudgetExceeded, match="9 queries are spent and 2 more"):
        Budget(queries=10).check(ledger, queries=2)
    with pytest.raises(BudgetExceeded, match="at most 0"):
        Budget(seconds=0.0).check(ledger)
    assert ledger == Ledger(queries=9)


def test_an_error_says_what_what_else_and_what_next_and_survives_pickling() -> None:
    import pickle

    error = UsageError("eps is -1", want="0 or more", fix="Give a radius")
    assert str(error) == "eps is -1. Expected 0 or more. Give a radius."
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UsageError
    assert str(again) == str(error)
    assert isinstance(again, HauberkError)


def test_nearest_lists_what_is_known_when_nothing_is_near() -> None:
    assert nearest("zzz", ["b", "a"]) == "Known: a, b."
