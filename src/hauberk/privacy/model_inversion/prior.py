"""Priors: what inputs look like before any model is asked. A prior turns standard normal draws into inputs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError


@runtime_checkable
class Prior(Protocol):
    """Turns latent points, shape (n, width), standard normal a priori, into inputs, shape (n, ...), differentiably."""

    width: int

    def __call__(self, z: Tensor) -> Tensor:
        """Return the inputs, shape (n, ...)."""
        ...


class GaussianPrior(nn.Module):
    """The normal law with the mean and the main directions of auxiliary inputs: a prior without any training.

    Arguments:
        auxiliary: inputs like the private ones, shape (m, ...).
        width: principal directions kept, at most m - 1.
        bounds: inputs are clipped to them.

    Raises:
        DataError: for fewer than 2 inputs.
    """

    def __init__(self, auxiliary: Tensor, *, width: int = 32, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if len(auxiliary) < 2:
            raise DataError(f"there are {len(auxiliary)} auxiliary inputs", want="at least 2 inputs like the private ones")
        rows = auxiliary.flatten(1)
        self.shape, self.bounds = tuple(auxiliary.shape[1:]), bounds
        self.register_buffer("middle", rows.mean(0))
        _, sizes, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        self.width = min(width, len(rows) - 1, rows.shape[1])
        spread = sizes[: self.width] / (len(rows) - 1) ** 0.5
        self.register_buffer("directions", spread[:, None] * directions[: self.width])  # (width, inputs)

    def forward(self, z: Tensor) -> Tensor:
        """Return inputs, shape (n, ...)."""
        rows = self.get_buffer("middle") + z.to(self.get_buffer("middle")) @ self.get_buffer("directions")
        return rows.clamp(*self.bounds).view(-1, *self.shape)
