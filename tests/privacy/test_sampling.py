"""Sampling: Poisson batches have the law of independent coin tosses, empty ones included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise import SeededSource
from hauberk.privacy.dp.sampling import fixed_batch, poisson_batch, poisson_batches


def test_sizes_members_and_pairs_follow_independent_tosses():
    n, rate, steps = 12, 0.15, 6000
    member = np.zeros((steps, n), dtype=bool)
    for row, batch in zip(member, poisson_batches(n, rate, steps, SeededSource(3, "test")), strict=True):
        assert batch.tolist() == sorted(set(batch.tolist()))
        row[batch.numpy()] = True
    sizes = np.bincount(member.sum(1), minlength=7)
    expected = stats.binom.pmf(np.arange(6), n, rate) * steps
    tail = [*sizes[:6], sizes[6:].sum()]
    assert stats.chisquare(tail, [*expected, steps - expected.sum()]).pvalue > 1e-4
    assert stats.chisquare(member.sum(0)).pvalue > 1e-4
    together = (member.T.astype(float) @ member)[np.triu_indices(n, 1)]
    deviation = (together - steps * rate**2) / np.sqrt(steps * rate**2 * (1 - rate**2))
    assert np.abs(deviation).max() < 5
    assert sizes[0] > 0  # empty batches are handed out


def test_a_long_population_is_reached_to_its_end():
    batches = [poisson_batch(10**6, 1e-3, SeededSource(1, i)) for i in range(20)]
    positions = torch.cat(batches).double()
    assert float(positions.mean()) == pytest.approx(5e5, abs=5 * 2.9e5 / len(positions) ** 0.5)
    assert float(len(positions)) == pytest.approx(20_000, abs=5 * 20_000**0.5)


def test_ends_of_the_range():
    source = SeededSource(0)
    assert poisson_batch(5, 1.0, source).tolist() == [0, 1, 2, 3, 4]
    assert poisson_batch(0, 0.5, source).tolist() == []
    for rate in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(UsageError):
            poisson_batch(5, rate, source)


def test_a_fixed_batch_is_a_uniform_subset():
    counts = np.zeros(10)
    for i in range(3000):
        batch = fixed_batch(10, 3, SeededSource(5, i))
        assert len(set(batch.tolist())) == 3
        counts[batch.numpy()] += 1
    assert stats.chisquare(counts).pvalue > 1e-4
    with pytest.raises(UsageError):
        fixed_batch(3, 4, SeededSource(0))
