"""Drift against SciPy, loops, and the levels the tests promise."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon

from hauberk.core.errors import DataError
from hauberk.trust import drift
from hauberk.trust.summary import fit_summary
from hauberk.trust.two_sample import classifier_test, mmd


def _draw(seed=0):
    return np.random.default_rng(seed)


def test_ks_equals_scipy_on_continuous_and_tied_values():
    a, b = _draw(0).normal(size=(70, 4)), _draw(1).normal(0.3, 1.2, size=(110, 4))
    a[:, 3], b[:, 3] = np.round(a[:, 3]), np.round(b[:, 3])
    statistics, p_values = drift.ks(a, b)
    for column in range(4):
        expected = stats.ks_2samp(a[:, column], b[:, column], method="asymp")
        assert statistics[column] == pytest.approx(expected.statistic, abs=1e-12)
        assert p_values[column] == pytest.approx(expected.pvalue, rel=1e-9)


def test_chi_square_equals_scipy_and_joins_rare_levels():
    a, b = np.repeat([0, 1, 2], [30, 50, 20]), np.repeat([0, 1, 2], [60, 40, 40])
    expected = stats.chi2_contingency([[30, 50, 20], [60, 40, 40]], correction=False)
    assert drift.chi_square(a, b) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)
    rare_a, rare_b = np.append(a, [3, 4]), np.append(b, [5])
    joined = stats.chi2_contingency([[30, 50, 20, 2], [60, 40, 40, 1]], correction=False)
    assert drift.chi_square(rare_a, rare_b) == pytest.approx((joined.statistic, joined.pvalue), rel=1e-12)
    assert drift.chi_square(np.zeros(5), np.zeros(7)) == (0.0, 1.0)


def test_psi_by_hand_and_jensen_shannon_by_scipy():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert drift.psi(p, q) == pytest.approx(2 * 0.3 * np.log(2.5))
    assert drift.psi(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(
        -0.5 * np.log(0.5) + (0.5 - 1e-4) * np.log(0.5 / 1e-4)
    )
    assert drift.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-12)
    assert drift.jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_shares_are_those_of_a_loop_over_quantile_bins():
    a, b = _draw(0).normal(size=200), _draw(1).normal(1, 1, 150)
    found_a, found_b = drift.shares(a, b, bins=5)
    assert found_a == pytest.approx(np.full(5, 0.2))
    cuts = np.quantile(a, [0.2, 0.4, 0.6, 0.8])
    expected = [sum(1 for v in b if sum(v > c for c in cuts) == place) / 150 for place in range(5)]
    assert found_b == pytest.approx(expected)


def test_each_feature_gets_the_test_that_fits_it_and_a_shift_its_size():
    draw = _draw(4)
    a = np.stack([draw.normal(5, 2, 2000), draw.integers(0, 3, 2000), np.full(2000, 7.0), draw.normal(size=2000)], 1)
    b = np.stack([draw.normal(6, 2, 2000), draw.integers(0, 3, 2000), np.full(2000, 7.0), draw.normal(size=2000)], 1)
    found = drift.feature_drift(a, b, names=("moved", "levels", "constant", "still"))
    assert [one.test for one in found] == ["ks", "chi-square", "constant", "ks"]
    assert found[0].wasserstein == pytest.approx(0.5, abs=0.07)  # one unit is half a standard deviation
    assert found[0].wasserstein == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]) / a[:, 0].std(), rel=1e-12)
    assert found[0].adjusted == pytest.approx(4 * found[0].p)
    assert [one.adjusted < 0.05 for one in found] == [True, False, False, False]
    assert (found[2].p, found[2].psi, found[2].jensen_shannon, found[2].wasserstein) == (1.0, 0.0, 0.0, 0.0)


def test_false_alarms_over_many_features_stay_at_the_level():
    draw, alarms = _draw(5), 0
    for _ in range(200):
        found = drift.feature_drift(draw.normal(size=(60, 8)), draw.normal(size=(60, 8)))
        alarms += any(one.adjusted < 0.05 for one in found)
    assert alarms / 200 <= 0.08


def test_the_mmd_statistic_is_that_of_three_loops():
    a, b = _draw(0).normal(size=(6, 2)), _draw(1).normal(size=(8, 2)) + 0.5

    def kernel(x, y):
        return np.exp(-((x - y) ** 2).sum() / (2 * 1.3**2))

    within_a = sum(kernel(a[i], a[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_b = sum(kernel(b[i], b[j]) for i in range(8) for j in range(8) if i != j) / 56
    across = sum(kernel(x, y) for x in a for y in b) / 48
    assert mmd(a, b, bandwidth=1.3, permutations=9).statistic == pytest.approx(within_a + within_b - 2 * across, abs=1e-6)


def test_the_median_distance_is_the_bandwidth_far_from_the_origin_too():
    a, b = _draw(2).normal(size=(20, 3)), _draw(3).normal(size=(21, 3))
    pooled = np.concatenate([a, b])
    distances = sorted(np.linalg.norm(pooled[i] - pooled[j]) for i in range(41) for j in range(i))
    median = distances[(len(distances) - 1) // 2]
    near, far = mmd(a, b, permutations=99), mmd(a + 1e6, b + 1e6, permutations=99)
    assert near.statistic == pytest.approx(mmd(a, b, permutations=99, bandwidth=median).statistic, abs=1e-7)
    assert far.statistic == pytest.approx(near.statistic, abs=1e-6)
    assert far.p == near.p


def test_mmd_keeps_its_level_and_finds_a_shift():
    draw = _draw(6)
    p_values = [
        mmd(draw.normal(size=(50, 3)), draw.normal(size=(40, 3)), permutations=199, seed=trial).p for trial in range(400)
    ]
    assert 0.03 <= np.mean(np.array(p_values) <= 0.05) <= 0.07
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)
    shifted = mmd(draw.normal(size=(200, 3)), draw.normal(0.5, 1, size=(200, 3)), permutations=199)
    assert shifted.p == 1 / 200
    assert (shifted.interval.low, shifted.interval.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 199)))
    spread = mmd(draw.normal(size=(200, 3)), draw.normal(0, 2, size=(200, 3)), permutations=199)
    assert spread.p == 1 / 200  # same mean, other variance


def test_equal_rows_in_both_samples_are_no_drift():
    assert mmd(np.ones((10, 2)), np.ones((12, 2)), permutations=99).p == 1.0


def test_the_classifier_test_finds_a_shift_and_no_more():
    draw = _draw(7)
    a, b = draw.normal(size=(300, 4)), draw.normal(size=(260, 4))
    same = classifier_test(a, b, trees=30)
    assert same.interval.low < 0.5 < same.interval.high
    moved = classifier_test(a, b + 3, trees=30)
    assert moved.statistic > 0.95  # the best accuracy for a shift of 3 in each of 4 directions is Phi(3) = .9987
    assert moved.p == pytest.approx(float(stats.binom.sf(round(moved.statistic * 260) - 1, 260, 0.5)))


def test_the_summary_of_images_is_their_looks_and_components():
    x = torch.rand(40, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    summary = fit_summary(x, image=True, components=3)
    found = summary(x)
    assert summary.names == ("brightness", "contrast", "sharpness", "component 1", "component 2", "component 3")
    image = x[7].double()
    steps = [abs(float(image[c, i, j] - image[c, i, j + 1])) for c in range(2) for i in range(4) for j in range(4)]
    steps += [abs(float(image[c, i, j] - image[c, i + 1, j])) for c in range(2) for i in range(3) for j in range(5)]
    assert found[7, :3].tolist() == pytest.approx([float(image.mean()), float(image.numpy().std()), float(np.mean(steps))])
    flat = x.double().flatten(1).numpy()
    values = np.linalg.eigvalsh(np.cov(flat.T, bias=True))[::-1][:3]
    assert found[:, 3:].var(0, correction=0).numpy() == pytest.approx(values)


def test_wide_samples_get_the_components_of_the_full_covariance():
    wide = torch.rand(20, 90, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = fit_summary(wide, image=False, components=5)(wide)
    values = np.linalg.eigvalsh(np.cov(wide.numpy().T, bias=True))[::-1][:5]
    assert found.var(0, correction=0).numpy() == pytest.approx(values)
    assert np.corrcoef(found.numpy().T) == pytest.approx(np.eye(5), abs=1e-9)
    large = torch.rand(12, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    summary = fit_summary(large, image=True)
    assert summary.axes.shape == (3 * 32 * 32, 11)  # twelve samples span eleven directions about their mean


def test_a_summary_keeps_short_rows_and_shortens_long_ones():
    x = torch.rand(30, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fit_summary(x, image=False)(x), x.double())
    long = torch.rand(30, 100, generator=torch.Generator().manual_seed(2))
    assert fit_summary(long, image=False)(long).shape == (30, 16)
    constant = fit_summary(torch.zeros(30, 1, 3, 3), image=True)
    assert constant(torch.zeros(4, 1, 3, 3)).tolist() == [[0.0, 0.0, 0.0]] * 4


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="3 and 2 features"):
        drift.ks(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(DataError, match="2 names were given for 3"):
        drift.feature_drift(np.zeros((4, 3)), np.zeros((4, 3)), names=("a", "b"))
    with pytest.raises(DataError, match="at least 2 rows"):
        mmd(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(DataError, match="not finite"):
        mmd(np.full((4, 3), np.nan), np.zeros((4, 3)))
    with pytest.raises(DataError, match="at least 4 rows"):
        classifier_test(np.zeros((3, 2)), np.zeros((9, 2)))
