"""Neural coverage from the covariance of each layer, independent of the order of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.fuzz.coverage.criterion import State, fitting
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading


class LayerCovariance:
    """NLC: the sum over layers of the mean absolute covariance between neurons; no threshold, and no upper end.

    Yuan et al. 2023 (NeuraL Coverage), arXiv:2112.01955. Every sample enters, whether it raises the figure or not: the figure
    then depends on the set of tests and not on their order. It can fall when a test is added, and wide layers of large
    activations weigh most.

    Arguments:
        known: the profile of the model.
    """

    name = "nlc"

    def __init__(self, known: Profile) -> None:
        widths = [stop - start for start, stop in known.spans]
        self.n = 0
        self.mean = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self.moment = [torch.zeros(width, width, dtype=torch.float64) for width in widths]  # sum of outer products

    def update(self, reading: Reading) -> None:
        """Merge the moments of a batch into those of all samples (Chan et al. 1983)."""
        added, total = len(reading), self.n + len(reading)
        for layer, (start, stop) in enumerate(reading.spans):
            part = reading.units[:, start:stop].double().cpu()
            mean = part.mean(0)
            centred, apart = part - mean, mean - self.mean[layer]
            self.moment[layer] += centred.T @ centred + torch.outer(apart, apart) * (self.n * added / total)
            self.mean[layer] += apart * (added / total)
        self.n = total

    def gains(self, reading: Reading) -> Tensor:
        """Return by how much each sample alone would raise the figure, zero where it would fall, and take note of all."""
        found = torch.zeros(len(reading), dtype=torch.float64)
        before, total = self.value, self.n + 1
        for layer, (start, stop) in enumerate(reading.spans):
            part = reading.units[:, start:stop].double().cpu() - self.mean[layer]
            for row, apart in enumerate(part):  # one at a time: n matrices of a wide layer would not fit
                found[row] += (self.moment[layer] + torch.outer(apart, apart) * (self.n / total)).abs().mean() / total
        self.update(reading)
        return (found - before).clamp(min=0).float()

    @property
    def value(self) -> float:
        """The figure so far."""
        return float(sum(one.abs().mean() for one in self.moment)) / self.n if self.n else 0.0

    def state(self) -> State:
        """Return the moments of every layer."""
        layers = {f"mean{layer}": one for layer, one in enumerate(self.mean)}
        moments = {f"moment{layer}": one for layer, one in enumerate(self.moment)}
        return {"n": torch.tensor(self.n), **layers, **moments}

    def load(self, state: State) -> None:
        """Go on from moments."""
        sides = [len(one) for one in self.mean]
        self.mean = [fitting("nlc", state, f"mean{layer}", side).double().clone() for layer, side in enumerate(sides)]
        self.moment = [fitting("nlc", state, f"moment{layer}", side, side).double().clone() for layer, side in enumerate(sides)]
        self.n = int(fitting("nlc", state, "n"))
