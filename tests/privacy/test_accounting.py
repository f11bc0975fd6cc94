"""The loss of private releases: published values, closed forms, a well-kept peer, and that it is never under-reported."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import (
    PrivacyLedger,
    Release,
    advanced_composition,
    delta_for,
    epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise,
    group_epsilon,
)
from hauberk.privacy.dp.accounting import pld as distributions
from hauberk.privacy.dp.accounting.renyi import naive_epsilon, sampled_gaussian

# rate, noise, steps, δ, RDP, PLD (both dp-accounting 0.6.0), GDP
TABLE = [
    (0.01, 4, 10_000, 1e-5, 1.03549, 0.94700, 0.94244),
    (256 / 60_000, 1.1, 14_063, 1e-5, 2.59666, 2.38178, 2.32436),
    (256 / 60_000, 1.3, 3516, 1e-5, 0.95456, 0.86459, 0.83451),
    (256 / 60_000, 0.7, 10_547, 1e-5, 6.31975, 5.63972, 5.06619),
    (0.01, 1.0, 1000, 1e-5, 2.10137, 1.82824, 1.61771),
    (0.02, 0.8, 500, 1e-6, 6.16455, 5.44031, 4.16475),
    (0.001, 0.5, 2000, 1e-6, 5.77285, 4.65512, 1.42008),
    (0.1, 2.0, 200, 1e-5, 3.67975, 3.35966, 3.16442),
    (0.08192, 9.4, 2450, 1e-5, 1.85300, 1.70230, 1.69619),
    (1, 10, 100, 1e-5, 4.72851, 4.37718, 4.377178),
    (0.04, 1.5, 2250, 1e-5, 7.32933, 6.76879, 6.60157),
]


def steps(rate, noise, count, sampling="poisson"):
    return [Release("gaussian", noise, "full" if rate == 1 else sampling, rate, count)]


@pytest.mark.parametrize(("rate", "noise", "count", "delta", "rdp", "pld", "gdp"), TABLE)
def test_the_table_of_reference_values(rate, noise, count, delta, rdp, pld, gdp):
    made = steps(rate, noise, count)
    found = epsilon(made, delta)
    assert found.epsilon == pytest.approx(pld, rel=1e-4) and found.bound
    assert pld - 5e-6 <= found.epsilon <= 1.01 * pld  # the figures of the table are rounded to five places
    assert epsilon(made, delta, accountant="rdp").epsilon == pytest.approx(rdp, rel=1e-4)
    estimate = epsilon(made, delta, accountant="gdp")
    assert estimate.epsilon == pytest.approx(gdp, rel=1e-5) and not estimate.bound and "≈" in estimate.describe()


@pytest.mark.parametrize("row", [TABLE[2], TABLE[6], TABLE[8], TABLE[9]])
def test_never_below_the_peer_and_at_most_one_percent_above(row):
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    rate, noise, count, delta = row[:4]
    event = dp.GaussianDpEvent(noise)
    peer = PLDAccountant().compose(event if rate == 1 else dp.PoissonSampledDpEvent(rate, event), count).get_epsilon(delta)
    assert peer <= epsilon(steps(rate, noise, count), delta).epsilon <= 1.01 * peer


def test_the_naive_conversion_gives_the_published_figures():
    # Abadi et al. 2016: 1.26; the tutorials of TF-Privacy: 3.01 and 1.19.
    assert naive_epsilon(steps(0.01, 4, 10_000), 1e-5, "add-remove") == pytest.approx(1.25857, abs=2e-3)
    assert naive_epsilon(steps(256 / 60_000, 1.1, 14_063), 1e-5, "add-remove") == pytest.approx(3.00838, abs=2e-3)
    assert naive_epsilon(steps(256 / 60_000, 1.3, 3516), 1e-5, "add-remove") == pytest.approx(1.19226, abs=2e-3)


def test_two_phases_and_a_decaying_noise():
    phases = [*steps(0.01, 1, 500), *steps(0.02, 1.5, 500)]
    assert epsilon(phases, 1e-5).epsilon == pytest.approx(1.89748, rel=1e-4)
    assert epsilon(phases, 1e-5, accountant="rdp").epsilon == pytest.approx(2.14767, rel=1e-4)
    assert epsilon(reversed(phases), 1e-5).epsilon == pytest.approx(1.89748, rel=1e-4)


def test_many_different_noises_are_rounded_to_few_and_never_upward():
    decaying = [Release("gaussian", 1.5 / (1 + 6e-4 * t), "poisson", 0.01) for t in range(1, 501)]
    few = distributions.thinned(decaying, most=40)
    assert sum(one.count for one in few) == 500 and len(few) <= 40
    noises = np.repeat([one.noise for one in few], [one.count for one in few])
    given_ = np.array([one.noise for one in decaying])
    assert np.all(np.sort(noises) <= np.sort(given_)) and np.all(np.sort(noises) > np.sort(given_) * 0.98)


def test_a_noise_that_decays_in_five_hundred_steps():
    decaying = [Release("gaussian", 1.5 / (1 + 6e-4 * t), "poisson", 0.01) for t in range(1, 501)]
    # Every five steps with the greatest noise among them, by dp-accounting 0.6.0: less than what is really lost.
    assert 0.81092 <= epsilon(decaying, 1e-5).epsilon <= 0.81092 * 1.01
    assert 1.02218 - 5e-6 <= epsilon(decaying, 1e-5, accountant="rdp").epsilon <= 1.02218 * 1.005


@pytest.mark.parametrize("sampling", ["poisson", "without-replacement"])
@pytest.mark.parametrize(("rate", "count"), [(1e-5, 10**5), (1e-7, 10**8), (1e-8, 10**10), (1e-9, 10**10), (1e-9, 10**12)])
def test_tiny_rates_and_huge_counts_stay_a_distribution(sampling, rate, count):
    made = steps(rate, 1.0, count, sampling)
    found, loose = epsilon(made, 1e-5).epsilon, epsilon(made, 1e-5, accountant="rdp").epsilon
    # With every other record at −C a replaced one loses as much as a removed one at half the noise.
    limit = rate * math.sqrt(count * math.expm1(1.0 if sampling == "poisson" else 4.0))
    assert gaussian_epsilon(1e-5, limit) * 0.99 <= found <= loose and loose > 0.1
    assert gaussian_delta(0.0, limit) * 0.95 <= delta_for(made, 0.0) <= 1


@pytest.mark.parametrize(("rate", "noise", "count"), [(1e-4, 1, 100), (1e-6, 1, 10**6), (0.01, 50, 100), (1e-7, 1, 10**8)])
def test_a_small_epsilon_is_not_lost_in_the_grid(rate, noise, count):
    limit = gaussian_epsilon(1e-5, rate * math.sqrt(count * math.expm1(1 / noise**2)))
    assert limit <= epsilon(steps(rate, noise, count), 1e-5).epsilon <= 1.35 * limit  # few steps are no normal law yet


@pytest.mark.parametrize("sigma", [100, 1000, 1e4, 1e6])
def test_one_large_gaussian_is_exact(sigma):
    exact = gaussian_epsilon(1e-5, 1 / sigma)
    assert exact <= epsilon([Release("gaussian", sigma)], 1e-5).epsilon <= exact * (1 + 2e-6)
    # Beside a release of another kind it is put on a grid: never below, a thousandth above.
    both = epsilon([Release("gaussian", min(sigma, 1e4)), Release("pure", 1e-12)], 1e-5).epsilon
    exact = gaussian_epsilon(1e-5, 1 / min(sigma, 1e4))
    assert exact <= both <= exact * 1.01 + 1e-11


def test_many_kinds_and_noise_beyond_squaring_are_bounded():
    for kind in ("gaussian", "laplace"):
        for noise in (1e155, 1e160, 1e300):
            for accountant in ("pld", "rdp"):
                assert 0 <= epsilon([Release(kind, noise, "poisson", 0.1, 10)], 1e-5, accountant=accountant).epsilon < 1e-9
    kinds = [Release("gaussian", 1.5 / (1 + 1e-3 * t), "poisson", 0.01) for t in range(2000)]
    assert len(distributions.thinned(kinds)) <= distributions.MOST_DISTINCT
    # Between all steps at the greatest noise and all at the least.
    least, most = (epsilon(steps(0.01, noise, 2000), 1e-5).epsilon for noise in (1.5, 1.5 / (1 + 1e-3 * 1999)))
    assert least < epsilon(kinds, 1e-5).epsilon < most
    mixed = [Release("gaussian", 1 + k / 7, "poisson", 1 / (k + 2), k) for k in range(1, 500)]
    few = distributions.thinned(mixed, most=20)
    assert len(few) <= 20 and sum(one.count for one in few) == sum(one.count for one in mixed)
    assert max(one.rate for one in few) == 1 / 3 and min(one.noise for one in few) == 1 + 1 / 7


@pytest.mark.parametrize(("rate", "noise"), [(1e-9, 1.0), (1e-7, 0.7)])
def test_the_renyi_bound_does_not_vanish_with_the_rate(rate, noise):
    order = 2  # exactly ln(1 + q² (e^(1/σ²) − 1))
    assert sampled_gaussian(rate, noise, order) == pytest.approx(rate**2 * math.expm1(1 / noise**2), rel=1e-9)
    from hauberk.privacy.dp.accounting.renyi import ORDERS, divergences

    for sampling, relation in (("poisson", "add-remove"), ("without-replacement", "replace-one")):
        found = divergences(Release("gaussian", noise, sampling, rate), relation)
        leading = np.array(ORDERS) / 2 * rate**2 * math.expm1(1 / noise**2)  # the second-order term alone
        assert np.all(found >= leading * (1 - 1e-6))
    assert np.all(divergences(Release("pure", 1e-9), "add-remove") >= np.array(ORDERS) * 1e-18 / 2 * 0.999999)


def test_exact_gaussian_values():
    for sigma, delta, value in ((2, 1e-5, 1.993091), (4, 1e-6, 1.060702), (0.5, 1e-5, 9.997256)):
        assert gaussian_epsilon(delta, 1 / sigma) == pytest.approx(value, abs=5e-7)
        assert epsilon([Release("gaussian", sigma)], delta, accountant="analytic").epsilon == pytest.approx(value, abs=5e-7)
        assert value - 5e-7 <= epsilon([Release("gaussian", sigma)], delta).epsilon <= value * 1.001
    assert gaussian_noise(1, 1e-5) == pytest.approx(3.730632, abs=5e-7)
    assert gaussian_noise(0.5, 1e-6) == pytest.approx(8.057618, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 8), st.floats(0, 20))
def test_the_gaussian_delta_is_the_integral_of_its_definition(mu, eps):
    start = eps / mu + mu / 2  # where the likelihood ratio of N(μ, 1) to N(0, 1) passes e^ε
    whole, _ = quad(lambda x: norm.pdf(x - mu) - math.exp(eps) * norm.pdf(x), start, start + 40, epsabs=1e-14, limit=200)
    assert gaussian_delta(eps, mu) == pytest.approx(whole, abs=1e-10)


def test_laplace_and_plain_answers():
    laplace = [Release("laplace", 1.0, count=10)]
    assert epsilon(laplace, 1e-5).epsilon == pytest.approx(9.98996, rel=1e-5)
    assert epsilon(laplace, 1e-5, accountant="rdp").epsilon == pytest.approx(9.99033, rel=1e-4)
    assert epsilon(laplace, 0).epsilon == pytest.approx(10)
    assert epsilon(laplace, 0, relation="replace-one").epsilon == pytest.approx(20)
    assert epsilon([Release("discrete-laplace", 2.0, count=3)], 0).epsilon == pytest.approx(1.5)
    assert advanced_composition(0.1, 100, 1e-5) == pytest.approx(5.850235, abs=1e-6)
    assert advanced_composition(0.1, 10, 1e-9) == pytest.approx(1.0)  # the sum is less


def kairouz(eps, count, target):
    """Exact composition of plain answers: the least ε of Kairouz et al. 2015 at δ ≤ target, by bisection."""

    def delta(total):
        k = np.arange(count + 1)
        log_comb = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k])
        up = np.exp(log_comb + k * eps - count * np.log1p(math.exp(eps)))
        down = np.exp(log_comb + (count - k) * eps - count * np.log1p(math.exp(eps)))
        return np.maximum(up - math.exp(total) * down, 0).sum()

    low, high = 0.0, eps * count
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if delta(middle) <= target else (middle, high)
    return high


@pytest.mark.parametrize(("eps", "count", "delta"), [(0.1, 100, 1e-5), (0.5, 30, 1e-6), (2.0, 5, 1e-3), (0.013, 400, 1e-5)])
@pytest.mark.parametrize("mechanism", ["pure", "randomized-response"])
def test_plain_answers_add_up_as_the_exact_composition_theorem_says(mechanism, eps, count, delta):
    exact = kairouz(eps, count, delta)
    found = epsilon([Release(mechanism, eps, count=count)], delta).epsilon
    assert exact <= found <= exact * 1.001
    assert found <= epsilon([Release(mechanism, eps, count=count)], delta, accountant="rdp").epsilon * (1 + 1e-6)


def test_a_shuffled_loader_never_gets_the_figure_of_poisson_sampling():
    poisson = epsilon(steps(256 / 60_000, 1.1, 14_063), 1e-5)
    # dp-accounting's noise there is over what a *replaced* record moves, 2C: 5.24347 belongs to a standard deviation of 2.2 C.
    drawn = steps(256 / 60_000, 2.2, 14_063, "without-replacement")
    rdp = epsilon(drawn, 1e-5, accountant="rdp")
    assert rdp.epsilon == pytest.approx(5.24347, rel=1e-5) and rdp.relation == "replace-one"
    assert poisson.relation == "add-remove" and any("not for a shuffled loader" in note for note in poisson.notes)
    same = epsilon(steps(256 / 60_000, 1.1, 14_063, "without-replacement"), 1e-5)
    # With every other record at −C, replacing one moves the sum by 2C at a rate of q: a data set that really loses as much.
    attained = epsilon(steps(256 / 60_000, 0.55, 14_063), 1e-5).epsilon
    assert attained <= same.epsilon <= 24.1 and attained == pytest.approx(14.718, rel=1e-3)
    assert poisson.epsilon < 5.24347 < same.epsilon
    dealt = epsilon(steps(256 / 60_000, 1.1, 14_063, "shuffled"), 1e-5)
    passes = math.ceil(14_063 / (60_000 // 256))
    assert dealt.epsilon == pytest.approx(gaussian_epsilon(1e-5, 2 * math.sqrt(passes) / 1.1), rel=1e-3)
    for made in (drawn, steps(0.1, 1, 5, "shuffled"), [Release("randomized-response", 1.0)]):
        with pytest.raises(UsageError, match="number of records is fixed"):
            epsilon(made, 1e-5, relation="add-remove")


def test_replace_one_moves_twice_as_far():
    assert epsilon(steps(0.01, 1, 1000), 1e-5, relation="replace-one").epsilon == pytest.approx(2.84345, rel=1e-4)
    one, other = Release("gaussian", 2.0, count=3), Release("gaussian", 1.0, count=3)
    for accountant in ("pld", "rdp", "zcdp", "analytic"):
        replaced = epsilon([one], 1e-5, accountant=accountant, relation="replace-one").epsilon
        assert replaced == pytest.approx(epsilon([other], 1e-5, accountant=accountant).epsilon)
    with pytest.raises(UsageError, match="Poisson sampling under replace-one"):
        epsilon(steps(0.01, 1, 1000), 1e-5, accountant="rdp", relation="replace-one")


RDP = [
    (0.01, 1, 2, 1.7181342207455162e-4), (0.01, 1, 8, 8.93643907606041e-4), (0.1, 2, 16, 0.04529183908362216),
]


@pytest.mark.parametrize(("rate", "noise", "order", "value"), RDP)
def test_divergences_of_the_sampled_gaussian(rate, noise, order, value):
    assert sampled_gaussian(rate, noise, order) == pytest.approx(value, rel=1e-10)
    # Independent of the closed form: the integral of its definition.
    whole, _ = quad(
        lambda x: norm.pdf(x / noise) / noise * (1 - rate + rate * math.exp((2 * x - 1) / (2 * noise**2))) ** order,
        -12 * noise, 12 * noise + order, limit=400,
    )
    assert math.log(whole) / (order - 1) == pytest.approx(value, rel=1e-5)


@settings(max_examples=5, deadline=None)
@given(
    st.floats(1e-3, 0.3), st.floats(0.6, 6), st.integers(1, 400), st.sampled_from([1e-4, 1e-5, 1e-7]),
    st.sampled_from(["poisson", "without-replacement"]),
)
def test_pld_is_at_most_rdp_and_sampling_never_costs(rate, noise, count, delta, sampling):
    made = steps(rate, noise, count, sampling)
    pld = epsilon(made, delta).epsilon
    assert pld <= epsilon(made, delta, accountant="rdp").epsilon * (1 + 1e-3) + 1e-9
    relation = "add-remove" if sampling == "poisson" else "replace-one"
    whole = epsilon([Release("gaussian", noise, count=count)], delta, accountant="analytic", relation=relation).epsilon
    assert pld <= whole * (1 + 1e-3) + 1e-6


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.floats(0.7, 9), st.integers(1, 50)), min_size=1, max_size=4), st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_pld_is_never_below_the_exact_gaussian_value(kinds, delta):
    made = [Release("gaussian", noise, count=count) for noise, count in kinds]
    exact = epsilon(made, delta, accountant="analytic").epsilon
    assert exact <= epsilon(made, delta).epsilon <= exact * 1.005 + 1e-3


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 0.9), st.floats(0.4, 5), st.floats(-4, 4))
def test_profiles_are_the_integrals_of_their_definition(rate, sigma, eps):
    from hauberk.privacy.dp.accounting import profiles

    x = np.linspace(-14 * sigma - 2, 14 * sigma + 2, 20_001)
    zero, plus, minus = (norm.pdf(x, at, sigma) for at in (0, 1, -1))
    up, down = (1 - rate) * zero + rate * plus, (1 - rate) * zero + rate * minus
    for profile, p, q in ((profiles.removed, up, zero), (profiles.added, zero, up), (profiles.replaced, up, down)):
        whole = np.trapezoid(np.maximum(p - math.exp(eps) * q, 0), x)
        assert profile(np.array([eps]), rate, sigma)[0] == pytest.approx(whole, abs=1e-6)


def test_trees_and_discrete_noise():
    # 1000 leaves: 10 nodes above each, itself included; two trees.
    tree = epsilon([Release("tree", 5.0, count=2, population=1000)], 1e-5, accountant="analytic").epsilon
    assert tree == pytest.approx(gaussian_epsilon(1e-5, math.sqrt(20) / 5))
    discrete = epsilon([Release("discrete-gaussian", 4.0, count=9)], 1e-5)
    assert discrete.epsilon == pytest.approx(epsilon([Release("gaussian", 4.0, count=9)], 1e-5, accountant="rdp").epsilon)
    sampled = epsilon([Release("discrete-gaussian", 4.0, "poisson", 0.01, 900)], 1e-5).epsilon
    gaussian = epsilon(steps(0.01, 4.0, 900), 1e-5, accountant="rdp").epsilon
    assert gaussian <= sampled <= epsilon([Release("discrete-gaussian", 4.0, count=900)], 1e-5).epsilon / 5


def test_zcdp_is_the_closed_form_and_refuses_sampled_noise():
    rho = 50 / (2 * 4.0**2)
    found = epsilon([Release("gaussian", 4.0, count=50)], 1e-5, accountant="zcdp").epsilon
    assert found == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)))
    with pytest.raises(UsageError, match="no ρ holds for sampled noise"):
        epsilon(steps(0.01, 4.0, 50), 1e-5, accountant="zcdp")


def test_groups():
    gaussian = group_epsilon([Release("gaussian", 6.0, count=4)], 1e-5, 3, accountant="analytic").epsilon
    assert gaussian == pytest.approx(gaussian_epsilon(1e-5, 3 * 2 / 6))
    assert group_epsilon([Release("pure", 0.5, count=2)], 0, 4).epsilon == pytest.approx(4.0)
    sampled = group_epsilon(steps(0.01, 2.0, 100), 1e-5, 2)
    alone = epsilon(steps(0.01, 2.0, 100), 1e-5).epsilon
    assert 2 * alone < sampled.epsilon < 5 * alone


def test_delta_turns_epsilon_round():
    made = steps(0.01, 1.0, 1000)
    for accountant in ("pld", "rdp"):
        spent = epsilon(made, 1e-5, accountant=accountant).epsilon
        assert delta_for(made, spent, accountant=accountant) == pytest.approx(1e-5, rel=1e-3)
    assert delta_for([Release("gaussian", 0.0)], 3) == 1 and delta_for([], 0) == 0


def test_extremes_have_clear_answers():
    assert epsilon([Release("gaussian", 0.0)], 1e-5).epsilon == math.inf
    assert epsilon([Release("laplace", 0.0, "poisson", 0.1)], 1e-5).epsilon == math.inf
    assert epsilon([Release("gaussian", 0.0, "poisson", 0.0)], 1e-5).epsilon == 0
    assert epsilon([], 1e-5).epsilon == epsilon([Release("gaussian", 1, count=0)], 1e-5).epsilon == 0
    assert epsilon([Release("gaussian", 1.0)], 0).epsilon == math.inf
    assert epsilon(steps(1e-3, 1e-3, 10), 1e-5).epsilon > 1e4  # finite or not, never small
    many = epsilon(steps(1e-6, 1.0, 10**9), 1e-5).epsilon
    assert 0.05 < many <= epsilon(steps(1e-6, 1.0, 10**9), 1e-5, accountant="rdp").epsilon * 1.001
    assert epsilon(steps(0.01, 1.0, 10**12), 1e-5).epsilon > 1e6
    assert epsilon(steps(1e-300, 1.0, 1), 1e-5).epsilon == 0 and 0 <= epsilon(steps(1e-300, 1.0, 1), 1e-12).epsilon < 1
    tiny = epsilon(steps(0.01, 1.0, 1000), 1e-30)
    assert tiny.epsilon > 5 and any("too small" in note for note in tiny.notes)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"mechanism": "gausian"}, "Did you mean 'gaussian'"), ({"noise": -1}, "noise of a release is -1"),
    ({"noise": math.nan}, "is nan"), ({"rate": 0.5}, "'full' with a rate"), ({"sampling": "poisson", "rate": 2}, "2"),
    ({"count": 1.5}, "count of a release is 1.5"), ({"mechanism": "tree"}, "without its size"),
    ({"mechanism": "tree", "sampling": "poisson", "rate": 0.1, "population": 4}, "no accountant here covers"),
])
def test_wrong_releases_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Release(**{"mechanism": "gaussian", "noise": 1.0, **wrong})


@pytest.mark.parametrize("delta", [-1e-5, 1, 1.5, math.nan, True, "1e-5"])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(UsageError, match="δ is"):
        epsilon([Release("gaussian", 1.0)], delta)


def test_the_ledger_counts_equal_releases_up_and_comes_back():
    ledger = PrivacyLedger()
    for _ in range(50):
        ledger.add(Release("gaussian", 2.0, "poisson", 0.01))
    ledger.add(Release("gaussian", 1.0, "poisson", 0.01))
    assert (len(ledger), ledger.count, ledger.releases[0].count) == (2, 51, 50)
    other = PrivacyLedger()
    other.load_state_dict(ledger.state_dict())
    assert other.releases == ledger.releases and other.epsilon(1e-5) == ledger.epsilon(1e-5)
    for broken in ({}, {"releases": 3}, {"releases": [{"noise": 1}]}, {"releases": [{"mechanism": "x", "noise": 1}]}, None):
        with pytest.raises(UsageError):
            other.load_state_dict(broken)
    assert other.releases == ledger.releases


def test_a_plain_answer_about_a_record_added_costs_twice_as_much_where_one_is_replaced():
    whole = [Release("pure", 0.3, count=4)]
    twice = [Release("pure", 0.6, count=4)]
    for delta, by in ((0.0, "pld"), (1e-5, "pld"), (1e-5, "rdp"), (1e-5, "zcdp")):
        found = epsilon(whole, delta, accountant=by, relation="replace-one").epsilon
        assert found == pytest.approx(epsilon(twice, delta, accountant=by).epsilon, rel=1e-9)
    assert epsilon(whole, 0.0).epsilon == pytest.approx(1.2)
    # An answer of two outcomes at rate q: e^±ε with the record or the other, evens without either; exact by enumeration.
    q, eps = 0.1, 1.0
    high, low = (1 - q) + q * math.exp(eps), (1 - q) + q * math.exp(-eps)
    found = epsilon([Release("pure", eps, "poisson", q)], 0.0, relation="replace-one").epsilon
    assert found >= math.log(high / low) * (1 - 1e-12)
    labels = Release("randomized-response", 0.3)
    assert epsilon([labels], 0.0).epsilon == pytest.approx(0.3)
    assert epsilon([labels, Release("pure", 0.3)], 0.0).epsilon == pytest.approx(0.9)  # all of it about a replaced record


def test_discrete_noise_has_a_bound_where_a_record_is_replaced():
    # One batch from elsewhere puts a run of sampled steps under replace-one: the account goes on, without amplification.
    sampled = Release("discrete-gaussian", 2.0, "poisson", 0.01, 50)
    full = Release("discrete-gaussian", 2.0, count=50)
    found = epsilon([sampled], 1e-5, relation="replace-one").epsilon
    assert found == pytest.approx(epsilon([full], 1e-5, relation="replace-one").epsilon, rel=1e-9)
    both = epsilon([sampled, Release("discrete-gaussian", 2.0, "any")], 1e-5)
    assert both.relation == "replace-one" and both.epsilon > found
