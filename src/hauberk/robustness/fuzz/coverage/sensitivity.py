"""Sensitivity convergence: of which neurons enough has been seen to know how they answer to small changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.robustness.fuzz.coverage.criterion import State, fitting
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading


class SensitivityConvergence:
    """SCC: the share of neurons whose differences between a mutant and its clean seed have settled on a normal law.

    Huang et al. 2024 (Themis), arXiv:2405.09314, where sensitivities are normal in the limit. A neuron has converged when the
    Kolmogorov distance between its sample and the normal law of the same mean and deviation is at most `threshold`: this looks at
    the sample alone, without the random chain by which implementations judge it. A neuron that never changes has not converged.

    Arguments:
        known: the profile of the model.
        threshold: the greatest distance.
        least: samples below which nothing has converged.
        most: samples kept of each neuron, the last ones: what bounds memory.
    """

    name = "scc"

    def __init__(self, known: Profile, *, threshold: float = 0.1, least: int = 30, most: int = 512) -> None:
        self.threshold, self.least, self.most = threshold, least, most
        self.sample = torch.empty(0, known.neurons)

    def update(self, reading: Reading) -> None:
        """Take note of a batch whose `base` holds the units of the clean seeds."""
        if reading.base is None:
            raise DataError("the reading has no clean seeds", want="a reading with `base`")
        self.sample = torch.cat([self.sample, (reading.units - reading.base).float().cpu()])[-self.most :]

    def gains(self, reading: Reading) -> Tensor:
        """Take note of a batch; return for every sample its share of the neurons that converged by it, shape (n,)."""
        before = self.value
        self.update(reading)
        return torch.full((len(reading),), max(0.0, self.value - before) / len(reading))

    @property
    def converged(self) -> Tensor:
        """Which neurons have converged, shape (neurons,), bool."""
        n = len(self.sample)
        if n < self.least:
            return torch.zeros(self.sample.shape[1], dtype=torch.bool)
        rows = self.sample.double().sort(0).values
        deviation = rows.std(0)
        law = 0.5 * (1 + torch.erf((rows - rows.mean(0)) / (deviation.clamp(min=1e-300) * math.sqrt(2))))
        step = torch.arange(n, dtype=torch.float64)[:, None] / n
        distance = torch.maximum((law - step).amax(0), (step + 1 / n - law).amax(0))
        return (distance <= self.threshold) & (deviation > 0)

    @property
    def value(self) -> float:
        """The share of neurons that have converged."""
        return float(self.converged.double().mean())

    def state(self) -> State:
        """Return the sample."""
        return {"sample": self.sample}

    def load(self, state: State) -> None:
        """Go on from a sample."""
        self.sample = fitting("scc", state, "sample", -1, self.sample.shape[1]).float().clone()
