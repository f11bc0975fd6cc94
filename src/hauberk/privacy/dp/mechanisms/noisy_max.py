"""Report noisy max: which of several counts is the largest, without the counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.noise import SecureSource, Source


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Answers to n questions.

    Arguments:
        index: the entry chosen in each row, shape (n,), int64.
        releases: what the ledger records.
    """

    index: Tensor
    releases: tuple[Release, ...]


def laplace_noisy_max(
    scores: Tensor, epsilon: float, *, sensitivity: float = 1.0, monotonic: bool = False, source: Source | None = None
) -> Chosen:
    """Return the largest entry of each row after Laplace noise; ε-private, each row a release.

    Arguments:
        scores: shape (n, k).
        epsilon: of each row, above 0.
        sensitivity: the most that one record changes any entry.
        monotonic: whether a record moves all entries it moves the same way (as counts do when records are added or removed, not
            replaced): half the noise is then enough.
        source: of randomness; None takes a secure one.

    Raises:
        DataError, UsageError: for scores or numbers that cannot be.

    Paper: Dwork and Roth 2014, claim 3.9.
    """
    scale = _scale(scores, epsilon, sensitivity, monotonic)
    drawn = source or SecureSource()
    return _chosen(scores, scale, drawn.laplace, Release("pure", epsilon, count=len(scores)))


def exponential_mechanism(
    scores: Tensor, epsilon: float, *, sensitivity: float = 1.0, monotonic: bool = False, source: Source | None = None
) -> Chosen:
    """Return entry i of each row with a chance in proportion to exp(ε score_i / (2 sensitivity)): the largest after Gumbel noise.

    Arguments:
        scores: shape (n, k).
        epsilon: of each row, above 0.
        sensitivity: the most that one record changes any entry.
        monotonic: as for `laplace_noisy_max`: the exponent is then ε score_i / sensitivity.
        source: of randomness; None takes a secure one.

    Raises:
        DataError, UsageError: for scores or numbers that cannot be.

    Paper: McSherry and Talwar 2007, FOCS; Durfee and Rogers 2019, arXiv:1905.04273, for the Gumbel noise.
    """
    scale = _scale(scores, epsilon, sensitivity, monotonic)
    drawn = source or SecureSource()

    def gumbel(like: Tensor) -> Tensor:
        # |Laplace| is exponential, and -log of an exponential is Gumbel.
        return -drawn.laplace(like).abs().clamp_min(2.0**-63).log()

    return _chosen(scores, scale, gumbel, Release("pure", epsilon, count=len(scores)))


def gaussian_noisy_max(
    scores: Tensor, noise_multiplier: float, *, sensitivity: float, source: Source | None = None
) -> Chosen:
    """Return the largest entry of each row after Gaussian noise, accounted as if the noisy rows were released themselves.

    Arguments:
        scores: shape (n, k).
        noise_multiplier: standard deviation over the sensitivity, above 0.
        sensitivity: the most that one record moves a row, in L2: sqrt(2) where it moves one vote from one entry to another.
        source: of randomness; None takes a secure one.

    Raises:
        DataError, UsageError: for scores or numbers that cannot be.

    Paper: Papernot et al. 2018, arXiv:1802.08908 (GNMax).
    """
    scale = _scale(scores, 1.0, sensitivity, True) * noise_multiplier
    if not 0 < noise_multiplier < math.inf:
        raise UsageError(f"the noise multiplier is {noise_multiplier}", want="a finite number above 0")
    drawn = source or SecureSource()
    return _chosen(scores, scale, drawn.normal, Release("gaussian", noise_multiplier, count=len(scores)))


def _chosen(scores: Tensor, scale: float, noise: Callable[[Tensor], Tensor], release: Release) -> Chosen:
    noised = scores.double() + scale * noise(torch.empty(scores.shape, dtype=torch.float64, device=scores.device))
    return Chosen(noised.argmax(1), (release,))


def _scale(scores: Tensor, epsilon: float, sensitivity: float, monotonic: bool) -> float:
    if scores.ndim != 2 or scores.shape[1] < 1 or not bool(scores.isfinite().all()):
        raise DataError(f"the scores have shape {tuple(scores.shape)}", want="finite numbers of shape (n, k), k at least 1")
    for name, value in (("ε", epsilon), ("sensitivity", sensitivity)):
        if not 0 < value < math.inf:
            raise UsageError(f"the {name} is {value}", want="a finite number above 0")
    return (1 if monotonic else 2) * sensitivity / epsilon
