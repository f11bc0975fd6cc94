"""The ε of PATE that may be published: its sensitivity against enumeration, the price of its release against quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.noise import SeededSource
from hauberk.privacy.dp.pate import GNMax, LNMax, Smoothing, publish_epsilon
from hauberk.privacy.dp.pate.sensitive import gaussian_rdp, log_q_gaussian
from hauberk.privacy.dp.pate.smooth import release_rdp, smooth_sensitivity


def histograms(teachers: int, classes: int) -> list[tuple[int, ...]]:
    return [one for one in itertools.product(range(teachers + 1), repeat=classes) if sum(one) == teachers]


def moves(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many teachers have to change their vote."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) // 2


@pytest.mark.parametrize(("teachers", "classes", "sigma"), [(12, 2, 2.0), (9, 3, 1.5), (10, 3, 1.2), (40, 2, 4.0)])
@pytest.mark.parametrize(("order", "beta"), [(2.0, None), (4.0, 0.05), (4.0, 0.001)])
def test_never_below_the_enumerated_smooth_sensitivity(
    teachers: int, classes: int, sigma: float, order: float, beta: float | None
) -> None:
    smoothing = Smoothing(order, beta)
    every = histograms(teachers, classes)
    found = [smooth_sensitivity(torch.tensor([one]), sigma, smoothing, teachers=teachers) for one in every]
    value, ours = np.array(found).T
    apart = np.array([[moves(a, b) for b in every] for a in every])
    local = np.where(apart <= 1, np.abs(value[:, None] - value), 0).max(1)
    least = (np.exp(-smoothing.discount * apart) * local).max(1)  # the definition, over all histograms
    assert np.all(ours >= least - 1e-12)
    steps = np.where(apart <= 1, ours / np.maximum(ours[:, None], 1e-300), 0)
    assert steps.max() <= math.exp(smoothing.discount) * (1 + 1e-9)  # it is smooth itself
    assert least.max() > 0.05 * order / sigma**2 and np.all(ours <= 2 * least)  # of use, and not far above
    # The value is a bound that holds for some q no less than that of these votes.
    log_q = log_q_gaussian(torch.tensor(every, dtype=torch.float64), sigma)
    for one, bound in zip(log_q[::5], value[::5], strict=True):
        larger = np.linspace(one, math.log1p(-1 / classes), 400)
        each = [gaussian_rdp(float(q), 1 / sigma**2, np.array([order]))[0] for q in larger]
        assert min(each) * (1 - 1e-3) - 1e-9 <= bound <= order / sigma**2 + 1e-12


def test_questions_move_together() -> None:
    """One teacher may change its answers to all questions at once: enumerated over pairs of histograms."""
    teachers, sigma, smoothing = 7, 1.0, Smoothing(2.0, 0.05)
    single = histograms(teachers, 2)
    every = list(itertools.product(single, single))
    found = [smooth_sensitivity(torch.tensor(one), sigma, smoothing, teachers=teachers) for one in every]
    value, ours = np.array(found).T
    apart = np.array([[max(moves(a, c), moves(b, d)) for c, d in every] for a, b in every])
    local = np.where(apart <= 1, np.abs(value[:, None] - value), 0).max(1)
    least = (np.exp(-smoothing.discount * apart) * local).max(1)
    assert np.all(ours >= least - 1e-12) and least.max() > 0.1 * ours.max()


@pytest.mark.parametrize("order", [3.0, 20.0])
@pytest.mark.parametrize("raised", [0.0, 12.0])
def test_the_release_costs_what_quadrature_says(order: float, raised: float) -> None:
    """Two data sets with values as far apart as the lesser sensitivity, and sensitivities as far apart as β allows."""
    beta, noise = 1 / (4 * order), 4.0
    bound = release_rdp(order, beta, noise, raised)

    def divergence(log_ratio: float) -> float:
        first, second = 1.0, math.exp(log_ratio)
        shift = min(first, second) + raised * abs(second - first)

        def log_pdf(x: float, mean: float, deviation: float) -> float:
            return -(((x - mean) / deviation) ** 2) / 2 - math.log(deviation * math.sqrt(2 * math.pi))

        def term(x: float) -> float:
            return math.exp(order * log_pdf(x, 0.0, noise * first) + (1 - order) * log_pdf(x, shift, noise * second))

        total, _ = integrate.quad(term, -60 * noise, 60 * noise, limit=400)
        return math.log(total) / (order - 1)

    # The worst ends of the bound: the farthest means that raising allows, for the narrower second law.
    seen = [divergence(beta * step / 4) for step in range(-4, 5)]
    assert max(seen) <= bound * (1 + 1e-6) and seen[0] >= 0.75 * bound


def test_what_is_published_is_above_the_truth_and_below_the_worst_case() -> None:
    votes = torch.tensor([[240.0, 10.0, 0.0]]).repeat(200, 1)
    smoothing, aggregator = Smoothing(15.0), GNMax(30.0)
    true, sensitivity = smooth_sensitivity(votes, 30.0, smoothing, teachers=250)
    worst = 200 * 15.0 / 900
    assert true < 0.05 * worst and sensitivity > 0
    told = [
        publish_epsilon(votes, aggregator, 1e-5, teachers=250, smoothing=smoothing, source=SeededSource(seed, "smooth"))
        for seed in range(200)
    ]
    answers = np.array([one.answers for one in told])
    assert all(one.publishable and one.release == smoothing.cost for one in told)
    assert np.mean(answers < true) <= 0.02 and answers.max() <= worst  # one in a thousand is allowed for
    unraised = (answers - true) / sensitivity - smoothing.raised
    inside = answers < worst
    assert abs(unraised[inside].mean()) < 3 and 7 < unraised[inside].std() < 13  # ten smooth sensitivities of noise
    plain = worst + math.log1p(-1 / 15) - math.log(1e-5 * 15) / 14
    assert np.median([one.epsilon for one in told]) < plain
    one = told[0]
    assert one.epsilon == pytest.approx(one.answers + one.release + math.log1p(-1 / 15) - math.log(1e-5 * 15) / 14)


def test_what_cannot_be_used_is_refused() -> None:
    votes = torch.tensor([[3.0, 1.0]])
    with pytest.raises(UsageError, match=r"of LNMax.*Expected GNMax"):
        publish_epsilon(votes, LNMax(0.1), 1e-5, teachers=4, smoothing=Smoothing(10.0))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="4 votes of 3 teachers"):
        publish_epsilon(votes, GNMax(1.0), 1e-5, teachers=3, smoothing=Smoothing(10.0))
    with pytest.raises(UsageError, match="δ is 1"):
        publish_epsilon(votes, GNMax(1.0), 1.0, teachers=4, smoothing=Smoothing(10.0))
    for wrong in ({"order": 1.0}, {"order": 10.0, "beta": 0.06}, {"order": 10.0, "beta": 0.0}, {"order": 10.0, "noise": 0.0},
                  {"order": 10.0, "failure": 0.0}):
        with pytest.raises(UsageError):
            Smoothing(**wrong)
    assert smooth_sensitivity(torch.zeros(0, 3), 1.0, Smoothing(10.0), teachers=5) == (0.0, 0.0)
