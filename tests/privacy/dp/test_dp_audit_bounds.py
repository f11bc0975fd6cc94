"""Lower bounds of ε from canaries: published values, closed forms, and how often a bound lies above the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import gaussian_epsilon
from hauberk.privacy.dp.audit.clopper_pearson import epsilon_clopper_pearson, epsilon_from_counts
from hauberk.privacy.dp.audit.fdp import epsilon_fdp, mu_one_run
from hauberk.privacy.dp.audit.gdp import epsilon_gdp, mu_lower_bound
from hauberk.privacy.dp.audit.one_run import epsilon_one_run, epsilon_one_run_scores, one_run_p_value
from hauberk.privacy.dp.audit.thresholds import Scores, grid, hull


def quantiles(shift: float, n: int = 10_000) -> np.ndarray:
    """Return n points spread as a normal distribution."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n) + shift


def normals(shift: float) -> Scores:
    return Scores(quantiles(shift), quantiles(0.0))


@pytest.mark.parametrize(("counts", "delta", "expected"), [
    ((1000, 1000, 600), 0, 0.29747), ((1000, 200, 190), 0, 2.39787), ((1000, 200, 190), 1e-5, 2.39362),
    ((1000, 100, 100), 1e-5, 3.46538), ((5000, 500, 400), 1e-5, 1.19522), ((1000, 1000, 500), 1e-5, 0.0),
])
def test_one_run_gives_the_values_of_steinke(counts: tuple[int, int, int], delta: float, expected: float) -> None:
    assert epsilon_one_run(*counts, delta=delta) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(("shift", "plain", "curve", "corner"), [
    (0, 0.0, 0.0, (10_000, 10_000)), (1, 1.13346, 2.164749, (379, 27)), (2, 2.311945, 4.7218075, (934, 4)),
    (4, 4.395568, 9.133752, (5436, 0)),
])
def test_the_values_that_jax_privacy_publishes(shift: float, plain: float, curve: float, corner: tuple[int, int]) -> None:
    scores = normals(shift)
    assert epsilon_one_run_scores(scores, delta=1e-6, thresholds="hull") == pytest.approx(plain, rel=1e-5)
    # At the best corner alone, with the confidence that trying all of them leaves.
    share = 1 - 0.05 / len(hull(scores))
    mu = mu_one_run(20_000, sum(corner), corner[0], confidence=share)
    assert gaussian_epsilon(1e-6, mu) == pytest.approx(curve, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "curve"), [(0, 0.0), (1, 2.164749), (2, 4.7218075), (4, 9.133752)])
def test_the_values_of_the_curve_over_all_corners(shift: float, curve: float) -> None:
    assert epsilon_fdp(normals(shift), delta=1e-6, thresholds="hull") == pytest.approx(curve, rel=1e-5)


def test_the_p_value_is_the_sum_that_the_theorem_writes() -> None:
    m, r, v, eps, delta = 100, 30, 24, 0.7, 1e-3
    rate = 1 / (1 + math.exp(-eps))
    chance = [math.comb(r, k) * rate**k * (1 - rate) ** (r - k) for k in range(r + 1)]
    worst = max(sum(chance[v - j] for j in range(1, i + 1)) / i for i in range(1, v + 1))
    assert one_run_p_value(m, r, v, eps, delta) == pytest.approx(sum(chance[v:]) + 2 * m * delta * worst, rel=1e-10)


def test_clopper_pearson_gives_the_values_at_hand() -> None:
    assert epsilon_from_counts(500, 5, (1000, 1000)) == pytest.approx(3.6961, abs=5e-5)
    assert epsilon_from_counts(1000, 0, (1000, 1000)) == pytest.approx(5.60059, abs=5e-6)
    # All right: the ends have closed forms, .025^(1/n) and 1 - .025^(1/n).
    end = 0.025 ** (1 / 1000)
    assert epsilon_from_counts(1000, 0, (1000, 1000), delta=0.1) == pytest.approx(math.log((end - 0.1) / (1 - end)))
    assert epsilon_from_counts(100, 100, (200, 200)) == 0.0


def test_two_sides_read_the_negatives_too() -> None:
    # 998 of 1000 members found with 500 false alarms: only those *not* called tell much.
    one, two = (epsilon_from_counts(998, 500, (1000, 1000), sides=sides) for sides in (1, 2))
    mirror = epsilon_from_counts(500, 2, (1000, 1000), confidence=0.975)
    assert one == pytest.approx(math.log(stats.beta.ppf(0.025, 998, 3) / stats.beta.ppf(0.975, 501, 500)))
    assert two == pytest.approx(mirror)


def test_gdp_is_tight_where_scores_are_normal() -> None:
    rng = np.random.default_rng(0)
    for mu in (0.5, 1.0, 2.0):
        scores = Scores(quantiles(mu, 40_000), quantiles(0.0, 40_000))
        found = mu_lower_bound(scores, rng=rng)
        assert 0.7 * mu < found < mu  # half of the scores choose a cut that half of them happen to like
        assert 0.94 * mu < mu_lower_bound(scores, thresholds=mu / 2) < mu
        assert 0.93 * gaussian_epsilon(1e-5, mu) < epsilon_gdp(scores, delta=1e-5, thresholds=mu / 2)


def test_cuts_of_the_hull_are_its_corners() -> None:
    scores = Scores.of([0, 4, 6, 7], [1, 2, 3, 5])
    assert hull(scores).tolist() == [np.inf, 6, 4, 0]
    assert Scores.of([0, 0], [0, 0]).counts(hull(Scores.of([0, 0], [0, 0])))[0].tolist() == [0, 2]
    assert len(hull(normals(1))) == 386


def test_cuts_of_the_grid_call_fixed_shares() -> None:
    scores = Scores(np.arange(100.0) + 0.5, np.arange(100.0))
    right, wrong = scores.counts(grid(scores))
    assert sorted(right + wrong) == [2, 4, 10, 20, 40, 60, 80, 100]


def randomised_response(eps: float, n: int, rng: np.random.Generator) -> Scores:
    keep = math.exp(eps) / (1 + math.exp(eps))
    return Scores(*((rng.random(n) < rate).astype(float) for rate in (keep, 1 - keep)))


def test_no_bound_is_above_the_truth_more_often_than_it_may() -> None:
    """100 repeats at 90 %: more than 18 failures have a chance below 1 % if the bound holds."""
    rng = np.random.default_rng(1)
    truth = gaussian_epsilon(1e-3, 1.0)
    missed = dict.fromkeys(["one run", "curve", "clopper-pearson", "both sides", "gdp", "response", "response, one run"], 0)
    for _ in range(100):
        scores = Scores(rng.normal(1.0, 1, 150), rng.normal(0.0, 1, 150))
        missed["one run"] += epsilon_one_run_scores(scores, delta=1e-3, confidence=0.9) > truth
        missed["curve"] += epsilon_fdp(scores, delta=1e-3, confidence=0.9, thresholds=0.5) > truth
        missed["clopper-pearson"] += epsilon_clopper_pearson(scores, delta=1e-3, confidence=0.9) > truth
        missed["both sides"] += epsilon_clopper_pearson(
            scores, delta=1e-3, confidence=0.9, sides=2, thresholds="split", rng=rng) > truth
        missed["gdp"] += epsilon_gdp(scores, delta=1e-3, confidence=0.9, rng=rng) > truth
        answers = randomised_response(1.0, 150, rng)
        missed["response"] += epsilon_clopper_pearson(answers, confidence=0.9, thresholds=1) > 1.0
        missed["response, one run"] += epsilon_one_run_scores(answers, confidence=0.9, thresholds=1) > 1.0
    assert max(missed.values()) <= 18, missed


def test_a_leak_is_found() -> None:
    rng = np.random.default_rng(2)
    answers = randomised_response(3.0, 2000, rng)
    assert 2.5 < epsilon_clopper_pearson(answers, thresholds=1) < 3.2
    assert 2.5 < epsilon_one_run_scores(answers, thresholds=1) < 3.2
    apart = Scores(np.ones(500), np.zeros(500))
    all_right = epsilon_one_run(1000, 500, 500, delta=1e-5, confidence=1 - 0.05 / 8)
    assert epsilon_one_run_scores(apart, delta=1e-5) == pytest.approx(all_right, rel=1e-6)
    assert gaussian_epsilon(1e-5, mu_one_run(1000, 500, 500)) > 2 * all_right


def test_what_is_no_count_or_claim_is_refused() -> None:
    with pytest.raises(DataError, match="correct ≤ guesses"):
        epsilon_one_run(10, 11, 5)
    with pytest.raises(DataError, match="5 of 4"):
        epsilon_from_counts(5, 0, (4, 4))
    with pytest.raises(UsageError, match="never"):
        epsilon_gdp(normals(0), delta=0.0)
    with pytest.raises(UsageError, match="delta is 1"):
        epsilon_one_run(10, 5, 5, delta=1.0)
    with pytest.raises(UsageError, match="confidence"):
        epsilon_one_run(10, 5, 5, confidence=1.0)
    with pytest.raises(DataError, match="NaN"):
        Scores.of([float("nan")], [0.0])
    with pytest.raises(UsageError, match="hull"):
        epsilon_clopper_pearson(normals(0), thresholds="best")
    with pytest.raises(UsageError, match="generator"):
        mu_lower_bound(normals(0))
