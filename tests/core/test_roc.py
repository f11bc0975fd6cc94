"""ROC against a sweep over all thresholds, with ties, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from hauberk.core.roc import auc_interval, roc
from hauberk.core.stats import clopper_pearson


def sweep(positive, negative):
    """Every achievable (fpr, tpr), by trying every threshold one by one."""
    points = {(0.0, 0.0)}
    for threshold in np.concatenate([positive, negative]):
        points.add((float(np.mean(negative >= threshold)), float(np.mean(positive >= threshold))))
    return sorted(points)


@pytest.mark.parametrize("seed", range(6))
def test_points_area_and_rates_equal_the_sweep(seed):
    rng = np.random.default_rng(seed)
    ties = (2, 5, 1000)[seed % 3]
    positive, negative = np.round(rng.normal(0.7, 1, 37) * ties), np.round(rng.normal(0, 1, 53) * ties)
    curve, expected = roc(positive, negative), sweep(positive, negative)
    assert list(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True)) == expected
    pairs = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert curve.auc == pytest.approx(pairs, abs=1e-12)
    truth = np.r_[np.ones(37), np.zeros(53)]
    assert curve.auc == pytest.approx(roc_auc_score(truth, np.r_[positive, negative]), abs=1e-12)
    for limit in (0.0, 0.001, 0.01, 1 / 53, 0.1, 0.5, 1.0):
        assert curve.tpr_at(limit) == max(t for f, t in expected if f <= limit + 1e-12)
    assert curve.balanced_accuracy == pytest.approx(max((t + 1 - f) / 2 for f, t in expected))


def test_equal_scores_say_nothing():
    curve = roc(np.ones(10), np.ones(30))
    assert curve.auc == 0.5
    assert curve.tpr_at(0.99) == 0.0 and curve.tpr_at(1.0) == 1.0
    assert curve.balanced_accuracy == 0.5


def test_nothing_is_interpolated_between_achievable_points():
    # One negative lies above half of the positives: (0, .5) and (.5, 1) are achievable, nothing between.
    curve = roc([4, 3, 1.5, 1.2], [2, 1])
    assert curve.tpr_at(0.0) == curve.tpr_at(0.49) == 0.5
    assert curve.tpr_at(0.5) == 1.0


def test_thresholds_reach_the_rates_they_name():
    rng = np.random.default_rng(4)
    positive, negative = rng.integers(0, 9, 40), rng.integers(-3, 6, 60)
    curve = roc(positive, negative)
    for threshold, fpr, tpr in zip(curve.thresholds, curve.fpr, curve.tpr, strict=True):
        assert (np.mean(negative >= threshold), np.mean(positive >= threshold)) == (fpr, tpr)


def test_interval_at_a_rate_lies_between_two_negatives():
    """P(B < 1) = .0018 and P(B < 2) = .0138, P(B > 12) = .0057 and P(B > 11) = .0146 for B of 60 negatives at 10 %."""
    curve = roc(np.arange(100) + 0.5, np.arange(60))
    above = {rank: sum(one + 0.5 > 60 - rank for one in range(100)) for rank in (1, 13)}  # positives over that negative
    assert above == {1: 41, 13: 53}
    found = curve.tpr_interval(0.1)
    assert (found.low, found.high) == (clopper_pearson(41, 100, 0.975).low, clopper_pearson(53, 100, 0.975).high)
    # No negative is surely beyond the threshold of a rate of 0: the lower end is open, the upper is that over the highest.
    nothing = curve.tpr_interval(0.0)
    assert (nothing.low, nothing.high) == (0.0, clopper_pearson(41, 100, 0.975).high)
    assert (curve.tpr_interval(1.0).low, curve.tpr_interval(1.0).high) == (clopper_pearson(100, 100, 0.975).low, 1.0)


@pytest.mark.parametrize("n", [300, 1000])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_interval_at_a_low_rate_covers_the_true_rate(n, shift):
    """Unit normals that far apart: the true rate is 1 - Phi(isf(fpr) - shift). The same holds for rounded scores."""
    rng, runs = np.random.default_rng(int(n + shift)), 200
    rates = (max(1e-3, 1 / n), 0.01, 0.05)
    covered, ahead = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    for _ in range(runs):
        negative = rng.normal(0, 1, n)
        curve = roc(rng.normal(shift, 1, n), negative)
        for fpr in rates:
            span = curve.tpr_interval(fpr)
            covered[fpr] += span.low <= norm.sf(norm.isf(fpr) - shift) <= span.high and span.low <= curve.tpr_at(fpr) <= span.high
            place = np.sort(negative)[n - 1 - int(fpr * n + 1e-9)]  # the next negative: the threshold that was used
            ahead[fpr] += curve.surely_ahead(fpr) <= norm.sf(place - shift) / norm.sf(place)
    assert min(covered.values()) >= 0.95 * runs and min(ahead.values()) >= 0.95 * runs


def test_interval_holds_for_tied_scores():
    """Scores 0 to 9: at 15 % the best threshold lets the 10 % of the negatives through that score 9, and no more."""
    rng, covered = np.random.default_rng(3), 0
    weights = np.arange(1, 11) / 55
    for _ in range(200):
        span = roc(rng.choice(10, 400, p=weights), rng.integers(0, 10, 400)).tpr_interval(0.15)
        covered += span.low <= 10 / 55 <= span.high
    assert covered >= 190


def test_how_far_positives_are_ahead_by_hand():
    curve = roc(np.r_[np.full(40, 5.0), np.zeros(60)], np.r_[6.0, np.ones(99)])  # 40 of 100 beyond all but one negative
    assert curve.surely_ahead(0.01) == pytest.approx(clopper_pearson(40, 100).low / clopper_pearson(1, 100).high)
    assert curve.surely_ahead(0.0) == 0.0


def test_delong_agrees_with_its_definition_and_with_resampling():
    rng = np.random.default_rng(2)
    positive, negative = np.round(rng.normal(1, 1, 60), 1), np.round(rng.normal(0, 1, 90), 1)
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var(ddof=1) / 60 + wins.mean(0).var(ddof=1) / 90
    got, area = auc_interval(positive, negative), wins.mean()
    # On the logit scale, whose slope is 1 / (area (1 - area)).
    reach = 1.959964 * np.sqrt(variance) / (area * (1 - area))
    assert np.log(got.low / (1 - got.low)) == pytest.approx(np.log(area / (1 - area)) - reach, abs=1e-6)
    assert np.log(got.high / (1 - got.high)) == pytest.approx(np.log(area / (1 - area)) + reach, abs=1e-6)
    drawn = [roc(rng.choice(positive, 60), rng.choice(negative, 90)).auc for _ in range(1500)]
    assert (got.high - got.low) / 2 / 1.959964 == pytest.approx(np.std(drawn), rel=0.08)


def test_delong_covers_the_true_area():
    rng = np.random.default_rng(5)
    truth, covered, runs = 0.7602499389065233, 0, 400  # P(N(1,1) > N(0,1)) = Phi(1/sqrt(2))
    for _ in range(runs):
        interval = auc_interval(rng.normal(1, 1, 50), rng.normal(0, 1, 50))
        covered += interval.low <= truth <= interval.high
    assert 0.95 - 0.044 <= covered / runs <= 0.95 + 0.044


@pytest.mark.parametrize(("shift", "n"), [(2.5, 20), (2.5, 50), (3.5, 100)])
def test_the_interval_holds_areas_near_one(shift, n):
    rng = np.random.default_rng(6)
    truth, runs = norm.cdf(shift / 2**0.5), 300
    spans = [auc_interval(rng.normal(shift, 1, n), rng.normal(0, 1, n)) for _ in range(runs)]
    # An end that is too high calls a leak sure that is not: at most some 1 in 20, where the straight one has 1 in 8.
    assert sum(one.low > truth for one in spans) <= 0.075 * runs
    assert sum(one.low <= truth <= one.high for one in spans) >= 0.91 * runs


@pytest.mark.parametrize(("p", "q"), [(1.0, 0.95), (1.0, 0.99), (0.99, 0.98), (0.9, 0.8)])
def test_the_interval_holds_areas_of_scores_that_are_right_or_wrong(p, q):
    rng = np.random.default_rng(7)
    truth, runs = 0.5 + (p - q) / 2, 300
    spans = [auc_interval(rng.random(50) < p, rng.random(50) < q) for _ in range(runs)]
    assert sum(one.low <= truth <= one.high for one in spans) >= 0.91 * runs
    same = auc_interval(np.ones(20), np.ones(20))
    assert same.low < 0.5 < same.high and same.low == pytest.approx(1 - same.high)


def test_perfect_separation_is_not_certainty():
    interval = auc_interval([3, 4, 5], [0, 1, 2, 2.5])
    assert (interval.low, interval.high) == (pytest.approx(0.025 ** (1 / 3)), 1.0)
    reverse = auc_interval([0, 1, 2, 2.5], [3, 4, 5])
    assert (reverse.low, reverse.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 3)))


def test_too_few_scores_leave_the_area_open():
    assert (auc_interval([1.0], [0.0, 2.0]).low, auc_interval([1.0], [0.0, 2.0]).high) == (0.0, 1.0)


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([1.0, float("nan")], [1.0])])
def test_what_cannot_be_ordered_is_refused(positive, negative):
    with pytest.raises(ValueError, match="a ROC"):
        roc(positive, negative)


def test_drawn_curve_is_short_and_keeps_the_ends():
    rng = np.random.default_rng(0)
    curve = roc(rng.normal(1, 1, 5000), rng.normal(0, 1, 5000))
    series = curve.curve("title", "attack", floor=1e-3).series[0]
    assert len(series.x) <= 200 and min(series.x) == min(series.y) == 1e-3
    assert (series.x[-1], series.y[-1]) == (1.0, 1.0)
    achievable = set(zip(np.maximum(curve.fpr, 1e-3).tolist(), np.maximum(curve.tpr, 1e-3).tolist(), strict=True))
    assert set(zip(series.x, series.y, strict=True)) <= achievable
