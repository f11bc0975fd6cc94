"""A data-dependent ε of GNMax that may be published: noised in proportion to its smooth sensitivity, and the noise paid for.

At a fixed order λ the divergence f of the answers depends on the votes through one number a question, q, a bound on the
probability that the leading class does not win. On the scale t = Φ⁻¹(q / (K - 1)) one teacher who changes its vote moves t by at
most √2 / σ, whatever the votes are (the paper's bounds on a neighbour's q). So f is tabulated over a grid of t that depends on
nothing private: each value is the least bound of all grid points to the right, which is valid, since the bound holds for any q
that is large enough, and never falls. On this table local sensitivities are differences of entries, and the smooth sensitivity
is the largest of them, discounted by e^(-β) for each vote on the way.

Paper: Papernot et al. 2018, "Scalable private learning with PATE", arXiv:1802.08908, appendices B and C; smooth sensitivity:
Nissim, Raskhodnikova and Smith 2007.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.noise import SecureSource, Source
from hauberk.privacy.dp.pate.aggregate import GNMax, checked_votes
from hauberk.privacy.dp.pate.sensitive import Array, gaussian_rdp, log_q_gaussian

_CELLS = 16  # of the grid in the way that one vote can move
_DIGIT = 1e-6  # what is released is rounded up to these: the last bits of a noised float tell of what is below the noise


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """How the ε is released; fixed before the votes are looked at.

    Arguments:
        order: λ > 1, of the Rényi divergence; for δ = 1e-5 about 10 to 30.
        beta: β, how fast the sensitivity is discounted, with λ (1 - e^(-2β)) < 1; None takes 1 / (4 λ).
        noise: standard deviation of the noise, in smooth sensitivities. More makes the release cheaper and the figure coarser.
        failure: probability that the noise makes the released divergence less than the true one; what is released is raised by
            the quantile of the noise, and that is paid for as well.
    """

    order: float
    beta: float | None = None
    noise: float = 10.0
    failure: float = 1e-3

    def __post_init__(self) -> None:
        if not 1 < self.order < math.inf:
            raise UsageError(f"the order is {self.order}", want="a finite number above 1",
                             fix="Take about 20, or try orders on votes that are public")
        if not 0 < self.discount * self.order < math.inf or self.order * -math.expm1(-2 * self.discount) >= 1:
            raise UsageError(f"beta is {self.beta} at order {self.order}", want="order * (1 - exp(-2 beta)) above 0 and below 1",
                             fix=f"Take {1 / (4 * self.order):.3g}, or leave it out")
        if not 0 < self.noise < math.inf:
            raise UsageError(f"the noise is {self.noise} smooth sensitivities", want="a finite number above 0")
        if not 0 < self.failure <= 0.5:
            raise UsageError(f"the failure probability is {self.failure}", want="above 0 and at most 0.5")

    @property
    def discount(self) -> float:
        """β."""
        return 1 / (4 * self.order) if self.beta is None else self.beta

    @property
    def raised(self) -> float:
        """By how many smooth sensitivities what is released is raised."""
        return self.noise * float(stats.norm.isf(self.failure))

    @property
    def cost(self) -> float:
        """The Rényi divergence, at the order, of the release itself."""
        return release_rdp(self.order, self.discount, self.noise, self.raised)


@dataclasses.dataclass(frozen=True)
class PublishedEpsilon:
    """An ε of GNMax's answers to these votes, released with noise, so that it may be published.

    Arguments:
        epsilon: at `delta`, of the answers and of this release together.
        delta: the probability it is given at.
        order: the Rényi order.
        answers: divergence of the answers as it was released: at least the true one, but with probability `failure`.
        release: divergence of the release.
        failure: of the noise.
    """

    epsilon: float
    delta: float
    order: float
    answers: float
    release: float
    failure: float
    publishable = True


def publish_epsilon(
    votes: Tensor, aggregator: GNMax, delta: float, *, teachers: int, smoothing: Smoothing, source: Source | None = None
) -> PublishedEpsilon:
    """Release the data-dependent ε of the answers to these votes. Each call is a release of its own: make one.

    Arguments:
        votes: counts by class, shape (n, K), the row sums at most `teachers`.
        aggregator: that answered.
        delta: above 0, below 1.
        teachers: how many there are, which is taken for known.
        smoothing: order, discount and noise, chosen without looking at the votes.
        source: of randomness; None takes a secure one.

    Raises:
        DataError: for votes that are no counts, or of more teachers.
        UsageError: for another aggregator, or a δ out of range.
    """
    if not isinstance(aggregator, GNMax):
        raise UsageError(f"the smooth sensitivity of {type(aggregator).__name__} was asked for", want="GNMax",
                         fix="Publish the data-independent ε of the ledger")
    if not 0 < delta < 1:
        raise UsageError(f"δ is {delta}", want="above 0 and below 1")
    value, sensitivity = smooth_sensitivity(votes, aggregator.sigma, smoothing, teachers=teachers)
    drawn = float((source or SecureSource()).normal(torch.zeros(1, dtype=torch.float64)))
    order = smoothing.order
    noised = value + sensitivity * (smoothing.raised + smoothing.noise * drawn)
    most = len(votes) * order / aggregator.sigma**2  # what they cost whatever the votes
    told = min(max(0.0, math.ceil(noised / _DIGIT) * _DIGIT), most)
    epsilon = told + smoothing.cost + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
    return PublishedEpsilon(max(0.0, epsilon), delta, order, told, smoothing.cost, smoothing.failure)


def smooth_sensitivity(votes: Tensor, sigma: float, smoothing: Smoothing, *, teachers: int) -> tuple[float, float]:
    """Return the Rényi divergence of GNMax's answers at one order, and a β-smooth bound on its sensitivity: both are private.

    Arguments:
        votes: counts by class, shape (n, K).
        sigma: of GNMax.
        smoothing: order and discount.
        teachers: how many there are.

    Raises:
        DataError: for votes that are no counts, or of more teachers.
    """
    counts = checked_votes(votes)
    if bool((counts.sum(1) > teachers).any()):
        most = int(counts.sum(1).max())
        raise DataError(f"a question has {most} votes of {teachers} teachers", want="at most one vote of each")
    if not len(counts):
        return 0.0, 0.0
    table, start, cell = _table(counts.shape[1], teachers, sigma, smoothing.order)
    t = special.ndtri_exp(log_q_gaussian(counts, sigma) - math.log(counts.shape[1] - 1))
    places, times = np.unique(np.clip(np.ceil((t - start) / cell), 0, len(table) - 1).astype(int), return_counts=True)
    smooth = np.array([_smooth(table, int(one), smoothing.discount) for one in places])
    # All questions are asked of the same teachers, and move together: sensitivities add up, and sums of smooth bounds are smooth.
    return float(table[places] @ times), float(smooth @ times)


def release_rdp(order: float, beta: float, noise: float, raised: float = 0.0) -> float:
    """Return the Rényi divergence, at `order`, of a value with normal noise of `noise` smooth sensitivities.

    Neighbours differ in the value by at most the lesser of their two sensitivities, and in the logarithm of these by at most β.
    The divergence of two normal laws grows with both, and most where the second one is the narrower.

    Arguments:
        order: λ > 1.
        beta: β.
        noise: standard deviation, in smooth sensitivities.
        raised: how many smooth sensitivities are added to the value; as these differ, so do the means.
    """
    apart = (1 + raised * math.expm1(beta)) / noise
    spread = 1 + order * math.expm1(-2 * beta)
    if spread <= 0:
        return math.inf
    return order / 2 * apart**2 * math.exp(-2 * beta) / spread - (order * beta + math.log(spread) / 2) / (order - 1)


@functools.lru_cache(maxsize=8)
def _table(classes: int, teachers: int, sigma: float, order: float) -> tuple[Array, float, float]:
    """Return the divergence over a grid of t, the first t, and the width of a cell."""
    cell = math.sqrt(2) / sigma / _CELLS
    start = -teachers / (math.sqrt(2) * sigma)  # every teacher agrees
    end = float(special.ndtri(1 / classes))  # the leading class has its even share
    grid = start + cell * np.arange(max(1, math.ceil((end - start) / cell)) + 1)
    log_q = np.minimum(math.log(classes - 1) + special.log_ndtr(grid), math.log1p(-1 / classes))
    each: Any = np.array([gaussian_rdp(float(one), 1 / sigma**2, np.array([order]))[0] for one in log_q])
    return np.minimum.accumulate(each[::-1])[::-1], start, cell


def _smooth(table: Array, place: int, beta: float) -> float:
    """Return the largest step that one vote can make in the table, discounted by the votes that lie between it and a place."""
    step = _CELLS + 1  # one cell more than a vote moves, for what rounding to cells may add
    low = np.arange(len(table))
    rise = table[np.minimum(low + step, len(table) - 1)] - table
    away = np.where(low >= place, -((place - low) // step), np.maximum(0, -((low - place) // step) - 1))
    return float((rise * np.exp(-beta * away)).max())
