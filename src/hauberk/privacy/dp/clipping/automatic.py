"""Automatic clipping: gradients are normalised, so that no clip has to be tuned. Bu et al. 2022, arXiv:2206.07136."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.clipping.base import Clipping, Norms, whole


class Automatic(Clipping):
    """Scale each example's gradient g by C/(‖g‖ + γ): its norm stays below C, and small gradients are not lost.

    Arguments:
        clip: C; together with the learning rate it is one knob, so that 1 does.
        gamma: the stability constant γ, above 0.
    """

    def __init__(self, clip: float = 1.0, gamma: float = 0.01) -> None:
        super().__init__(clip)
        if not 0 < gamma < float("inf"):
            raise UsageError(f"gamma is {gamma}", want="a finite number above 0, such as 0.01")
        self.gamma = gamma

    def weights(self, norms: Norms) -> Tensor:
        """Return C/(‖g‖ + γ), shape (batch,)."""
        norm = whole(norms, self.norm)
        return torch.where(norm.isfinite(), self.clip / (norm + self.gamma), 0.0)
