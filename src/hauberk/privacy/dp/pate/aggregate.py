"""How the votes of teachers become one private answer: LNMax, GNMax and Confident-GNMax."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.mechanisms import gaussian_noisy_max, laplace_noisy_max
from hauberk.privacy.dp.noise import SecureSource, Source


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the teachers said of n questions, private.

    Arguments:
        labels: shape (n,), int64; -1 where no answer was given.
        releases: what the ledger records. One record is in one teacher's shard: adding or removing it moves one vote from one
            class to another, which is the unit here. Replacing it may move two, as its successor may belong to another teacher.
    """

    labels: Tensor
    releases: tuple[Release, ...]

    @property
    def answered(self) -> Tensor:
        """Which questions have an answer, shape (n,), bool."""
        return self.labels >= 0


class Aggregator(Protocol):
    """Turns votes into private answers."""

    def answer(self, votes: Tensor, *, source: Source | None = None) -> Answers:
        """Return private answers to the questions of `votes`, counts of shape (n, K)."""
        ...


@dataclasses.dataclass(frozen=True)
class LNMax:
    """The class with the most votes after Laplace noise of scale 1 / γ: 2γ-private a question.

    Arguments:
        gamma: above 0.

    Paper: Papernot, Abadi, Erlingsson, Goodfellow and Talwar 2017, arXiv:1610.05755.
    """

    gamma: float

    def __post_init__(self) -> None:
        _positive("gamma", self.gamma)

    def answer(self, votes: Tensor, *, source: Source | None = None) -> Answers:
        """Answer every question.

        Arguments:
            votes: counts by class, shape (n, K).
            source: of randomness; None takes a secure one.
        """
        # One class loses a vote and another gains it: not monotonic, so a noisy maximum of 2γ takes noise of scale 1 / γ.
        chosen = laplace_noisy_max(checked_votes(votes), 2 * self.gamma, source=source)
        return Answers(chosen.index, chosen.releases)


@dataclasses.dataclass(frozen=True)
class GNMax:
    """The class with the most votes after Gaussian noise.

    Arguments:
        sigma: standard deviation of the noise, in votes, above 0.

    Paper: Papernot et al. 2018, "Scalable private learning with PATE", arXiv:1802.08908.
    """

    sigma: float

    def __post_init__(self) -> None:
        _positive("sigma", self.sigma)

    def answer(self, votes: Tensor, *, source: Source | None = None) -> Answers:
        """Answer every question.

        Arguments:
            votes: counts by class, shape (n, K).
            source: of randomness; None takes a secure one.
        """
        chosen = gaussian_noisy_max(checked_votes(votes), self.sigma / math.sqrt(2), sensitivity=math.sqrt(2), source=source)
        return Answers(chosen.index, chosen.releases)


@dataclasses.dataclass(frozen=True)
class ConfidentGNMax:
    """GNMax for those questions on which, by a noisy test, teachers agree; the others get no answer, at the price of the test.

    Arguments:
        threshold: votes that the leading class must have, after noise.
        sigma_test: standard deviation of the noise of the test, in votes; large, as every question pays for it.
        sigma: standard deviation of the noise of the answer, in votes.
        limit: stop after so many answers. The ledger counts as many answers as could have been given, `limit` or all questions:
            how many were given came out of the votes, and an ε must be known before.

    Paper: Papernot et al. 2018, arXiv:1802.08908, algorithm 1.
    """

    threshold: float
    sigma_test: float
    sigma: float
    limit: int | None = None

    def __post_init__(self) -> None:
        _positive("sigma_test", self.sigma_test)
        _positive("sigma", self.sigma)
        if not math.isfinite(self.threshold):
            raise UsageError(f"the threshold is {self.threshold}", want="a finite number of votes")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"the limit is {self.limit}", want="at least 1 answer, or None")

    def answer(self, votes: Tensor, *, source: Source | None = None) -> Answers:
        """Answer the questions that pass the test, in order, up to the limit.

        Arguments:
            votes: counts by class, shape (n, K).
            source: of randomness; None takes a secure one.
        """
        drawn = source or SecureSource()
        votes = checked_votes(votes)
        most = votes.max(1).values if len(votes) else votes.new_zeros(0)
        passed = most + self.sigma_test * drawn.normal(most) >= self.threshold
        limit = len(votes) if self.limit is None else self.limit
        passed &= passed.cumsum(0) <= limit
        labels = torch.full((len(votes),), -1, dtype=torch.long)
        labels[passed] = GNMax(self.sigma).answer(votes[passed], source=drawn).labels
        tests = Release("gaussian", self.sigma_test, count=len(votes))  # the most voted count moves by one vote
        answers = Release("gaussian", self.sigma / math.sqrt(2), count=min(limit, len(votes)))
        return Answers(labels, (tests, answers))


def count_votes(labels: Tensor, classes: int) -> Tensor:
    """Return how many teachers voted for each class.

    Arguments:
        labels: each teacher's answer to each question, shape (teachers, n), integers 0 ... classes - 1.
        classes: K.

    Returns:
        Shape (n, K), float64.

    Raises:
        DataError: for labels that are not of these classes.
    """
    if labels.ndim != 2 or bool(((labels < 0) | (labels >= classes)).any()):
        raise DataError(f"the teachers' labels have shape {tuple(labels.shape)}", want=f"(teachers, n), from 0 to {classes - 1}")
    found = torch.zeros(labels.shape[1], classes, dtype=torch.float64)
    return found.scatter_add_(1, labels.T, torch.ones_like(labels.T, dtype=torch.float64))


def checked_votes(votes: Tensor) -> Tensor:
    """Return the votes as float64 on the CPU. Raises DataError for what are no counts of shape (n, K), K at least 2."""
    if votes.ndim != 2 or votes.shape[1] < 2 or not bool(((votes >= 0) & votes.isfinite()).all()):
        raise DataError(f"the votes have shape {tuple(votes.shape)}", want="counts of shape (n, K), not negative, K at least 2")
    return votes.detach().double().cpu()


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"{name} is {value}", want="a finite number above 0")
