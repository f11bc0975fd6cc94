"""Per-example gradients worked out some examples at a time, and kept between norms and sum only where they are small.

What is summed is what was measured, number by number: no example adds more than its clip, whatever rounding did to its gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.privacy.dp.engine.per_example import KEEP, SCRATCH, Dense, Norm, PerExample, chunks, size, wide


class Chunked:
    """Gradients by a function of the examples' positions.

    Arguments:
        make: from positions, shape (b,), to their gradients, shape (b, *shape).
        index: the examples' positions, shape (B,).
        shape: of the parameter.
        like: has the type and device of the gradients.
        most: examples that `make` can be asked for at once; None for as many as the working memory holds.
    """

    def __init__(
        self, make: Callable[[Tensor], Tensor], index: Tensor, shape: torch.Size, like: Tensor, most: int | None = None
    ) -> None:
        self.make, self.index, self.shape, self.like, self.most = make, index, shape, like, most
        self.kept: Dense | None = None

    def norms(self, norm: Norm) -> Tensor:
        bytes_each, found, values = self.shape.numel() * self.like.element_size(), [], []
        keep = bytes_each * len(self.index) <= KEEP
        for rows in self._chunks():
            value = self.make(self.index[rows])
            found.append(size(value, norm))
            if keep:
                values.append(value)
        if keep:
            self.kept = Dense(torch.cat(values) if values else self._nothing())
        return torch.cat(found) if found else self.like.new_zeros(0, dtype=wide(self.like.dtype))

    def weighted(self, weights: Tensor) -> Tensor:
        if self.kept is not None:
            return self.kept.weighted(weights)
        total = self.like.new_zeros(self.shape)
        for rows in self._chunks():
            total += Dense(self.make(self.index[rows])).weighted(weights[rows])
        return total

    def dense(self) -> Tensor:
        if self.kept is not None:
            return self.kept.dense()
        return torch.cat([self._nothing(), *(self.make(self.index[rows]) for rows in self._chunks())])

    def rows(self, index: Tensor) -> PerExample:
        if self.kept is not None:
            return self.kept.rows(index)
        return Chunked(self.make, self.index[index], self.shape, self.like, self.most)

    def _chunks(self) -> list[slice]:
        found = chunks(len(self.index), self.shape.numel() * self.like.element_size())
        if self.most is None or not found or found[0].stop <= self.most:
            return found
        return [slice(at, min(at + self.most, len(self.index))) for at in range(0, len(self.index), self.most)]

    def _nothing(self) -> Tensor:
        return self.like.new_zeros(0, *self.shape)


def summed(parts: list[PerExample], shape: torch.Size, batch: int, like: Tensor) -> Chunked:
    """Return the sum of several gradients of one parameter."""

    def make(index: Tensor) -> Tensor:
        total = parts[0].rows(index).dense().clone()
        for part in parts[1:]:
            total += part.rows(index).dense()
        return total

    return Chunked(make, torch.arange(batch, device=like.device), shape, like)


def merged(base: PerExample, shape: torch.Size, batch: int, frames: int, like: Tensor) -> Chunked:
    """Return gradients of examples that are each the sum over as many rows of `base` (the frames of a film, merged with them)."""
    most = max(1, SCRATCH // max(1, shape.numel() * like.element_size()))  # frames at once

    def make(index: Tensor) -> Tensor:
        total = like.new_zeros(len(index), *shape)
        for first in range(0, frames, most):
            own = torch.arange(first, min(first + most, frames), device=index.device)
            places = (index.unsqueeze(1) * frames + own).flatten()
            total += base.rows(places).dense().unflatten(0, (len(index), len(own))).sum(1)
        return total

    return Chunked(make, torch.arange(batch, device=like.device), shape, like, max(1, most // max(frames, 1)))


class Pulled:
    """Gradients of a parameter by way of a tensor that is the parameter with its entries rearranged (a transpose, a reshape).

    Arguments:
        base: gradients of the derived tensor.
        derived: the tensor, with its graph down to the parameter.
        parameter: that parameter.
    """

    def __init__(self, base: PerExample, derived: Tensor, parameter: Tensor) -> None:
        self.base, self.derived, self.parameter = base, derived, parameter

    def norms(self, norm: Norm) -> Tensor:
        return self.base.norms(norm)

    def weighted(self, weights: Tensor) -> Tensor:
        return pull(self.derived, self.parameter, self.base.weighted(weights), False)

    def dense(self) -> Tensor:
        return pull(self.derived, self.parameter, self.base.dense(), True)

    def rows(self, index: Tensor) -> Pulled:
        return Pulled(self.base.rows(index), self.derived, self.parameter)


def pulled(base: PerExample, derived: Tensor, parameter: Tensor, batch: int) -> Chunked:
    """Return gradients by way of any other derived tensor (a norm-scaled weight), whose terms may cancel on the way."""

    def make(index: Tensor) -> Tensor:
        return pull(derived, parameter, base.rows(index).dense(), True)

    like = parameter.detach().new_empty(0, dtype=wide(parameter.dtype))
    return Chunked(make, torch.arange(batch, device=parameter.device), parameter.shape, like)


def pull(derived: Tensor, parameter: Tensor, gradient: Tensor, batched: bool) -> Tensor:
    """Return the gradient of a parameter from that of a tensor derived from it."""
    if batched and not len(gradient):
        return gradient.new_zeros(0, *parameter.shape)
    (found,) = torch.autograd.grad(
        derived, [parameter], gradient.to(derived.dtype), retain_graph=True, is_grads_batched=batched
    )
    return found
