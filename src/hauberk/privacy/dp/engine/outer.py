"""Per-example gradients that are sums of outer products over positions: linear layers and embeddings.

A norm is never below that of what the weighted sum adds, but for rounding: where the terms cancel, the gradient itself is
measured and added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.privacy.dp.engine.chunked import summed
from hauberk.privacy.dp.engine.per_example import Norm, PerExample, chunks, from_gram, settled, size, wide

Pair = tuple[Tensor, Tensor]


class Outer:
    """Gradients g_i = sum_t left_it ⊗ right_it, several such sums added.

    Arguments:
        pairs: (left, right) with right of shape (B, T, d) and left of shape (B, T, p), or (B, T) of whole numbers that
            stand for the rows of an identity matrix (the tokens of an embedding).
        shape: of the parameter, (p, d) up to a reshape.
        apart: shape (B,), whose gradients are worked out one by one in the weighted sum; found with the norms.
    """

    def __init__(self, pairs: list[Pair], shape: torch.Size, apart: Tensor | None = None) -> None:
        self.pairs, self.shape, self.apart = pairs, shape, apart
        self.p, self.d = shape[0], shape[1:].numel()

    def norms(self, norm: Norm) -> Tensor:
        left, right = self.pairs[0]
        if len(self.pairs) == 1 and right.shape[1] == 1:
            own = size(right, norm)
            return own if left.dim() == 2 else own * size(left, norm)
        self.pairs = [_distinct(*pair) if pair[0].dim() == 2 else pair for pair in self.pairs]
        if len(self.pairs) == 1 and left.dim() == 2:
            return size(self.pairs[0][1], norm)
        if norm == "l2" and self.gram(sum(pair[1].shape[1] for pair in self.pairs)):
            square, reach = self._gram()
            found, unsure = from_gram(square, reach)
            if len(unsure):
                found[unsure] = self._sizes(norm, unsure)
        else:
            found, reach = self._sizes(norm, None), torch.stack([_reach(*pair, norm) for pair in self.pairs]).sum(0)
        found, self.apart = settled(found, reach)
        return found

    def gram(self, positions: int) -> bool:
        """Whether Gram matrices over the positions cost less than the products themselves."""
        return positions * (self.d + self.p) <= self.d * self.p

    def weighted(self, weights: Tensor) -> Tensor:
        weights = weights.to(self.pairs[0][1].dtype)
        if self.apart is None:
            return self._summed(weights)
        total = self._summed(weights.masked_fill(self.apart, 0)).flatten()
        few = self.apart.nonzero().squeeze(1)
        for part in chunks(len(few), self._each()):
            total += weights[few[part]] @ self.rows(few[part]).dense().flatten(1)
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

    def rows(self, index: Tensor | slice) -> Outer:
        apart = None if self.apart is None else self.apart[index]
        return Outer([(left[index], right[index]) for left, right in self.pairs], self.shape, apart)

    def _each(self) -> int:
        return self.p * self.d * self.pairs[0][1].element_size()

    def _summed(self, weights: Tensor) -> Tensor:
        total = None
        for left, right in self.pairs:
            rows = (right * weights[:, None, None]).flatten(0, 1) if left.dim() == 2 else right.flatten(0, 1)
            if left.dim() == 2:
                part = rows.new_zeros(self.p, self.d).index_add_(0, left.flatten(), rows)
            else:
                part = (left * weights[:, None, None]).flatten(0, 1).t() @ rows
            total = part if total is None else total + part
        assert total is not None
        return total.reshape(self.shape)

    def _sizes(self, norm: Norm, index: Tensor | None) -> Tensor:
        """Norms of gradients worked out."""
        few = self if index is None else self.rows(index)
        first = few.pairs[0][1]
        parts = [size(few.rows(rows).dense(), norm) for rows in chunks(len(first), self._each())]
        return torch.cat(parts) if parts else first.new_zeros(0, dtype=wide(first.dtype))

    def _gram(self) -> tuple[Tensor, Tensor]:
        """Squared norms, and the sums of the terms' norms."""
        batch, first = len(self.pairs[0][1]), self.pairs[0][1]
        total, reach = first.new_zeros(2, batch, dtype=wide(first.dtype))
        for at, (left, right) in enumerate(self.pairs):
            for other, (left_, right_) in enumerate(self.pairs[: at + 1]):
                each = 3 * left.shape[1] * left_.shape[1] * right.element_size()
                for rows in chunks(batch, each):
                    product = _inner(left[rows], left_[rows]) * _inner(right[rows], right_[rows])
                    total[rows] += (1 if other == at else 2) * product.sum((1, 2), dtype=total.dtype)
                    if other == at:
                        reach[rows] += product.diagonal(dim1=1, dim2=2).sqrt().sum(1, dtype=total.dtype)
        return total, reach


def together(parts: list[PerExample], shape: torch.Size, batch: int, like: Tensor) -> PerExample:
    """Add the gradients of several uses of one parameter, as outer products where all of them are.

    Arguments:
        parts: the gradients.
        shape: of the parameter.
        batch: the examples.
        like: has the type and device of the gradients.
    """
    if len(parts) == 1:
        return parts[0]
    outer = [part for part in parts if isinstance(part, Outer)]
    if len(outer) == len(parts):
        pairs = []
        for dims in (2, 3):  # Uses of one kind are one longer sequence.
            kind = [pair for part in outer for pair in part.pairs if pair[0].dim() == dims]
            if kind:
                pairs.append((torch.cat([left for left, _ in kind], 1), torch.cat([right for _, right in kind], 1)))
        return Outer(pairs, outer[0].shape)
    return summed(parts, shape, batch, like)


def _reach(left: Tensor, right: Tensor, norm: Norm) -> Tensor:
    """The sum of the terms' norms, shape (B,)."""
    order = 2 if norm == "l2" else 1
    sizes = torch.linalg.vector_norm(right, order, dim=2, dtype=wide(right.dtype))
    return (sizes if left.dim() == 2 else sizes * torch.linalg.vector_norm(left, order, dim=2, dtype=sizes.dtype)).sum(1)


def _distinct(tokens: Tensor, right: Tensor) -> Pair:
    """Add up the rows of equal tokens of an example: terms of an embedding that are left apart cannot cancel."""
    if tokens.shape[1] < 2:
        return tokens, right
    ordered, order = tokens.sort(1)
    place = torch.cat([ordered.new_zeros(len(ordered), 1), (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)], 1)
    kinds = torch.zeros_like(tokens).scatter_(1, place, ordered)
    into = torch.zeros_like(place).scatter_(1, order, place).unsqueeze(2).expand_as(right)
    return kinds, torch.zeros_like(right).scatter_add_(1, into, right)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of all positions of a with all of b, shape (B, T_a, T_b)."""
    if a.dim() == 2 and b.dim() == 2:
        return a.unsqueeze(2) == b.unsqueeze(1)
    if a.dim() == 2:
        return b.transpose(1, 2).gather(1, a.unsqueeze(2).expand(-1, -1, b.shape[1]))
    if b.dim() == 2:
        return _inner(b, a).transpose(1, 2)
    return a @ b.transpose(1, 2)
