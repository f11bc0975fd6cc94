"""Report noisy max: the chance of every answer against quadrature or closed form, and ε over every neighbouring row."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.mechanisms import exponential_mechanism, gaussian_noisy_max, laplace_noisy_max
from hauberk.privacy.dp.noise import SecureSource, SeededSource

SCORES = [3.0, 2.0, 2.5, 0.0]
N = 40_000


def chances(scores: list[float], law: stats.rv_continuous) -> list[float]:
    """The probability that each entry is the largest after independent noise, by quadrature."""
    x = np.linspace(-60, 70, 40_001)
    return [
        float(integrate.simpson(law.pdf(x - a) * np.prod([law.cdf(x - b) for j, b in enumerate(scores) if j != i], axis=0), x=x))
        for i, a in enumerate(scores)
    ]


def agrees(index: torch.Tensor, expected: list[float]) -> float:
    seen = torch.bincount(index, minlength=len(expected)).tolist()
    return float(stats.chisquare(seen, np.array(expected) / sum(expected) * len(index)).pvalue)


@pytest.mark.parametrize("source", [SecureSource(), SeededSource(1)], ids=["secure", "seeded"])
def test_answers_have_their_chances(source: SeededSource) -> None:
    rows = torch.tensor([SCORES]).expand(N, 4)
    assert agrees(laplace_noisy_max(rows, 0.8, source=source).index, chances(SCORES, stats.laplace(scale=2.5))) > 1e-6
    normal = gaussian_noisy_max(rows, 0.7, sensitivity=2.0, source=source)
    assert agrees(normal.index, chances(SCORES, stats.norm(scale=1.4))) > 1e-6
    assert agrees(exponential_mechanism(rows, 0.8, source=source).index, [math.exp(0.4 * one) for one in SCORES]) > 1e-6
    counts = exponential_mechanism(rows, 0.8, monotonic=True, source=source)
    assert agrees(counts.index, [math.exp(0.8 * one) for one in SCORES]) > 1e-6


def test_two_entries_have_closed_forms() -> None:
    d, b, sigma = 1.5, 2.0, 3.0
    assert chances([d, 0.0], stats.laplace(scale=b))[0] == pytest.approx(1 - math.exp(-d / b) * (1 + d / (2 * b)) / 2, abs=1e-6)
    assert chances([d, 0.0], stats.norm(scale=sigma))[0] == pytest.approx(stats.norm.cdf(d / (sigma * math.sqrt(2))), abs=1e-9)
    rows = torch.tensor([[d, 0.0]]).expand(N, 2)
    first = int((laplace_noisy_max(rows, 2 / b, source=SeededSource(2)).index == 0).sum())
    assert stats.binomtest(first, N, 1 - math.exp(-d / b) * (1 + d / (2 * b)) / 2).pvalue > 1e-6


@pytest.mark.parametrize("monotonic", [False, True])
def test_no_neighbouring_row_changes_an_answer_by_more_than_epsilon(monotonic: bool) -> None:
    epsilon, scores = 1.0, [1.0, 0.5, 0.0]
    law = stats.laplace(scale=(1 if monotonic else 2) / epsilon)  # what the function takes: seen in the test of chances
    here = chances(scores, law)
    moves = itertools.product((0, 1), repeat=3) if monotonic else itertools.product((-1, 0, 1), repeat=3)
    worst = 0.0
    for move in moves:
        there = chances([a + b for a, b in zip(scores, move, strict=True)], law)
        worst = max(worst, *(abs(math.log(a / b)) for a, b in zip(here, there, strict=True)))
    assert 0.3 < worst <= epsilon + 1e-6


def test_each_row_is_a_release() -> None:
    rows = torch.zeros(7, 3)
    assert laplace_noisy_max(rows, 0.5).releases == exponential_mechanism(rows, 0.5).releases == (Release("pure", 0.5, count=7),)
    assert gaussian_noisy_max(rows, 2.0, sensitivity=1.0).releases == (Release("gaussian", 2.0, count=7),)
    assert len(laplace_noisy_max(rows[:0], 0.5).index) == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_impossible_numbers_are_refused(bad: float) -> None:
    rows = torch.zeros(2, 3)
    for method in (laplace_noisy_max, exponential_mechanism):
        with pytest.raises(UsageError, match="ε"):
            method(rows, bad)
        with pytest.raises(UsageError, match="sensitivity"):
            method(rows, 1.0, sensitivity=bad)
    with pytest.raises(UsageError, match="multiplier"):
        gaussian_noisy_max(rows, bad, sensitivity=1.0)
    with pytest.raises(DataError, match="scores"):
        laplace_noisy_max(torch.full((2, 3), math.nan), 1.0)
    with pytest.raises(DataError, match="scores"):
        laplace_noisy_max(torch.zeros(3), 1.0)
