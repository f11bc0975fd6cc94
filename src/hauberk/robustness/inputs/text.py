"""Accidents of text: slips of the keyboard, casing, white space, look-alike characters and punctuation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hauberk.robustness.inputs.contract import textual

Numbers = NDArray[np.float64]
PRUTHI = "Pruthi et al. 2019, arXiv:1905.11268; the levels are ours"
BELINKOV = "Belinkov and Bisk 2018, arXiv:1711.02173; the levels are ours"
KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
BLANKS = (" ", "\t", "\u00a0", "\u2009")  # blank, tab, no-break space, thin space
MARKS = ".,;:!?'\"-"
# Letters of other scripts that most fonts draw the same: Cyrillic, but for four Greek capitals (Unicode TR 39, confusables).
LOOK_ALIKES = {
    "a": "\u0430", "c": "\u0441", "d": "\u0501", "e": "\u0435", "h": "\u04bb", "i": "\u0456", "j": "\u0458", "l": "\u04cf",
    "o": "\u043e", "p": "\u0440", "q": "\u051b", "s": "\u0455", "w": "\u051d", "x": "\u0445", "y": "\u0443", "A": "\u0410",
    "B": "\u0412", "C": "\u0421", "E": "\u0415", "G": "\u050c", "H": "\u041d", "I": "\u0406", "J": "\u0408", "K": "\u041a",
    "M": "\u041c", "N": "\u039d", "O": "\u041e", "P": "\u0420", "Q": "\u051a", "S": "\u0405", "T": "\u0422", "V": "\u0474",
    "W": "\u051c", "X": "\u0425", "Y": "\u03a5", "Z": "\u0396", "F": "\u03dc",
}


def _neighbours() -> dict[str, str]:
    """Return for each key of a QWERTY keyboard those that touch it; each row of keys is set off by half a key."""
    found: dict[str, str] = {}
    for row, keys in enumerate(KEYS):
        for column, key in enumerate(keys):
            near = [(row, column - 1), (row, column + 1), (row - 1, column), (row - 1, column + 1), (row + 1, column - 1),
                    (row + 1, column)]
            found[key] = "".join(KEYS[r][c] for r, c in near if 0 <= r < len(KEYS) and 0 <= c < len(KEYS[r]))
    return found


NEIGHBOURS = _neighbours()


def _on_keys(letter: str) -> bool:
    return letter.lower() in NEIGHBOURS


def _cased(letter: str) -> bool:
    return letter != letter.swapcase() and letter.swapcase().swapcase() == letter


@textual(question="Does a finger on the next key change the answer?", paper=BELINKOV, touches=_on_keys)
def neighbour_keys(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Type the key beside the right one, on a QWERTY keyboard."""
    for place in places:
        cells[place] = _beside(cells[place], float(draw[place]))


@textual(question="Do letters in the wrong order change the answer?", paper=BELINKOV, touches=str.isalnum)
def swapped_letters(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Exchange a character with the one after it."""
    for place in places:
        _swap(cells, place)


@textual(question="Do letters left out change the answer?", paper=PRUTHI, touches=str.isalnum)
def dropped_letters(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Leave characters out."""
    for place in places:
        cells[place] = ""


@textual(question="Do letters typed twice change the answer?", paper=PRUTHI, touches=str.isalnum)
def doubled_letters(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Type characters twice."""
    for place in places:
        cells[place] *= 2


@textual(question="Do the usual slips of the keyboard, mixed, change the answer?", paper=PRUTHI, touches=str.isalnum)
def typos(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Make one of four slips at each place, alike often: the next key, two letters exchanged, one left out, one typed twice."""
    for place in places:
        kind, rest = divmod(4 * float(draw[place]), 1)
        if kind == 0 and _on_keys(cells[place]):
            cells[place] = _beside(cells[place], rest)
        elif kind == 1:
            _swap(cells, place)
        elif kind == 2:
            cells[place] = ""
        else:
            cells[place] *= 2


@textual(
    question="Do capital letters change the answer?", touches=_cased,
    paper="Ribeiro et al. 2020 (CheckList), arXiv:2005.04118; the levels are ours", levels=(0.05, 0.15, 0.3, 0.6, 1.0),
)
def casing(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Write small letters large and large ones small."""
    for place in places:
        cells[place] = cells[place].swapcase()


@textual(
    question="Does white space, missing, of another kind or inside words, change the answer?", paper=PRUTHI,
    touches=lambda letter: True,
)
def whitespace(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Put a blank of some kind after a character, and leave out or change the blanks that are there."""
    for place in places:
        pick = int(draw[place] * len(BLANKS))
        if not cells[place].isspace():
            cells[place] += BLANKS[pick]
        else:
            other = BLANKS[pick]
            cells[place] = "" if other == cells[place] else other


@textual(
    question="Do letters of another script that look the same change the answer?", levels=(0.05, 0.15, 0.3, 0.6, 1.0),
    paper="Boucher et al. 2022 (Bad Characters), arXiv:2106.09898; the levels are ours", touches=LOOK_ALIKES.__contains__,
)
def look_alikes(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Put Cyrillic and Greek letters in the place of Latin ones that look the same."""
    for place in places:
        cells[place] = LOOK_ALIKES[cells[place]]


@textual(
    question="Does punctuation, missing or too much, change the answer?", touches=lambda letter: True,
    paper="Formento et al. 2023, doi:10.18653/v1/2023.findings-eacl.1; the levels are ours",
)
def punctuation(cells: list[str], places: Sequence[int], draw: Numbers) -> None:
    """Put a punctuation mark after a character, and leave out the marks that are there."""
    for place in places:
        cells[place] = "" if cells[place] in MARKS else cells[place] + MARKS[int(draw[place] * len(MARKS))]


def _beside(letter: str, draw: float) -> str:
    keys = NEIGHBOURS[letter.lower()]
    key = keys[int(draw * len(keys))]
    return key.upper() if letter.isupper() else key


def _swap(cells: list[str], place: int) -> None:
    if place + 1 < len(cells):
        cells[place], cells[place + 1] = cells[place + 1], cells[place]
    elif place:
        cells[place], cells[place - 1] = cells[place - 1], cells[place]
