"""Per-example weight gradients of a convolution, kept where they are small and worked out twice where they are not."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.privacy.dp.engine.per_example import Dense, Norm, PerExample, chunks, size, wide

KEEP = 64 * 2**20  # bytes of per-example gradients that one layer may keep between its norms and its weighted sum


class Taps:
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
        self.kept: list[Tensor] = []
        # Shifts along the height are slices of the copies in two dimensions, at a stride of one along the height.
        self._by_rows = x.dim() == 4 and self.stride[0] == 1

    def _columns(self, rows: slice) -> Tensor:
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

    def _products(self, rows: slice) -> list[Tensor]:
        """Gradients of some examples, in parts of shape (b, groups, O / groups, columns): their order is `_assemble`'s."""
        g = self.g[rows]
        b, out = len(g), self.shape[0] // self.groups
        g = g.reshape(b * self.groups, out, -1)
        if not self._by_rows:
            columns = self._columns(rows)
            return [torch.bmm(g, columns.flatten(0, 1).transpose(1, 2)).view(b, self.groups, out, -1)]
        x = self.x[rows]
        (high, wide_), (kh, kw), (dh, dw) = self.g.shape[2:], self.kernel, self.dilation
        channels, step = self.shape[1], self.stride[1]
        copies = x.new_empty(b, self.groups, kw, channels, x.shape[2], wide_)
        grouped = x.view(b, self.groups, channels, *x.shape[2:])
        for j in range(kw):
            copies[:, :, j] = grouped[..., j * dw : j * dw + step * (wide_ - 1) + 1 : step]
        flat = copies.view(b * self.groups, kw * channels, -1)
        return [
            torch.bmm(g, flat[:, :, i * dh * wide_ : (i * dh + high) * wide_].transpose(1, 2)).view(b, self.groups, out, -1)
            for i in range(kh)
        ]

    def _assemble(self, parts: list[Tensor]) -> Tensor:
        """Bring parts, with any leading dimension, into the weight's shape, (n, *shape)."""
        n, out, channels = len(parts[0]), self.shape[0], self.shape[1]
        if not self._by_rows:
            return parts[0].reshape(n, *self.shape)
        kw = self.kernel[1]
        whole = torch.stack([part.view(n, out, kw, channels) for part in parts], 2)  # (n, O, kh, kw, C)
        return whole.permute(0, 1, 4, 2, 3).reshape(n, *self.shape)

    def _each(self) -> int:
        """Bytes that one example's copies take."""
        taps = self.kernel[1] if self._by_rows else self.kernel.numel()
        long = self.x.shape[2] * self.g.shape[3] if self._by_rows else self.g.shape[2:].numel()
        return self.x.shape[1] * taps * long * self.x.element_size()

    def _slices(self) -> list[slice]:
        return chunks(len(self.g), 16 * self._each())  # A sixteenth of the scratch: what fits the cache is soonest done.

    def norms(self, norm: Norm) -> Tensor:
        total = self.g.new_zeros(len(self.g), dtype=wide(self.g.dtype))
        positions, inner = self.g.shape[2:].numel(), self.shape[1:].numel()
        if norm == "l2" and self.groups == 1 and positions * (inner + self.shape[0]) <= inner * self.shape[0]:
            for rows in chunks(len(self.g), self._each()):
                columns, g = self._columns(rows).flatten(1, 2), self.g[rows].flatten(2)
                gram = (columns.transpose(1, 2) @ columns) * (g.transpose(1, 2) @ g)
                total[rows] = gram.sum((1, 2), dtype=total.dtype).clamp_(min=0).sqrt_()
            return total
        keep = len(self.g) * self.shape.numel() * self.g.element_size() <= KEEP and len(self.g) > 0
        for rows in self._slices():
            parts = self._products(rows)
            if norm == "l2":
                squares = torch.stack([size(part, "l2") for part in parts])
                total[rows] = torch.linalg.vector_norm(squares, dim=0)
            else:
                total[rows] = torch.stack([size(part, "l1") for part in parts]).sum(0)
            if keep:
                # One buffer a part: buffers under 32 MB come from memory that the process has already, fresh pages cost.
                if not self.kept:
                    self.kept = [part.new_empty(len(self.g), *part.shape[1:]) for part in parts]
                for buffer, part in zip(self.kept, parts, strict=True):
                    buffer[rows] = part
        if keep:
            self.x = self.g = self.g.new_empty(0)  # The gradients are what is needed from here on.
        return total

    def weighted(self, weights: Tensor) -> Tensor:
        if self.kept:
            w = weights.to(self.kept[0].dtype)
            return self._assemble([(w @ part.flatten(1)).view(1, *part.shape[1:]) for part in self.kept])[0]
        g = self.g * weights.to(self.g.dtype).view(-1, *[1] * (self.g.dim() - 1))
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
        parts = [self._assemble(self._products(rows)) for rows in self._slices()]
        return torch.cat(parts) if parts else self.g.new_zeros(0, *self.shape)

    def rows(self, index: Tensor) -> PerExample:
        if self.kept:
            return Dense(self._assemble([part[index] for part in self.kept]))
        few = Taps.__new__(Taps)
        few.__dict__.update(self.__dict__)
        few.x, few.g = self.x[index], self.g[index]
        return few
