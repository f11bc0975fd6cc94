"""Nearest-neighbour novelty: a sample is new where no sample before it has answers like its own."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.fuzz.coverage.criterion import State, fitting
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading


class Novelty:
    """The number of samples kept because they lie farther than a threshold from every one kept before.

    Odena et al. 2019 (TensorFuzz), arXiv:1807.10875. The nearest neighbour is exact.

    Arguments:
        known: the profile of the model.
        threshold: squared Euclidean distance of the features; None takes the median over training samples of the distance to the
            nearest other one, so that as new means as different as two natural samples are.
        most: samples kept; beyond it nothing is new.
    """

    name = "novelty"

    def __init__(self, known: Profile, *, threshold: float | None = None, most: int = 20_000) -> None:
        self.kept = torch.empty(0, known.traces.shape[1], dtype=torch.float64)
        self.most = most
        self.threshold = natural_distance(known.traces) ** 2 if threshold is None else threshold

    def gains(self, reading: Reading) -> Tensor:
        """Take note of a batch; return the distance to the nearest one before it for each new sample, else 0, shape (n,)."""
        rows = reading.features.double().cpu()
        far = squared(rows, self.kept).amin(1) if len(self.kept) else torch.full((len(rows),), torch.inf, dtype=torch.float64)
        among = squared(rows, rows)
        found = torch.zeros(len(rows))
        new: list[int] = []
        for row in range(len(rows)):
            nearest = min([float(far[row]), *among[row, new].tolist()])
            if nearest > self.threshold and len(self.kept) + len(new) < self.most:
                new.append(row)
                found[row] = 1.0 if nearest == torch.inf else nearest**0.5
        self.kept = torch.cat([self.kept, rows[new]])
        return found

    def update(self, reading: Reading) -> None:
        """Take note of a batch."""
        self.gains(reading)

    @property
    def value(self) -> float:
        """The number of samples kept."""
        return float(len(self.kept))

    def state(self) -> State:
        """Return the features kept."""
        return {"kept": self.kept}

    def load(self, state: State) -> None:
        """Go on from features."""
        self.kept = fitting("novelty", state, "kept", -1, self.kept.shape[1]).double().clone()


def squared(a: Tensor, b: Tensor) -> Tensor:
    """Return all squared distances, shape (len(a), len(b)), by differences: exact for near points."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def natural_distance(features: Tensor) -> float:
    """Return the median distance of a sample, out of at most 1,000, to the nearest other one; 0 for fewer than two."""
    rows = features[:1000].double()
    if len(rows) < 2:
        return 0.0
    apart = squared(rows, rows)
    apart.fill_diagonal_(torch.inf)
    return float(apart.amin(1).sqrt().median())
