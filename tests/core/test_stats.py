"""Statistics against published figures, SciPy, enumeration and coverage by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as oracle

from hauberk.core import stats
from hauberk.core.finding import Interval


@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
])
def test_wilson_gives_the_figures_of_newcombe_1998(hits, n, low, high):
    interval = stats.wilson(hits, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776),
])
def test_clopper_pearson_gives_the_figures_of_newcombe_1998(hits, n, low, high):
    interval = stats.clopper_pearson(hits, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 7), (50, 100), (999, 1000), (10_000, 10_000)])
def test_rates_agree_with_scipy(hits, n, confidence):
    for ours, name in ((stats.wilson, "wilson"), (stats.clopper_pearson, "exact")):
        theirs = oracle.binomtest(hits, n).proportion_ci(confidence, name)
        got = ours(hits, n, confidence)
        assert (got.low, got.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert got.confidence == confidence


def test_a_rate_of_nothing_is_unknown():
    for ours in (stats.wilson, stats.clopper_pearson):
        assert (ours(0, 0).low, ours(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5])
def test_clopper_pearson_covers_at_least_what_it_says_exactly(rate):
    n = 40
    covered = sum(
        oracle.binom.pmf(k, n, rate) for k in range(n + 1)
        if stats.clopper_pearson(k, n).low <= rate <= stats.clopper_pearson(k, n).high
    )
    assert 0.95 <= covered <= 0.995


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    runs = 300
    covered = 0
    for _ in range(runs):
        interval = stats.bootstrap(rng.exponential(1.0, 80), np.mean, rng=rng, draws=300)
        covered += interval.low <= 1.0 <= interval.high
    # Percentile intervals of a skewed mean cover a little less than 95 %; the bounds are four standard errors wide.
    assert 0.93 - 4 * math.sqrt(0.93 * 0.07 / runs) <= covered / runs <= 0.93 + 4 * math.sqrt(0.93 * 0.07 / runs)


def test_bootstrap_draws_whole_rows_and_is_seeded():
    pairs = np.stack([np.arange(50.0), 2 * np.arange(50.0)], 1)
    seen = []
    interval = stats.bootstrap(pairs, lambda rows: seen.append((rows[:, 1] == 2 * rows[:, 0]).all()) or rows.mean(),
                               rng=np.random.default_rng(3), draws=20)
    assert seen == [True] * 20
    again = stats.bootstrap(pairs, np.mean, rng=np.random.default_rng(3), draws=20)
    assert (interval.low, interval.high) == (again.low, again.high)
    assert math.isnan(stats.bootstrap([], np.mean, rng=np.random.default_rng(0)).low)


def test_mean_interval_is_students():
    values = [4.1, 5.0, 3.8, 6.2, 4.9]
    expected = oracle.t.interval(0.9, 4, np.mean(values), oracle.sem(values))
    got = stats.mean_interval(values, 0.9)
    assert (got.low, got.high) == pytest.approx(expected, abs=1e-12)
    assert stats.mean_interval([1.0]).high == math.inf


def test_permutation_agrees_with_the_enumeration_of_all_orders():
    a, b = [3.1, 4.5, 5.0, 6.2], [1.0, 2.2, 4.6]
    pool, gap = np.array(a + b), np.mean(a) - np.mean(b)
    splits = list(itertools.combinations(range(7), 4))
    exact = np.mean([
        pool[list(one)].mean() - np.delete(pool, list(one)).mean() >= gap - 1e-12 for one in splits
    ])
    assert exact == pytest.approx(3 / 35)  # sums of four: 20.3, 18.9 and the observed 18.8
    draws = 9999
    p = stats.permutation_test(a, b, lambda x, y: x.mean() - y.mean(), rng=np.random.default_rng(0), draws=draws)
    assert abs(p - exact) <= 4 * math.sqrt(exact * (1 - exact) / draws) + 1 / draws


def test_permutation_p_is_never_too_small_under_the_null_and_spread_evenly():
    rng = np.random.default_rng(1)
    p = np.array([
        stats.permutation_test(*rng.normal(size=(2, 12)), lambda x, y: x.mean() - y.mean(), rng=rng, draws=99) for _ in range(500)
    ])
    assert p.min() >= 0.01 and p.max() <= 1.0
    assert oracle.kstest(p, "uniform").pvalue > 0.001
    for level in (0.05, 0.2, 0.5):
        assert (p <= level).mean() <= level + 4 * math.sqrt(level * (1 - level) / 500)


def test_permutation_counts_ties_whatever_the_scale():
    # All orders of equal values tie with the observed one, also where rounding exceeds any fixed tolerance.
    values = np.full(6, 1e9 / 3)
    rng = np.random.default_rng(0)
    p = stats.permutation_test(values[:3], values[3:], lambda x, y: x.sum() * rng.uniform(1, 1 + 1e-15), rng=rng, draws=50)
    assert p == 1.0


P = [0.01, 0.04, 0.03, 0.005]


def test_benjamini_hochberg_by_hand():
    # Sorted .005 .01 .03 .04, times 4/rank: .02 .02 .04 .04, already rising.
    assert stats.benjamini_hochberg(P) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    # .04*4/3 = .0533 is pulled down by the larger rank's .041.
    assert stats.benjamini_hochberg([0.04, 0.041, 0.001, 0.9]) == pytest.approx([0.164 / 3, 0.164 / 3, 0.004, 0.9])
    rng = np.random.default_rng(0)
    drawn = rng.uniform(size=40) ** 3
    assert stats.benjamini_hochberg(drawn) == pytest.approx(oracle.false_discovery_control(drawn))


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, made rising: .02 .03 .06 .06.
    assert stats.holm(P) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert len(stats.holm([])) == len(stats.benjamini_hochberg([])) == 0


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 9), (5, 5), (12, 2)])
def test_mcnemar_is_the_binomial_tail(first, second):
    n, most = first + second, max(first, second)
    tail = sum(math.comb(n, k) for k in range(most, n + 1)) / 2**n
    assert stats.mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_intervals_separate_only_without_a_common_point():
    assert stats.separate(Interval(0, 0.2), Interval(0.3, 0.4)) and stats.separate(Interval(0.3, 0.4), Interval(0, 0.2))
    assert not stats.separate(Interval(0, 0.3), Interval(0.3, 0.4))
    assert not stats.separate(Interval(float("nan"), float("nan")), Interval(0.3, 0.4))
