"""Drift as a whole: do two samples come from one distribution, whatever the direction of the difference?"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats as _stats
from torch import Tensor

from hauberk.core import rng
from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.stats import clopper_pearson
from hauberk.trust.arrays import Floats, floats


@dataclasses.dataclass(frozen=True)
class TwoSample:
    """The answer of a test of two samples.

    Arguments:
        statistic: how different they are.
        p: chance of a statistic so large if they came from one distribution.
        interval: of `p` for a permutation test (the error of finitely many permutations), of `statistic` else.
        null: the statistics under permutation, shape (permutations,); empty for other tests.
    """

    statistic: float
    p: float
    interval: Interval
    null: Floats


def mmd(
    reference: ArrayLike | Tensor, current: ArrayLike | Tensor, *, permutations: int = 500, bandwidth: float | None = None,
    seed: int = 0,
) -> TwoSample:
    """Test two samples by their maximum mean discrepancy under an RBF kernel (Gretton et al. 2012).

    Arguments:
        reference: shape (n, features), n at least 2.
        current: shape (m, features), m at least 2.
        permutations: of the pooled sample; the p-value is never below 1 / (permutations + 1). All share one kernel matrix and
            one matrix product.
        bandwidth: of the kernel, in input units; None takes the median distance of the pooled sample.
        seed: of the permutations.

    Returns:
        The unbiased squared MMD, its p-value, and the interval of that p-value.

    Raises:
        DataError: for samples of different widths, or of one row.
    """
    old, new = floats(reference, "the reference", 2), floats(current, "the current sample", 2)
    if old.shape[1] != new.shape[1] or min(len(old), len(new)) < 2:
        raise DataError(f"the samples have shapes {old.shape} and {new.shape}", want="the same width and at least 2 rows each")
    n, m = len(old), len(new)
    pooled = torch.from_numpy(np.concatenate([old, new]))
    # Centred first, and squared in float64: the expansion |a|² + |b|² - 2ab loses small distances far from the origin.
    pooled = pooled - pooled.mean(0)
    squares = pooled.square().sum(1)
    distance = (squares[:, None] + squares[None] - 2 * pooled @ pooled.T).clamp_(min=0)
    if bandwidth is None:
        upper = torch.triu_indices(n + m, n + m, 1)
        bandwidth = float(distance[upper[0], upper[1]].median().sqrt()) or 1.0
    kernel = distance.div_(-2 * bandwidth**2).exp_().fill_diagonal_(0).float()
    draw = rng.generator(seed, "mmd")
    order = torch.rand(n + m, permutations + 1, generator=draw).argsort(0)
    order[:, 0] = torch.arange(n + m)
    member = torch.zeros(n + m, permutations + 1).scatter_(0, order[:n], 1.0)
    product = kernel @ member  # (n + m, permutations + 1)
    within = (member * product).sum(0).double()
    across = product.sum(0).double() - within
    rest = kernel.double().sum() - within - 2 * across
    statistic = (within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)).numpy()
    # Order 0 is the one observed. Permutations that only relabel give it again but for rounding, so equality counts as beyond.
    beyond = int((statistic[1:] >= statistic[0] - 1e-7 * abs(statistic[0])).sum())
    return TwoSample(
        float(statistic[0]), (1 + beyond) / (1 + permutations), clopper_pearson(beyond, permutations), statistic[1:]
    )


def classifier_test(
    reference: ArrayLike | Tensor, current: ArrayLike | Tensor, *, seed: int = 0, trees: int = 100
) -> TwoSample:
    """Test two samples by whether a random forest tells them apart on rows it has not seen (Lopez-Paz and Oquab 2017).

    Arguments:
        reference: shape (n, features).
        current: shape (m, features); the larger sample is cut to the size of the smaller one, so that guessing gives one half.
        seed: of the halves and the forest.
        trees: of the forest.

    Returns:
        Accuracy on the held-out half with its exact interval; the p-value is that of guessing.

    Raises:
        DataError: for samples of different widths, or fewer than 4 rows.
    """
    from sklearn.ensemble import RandomForestClassifier

    old, new = floats(reference, "the reference", 2), floats(current, "the current sample", 2)
    size = min(len(old), len(new))
    if old.shape[1] != new.shape[1] or size < 4:
        raise DataError(f"the samples have shapes {old.shape} and {new.shape}", want="the same width and at least 4 rows each")
    draw = rng.numpy_generator(seed, "classifier test")
    old, new = old[draw.permutation(len(old))[:size]], new[draw.permutation(len(new))[:size]]
    half = size // 2
    forest = RandomForestClassifier(trees, min_samples_leaf=3, random_state=int(draw.integers(2**31)))
    forest.fit(np.concatenate([old[:half], new[:half]]), np.repeat([0, 1], half))
    held = size - half
    guess = forest.predict(np.concatenate([old[half:], new[half:]]))
    right = int((guess == np.repeat([0, 1], held)).sum())
    p = float(_stats.binom.sf(right - 1, 2 * held, 0.5))
    return TwoSample(right / (2 * held), p, clopper_pearson(right, 2 * held), np.empty(0))
