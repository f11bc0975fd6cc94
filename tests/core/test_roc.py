"""ROC against a sweep over all thresholds, with ties, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
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


def test_interval_at_a_low_rate_is_exact_for_the_count():
    curve = roc(np.arange(100) + 0.5, np.arange(60))
    hits = sum(one + 0.5 > 59 for one in range(100))
    assert curve.tpr_interval(0.0) == clopper_pearson(hits, 100)


def test_delong_agrees_with_its_definition_and_with_resampling():
    rng = np.random.default_rng(2)
    positive, negative = np.round(rng.normal(1, 1, 60), 1), np.round(rng.normal(0, 1, 90), 1)
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var(ddof=1) / 60 + wins.mean(0).var(ddof=1) / 90
    got = auc_interval(positive, negative)
    assert got.low == pytest.approx(wins.mean() - 1.959964 * np.sqrt(variance), abs=1e-6)
    assert got.high == pytest.approx(min(1, wins.mean() + 1.959964 * np.sqrt(variance)), abs=1e-6)
    drawn = [roc(rng.choice(positive, 60), rng.choice(negative, 90)).auc for _ in range(1500)]
    assert (got.high - got.low) / 2 / 1.959964 == pytest.approx(np.std(drawn), rel=0.08)


def test_delong_covers_the_true_area():
    rng = np.random.default_rng(5)
    truth, covered, runs = 0.7602499389065233, 0, 400  # P(N(1,1) > N(0,1)) = Phi(1/sqrt(2))
    for _ in range(runs):
        interval = auc_interval(rng.normal(1, 1, 50), rng.normal(0, 1, 50))
        covered += interval.low <= truth <= interval.high
    assert 0.95 - 0.044 <= covered / runs <= 0.95 + 0.044


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
