"""Group rates and gaps against hand-worked tables, loops and the coverage promised."""

import numpy as np
import pytest

from hauberk.core.errors import DataError
from hauberk.trust import fairness


def _expand(cells):
    """Samples from counts {(group, truth, answer): n}."""
    rows = [key for key, n in cells.items() for _ in range(n)]
    groups, y, predicted = np.array(rows).T
    return y, predicted, groups


# Group 0: 40 with truth 1 (30 found), 60 with truth 0 (12 false alarms). Group 1: 20 with 1 (10 found), 80 with 0 (8).
CELLS = {(0, 1, 1): 30, (0, 1, 0): 10, (0, 0, 1): 12, (0, 0, 0): 48, (1, 1, 1): 10, (1, 1, 0): 10, (1, 0, 1): 8, (1, 0, 0): 72}


def test_the_rates_of_a_hand_worked_table():
    first, second = fairness.group_rates(*_expand(CELLS))
    assert (first.n, first.accuracy.value, first.selection.value, first.tpr.value, first.fpr.value) == (
        100, 0.78, 0.42, 0.75, 0.2
    )
    assert (second.n, second.accuracy.value, second.selection.value, second.tpr.value, second.fpr.value) == (
        100, 0.82, 0.18, 0.5, 0.1
    )
    assert (second.tpr.hits, second.tpr.n) == (10, 20)
    # Wilson by its formula: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), p = 1/2, n = 20.
    z = 1.959963984540054
    half = z * np.sqrt(0.25 / 20 + z**2 / 1600) / (1 + z**2 / 20)
    span = second.tpr.interval()
    assert (span.low, span.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_the_gaps_of_a_hand_worked_table():
    y, predicted, groups = _expand(CELLS)
    draw = np.random.default_rng(0)
    accuracy = fairness.accuracy_gap(y, predicted, groups, rng=draw)
    assert (accuracy.value, accuracy.high, accuracy.low, accuracy.positive) == (pytest.approx(0.04), 1, 0, -1)
    assert accuracy.p > 0.3
    parity = fairness.demographic_parity(predicted, groups, rng=draw)
    assert parity.value == pytest.approx(0.24)
    assert parity.p < 0.01
    odds = fairness.equalised_odds(y, predicted, groups, rng=draw)
    assert odds.value == pytest.approx(0.25)
    assert odds.p == pytest.approx(0.1, abs=0.1)
    ratio, span = fairness.demographic_parity_ratio(predicted, groups)
    assert ratio == pytest.approx(18 / 42)
    assert span.low < ratio < span.high < 0.8


def test_the_interval_of_a_ratio_is_near_that_of_its_logarithm_and_holds_the_truth():
    # Katz et al. 1978: exp(log r ± z sqrt(1/a - 1/n + 1/b - 1/m)), which is good for counts like these.
    found = fairness.ratio_interval(fairness.Rate(180, 400), fairness.Rate(300, 500))
    half = 1.959964 * np.sqrt(1 / 180 - 1 / 400 + 1 / 300 - 1 / 500)
    assert (found.low, found.high) == pytest.approx((0.75 * np.exp(-half), 0.75 * np.exp(half)), rel=0.01)
    assert fairness.ratio_interval(fairness.Rate(5, 10), fairness.Rate(0, 10)).high == np.inf
    assert fairness.ratio_interval(fairness.Rate(0, 10), fairness.Rate(5, 10)).low == 0.0
    draw, held = np.random.default_rng(4), 0
    for _ in range(2000):
        one, other = fairness.Rate(int(draw.binomial(40, 0.2)), 40), fairness.Rate(int(draw.binomial(60, 0.3)), 60)
        span = fairness.ratio_interval(one, other)
        held += span.low <= 2 / 3 <= span.high
    assert 0.93 <= held / 2000 <= 0.985


def test_equalised_odds_over_many_classes_equals_a_loop():
    draw = np.random.default_rng(1)
    y, groups = draw.integers(0, 4, 600), draw.integers(0, 3, 600)
    predicted = np.where(draw.random(600) < 0.7, y, draw.integers(0, 4, 600))
    gaps = {}
    for c in range(4):
        for kind, base in (("tpr", y == c), ("fpr", y != c)):
            rates = [np.mean(predicted[base & (groups == g)] == c) for g in range(3)]
            gaps[kind, c] = max(rates) - min(rates)
    found = fairness.equalised_odds(y, predicted, groups, rng=draw, classes=4, permutations=50)
    assert found.value == pytest.approx(max(gaps.values()))
    assert found.positive == max(gaps, key=gaps.get)[1]
    shares = [[np.mean(predicted[groups == g] == c) for g in range(3)] for c in range(4)]
    parity = fairness.demographic_parity(predicted, groups, rng=draw, classes=4, permutations=50)
    assert parity.value == pytest.approx(max(max(row) - min(row) for row in shares))


@pytest.mark.parametrize("rates", [(0.9, 0.9, 0.9), (0.9, 0.8, 0.7), (1.0, 0.95, 0.9)])
def test_the_interval_of_the_accuracy_gap_holds_the_truth(rates):
    draw, held, alarms = np.random.default_rng(2), 0, 0
    for _ in range(200):
        groups = draw.integers(0, 3, 240)
        right = draw.random(240) < np.array(rates)[groups]
        gap = fairness.accuracy_gap(np.ones(240, int), right.astype(int), groups, rng=draw, permutations=39)
        held += gap.interval.low <= max(rates) - min(rates) <= gap.interval.high
        alarms += gap.p <= 0.05
    assert held >= 0.95 * 200
    if rates == (0.9, 0.9, 0.9):
        assert alarms / 200 <= 0.09
    if rates == (0.9, 0.8, 0.7):
        assert alarms / 200 >= 0.7


def test_groups_that_differ_in_truth_alone_do_not_break_equalised_odds():
    # The model is right equally often on both labels; group 1 merely has more of label 1. Odds are equal, parity is not.
    draw, odds, parity = np.random.default_rng(3), 0, 0
    for _ in range(60):
        groups = draw.integers(0, 2, 400)
        y = (draw.random(400) < np.where(groups == 1, 0.8, 0.3)).astype(int)
        predicted = np.where(draw.random(400) < 0.85, y, 1 - y)
        odds += fairness.equalised_odds(y, predicted, groups, rng=draw, permutations=39).p <= 0.05
        parity += fairness.demographic_parity(predicted, groups, rng=draw, permutations=39).p <= 0.05
    assert odds / 60 <= 0.15
    assert parity == 60


def test_small_groups_are_shown_but_not_compared():
    y, predicted, groups = _expand(CELLS)
    y, predicted, groups = np.append(y, [1, 1]), np.append(predicted, [0, 0]), np.append(groups, [7, 7])
    assert [one.group for one in fairness.group_rates(y, predicted, groups)] == [0, 1, 7]
    gap = fairness.accuracy_gap(y, predicted, groups, rng=np.random.default_rng(0))
    assert (gap.value, gap.low) == (pytest.approx(0.04), 0)
    with pytest.raises(DataError, match="1 of 2 groups"):
        fairness.accuracy_gap(y[100:], predicted[100:], groups[100:], rng=np.random.default_rng(0))


def test_nobody_selected_is_parity():
    groups = np.repeat([0, 1], 20)
    assert fairness.demographic_parity_ratio(np.zeros(40, int), groups)[0] == 1.0
