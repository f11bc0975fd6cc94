"""Tree and banded noise: the covariance of theory, the sensitivity of the worst pattern of participation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import PrivacyLedger, Release
from hauberk.privacy.dp.mechanisms import (
    BandedNoise,
    CorrelatedNoise,
    TreeNoise,
    banded,
    mean_squared_error,
    optimised,
    square_root,
)
from hauberk.privacy.dp.mechanisms.tree import tree_variance
from hauberk.privacy.dp.noise import SeededSource

Array = npt.NDArray[np.float64]


class Basis(SeededSource):
    """Its j-th draw is the j-th unit vector, so that noise shows which draws it is made of, exactly."""

    def __init__(self) -> None:
        super().__init__(0)
        self.drawn = 0

    def normal(self, like: Tensor) -> Tensor:
        found = torch.zeros_like(like)
        found[self.drawn] = 1.0
        self.drawn += 1
        return found


def made_of(noise: CorrelatedNoise, steps: int) -> Array:
    """Row t: the noise of step t as a combination of independent draws."""
    source = Basis()
    rows = [noise.at(t).add_(torch.zeros(4 * steps, dtype=torch.float64), 1.0, source).numpy() for t in range(steps)]
    return np.array(rows)


def tree_nodes(steps: int) -> list[tuple[int, int]]:
    """Every complete node of the binary tree over steps leaves, as the range it sums."""
    return [(a, a + 2**h) for h in range(steps.bit_length()) for a in range(0, steps, 2**h) if a + 2**h <= steps]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 13, 16])
def test_the_sum_of_tree_noise_is_that_of_the_nodes_of_the_prefix(steps: int) -> None:
    sums = np.cumsum(made_of(TreeNoise(1.0, steps), steps), axis=0)
    # Theory: prefix t is the sum of the nodes of its binary digits; two prefixes share noise where they share nodes.
    nodes = tree_nodes(steps)
    table = np.zeros((steps, len(nodes)))
    for t in range(1, steps + 1):
        start = 0
        for h in reversed(range(t.bit_length())):
            if t >> h & 1:
                table[t - 1, nodes.index((start, start + 2**h))] = 1
                start += 2**h
    np.testing.assert_allclose(sums @ sums.T, table @ table.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(sums @ sums.T), tree_variance(steps), atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 13, 16])
def test_efficient_tree_noise_is_the_least_squares_estimate(steps: int) -> None:
    noise = TreeNoise(1.0, steps, efficient=True)
    sums = np.cumsum(made_of(noise, steps), axis=0)
    for t in range(1, steps + 1):
        # The best linear unbiased estimate of the sum of t leaves from all nodes that are complete by then.
        nodes = [node for node in tree_nodes(steps) if node[1] <= t]
        design = np.array([[a <= leaf < b for leaf in range(t)] for a, b in nodes], dtype=float)
        best = np.ones(t) @ np.linalg.pinv(design.T @ design) @ np.ones(t)
        assert sums[t - 1] @ sums[t - 1] == pytest.approx(best, rel=1e-9)
        assert tree_variance(steps, efficient=True)[t - 1] == pytest.approx(best, rel=1e-9)


def test_a_leaf_is_in_as_many_nodes_as_the_ledger_counts() -> None:
    for steps in range(1, 40):
        most = max(sum(a <= leaf < b for a, b in tree_nodes(steps)) for leaf in range(steps))
        assert most == steps.bit_length()
    ledger = PrivacyLedger(TreeNoise(3.0, 16).releases)
    assert not ledger.count  # nothing was let out yet
    noise = TreeNoise(3.0, 16, trees=2)
    made_of(noise, 17)
    assert noise.releases == (Release("tree", 3.0, count=2, population=16),)
    found = PrivacyLedger(noise.releases).epsilon(1e-5).epsilon
    plain = PrivacyLedger([Release("gaussian", 3.0, count=10)]).epsilon(1e-5).epsilon  # 2 trees x 5 nodes
    assert found == pytest.approx(plain, rel=1e-6)


def test_a_new_tree_leaves_the_noise_of_the_last_where_it_was() -> None:
    sums = np.cumsum(made_of(TreeNoise(1.0, 4, trees=2), 8), axis=0)
    gram = sums @ sums.T
    np.testing.assert_allclose(np.diag(gram), [1, 1, 2, 1, 2, 2, 3, 2])
    assert gram[3, 7] == pytest.approx(1.0)  # the root of the first tree stays in


@pytest.mark.parametrize("strategy", [[1.0], [2.0, 1.0], square_root(3), square_root(9), [1.0, -0.4, 0.2]])
def test_banded_noise_is_the_inverse_of_its_strategy(strategy: list[float]) -> None:
    steps = 9
    noise = BandedNoise(1.0, strategy, steps)
    found = made_of(noise, steps)[:, :steps] / noise.moved
    table = sum(c * np.eye(steps, k=-k) for k, c in enumerate(strategy))
    np.testing.assert_allclose(found, np.linalg.inv(table), atol=1e-12)
    running = np.tril(np.ones((steps, steps))) @ np.linalg.inv(table)
    assert mean_squared_error(strategy, steps, noise.moved) == pytest.approx((running**2).sum() / steps * noise.moved**2)


def patterns(steps: int, times: int, apart: int) -> list[tuple[int, ...]]:
    return [
        one for k in range(1, times + 1) for one in itertools.combinations(range(steps), k)
        if all(b - a >= apart for a, b in itertools.pairwise(one))
    ]


@pytest.mark.parametrize("times", [1, 2, 3, 10])
@pytest.mark.parametrize("apart", [1, 2, 3, 5])
@pytest.mark.parametrize("strategy", [[1.0], [2.0, 1.0], square_root(3), square_root(8), [1.0, -0.4, 0.2], [1.0, 0.1, 0.9]])
def test_the_sensitivity_is_that_of_the_worst_participation(strategy: list[float], apart: int, times: int) -> None:
    steps = 8
    table = sum(c * np.eye(steps, k=-k) for k, c in enumerate(strategy))
    gram = np.abs(table.T @ table)  # a record may point its part of each step where it will: products count by size
    worst = math.sqrt(max(gram[np.ix_(one, one)].sum() for one in patterns(steps, times, apart)))
    try:
        found = banded.sensitivity(strategy, steps, times, apart)
    except UsageError:
        assert apart < len(strategy) and times > 1 and sorted(np.abs(strategy), reverse=True) != strategy
        return
    assert found == pytest.approx(worst, rel=1e-12)


def test_the_square_root_of_running_sums() -> None:
    root = np.array(square_root(12))
    np.testing.assert_allclose(np.convolve(root, root)[:12], 1.0, rtol=1e-12)


def test_optimised_bands_have_less_error_than_any_other_here() -> None:
    steps = 64
    errors = {}
    for bands in (1, 2, 4, 8):
        best, plain = optimised(steps, bands), square_root(bands)
        errors[bands] = mean_squared_error(best, steps, banded.sensitivity(best, steps))
        assert errors[bands] <= mean_squared_error(plain, steps, banded.sensitivity(plain, steps)) * (1 + 1e-9)
        for k in range(1, bands):  # a minimum: no coefficient is better a little to either side
            for change in (-0.01, 0.01):
                other = [*best[:k], best[k] + change, *best[k + 1:]]
                assert errors[bands] <= mean_squared_error(other, steps, banded.sensitivity(other, steps))
    assert errors[1] == pytest.approx((steps + 1) / 2)  # independent noise: the mean of 1 ... T
    assert errors[8] < errors[4] < errors[2] < errors[1]
    tree = float(np.mean(tree_variance(steps))) * steps.bit_length()
    assert errors[8] < tree


@pytest.mark.parametrize("make", [lambda: TreeNoise(0.7, 6, trees=2), lambda: TreeNoise(0.7, 6, efficient=True, trees=2),
                                  lambda: BandedNoise(0.7, square_root(3), 12)])
def test_a_resumed_run_has_the_noise_of_one_that_was_not_stopped(make: type[CorrelatedNoise]) -> None:
    def run(noise: CorrelatedNoise, first: int, last: int) -> list[list[float]]:
        found = []
        for t in range(first, last):
            step, source = noise.at(t), SeededSource(5, t)
            found += [step.add_(torch.zeros(n), 2.0, source).tolist() for n in (3, 2)]
        return found

    whole, parted = make(), make()
    expected = run(whole, 0, 9)
    begun = run(parted, 0, 5)
    resumed = make()
    resumed.load_state_dict(parted.state_dict())
    assert begun + run(resumed, 5, 9) == expected
    assert resumed.releases == whole.releases


def test_noise_has_the_multiplier_times_the_clip() -> None:
    total = TreeNoise(0.5, 4).add_(torch.zeros(40_000), 3.0, SeededSource(1))
    assert abs(float(total.std()) / 1.5 - 1) < 5 / math.sqrt(80_000)
    noise = BandedNoise(0.5, square_root(2), 10, participations=3, separation=4)
    assert noise.moved == pytest.approx(math.sqrt(3 * 1.25))
    total = noise.add_(torch.zeros(40_000, dtype=torch.bfloat16), 3.0, SeededSource(1))
    assert abs(float(total.float().std()) / (1.5 * noise.moved) - 1) < 5 / math.sqrt(80_000) + 0.01


def test_what_would_break_the_promise_is_refused() -> None:
    noise = TreeNoise(1.0, 2)
    with pytest.raises(UsageError, match="step 0"):
        noise.at(1)
    noise.at(0).add_(torch.zeros(2), 1.0, SeededSource(0))
    with pytest.raises(UsageError, match="clip"):
        noise.at(1).add_(torch.zeros(2), 2.0, SeededSource(0))
    with pytest.raises(UsageError, match="fewer than"):
        noise.at(2)
    step = BandedNoise(1.0, [1.0, 0.5], 3)
    step.at(0).add_(torch.zeros(2), 1.0, SeededSource(0))
    more = step.at(1)
    more.add_(torch.zeros(2), 1.0, SeededSource(0))
    with pytest.raises(UsageError, match="tensors"):
        more.add_(torch.zeros(2), 1.0, SeededSource(0))
    for wrong in ([], [0.0], [1.0, math.nan]):
        with pytest.raises(UsageError, match="strategy"):
            BandedNoise(1.0, wrong, 3)
    with pytest.raises(UsageError, match="bands"):
        optimised(4, 5)
    with pytest.raises(UsageError, match="trees"):
        TreeNoise(1.0, 0)
