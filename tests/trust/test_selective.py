"""Risk and coverage against brute force over thresholds and over orders of ties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.core.errors import DataError, UsageError
from hauberk.trust import selective

_SAMPLES = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(_SAMPLES)
def test_the_curve_is_the_mean_over_all_orders_of_ties(samples):
    orders = [
        order for order in itertools.permutations(samples)
        if all(a[0] >= b[0] for a, b in itertools.pairwise(order))
    ]
    expected = np.mean(
        [[sum(not right for _, right in order[:k]) / k for k in range(1, len(order) + 1)] for order in orders], axis=0
    )
    found = selective.risk_coverage([c for c, _ in samples], [float(r) for _, r in samples])
    assert found.risk == pytest.approx(expected, abs=1e-12)
    assert found.coverage == pytest.approx(np.arange(1, len(samples) + 1) / len(samples))
    assert found.aurc == pytest.approx(expected.mean(), abs=1e-12)


def test_aurc_of_a_hand_worked_example():
    # Risks 0, 1/2, 1/3, 2/4 from the surest to all; the best order has 0, 0, 1/3, 2/4.
    found = selective.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0])
    assert found.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found.excess == pytest.approx((1 / 2) / 4)


def test_a_perfect_order_has_no_excess_and_a_constant_score_has_the_error_rate():
    perfect = selective.risk_coverage([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0])
    assert perfect.excess == pytest.approx(0, abs=1e-15)
    constant = selective.risk_coverage(np.full(8, 0.5), [1, 0, 0, 1, 1, 0, 1, 1])
    assert constant.risk == pytest.approx(np.full(8, 3 / 8))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([i / 10 for i in range(11)]), min_size=1, max_size=30), st.integers(1, 100))
def test_the_threshold_is_the_highest_that_reaches_the_coverage(confidence, percent):
    found = selective.threshold_for_coverage(confidence, percent / 100)
    fitting = [t for t in confidence if 100 * sum(c >= t for c in confidence) >= percent * len(confidence)]
    assert found == max(fitting)


def test_accuracy_at_coverage_counts_ties_in():
    threshold, kept, right = selective.accuracy_at_coverage([0.9, 0.8, 0.8, 0.8, 0.1], [1, 1, 0, 1, 0], 0.4)
    assert (threshold, kept, right) == (0.8, 4, 3)


def test_the_interval_of_the_aurc_holds_the_truth():
    # Confidence uniform on [0, 1], right with that probability: risk at coverage c is c / 2, the area 1/4.
    draw, held = np.random.default_rng(0), 0
    for _ in range(100):
        sure = draw.random(200)
        right = (draw.random(200) < sure).astype(float)
        interval = selective.aurc_interval(sure, right, rng=draw, draws=100)
        held += interval.low <= 0.25 <= interval.high
    assert held >= 88


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="coverage is 0"):
        selective.threshold_for_coverage([0.5], 0)
    with pytest.raises(DataError, match="2 confidences and 1 outcomes"):
        selective.risk_coverage([0.5, 0.4], [1])
    with pytest.raises(DataError, match="not finite"):
        selective.risk_coverage([float("nan")], [1])
