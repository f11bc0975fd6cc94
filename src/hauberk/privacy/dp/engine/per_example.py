"""Per-example gradients of one parameter, dense or as sums of outer products: their norms and weighted sums.

Nothing here holds more than `SCRATCH` bytes beyond its inputs, and `KEEP` between norms and sums, except a dense gradient that is
asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

Norm = Literal["l2", "l1"]
SCRATCH = 16 * 2**20  # bytes of working memory of a chunk of examples
KEEP = 64 * 2**20  # bytes of per-example gradients that a parameter may keep between its norms and its weighted sum
# A gradient that is a sum of terms may be far smaller than its terms, and then rounding decides what its parts seem to be. As
# fractions of `reach`, the sum of the terms' norms: from here down a Gram matrix does not tell the squared norm …
GRAM = 1e-3
APART = 1e-3  # … a gradient is worked out by itself also for the weighted sum, whose parts would drown the other examples …
FLOOR = 1e-5  # … and a norm is said to be no smaller, as what is left of the gradient is rounding.


class PerExample(Protocol):
    """The gradients g_1 … g_B of one parameter."""

    def norms(self, norm: Norm) -> Tensor:
        """Return the norm of each example's gradient, shape (B,)."""

    def weighted(self, weights: Tensor) -> Tensor:
        """Return sum_i weights_i g_i in the parameter's shape."""

    def dense(self) -> Tensor:
        """Return all gradients, shape (B, *parameter)."""

    def rows(self, index: Tensor) -> PerExample:
        """Return the gradients of some examples alone."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type that sums are taken in: float32 for the half types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def size(flat: Tensor, norm: Norm) -> Tensor:
    """Return the norm over all but the first dimension, shape (B,)."""
    flat = flat.flatten(1) if flat.dim() > 1 else flat.unsqueeze(1)
    return torch.linalg.vector_norm(flat, 2 if norm == "l2" else 1, dim=1, dtype=wide(flat.dtype))


def chunks(batch: int, bytes_each: int) -> list[slice]:
    """Return slices of the batch whose working memory stays under SCRATCH (one example at least)."""
    step = max(1, SCRATCH // max(bytes_each, 1))
    return [slice(first, min(first + step, batch)) for first in range(0, batch, step)]


def from_gram(square: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return norms, rounded upwards, from squared norms by Gram matrices, and where they do not tell."""
    unit = torch.finfo(square.dtype).eps / 2
    total = square + 16 * unit * reach.square()
    return total.clamp(min=0).sqrt_(), (square < GRAM * reach.square()).nonzero().squeeze(1)


def settled(norm: Tensor, reach: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return norms that rounding cannot exceed, and which gradients are to be summed apart, if any."""
    apart = norm < APART * reach
    return torch.maximum(norm, FLOOR * reach), apart if bool(apart.any()) else None


class Kept:
    """Gradients that are written to buffers, which the tape lends from the step before: fresh pages cost more than the sums."""

    spare: list[Tensor]
    kept: list[Tensor]

    def buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return a buffer of a shape, a spare one if there is one that fits."""
        for at, one in enumerate(self.spare):
            if one.shape == shape and one.dtype == like.dtype and one.device == like.device:
                return self.spare.pop(at)
        return like.new_empty(shape)


class Dense:
    """Materialised gradients, shape (B, *parameter)."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def norms(self, norm: Norm) -> Tensor:
        return size(self.values, norm)

    def weighted(self, weights: Tensor) -> Tensor:
        flat = self.values.reshape(len(self.values), -1) if len(self.values) else self.values.flatten(1)
        return (weights.to(flat.dtype) @ flat).reshape(self.values.shape[1:])

    def dense(self) -> Tensor:
        return self.values

    def rows(self, index: Tensor) -> Dense:
        return Dense(self.values[index])


class Blocks:
    """Gradients of a parameter in blocks along its first dimension, each block as it comes."""

    def __init__(self, blocks: Sequence[PerExample]) -> None:
        self.blocks = blocks

    def norms(self, norm: Norm) -> Tensor:
        parts = torch.stack([block.norms(norm) for block in self.blocks])
        return torch.linalg.vector_norm(parts, 2 if norm == "l2" else 1, dim=0)

    def weighted(self, weights: Tensor) -> Tensor:
        return torch.cat([block.weighted(weights) for block in self.blocks])

    def dense(self) -> Tensor:
        return torch.cat([block.dense() for block in self.blocks], 1)

    def rows(self, index: Tensor) -> Blocks:
        return Blocks([block.rows(index) for block in self.blocks])
