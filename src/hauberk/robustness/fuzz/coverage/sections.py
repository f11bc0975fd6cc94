"""The range of each neuron on training data: the sections reached within it, and the corners beyond."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.fuzz.coverage.criterion import Cells
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading


def multisection_coverage(known: Profile, *, k: int = 1000) -> Cells:
    """Return KMNC: the share of the k sections of every neuron's training range that were ever hit.

    Values outside the range hit no section: they belong to the corners. A neuron without a range hits none, and still counts
    in the k times N of the definition. Ma et al. 2018 (DeepGauge), arXiv:1803.07519.

    Arguments:
        known: the profile of the model, with the range of its neurons.
        k: sections.
    """
    span = known.high - known.low
    divisor, ranged = torch.where(span > 0, span, torch.ones_like(span)), span > 0
    first = torch.arange(known.neurons, device=span.device) * k

    def hits(reading: Reading) -> Tensor:
        units = reading.units
        section = (units - known.low).div_(divisor).mul_(k).long().clamp_(max=k - 1)  # (n, neurons)
        inside = (units >= known.low) & (units <= known.high) & ranged
        return section.add_(first).masked_fill_(~inside, -1)

    return Cells("kmnc", known.neurons * k, hits)


def boundary_coverage(known: Profile) -> Cells:
    """Return NBC: the share of the 2 N corners, above and below every neuron's training range, that were ever reached.

    Both corners of a neuron count, each by itself. Ma et al. 2018 (DeepGauge), arXiv:1803.07519.
    """
    return Cells("nbc", 2 * known.neurons, lambda seen: torch.cat([seen.units > known.high, seen.units < known.low], 1))


def strong_activation_coverage(known: Profile) -> Cells:
    """Return SNAC: the share of neurons that ever exceeded their greatest training value.

    Ma et al. 2018 (DeepGauge), arXiv:1803.07519.
    """
    return Cells("snac", known.neurons, lambda seen: seen.units > known.high)
