"""Per-example weight gradients of a convolution, kept where they are small and worked out twice where they are not."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.privacy.dp.engine.per_example import KEEP, Dense, Kept, Norm, PerExample, chunks, from_gram, settled, size, wide


class Taps(Kept):
    """Gradients of a convolution's weight.

    Arguments:
        x: input, padded already, shape (B, C, *positions).
        g: output gradient, shape (B, O, *positions).
        shape: of the weight, (O, C / groups, *kernel).
        stride, dilation: one number a dimension.
        groups: of channels.
    """

    def __init__(
        self, x: Tensor, g: Tensor, shape: torch.Size, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
    ) -> None:
        if x.dim() == 3:  # One dimension is two with a height of one.
            x, g, stride, dilation = x.unsqueeze(2), g.unsqueeze(2), (1, *stride), (1, *dilation)
        self.x, self.g, self.shape = x, g, shape
        self.kernel = torch.Size((1, *shape[2:])) if len(shape) == 3 else shape[2:]
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.kept, self.spare = [], []
        self.apart: Tensor | None = None  # whose gradients are worked out one by one in the weighted sum; found with the norms
        # Shifts along the height are slices of the copies in two dimensions, but for a stride and a dilation both above one.
        self._by_rows = x.dim() == 4 and (self.stride[0] == 1 or self.dilation[0] == 1)

    def _widths(self) -> list[int]:
        """The columns of each part."""
        if not self._by_rows:
            return [self.shape[1:].numel()]
        (kh, kw), step = self.kernel, self.stride[0]
        return [min(step, kh - at) * kw * self.shape[1] for at in range(0, kh, step)]

    def _columns(self, rows: slice | Tensor) -> Tensor:
        """The inputs that each tap meets, shape (b, groups, C / groups * taps, T): unfolded, for some examples."""
        x, size_ = self.x[rows], self.g.shape[2:]
        view = x.as_strided(
            (*x.shape[:2], *self.kernel, *size_),
            (
                *x.stride()[:2],
                *(step * by for step, by in zip(x.stride()[2:], self.dilation, strict=True)),
                *(step * by for step, by in zip(x.stride()[2:], self.stride, strict=True)),
            ),
        )
        return view.reshape(len(x), self.groups, -1, size_.numel())

    def _products(self, rows: slice | Tensor, into: list[Tensor] | None = None) -> list[Tensor]:
        """Gradients of some examples, in parts of shape (b, groups, O / groups, columns): their order is `_assemble`'s.

        Arguments:
            rows: the examples.
            into: where to write the parts.
        """
        g = self.g[rows]
        b, out, widths = len(g), self.shape[0] // self.groups, self._widths()
        parts = into or [g.new_empty(b, self.groups, out, width) for width in widths]
        g = g.reshape(b * self.groups, out, -1)
        if not self._by_rows:
            torch.bmm(g, self._columns(rows).flatten(0, 1).transpose(1, 2), out=parts[0].flatten(0, 1))
            return parts
        high, wide_ = self.g.shape[2:]
        down = self.dilation[0] if self.stride[0] == 1 else 1
        copies = self._shifted(self.x[rows])
        flat = copies.view(b * self.groups, -1, copies.shape[-2] * wide_)
        for i, (part, width) in enumerate(zip(parts, widths, strict=True)):
            shifted = flat[:, :width, i * down * wide_ : (i * down + high) * wide_]
            torch.bmm(g, shifted.transpose(1, 2), out=part.flatten(0, 1))
        return parts

    def _shifted(self, x: Tensor) -> Tensor:
        """Copies of the input shifted along the width, by each phase of the height's stride.

        Returns:
            Shape (b, groups, phases, kw, C / groups, rows, width of the output).
        """
        wide_, (kh, kw), step = self.g.shape[3], self.kernel, self.stride[0]
        phases = min(step, kh)
        deep = x.shape[2] if step == 1 else (kh - 1) // step + self.g.shape[2]
        grouped = x.view(len(x), self.groups, self.shape[1], *x.shape[2:])
        copies = x.new_empty(len(x), self.groups, phases, kw, self.shape[1], deep, wide_)
        for phase in range(phases):
            lines = grouped[:, :, :, phase :: step][:, :, :, :deep]
            for j in range(kw):
                at = j * self.dilation[1]
                end = at + self.stride[1] * (wide_ - 1) + 1
                copies[:, :, phase, j, :, : lines.shape[3]] = lines[..., at : end : self.stride[1]]
        return copies

    def _assemble(self, parts: list[Tensor]) -> Tensor:
        """Bring parts, with any leading dimension, into the weight's shape, (n, *shape)."""
        n, out, channels = len(parts[0]), self.shape[0], self.shape[1]
        if not self._by_rows:
            return parts[0].reshape(n, *self.shape)
        kw = self.kernel[1]
        whole = torch.cat([part.reshape(n, out, -1, kw, channels) for part in parts], 2)  # (n, O, kh, kw, C)
        return whole.permute(0, 1, 4, 2, 3).reshape(n, *self.shape)

    def _each(self) -> int:
        """Bytes that one example's copies take."""
        taps = self.kernel.numel() if not self._by_rows else self.kernel[1]
        positions = self.g.shape[2:].numel() if not self._by_rows else self.x.shape[2] * self.g.shape[3]
        return self.x.shape[1] * taps * positions * self.x.element_size()

    def _slices(self, batch: int) -> list[slice]:
        return chunks(batch, 16 * self._each())  # A sixteenth of the scratch: what fits the cache is soonest done.

    def norms(self, norm: Norm) -> Tensor:
        total = self.g.new_zeros(len(self.g), dtype=wide(self.g.dtype))
        batch, positions, inner = len(self.g), self.g.shape[2:].numel(), self.shape[1:].numel()
        keep = batch > 0 and batch * self.shape.numel() * self.g.element_size() <= KEEP
        cheap = positions * (inner + self.shape[0]) <= inner * self.shape[0] / (4 if keep else 1)
        if norm == "l2" and self.groups == 1 and cheap:
            reach = torch.zeros_like(total)
            for rows in chunks(batch, self._each()):
                columns, g = self._columns(rows).flatten(1, 2), self.g[rows].flatten(2)
                gram = (columns.transpose(1, 2) @ columns) * (g.transpose(1, 2) @ g)
                total[rows] = gram.sum((1, 2), dtype=total.dtype)
                reach[rows] = gram.diagonal(dim1=1, dim2=2).sqrt().sum(1, dtype=total.dtype)
            total, unsure = from_gram(total, reach)
            for rows in self._slices(len(unsure)):
                total[unsure[rows]] = _sizes(self._products(unsure[rows]), norm)
            total, self.apart = settled(total, reach)
            return total
        if keep:
            out = self.shape[0] // self.groups
            self.kept = [self.buffer((batch, self.groups, out, width), self.g) for width in self._widths()]
        for rows in self._slices(batch):
            total[rows] = _sizes(self._products(rows, [part[rows] for part in self.kept] or None), norm)
        if keep:
            self.x = self.g = self.g.new_empty(0)  # The gradients are what is needed from here on.
            return total
        total, self.apart = settled(total, self._reach(norm))
        return total

    def weighted(self, weights: Tensor) -> Tensor:
        if self.kept:
            w = weights.to(self.kept[0].dtype)
            return self._assemble([(w @ part.flatten(1)).view(1, *part.shape[1:]) for part in self.kept])[0]
        w = weights.to(self.g.dtype)
        if self.apart is None:
            return self._summed(w)
        total, few = self._summed(w.masked_fill(self.apart, 0)), self.apart.nonzero().squeeze(1)
        for rows in self._slices(len(few)):
            parts = self._products(few[rows])
            total += self._assemble([(w[few[rows]] @ part.flatten(1)).view(1, *part.shape[1:]) for part in parts])[0]
        return total

    def _summed(self, w: Tensor) -> Tensor:
        """The weighted sum in one convolution."""
        g = self.g * w.view(-1, *[1] * (self.g.dim() - 1))
        shape = (*self.shape[:2], *self.kernel)
        dims = len(self.kernel)
        _, gradient, _ = torch.ops.aten.convolution_backward(
            g, self.x, g.new_zeros(shape), None, self.stride, [0] * dims, self.dilation, False, [0] * dims, self.groups,
            [False, True, False],
        )
        return gradient.reshape(self.shape)

    def dense(self) -> Tensor:
        if self.kept:
            return self._assemble(self.kept)
        parts = [self._assemble(self._products(rows)) for rows in self._slices(len(self.g))]
        return torch.cat(parts) if parts else self.g.new_zeros(0, *self.shape)

    def rows(self, index: Tensor) -> PerExample:
        if self.kept:
            return Dense(self._assemble([part[index] for part in self.kept]))
        few = Taps.__new__(Taps)
        few.__dict__.update(self.__dict__)
        few.x, few.g = self.x[index], self.g[index]
        few.apart = None if self.apart is None else self.apart[index]
        return few

    def _reach(self, norm: Norm) -> Tensor:
        """The sum over positions of the norms of what each adds, by example."""
        order = 2 if norm == "l2" else 1
        few = Taps.__new__(Taps)
        few.__dict__.update(self.__dict__)
        few.x = self.x.unflatten(1, (self.groups, -1)).abs().pow(order).sum(2)
        met = [few._columns(rows).sum(2).pow_(1 / order) for rows in chunks(len(self.g), self._each())]
        given = self.g.unflatten(1, (self.groups, -1)).flatten(3)
        sizes = torch.linalg.vector_norm(given, order, dim=2)
        return (torch.cat(met) * sizes).sum((1, 2)) if met else sizes.sum((1, 2))


def _sizes(parts: list[Tensor], norm: Norm) -> Tensor:
    """Norms by example of gradients in parts."""
    sizes = torch.stack([size(part, norm) for part in parts])
    return torch.linalg.vector_norm(sizes, 2 if norm == "l2" else 1, dim=0)
