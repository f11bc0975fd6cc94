from __future__ import annotations

import math

import pytest

from hauberk.core.finding import Finding, Interval, Status
from hauberk.report.words import clean, figure, interval_words, line, number, seconds, slug


@pytest.mark.parametrize(
    ("value", "unit", "printed"),
    [
        (0.8725, "accuracy", "87.2%"), (1.0, "accuracy", "100.0%"), (0.99996, "rate", "99.99%"), (0.0001, "share", "0.01%"),
        (0.0, "rate", "0.0%"), (0.083, "TPR at 0.1% FPR", "8.3%"), (1.31, "anomaly index", "1.31"), (433_000, "", "433,000"),
        (12_345.6, "", "12,346"), (3.6e-7, "", "3.60e-07"), (2.0, "", "2"), (0.041239, "ECE", "0.04124"), (None, "", "–"),
        (math.nan, "accuracy", "–"), (math.inf, "", "–"), (-0.02, "accuracy", "-2.0%"), (17.0, "accuracy", "17"),
    ],
)
def test_number(value: float | None, unit: str, printed: str) -> None:
    assert number(value, unit) == printed


def test_a_share_that_is_not_whole_is_never_printed_as_whole() -> None:
    for n in (1_000, 50_000, 10**7):
        assert number((n - 1) / n, "accuracy") != "100.0%"
        assert not number(1 / n, "accuracy").startswith(("0.0%", "0%"))


@pytest.mark.parametrize(
    ("value", "printed"), [(0.01, "< 0.1 s"), (3.91, "3.9 s"), (73.2, "1 min 13 s"), (3725, "1 h 2 min"), (math.nan, "–")]
)
def test_seconds(value: float, printed: str) -> None:
    assert seconds(value) == printed


def test_figure_names_unit_interval_and_n() -> None:
    one = Finding("a/b", "a", "?", Status.PASS, 0.5, "accuracy", 1500, Interval(0.4, 0.6))
    assert figure(one) == "50.0% accuracy [40.0% to 60.0%] n=1,500"
    assert figure(Finding("a/b", "a", "?", Status.NOT_RUN)) == ""
    assert interval_words(Interval(-math.inf, math.inf)) == ""


def test_control_characters_are_replaced() -> None:
    assert clean("a\x00b\x1b[31mc\u202ed\ud800e\ufffe") == "a�b�[31mc�d�e�"
    assert clean("tab\tand\r\nline") == "tab\tand\nline"
    assert line(" a \n\t b ") == "a b"
    assert len(clean("x" * 10_000)) == 4000
    clean("".join(map(chr, range(0x11000)))).encode("utf-8")


def test_slug() -> None:
    assert slug("Robustness/PGD (Linf)") == "robustness-pgd-linf"
    assert slug("¿") == "x"
