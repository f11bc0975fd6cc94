"""Corruptions of text: what each does, character by character."""

from __future__ import annotations

import unicodedata

import pytest

from hauberk.core import rng
from hauberk.robustness import inputs
from hauberk.robustness.inputs.text import LOOK_ALIKES, MARKS, NEIGHBOURS

TEXT = "The Quick Brown Fox Jumps Over The Lazy Dog, Twice. " * 40


def at(corrupt: object, severity: int, text: str = TEXT) -> str:
    found: list[str] = corrupt([text], severity, generator=rng.generator(1, "text"))  # type: ignore[operator]
    return found[0]


def test_the_keyboard_is_that_of_qwerty() -> None:
    """The six keys around s, and those in the corners, as they lie on the desk; whoever is next to me has me next to them."""
    assert set(NEIGHBOURS["s"]) == set("awedxz")
    assert set(NEIGHBOURS["g"]) == set("ftyhbv")
    assert set(NEIGHBOURS["q"]) == set("12wa")
    assert set(NEIGHBOURS["p"]) == set("o0l")
    assert set(NEIGHBOURS["z"]) == set("asx")
    assert all(a in NEIGHBOURS[b] for a, near in NEIGHBOURS.items() for b in near)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.02), (3, 0.1), (5, 0.25)])
def test_neighbour_keys_change_their_share_and_keep_the_case(severity: int, share: float) -> None:
    found = at(inputs.neighbour_keys, severity)
    assert len(found) == len(TEXT)
    pairs = [(a, b) for a, b in zip(TEXT, found, strict=True) if a != b]
    keys = sum(letter.lower() in NEIGHBOURS for letter in TEXT)
    assert abs(len(pairs) - share * keys) <= 1
    assert all(b.lower() in NEIGHBOURS[a.lower()] and (not b.isalpha() or b.isupper() == a.isupper()) for a, b in pairs)


def test_swapped_letters_keep_every_letter() -> None:
    found = at(inputs.swapped_letters, 4)
    assert sorted(found) == sorted(TEXT) and found != TEXT


def test_dropped_and_doubled_letters_change_the_length_by_their_share() -> None:
    letters = sum(map(str.isalnum, TEXT))
    assert len(TEXT) - len(at(inputs.dropped_letters, 5)) == pytest.approx(0.25 * letters, abs=1)
    assert len(at(inputs.doubled_letters, 5)) - len(TEXT) == pytest.approx(0.25 * letters, abs=1)
    squeezed = "".join(a for a, b in zip(TEXT, " " + TEXT, strict=False) if a != b)
    doubled = at(inputs.doubled_letters, 5)
    assert "".join(a for a, b in zip(doubled, " " + doubled, strict=False) if a != b) == squeezed


def test_typos_mix_four_slips_alike_often() -> None:
    """A long row of one letter shows which slip struck: a neighbour of k, a lost k, a k too many; an exchange cannot show."""
    n = 20_000
    found = at(inputs.typos, 5, "k" * n)
    others = sum(letter != "k" for letter in found)
    assert others == pytest.approx(0.25 * n / 4, rel=0.1)
    assert abs(len(found) - n) < 0.02 * n  # as many lost as doubled


def test_casing_turns_letters_over_and_nothing_else() -> None:
    assert at(inputs.casing, 5) == TEXT.swapcase()
    found = at(inputs.casing, 2)
    assert found.lower() == TEXT.lower()
    letters = sum(map(str.isalpha, TEXT))
    assert sum(a != b for a, b in zip(TEXT, found, strict=True)) == pytest.approx(0.15 * letters, abs=1)
    # Letters that do not come back from the other case stay: the German sharp s would become two letters.
    assert at(inputs.casing, 5, "stra\u00dfe") == "STRA\u00dfE"


def test_whitespace_leaves_the_letters_alone() -> None:
    found = at(inputs.whitespace, 5)
    assert "".join(found.split()) == "".join(TEXT.split())
    assert {"\t", "\u00a0", "\u2009"} <= set(found)


def test_punctuation_leaves_everything_else_alone() -> None:
    found = at(inputs.punctuation, 5)
    bare = str.maketrans("", "", MARKS)
    assert found.translate(bare) == TEXT.translate(bare) and found != TEXT


def test_look_alikes_are_letters_of_other_scripts_of_the_same_case() -> None:
    assert len(set(LOOK_ALIKES.values())) == len(LOOK_ALIKES)
    for latin, other in LOOK_ALIKES.items():
        assert unicodedata.name(latin).startswith("LATIN") and unicodedata.name(other).startswith(("CYRILLIC", "GREEK"))
        # The Cyrillic palochka is one of the few whose cases look alike as well.
        assert unicodedata.category(latin) == unicodedata.category(other)
        assert unicodedata.normalize("NFKC", other) == other  # no normalisation brings the Latin letter back
    back = {other: latin for latin, other in LOOK_ALIKES.items()}
    found = at(inputs.look_alikes, 5)
    assert "".join(back.get(letter, letter) for letter in found) == TEXT
    assert not set(found) & set(LOOK_ALIKES)


def test_a_stronger_severity_strikes_the_same_places_and_more() -> None:
    before: set[int] = set()
    for severity in range(1, 6):
        struck = {place for place, (a, b) in enumerate(zip(TEXT, at(inputs.look_alikes, severity), strict=True)) if a != b}
        assert before < struck
        before = struck


def test_short_texts_are_struck_in_their_due_share_of_cases() -> None:
    """One letter at severity 5 is dropped in a quarter of the texts: 4,000 of them, four standard errors."""
    found = inputs.dropped_letters(["a"] * 4000, 5, generator=rng.generator(0, "short"))
    assert found.count("") / 4000 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4000) ** 0.5)
