"""Gaussian and Laplace noise in proportion to the sensitivity, and the schedules of its multiplier."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise import (
    AdaptiveGaussian,
    Constant,
    ExpDecay,
    Gaussian,
    Laplace,
    Mechanism,
    SecureSource,
    SeededSource,
    StepDecay,
    TimeDecay,
)

CONTINUOUS = {"gaussian": (Gaussian(1.1), stats.norm(scale=2.2)), "laplace": (Laplace(0.7), stats.laplace(scale=1.4))}


@pytest.mark.parametrize("source", [SecureSource(), SeededSource(5)], ids=["secure", "seeded"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_noise_has_the_law_of_its_multiplier_times_the_sensitivity(name: str, source: SeededSource) -> None:
    mechanism, law = CONTINUOUS[name]
    total = torch.full((200, 100), 3.0)
    assert mechanism.add_(total, 2.0, source) is total
    assert mechanism.name == name
    assert stats.kstest(total.double().flatten().numpy() - 3.0, law.cdf).pvalue > 1e-6


@pytest.mark.parametrize("mechanism", [Gaussian(0.0), Laplace(0.0)], ids=["gaussian", "laplace"])
@pytest.mark.parametrize("source", [SecureSource(), SeededSource(5)], ids=["secure", "seeded"])
def test_no_noise_changes_nothing(mechanism: Mechanism, source: SeededSource) -> None:
    total = torch.tensor([0.1, -7.3])
    assert mechanism.add_(total.clone(), 1.0, source).tolist() == total.tolist()


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_multipliers_and_sensitivities_are_refused(bad: float) -> None:
    for made in (Gaussian, Laplace):
        with pytest.raises(UsageError, match="multiplier"):
            made(bad)
        with pytest.raises(UsageError, match="sensitivity"):
            made(1.0).add_(torch.zeros(2), bad, SeededSource(0))
    with pytest.raises(UsageError, match="initial"):
        TimeDecay(bad)
    with pytest.raises(UsageError, match="rate"):
        TimeDecay(1.0, bad)


def test_schedules_equal_their_recurrences() -> None:
    time = step = exp = 1.5
    for t in range(200):
        assert TimeDecay(1.5, 6e-4)(t) == pytest.approx(time, rel=1e-12)
        assert StepDecay(1.5, 6e-4)(t) == pytest.approx(step, rel=1e-12)
        assert ExpDecay(1.5, 6e-4)(t) == pytest.approx(exp, rel=1e-12)
        assert Constant(1.5)(t) == 1.5
        time = 1.5 / (1.5 / time + 6e-4)
        step *= 1 - 6e-4
        exp *= math.exp(-6e-4)


def test_each_step_of_an_adaptive_mechanism_has_the_noise_of_its_schedule() -> None:
    mechanism = AdaptiveGaussian(TimeDecay(2.0, 0.5))
    assert (mechanism.name, mechanism.norm, mechanism.noise_multiplier) == ("gaussian", 2, 2.0)
    assert mechanism.at(2) == Gaussian(1.0) and Gaussian(1.0).at(7) == Gaussian(1.0)
    total = mechanism.at(6).add_(torch.zeros(50_000, dtype=torch.float64), 3.0, SeededSource(1))
    assert stats.kstest(total.numpy(), stats.norm(scale=1.5).cdf).pvalue > 1e-6
    with pytest.raises(UsageError, match="multiplier"):
        AdaptiveGaussian(lambda step: 1.0 - step).at(2)
