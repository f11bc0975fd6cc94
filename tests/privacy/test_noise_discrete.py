"""Discrete noise: both samplers against the closed-form probabilities, and the mechanisms that use them on a grid."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

import pytest
import torch
from scipy import stats

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise import (
    DiscreteGaussian,
    DiscreteLaplace,
    SecureSource,
    SeededSource,
    discrete,
    discrete_gaussian,
    discrete_laplace,
    exact,
    sample_gaussian,
    sample_laplace,
)


def chi_square(values: Iterable[int], weight: Callable[[int], float]) -> float:
    """The p-value of integers under probabilities in proportion to `weight`; cells expected below 8 times go together."""
    counts = Counter(values)
    n, support = sum(counts.values()), range(-4000, 4001)
    whole = math.fsum(map(weight, support))
    cells = {x: n * weight(x) / whole for x in support}
    large = {x for x, expected in cells.items() if expected >= 8}
    seen, expected = [float(counts[x]) for x in large], [cells[x] for x in large]
    if (rest := n - sum(expected)) > 1:
        seen, expected = [*seen, n - sum(seen)], [*expected, rest]
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))
    return float(stats.chi2.sf(statistic, len(seen) - 1))


def laplace(scale: float) -> Callable[[int], float]:
    return lambda x: math.exp(-abs(x) / scale)


def gaussian(variance: float) -> Callable[[int], float]:
    return lambda x: math.exp(-x * x / (2 * variance))


SCALES = [Fraction(1, 3), Fraction(1), Fraction(7, 4), Fraction(23)]
VARIANCES = [Fraction(1, 5), Fraction(1), Fraction(19, 3), Fraction(400)]


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 7), Fraction(1), Fraction(13, 5)])
def test_bernoulli_of_an_exponential(gamma: Fraction) -> None:
    dice = random.Random(1)
    hits = sum(exact.bernoulli_exp(gamma, dice) for _ in range(20_000))
    assert stats.binomtest(hits, 20_000, math.exp(-gamma)).pvalue > 1e-4


@pytest.mark.parametrize("scale", SCALES)
def test_the_exact_laplace_sampler(scale: Fraction) -> None:
    dice = random.Random(2)
    assert chi_square((discrete_laplace(scale, dice) for _ in range(8_000)), laplace(float(scale))) > 1e-4


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_exact_gaussian_sampler(variance: Fraction) -> None:
    dice = random.Random(3)
    assert chi_square((discrete_gaussian(variance, dice) for _ in range(5_000)), gaussian(float(variance))) > 1e-4


@pytest.mark.parametrize("scale", SCALES)
def test_the_vectorised_laplace_sampler(scale: Fraction) -> None:
    values = sample_laplace(200_000, scale, SeededSource(4))
    assert values.dtype == torch.int64 and len(values) == 200_000
    assert chi_square(values.tolist(), laplace(float(scale))) > 1e-4


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_vectorised_gaussian_sampler(variance: Fraction) -> None:
    values = sample_gaussian(200_000, variance, SeededSource(5))
    assert values.dtype == torch.int64 and len(values) == 200_000
    assert chi_square(values.tolist(), gaussian(float(variance))) > 1e-4


def test_draws_too_near_for_float64_are_decided_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin that trusts float64 with nothing, every draw takes the exact way, and gives the very same integers."""
    fast = sample_gaussian(1_500, Fraction(19, 3), SeededSource(6)), sample_laplace(1_500, Fraction(7, 4), SeededSource(7))
    monkeypatch.setattr(discrete, "MARGIN", 1e300)
    slow = sample_gaussian(1_500, Fraction(19, 3), SeededSource(6)), sample_laplace(1_500, Fraction(7, 4), SeededSource(7))
    assert torch.equal(fast[0], slow[0]) and torch.equal(fast[1], slow[1])


class Scripted(SeededSource):
    """Gives the words of a list, one by one."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(0)
        self.words = words

    def bits(self, n: int) -> torch.Tensor:
        return torch.tensor([self.words.pop(0) for _ in range(n)])


def test_a_draw_on_the_boundary_takes_more_digits() -> None:
    digits = math.floor(Fraction(math.exp(-1)) * 2**63)
    # exp(-1) = 0.36787944117144232159552377016146086744581113103176... in units of 2^-63
    boundary = int(Fraction("0.36787944117144232159552377016146086744581113103176") * 2**63)
    assert abs(digits - boundary) < 2**11
    for more, below in ((0, True), (2**63 - 1, False)):
        source = Scripted([more])
        assert discrete._Uniform(boundary, source).below_exp(Fraction(1)) is below
        assert not source.words  # one more word was needed
    for away, below in ((-3, True), (3, False)):
        assert discrete._Uniform(boundary + away, Scripted([])).below_exp(Fraction(1)) is below


def test_wide_laws_tend_to_the_continuous_ones() -> None:
    wide = Fraction(2**20)
    found = sample_gaussian(50_000, wide**2, SeededSource(8)).double().numpy() / 2**20
    assert stats.kstest(found, stats.norm().cdf).pvalue > 1e-4
    found = sample_laplace(50_000, wide, SecureSource()).double().numpy() / 2**20
    assert stats.kstest(found, stats.laplace().cdf).pvalue > 1e-6


@pytest.mark.parametrize("bad", [Fraction(0), Fraction(-1), Fraction(2) ** 90])
def test_laws_out_of_range_are_refused(bad: Fraction) -> None:
    for draw in (sample_laplace, sample_gaussian):
        with pytest.raises(UsageError, match="discrete law"):
            draw(3, bad, SeededSource(0))
    if bad <= 0:
        for one in (discrete_laplace, discrete_gaussian):
            with pytest.raises(UsageError, match="discrete law"):
                one(bad)


def test_nothing_is_drawn_for_nothing() -> None:
    assert len(sample_laplace(0, Fraction(1), SeededSource(0))) == len(sample_gaussian(0, 1, SeededSource(0))) == 0


@pytest.mark.parametrize("made", [DiscreteGaussian, DiscreteLaplace])
def test_the_noise_pays_for_the_rounding_and_stays_on_the_grid(made: type[DiscreteGaussian] | type[DiscreteLaplace]) -> None:
    mechanism = made(1.5, dimensions=10_000, resolution=1_000)
    # Rounding moves each entry by half a step at most, twice: sqrt(d) in L2, d in L1.
    worst = 1_000 + (100 if mechanism.norm == 2 else 10_000)
    parameter = mechanism.sigma if isinstance(mechanism, DiscreteGaussian) else mechanism.scale
    assert 0 <= float(parameter) - 1.5 * worst < 1e-3
    total = torch.full((100, 100), 0.1234567, dtype=torch.float64)
    mechanism.add_(total, 4.0, SeededSource(9))
    steps = total / (4.0 / 1_000)
    assert float((steps - steps.round()).abs().max()) < 1e-6
    law = stats.norm(scale=1.5 * worst) if mechanism.norm == 2 else stats.laplace(scale=1.5 * worst)
    assert stats.kstest((steps - 0.1234567 * 250).flatten().numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("made", [DiscreteGaussian, DiscreteLaplace])
def test_discrete_mechanisms_refuse_what_cannot_be(made: type[DiscreteGaussian] | type[DiscreteLaplace]) -> None:
    with pytest.raises(UsageError, match="5 entries"):
        made(1.0, dimensions=4).add_(torch.zeros(5), 1.0, SeededSource(0))
    with pytest.raises(UsageError, match="dimensions"):
        made(1.0, dimensions=0)
    with pytest.raises(UsageError, match="resolution"):
        made(1.0, dimensions=1, resolution=0)
    assert made(0.0, dimensions=2).add_(torch.ones(2), 1.0, SeededSource(0)).tolist() == [1.0, 1.0]
    assert made(1.0, dimensions=2).at(4) == made(1.0, dimensions=2)
