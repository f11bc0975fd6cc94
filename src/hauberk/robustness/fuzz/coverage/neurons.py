"""Neuron coverage, on activations scaled within each layer of each input."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.fuzz.coverage.criterion import Cells
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading


def neuron_coverage(known: Profile, *, threshold: float = 0.5) -> Cells:
    """Return NC: the share of neurons whose activation, scaled to [0, 1] within its layer and input, ever exceeds the threshold.

    Pei et al. 2017 (DeepXplore), arXiv:1705.06640. A layer whose neurons all agree on an input covers none by it.

    Arguments:
        known: the profile of the model.
        threshold: in [0, 1].
    """

    def hits(reading: Reading) -> Tensor:
        units = reading.units
        flags = torch.empty(units.shape, dtype=torch.bool, device=units.device)
        for start, stop in reading.spans:
            part = units[:, start:stop]
            low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
            # (a - low) / (high - low) > t without the division, which has no value where all agree.
            torch.gt(part - low, (high - low) * threshold, out=flags[:, start:stop])
        return flags

    return Cells("nc", known.neurons, hits)
