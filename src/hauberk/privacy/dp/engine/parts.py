"""What belongs to each example in a tensor of a trial run, in short: a tensor is looked at once and need not be kept.

Long parts in float64 are kept as a few random projections of them. Two parts that differ by a vector d have projections that
differ by as many normal numbers of deviation ‖d‖: the chance that all of them hide a difference ten times what is let pass is
4e-5.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WAYS = 4  # projections
SHORT = 64  # entries that are kept as they are
BLOCK = 1 << 14  # entries that a matrix of projections is drawn for; every block of so many takes it times numbers of its own
SLACK = {torch.float64: 1e-6, torch.float32: 1e-4}  # of a part's greatest entry; of its norm for projections


@dataclass(frozen=True)
class Layout:
    """Examples along dimension `dim`, or, `merged`, along the first together with what comes after them in each example."""

    dim: int = 0
    merged: bool = False

    def fits(self, shape: tuple[int, ...], batch: int) -> bool:
        """Whether a shape can have this layout."""
        return shape[0] % batch == 0 if self.merged else shape[self.dim] == batch

    def follows(self, shape: Sequence[int], batch: int, small: Sequence[int], few: int) -> bool:
        """Whether this dimension of a shape for `batch` examples, and of one for `few`, is theirs."""
        if len(shape) != len(small) or len(shape) <= self.dim:
            return False
        n, m = shape[self.dim], small[self.dim]
        return n % batch == 0 and n // batch * few == m if self.merged else (n == batch and m == few)


FIRST = Layout()


def layout_of(shape: Sequence[int], batch: int, small: Sequence[int], few: int) -> Layout | None:
    """Return the layout that a shape for `batch` examples and one for `few` tell, or None."""
    changed = [at for at, (n, m) in enumerate(zip(shape, small, strict=False)) if n != m]
    if len(changed) == 1 and len(shape) == len(small):
        for one in (Layout(changed[0]), Layout(merged=True)):
            if one.follows(shape, batch, small, few):
                return one
    return None


@dataclass
class Parts:
    """The parts of some examples.

    Arguments:
        rows: the examples.
        shape: of each part.
        values: shape (rows, entries): the entries, or projections of them.
        scale: what a difference is measured by, shape (rows, 1).
        odd: where entries are not finite, projections of which they are.
        slack: share of the scale that rounding may take.
    """

    rows: list[int]
    shape: torch.Size
    values: Tensor
    scale: Tensor
    odd: Tensor | None
    slack: float


def parts(tensor: Tensor, rows: list[int], layout: Layout) -> Parts | None:
    """Return the parts of the examples, or None where the tensor has not this layout."""
    few, tensor = len(rows), tensor.detach()
    if not tensor.dim() or (len(tensor) % few if layout.merged else tensor.shape[layout.dim : layout.dim + 1] != (few,)):
        return None
    each = tensor.unflatten(0, (few, -1)) if layout.merged else tensor.movedim(layout.dim, 0)
    flat = each.unsqueeze(-1).flatten(1)
    slack = SLACK.get(flat.dtype, 0.02) if flat.is_floating_point() or flat.is_complex() else 0.0
    if flat.dtype != torch.float64 or flat.shape[1] <= SHORT:
        flat = flat.clone() if slack else flat.double()
        scale = flat.abs().nan_to_num(posinf=0).amax(1, keepdim=True) if flat.shape[1] else flat.real.new_zeros(few, 1)
        return Parts(rows, each.shape[1:], flat, scale, None, slack)
    finite, odd = flat.isfinite(), None
    if not bool(finite.all()):
        kinds = torch.where(finite, 0.0, flat.nan_to_num(nan=2.0, posinf=1.0, neginf=-1.0))
        odd, flat = _projected(kinds), flat.nan_to_num(0.0, 0.0, 0.0)
    return Parts(rows, each.shape[1:], _projected(flat), flat.norm(dim=1, keepdim=True), odd, slack)


def same(found: Sequence[Parts]) -> bool:
    """Whether each example's part is the same wherever it comes."""
    if any(one.shape != found[0].shape or one.values.dtype != found[0].values.dtype for one in found):
        return False
    ids = [row for one in found for row in one.rows]
    first = [ids.index(row) for row in ids]
    values, scale = torch.cat([one.values for one in found]), torch.cat([one.scale for one in found])[first]
    near = ((values - values[first]).abs() <= found[0].slack * scale) | (values == values[first])
    if not bool((near | (values.isnan() & values[first].isnan())).all()):
        return False
    if all(one.odd is None for one in found):
        return True
    odd = torch.cat([torch.zeros_like(one.values) if one.odd is None else one.odd for one in found])
    return torch.allclose(odd, odd[first], 1e-9, 1e-9)


def alike(found: Sequence[Parts]) -> bool:
    """Whether no example can be told from another."""
    values = torch.cat([one.values for one in found]).nan_to_num()
    return bool(values.numel()) and torch.allclose(values, values[:1].expand_as(values), 1e-12, 0)


def _projected(flat: Tensor) -> Tensor:
    """Return projections of rows, shape (rows, WAYS)."""
    matrix, draw = _matrix().to(flat.device), torch.Generator().manual_seed(1)
    total = flat.new_zeros(len(flat), WAYS)
    for block in flat.split(BLOCK, 1):
        total += block @ matrix[: block.shape[1]] * torch.randn(WAYS, generator=draw, dtype=torch.float64).to(flat.device)
    return total


@functools.cache
def _matrix() -> Tensor:
    return torch.randn(BLOCK, WAYS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
