"""The most active neurons of each layer: which ever were (TKNC), and in how many patterns (TKNP)."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.fuzz.coverage.criterion import Cells, State, fitting
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading

_PAPER = "Ma et al. 2018 (DeepGauge), arXiv:1803.07519"


def leaders(reading: Reading, k: int) -> Tensor:
    """Return the k most active neurons of every layer for each sample, shape (n, layers * k), as positions among all neurons.

    A layer narrower than k gives all of its neurons.
    """
    return torch.cat([
        reading.units[:, start:stop].topk(min(k, stop - start), 1, sorted=False).indices + start for start, stop in reading.spans
    ], 1)


def top_k_coverage(known: Profile, *, k: int = 3) -> Cells:
    """Return TKNC: the share of neurons that were ever among the k most active of their layer.

    Ma et al. 2018 (DeepGauge), arXiv:1803.07519.

    Arguments:
        known: the profile of the model.
        k: neurons of each layer.
    """
    return Cells("tknc", known.neurons, lambda reading: leaders(reading, k))


class TopKPatterns:
    """TKNP: the number of different sets of k most active neurons over all layers; a count, not a share.

    Ma et al. 2018 (DeepGauge), arXiv:1803.07519.

    Arguments:
        known: the profile of the model.
        k: neurons of each layer.
    """

    name = "tknp"

    def __init__(self, known: Profile, *, k: int = 3) -> None:
        self.k, self.seen = k, set[bytes]()
        self.width = sum(min(k, stop - start) for start, stop in known.spans)

    def gains(self, reading: Reading) -> Tensor:
        """Take note of a batch; return 1 for each sample whose pattern is new, shape (n,)."""
        rows = leaders(reading, self.k).sort(1).values.int().cpu().numpy()
        new = []
        for row in rows:
            before = len(self.seen)
            self.seen.add(row.tobytes())
            new.append(float(len(self.seen) > before))
        return torch.tensor(new)

    def update(self, reading: Reading) -> None:
        """Take note of a batch."""
        self.gains(reading)

    @property
    def value(self) -> float:
        """The number of patterns."""
        return float(len(self.seen))

    def state(self) -> State:
        """Return the patterns, shape (patterns, neurons of one)."""
        joined = bytearray(b"".join(sorted(self.seen)))
        flat = torch.frombuffer(joined, dtype=torch.int32).clone() if joined else torch.empty(0, dtype=torch.int32)
        return {"patterns": flat.reshape(-1, self.width)}

    def load(self, state: State) -> None:
        """Go on from patterns."""
        self.seen = {row.tobytes() for row in fitting("tknp", state, "patterns", -1, self.width).int().numpy()}
