"""Adaptive clipping: the clip follows a quantile of the norms, and the count that steers it is paid for. Andrew et al. 2021."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.clipping.base import LEAST, Clipping, Noised, Norms, shrunk, whole


class Quantile(Clipping):
    """Move the clip towards the quantile γ of the examples' gradient norms, by a noisy count of those below it.

    The count is a release of its own: each example adds ±1/2, noise of deviation σ_b covers it, and the gradient gets the
    larger multiplier z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2), so that both together cost what one Gaussian of multiplier z costs
    (arXiv:1905.03871, theorem 1). The step is η(b̄ − γ), b̄ the noisy share of norms below the clip.

    Arguments:
        clip: where to begin.
        quantile: γ, between 0 and 1.
        rate: η, the speed.
        update: `geometric` multiplies the clip by exp(−step), `linear` subtracts the step.
        count_noise: σ_b; None takes a twentieth of the expected batch.
        least: the clip never falls below.
    """

    def __init__(
        self, clip: float = 0.1, quantile: float = 0.5, rate: float = 0.2,
        update: Literal["geometric", "linear"] = "geometric", count_noise: float | None = None, least: float = 1e-6,
    ) -> None:
        super().__init__(clip)
        if not 0 <= quantile <= 1 or not 0 < rate < math.inf or not LEAST <= least <= clip:
            raise UsageError(f"quantile is {quantile}, rate {rate}, least {least}",
                             want="a quantile in [0, 1], a rate above 0, a least clip from 1e-9 up to the first one")
        if update not in ("geometric", "linear"):
            raise UsageError(f"update is '{update}'", want="'geometric' or 'linear'")
        if count_noise is not None and not 0 < count_noise < math.inf:
            raise UsageError(f"count_noise is {count_noise}", want="a finite deviation above 0, or None")
        self.quantile, self.rate, self.update, self.least = quantile, rate, update, least
        self.count_noise, self.expected = count_noise, 0.0
        self.centred = 0.0  # Σ (bᵢ − 1/2) over the examples of this batch

    def bind(self, parameters: Mapping[str, Parameter], batch_size: float) -> None:
        """Learn the expected batch."""
        self.expected = batch_size
        self.count_noise = self.count_noise or batch_size / 20

    def gradient_multiplier(self, noise_multiplier: float) -> float:
        """Return z_Δ."""
        if noise_multiplier == 0:
            return 0.0
        assert self.count_noise is not None
        rest = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if rest <= 0:
            raise UsageError(
                f"the count's noise {self.count_noise:.4g} alone costs more than the noise multiplier {noise_multiplier:.4g}",
                want=f"count_noise above {noise_multiplier / 2:.4g}", fix="Take a larger count_noise or batch",
            )
        return rest**-0.5

    def weights(self, norms: Norms) -> Tensor:
        """Return min(1, C/‖g‖), shape (batch,), and count."""
        norm = whole(norms, self.norm)
        self.centred += float(((norm <= self.clip).double() - 0.5).sum())
        return shrunk(norm, self.clip)

    def finish(self, noised: Noised) -> None:
        """Release the count, and move the clip."""
        assert self.count_noise is not None
        here = torch.tensor([self.centred], dtype=torch.float64)
        self.centred = 0.0
        noisy = float(noised(here, self.count_noise))
        step = self.rate * (noisy / self.expected + 0.5 - self.quantile)
        moved = self.clip * math.exp(-step) if self.update == "geometric" else self.clip - step
        self.clip = max(self.least, moved)

    def forget(self) -> None:
        """Count from nothing: an example that a second try counts again would move the count by twice what is paid for."""
        self.centred = 0.0

    def describe(self) -> str:
        """Return the strategy in words for a privacy statement."""
        return (f"adaptive clipping at quantile {self.quantile:.6g}, now {self.bound:.6g}; its noisy count "
                f"(deviation {self.count_noise:.6g}) is in the account")
