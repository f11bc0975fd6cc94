"""Data-dependent ε of PATE: what these very votes cost. It is computed from private data and must not be published."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.pate.aggregate import Answers, ConfidentGNMax, GNMax, LNMax, checked_votes

Array = npt.NDArray[np.float64]
ORDERS: Array = np.array([*(1 + k / 10 for k in range(1, 100)), *range(11, 65), *range(72, 513, 8)], dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class SensitiveEpsilon:
    """An ε that itself tells of the data.

    Arguments:
        epsilon: at `delta`, given these votes; a different record might have had a different one.
        delta: the probability it is given at.
        order: the Rényi order that gave it.
    """

    epsilon: float
    delta: float
    order: float
    publishable = False
    note = ("computed from the private votes: for the data owner alone. To publish, give the data-independent ε of the ledger, "
            "or that of publish_epsilon, which is noised in proportion to the smooth sensitivity of this one")


def data_dependent_epsilon(
    votes: Tensor, aggregator: LNMax | GNMax | ConfidentGNMax, delta: float, *, answers: Answers | None = None
) -> SensitiveEpsilon:
    """Return the ε of the answers to these votes, far below the data-independent one where teachers agree.

    Arguments:
        votes: counts by class, shape (n, K).
        aggregator: that answered.
        delta: above 0, below 1.
        answers: what it answered, for `ConfidentGNMax`, whose price depends on it.

    Raises:
        DataError: for votes that are no counts.
        UsageError: for a δ out of range, or no answers where they are needed.

    Paper: Papernot et al. 2018, arXiv:1802.08908, theorem 6 and proposition 8; for LNMax Papernot et al. 2017, arXiv:1610.05755,
    theorem 3.
    """
    if not 0 < delta < 1:
        raise UsageError(f"δ is {delta}", want="above 0 and below 1")
    counts = checked_votes(votes)
    if isinstance(aggregator, LNMax):
        each = log_q_laplace(counts, aggregator.gamma)
        total = sum((laplace_rdp(float(one), aggregator.gamma) for one in each), np.zeros(len(ORDERS)))
    elif isinstance(aggregator, GNMax):
        total = _gaussian(log_q_gaussian(counts, aggregator.sigma), 1 / aggregator.sigma**2)
    else:
        if answers is None:
            raise UsageError("the price of ConfidentGNMax was asked for without its answers", want="answers=...")
        # The test has two outcomes, and moves by one vote where the answer moves by two counts.
        pull = (counts.max(1).values.numpy() - aggregator.threshold) / aggregator.sigma_test
        total = _gaussian(special.log_ndtr(-np.abs(pull)), 0.5 / aggregator.sigma_test**2)
        given = counts[answers.answered]
        total = total + _gaussian(log_q_gaussian(given, aggregator.sigma), 1 / aggregator.sigma**2)
    found = total + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)  # Canonne, Kamath and Steinke 2020
    best = int(np.argmin(found))
    return SensitiveEpsilon(max(0.0, float(found[best])), delta, float(ORDERS[best]))


def log_q_gaussian(votes: Tensor, sigma: float) -> Array:
    """Return the logarithm of a bound on the probability that GNMax does not answer the leading class, shape (n,)."""
    return _log_q(votes, lambda gap: special.log_ndtr(-gap / (math.sqrt(2) * sigma)))


def log_q_laplace(votes: Tensor, gamma: float) -> Array:
    """Return the logarithm of a bound on the probability that LNMax does not answer the leading class, shape (n,)."""
    return _log_q(votes, lambda gap: np.log(2 + gamma * gap) - math.log(4) - gamma * gap)


def gaussian_rdp(log_q: float, slope: float, orders: Array = ORDERS) -> Array:
    """Return the Rényi divergence, at `orders`, of an answer that is the likeliest one but for a probability q.

    Arguments:
        log_q: logarithm of (a bound on) q.
        slope: the mechanism's divergence at order λ is `slope` x λ whatever the data: 1 / σ² for GNMax.
        orders: above 1.

    Paper: Papernot et al. 2018, arXiv:1802.08908, theorem 6 with the orders of proposition 8.
    """
    plain = orders * slope
    if log_q >= 0:
        return plain
    high = math.sqrt(-log_q / slope)  # μ_2
    if high <= 1:
        return plain
    higher = high + 1  # μ_1
    # The theorem holds for q up to a limit, and orders up to μ_1.
    limit = (high - 1) * high * slope - high * (math.log(higher / (higher - 1)) + math.log(high / (high - 1)))
    if log_q > limit:
        return plain
    log_p = math.log1p(-math.exp(log_q))
    log_a = log_p - math.log1p(-math.exp((log_q + high * slope) * (1 - 1 / high)))
    log_b = higher * slope - log_q / (higher - 1)
    found = np.logaddexp(log_p + (orders - 1) * log_a, log_q + (orders - 1) * log_b) / (orders - 1)
    return np.where(orders <= higher, np.minimum(plain, np.maximum(found, 0.0)), plain)


def laplace_rdp(log_q: float, gamma: float, orders: Array = ORDERS) -> Array:
    """Return the Rényi divergence of an LNMax answer, 2γ-private, that is the likeliest one but for a probability q.

    Paper: Papernot et al. 2017, arXiv:1610.05755, theorems 2 and 3.
    """
    epsilon = 2 * gamma
    plain = np.minimum(epsilon, orders * epsilon**2 / 2)
    if log_q >= math.log(math.expm1(epsilon)) - math.log(math.expm1(2 * epsilon)):
        return plain
    log_p = math.log1p(-math.exp(log_q))
    log_a = log_p - math.log1p(-math.exp(log_q + epsilon))
    found = np.logaddexp(log_p + (orders - 1) * log_a, log_q + (orders - 1) * epsilon) / (orders - 1)
    return np.minimum(plain, np.maximum(found, 0.0))


def _gaussian(log_q: Array, slope: float) -> Array:
    return sum((gaussian_rdp(float(one), slope) for one in log_q), np.zeros(len(ORDERS)))


def _log_q(votes: Tensor, log_beaten: Callable[[Array], Array]) -> Array:
    ordered = votes.sort(dim=1, descending=True).values
    gaps = (ordered[:, :1] - ordered[:, 1:]).numpy()  # (n, K - 1)
    found = special.logsumexp(log_beaten(gaps), axis=1) if len(gaps) else np.zeros(0)
    # With noise in the same law for all, the leading class has at least its even share.
    return np.minimum(found, math.log1p(-1 / votes.shape[1]))
