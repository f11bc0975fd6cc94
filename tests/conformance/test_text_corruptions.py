"""What every corruption of text promises, over the registry: a new one is tested from the moment it is registered."""

from __future__ import annotations

import itertools

import pytest
import torch

from hauberk.core import rng
from hauberk.core.card import Card
from hauberk.core.errors import DataError, UsageError
from hauberk.methods import load_methods

CARDS = list(load_methods().cards("text-corruption"))
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and nobody minds.", "Please send 3 copies to Anna, John and me!",
    "A hauberk is a shirt of linked rings; it was worn over padding.", "", "x", "  ", "\u00dcber den D\u00e4chern: 12 \u20ac",
    "\u65e5\u672c\u8a9e and \U0001f600 emoji",
] * 8


def draws(seed: int = 0) -> torch.Generator:
    return rng.generator(seed, "conformance")


def distance(a: str, b: str) -> int:
    """Levenshtein's, by the textbook."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]


def test_severity_0_is_the_identity_in_a_new_list(card: Card) -> None:
    found = card.function(TEXTS, 0, generator=draws())
    assert found == TEXTS and found is not TEXTS


def test_edits_grow_with_severity_and_keep_to_their_share(card: Card) -> None:
    sums = [
        sum(distance(a, b) for a, b in zip(TEXTS, card.function(TEXTS, severity, generator=draws()), strict=True))
        for severity in range(6)
    ]
    assert sums[0] == 0
    assert all(after > before for before, after in itertools.pairwise(sums)), sums
    # An exchange of two letters is two edits; everything else is one. The draw of a part of an edit averages out.
    assert sums[1] <= 2.6 * card.facts["levels"][0] * sum(map(len, TEXTS))


def test_every_text_is_corrupted_alone_as_in_a_batch(card: Card) -> None:
    together, source = card.function(TEXTS, 4, generator=draws()), draws()
    assert together == [card.function([text], 4, generator=source)[0] for text in TEXTS]
    other = card.function([TEXTS[0], *("something else" for _ in TEXTS[1:])], 4, generator=draws())
    assert other[0] == together[0]


def test_same_generator_same_text_and_nothing_else_is_touched(card: Card) -> None:
    state, before = torch.get_rng_state(), list(TEXTS)
    first = card.function(TEXTS, 3, generator=draws(4))
    assert first == card.function(TEXTS, 3, generator=draws(4))
    assert card.function(TEXTS, 3) == card.function(tuple(TEXTS), 3)
    assert first != card.function(TEXTS, 3, generator=draws(5))
    assert torch.equal(torch.get_rng_state(), state) and before == TEXTS


def test_nothing_to_touch_is_left_alone(card: Card) -> None:
    assert card.function([], 3) == []
    assert card.function(["", ""], 5) == ["", ""]


def test_bad_input_is_refused(card: Card) -> None:
    for severity in (-1, 6, 2.0, True):
        with pytest.raises(UsageError, match="severity"):
            card.function(TEXTS, severity)
    with pytest.raises(DataError, match="one string"):
        card.function("one text", 1)
    for wrong in (["a", 3], None, 7):
        with pytest.raises(DataError, match="does not hold strings alone"):
            card.function(wrong, 1)


def test_the_card_says_what_a_reader_needs(card: Card) -> None:
    assert list(card.options) == ["generator"]
    levels = card.facts["levels"]
    assert card.question.endswith("?") and card.paper and len(levels) == 5 and sorted(levels) == list(levels)
    assert "severity: 0" in (card.function.__doc__ or "")
