"""Per-example gradients of one parameter, dense or as sums of outer products: their norms and weighted sums.

Nothing here holds more than `SCRATCH` bytes beyond its inputs, except a dense gradient that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

Norm = Literal["l2", "l1"]
SCRATCH = 16 * 2**20  # bytes of working memory of a chunk of examples


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


class Outer:
    """Gradients g_i = sum_t left_it ⊗ right_it, several such sums added.

    Arguments:
        pairs: (left, right) with right of shape (B, T, d) and left of shape (B, T, p), or (B, T) of whole numbers that
            stand for the rows of an identity matrix (the tokens of an embedding).
        shape: of the parameter, (p, d) up to a reshape.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], shape: torch.Size) -> None:
        self.pairs, self.shape = pairs, shape
        self.p, self.d = shape[0], shape[1:].numel()

    def norms(self, norm: Norm) -> Tensor:
        left, right = self.pairs[0]
        if len(self.pairs) == 1 and right.shape[1] == 1:
            own = size(right, norm)
            return own if left.dim() == 2 else own * size(left, norm)
        batch, positions = len(right), sum(pair[1].shape[1] for pair in self.pairs)
        if norm == "l2" and self.gram(positions):
            total = right.new_zeros(batch, dtype=wide(right.dtype))
            for at, (left, right) in enumerate(self.pairs):
                for other, (left_, right_) in enumerate(self.pairs[: at + 1]):
                    each = 3 * left.shape[1] * left_.shape[1] * right.element_size()
                    for rows in chunks(batch, each):
                        product = _gram(left[rows], left_[rows]) * _gram(right[rows], right_[rows])
                        total[rows] += (1 if other == at else 2) * product.sum((1, 2), dtype=total.dtype)
            return total.clamp_(min=0).sqrt_()
        each = self.p * self.d * right.element_size()
        parts = [size(Outer(_take(self.pairs, rows), self.shape).dense(), norm) for rows in chunks(batch, each)]
        return torch.cat(parts) if parts else right.new_zeros(0, dtype=wide(right.dtype))

    def gram(self, positions: int) -> bool:
        """Whether Gram matrices over the positions cost less than the products themselves."""
        tokens = all(left.dim() == 2 for left, _ in self.pairs)
        return tokens or positions * (self.d + self.p) <= self.d * self.p

    def weighted(self, weights: Tensor) -> Tensor:
        total = None
        for left, right in self.pairs:
            rows = (right * weights.to(right.dtype)[:, None, None]).flatten(0, 1) if left.dim() == 2 else right.flatten(0, 1)
            if left.dim() == 2:
                part = rows.new_zeros(self.p, self.d).index_add_(0, left.flatten(), rows)
            else:
                part = (left * weights.to(left.dtype)[:, None, None]).flatten(0, 1).t() @ rows
            total = part if total is None else total + part
        assert total is not None
        return total.reshape(self.shape)

    def dense(self) -> Tensor:
        total = None
        for left, right in self.pairs:
            if left.dim() == 2:
                part = right.new_zeros(len(right), self.p, self.d)
                part.scatter_add_(1, left.unsqueeze(2).expand_as(right), right)
            else:
                part = left.transpose(1, 2) @ right
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.reshape(len(total), *self.shape)

    def rows(self, index: Tensor) -> Outer:
        return Outer([(left[index], right[index]) for left, right in self.pairs], self.shape)


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


class Merged:
    """Gradients of examples that are each the sum over as many rows of `base` (the frames of a film, merged with the batch)."""

    def __init__(self, base: PerExample, batch: int) -> None:
        self.base, self.batch = base, batch
        self.summed: Tensor | None = None

    def norms(self, norm: Norm) -> Tensor:
        return size(self.dense(), norm)

    def weighted(self, weights: Tensor) -> Tensor:
        return Dense(self.dense()).weighted(weights)

    def dense(self) -> Tensor:
        if self.summed is None:
            self.summed = self.base.dense().unflatten(0, (self.batch, -1)).sum(1)
        return self.summed

    def rows(self, index: Tensor) -> Dense:
        return Dense(self.dense()[index])


def merged(make: Callable[[], PerExample], batch: int) -> Callable[[], PerExample]:
    """Return what makes the gradients of `batch` examples from those of their rows."""
    return lambda: Merged(make(), batch)


class Pulled:
    """Gradients of a parameter by way of a tensor derived from it (a transpose, a part, a norm-scaled weight).

    Arguments:
        base: gradients of the derived tensor.
        derived: the tensor, with its graph down to the parameter.
        parameter: that parameter.
        isometry: whether the derived tensor is the parameter with its entries rearranged.
    """

    def __init__(self, base: PerExample, derived: Tensor, parameter: Tensor, isometry: bool) -> None:
        self.base, self.derived, self.parameter, self.isometry = base, derived, parameter, isometry

    def _pull(self, gradient: Tensor, batched: bool) -> Tensor:
        (pulled,) = torch.autograd.grad(
            self.derived, [self.parameter], gradient.to(self.derived.dtype), retain_graph=True, is_grads_batched=batched
        )
        return pulled

    def norms(self, norm: Norm) -> Tensor:
        return self.base.norms(norm) if self.isometry else size(self.dense(), norm)

    def weighted(self, weights: Tensor) -> Tensor:
        return self._pull(self.base.weighted(weights), False)

    def dense(self) -> Tensor:
        values = self.base.dense()
        return self._pull(values, True) if len(values) else values.new_zeros(0, *self.parameter.shape)

    def rows(self, index: Tensor) -> Pulled:
        return Pulled(self.base.rows(index), self.derived, self.parameter, self.isometry)


def together(parts: list[PerExample]) -> PerExample:
    """Add the gradients of several uses of one parameter, as outer products where all of them are."""
    if len(parts) == 1:
        return parts[0]
    outer = [part for part in parts if isinstance(part, Outer)]
    if len(outer) == len(parts):
        dense = [pair for part in outer for pair in part.pairs if pair[0].dim() == 3]
        pairs = [pair for part in outer for pair in part.pairs if pair[0].dim() == 2]
        if dense:  # Uses of one kind are one longer sequence.
            pairs.append((torch.cat([left for left, _ in dense], 1), torch.cat([right for _, right in dense], 1)))
        return Outer(pairs, outer[0].shape)
    total = parts[0].dense().clone()
    for part in parts[1:]:
        total += part.dense()
    return Dense(total)




def _take(pairs: list[tuple[Tensor, Tensor]], rows: slice) -> list[tuple[Tensor, Tensor]]:
    return [(left[rows], right[rows]) for left, right in pairs]


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of all positions of a with all of b, shape (B, T_a, T_b)."""
    if a.dim() == 2 and b.dim() == 2:
        return a.unsqueeze(2) == b.unsqueeze(1)
    if a.dim() == 2:
        return b.transpose(1, 2).gather(1, a.unsqueeze(2).expand(-1, -1, b.shape[1]))
    if b.dim() == 2:
        return _gram(b, a).transpose(1, 2)
    return a @ b.transpose(1, 2)
