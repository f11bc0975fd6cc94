"""What the columns of a table are like on clean rows: their centre, their spread, what they can hold at all."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.errors import DataError, UsageError
from hauberk.core.structure import Structure
from hauberk.core.threat import Bounds

KEPT = 64  # clean rows remembered, for columns that show an earlier row


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table, learned once from clean rows: a row is then corrupted the same alone and in any batch.

    Arguments:
        centre: usual value of each column, shape (features,), float64: the median; of a one-hot group, the commonest category.
        spread: standard deviation of each column, shape (features,), float64.
        rows: a few clean rows, shape (kept, features), float64.
        order: the columns in the order in which they get stuck, shape (features,), int64.
        low, high: ends of each column, shape (features,), float64; infinite where none are known.
        structure: what rows can be at all: whole numbers, one-hot groups. Its directions bind adversaries, not accidents.
    """

    centre: Tensor
    spread: Tensor
    rows: Tensor
    order: Tensor
    low: Tensor
    high: Tensor
    structure: Structure = dataclasses.field(default_factory=Structure)

    @classmethod
    def of(cls, x: Tensor, *, bounds: Bounds | None = None, structure: Structure | None = None, seed: int = 0) -> Columns:
        """Return the columns of clean rows x, shape (n, features).

        Arguments:
            x: rows as the model sees them, best of the training data; all finite.
            bounds: lowest and highest value; numbers, or one per column. None leaves the columns without ends.
            structure: whole-numbered columns and one-hot groups, which corrupted rows keep.
            seed: of the rows remembered and of the order in which columns get stuck.

        Raises:
            DataError: for no rows, rows that are not a finite floating table, or rows that break the structure.
            UsageError: for bounds that cross.
        """
        if x.ndim != 2 or not x.is_floating_point() or not len(x) or not bool(x.isfinite().all()):
            raise DataError(
                f"the clean rows have shape {tuple(x.shape)} and dtype {x.dtype}", want="finite floating rows (n, features)",
                fix="Fill in or drop rows with gaps first",
            )
        exact, built = x.detach().double(), structure or Structure()
        built.refuse(x.detach())
        ends = (-torch.inf, torch.inf) if bounds is None else bounds
        low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device).expand(x.shape[1]) for end in ends)
        if not bool((low <= high).all()):
            raise UsageError(f"bounds are {bounds}", want="(lowest, highest)", fix="Swap the two ends")
        centre = exact.median(0).values
        for group in built.one_hot:
            index = torch.as_tensor(list(group), device=x.device)
            centre[index] = torch.nn.functional.one_hot(exact[:, index].sum(0).argmax(), len(index)).double()
        draws = rng.generator(seed, "columns")
        kept = torch.randperm(len(x), generator=draws)[:KEPT].to(x.device)
        order = torch.randperm(x.shape[1], generator=draws).to(x.device)
        return cls(centre, exact.std(0, correction=0), exact[kept], order, low, high, built)

    @property
    def units(self) -> Tensor:
        """Which columns change together, shape (features,), int64: those of a one-hot group bear the number of its first."""
        units = torch.arange(len(self.centre), device=self.centre.device)
        for group in self.structure.one_hot:
            units[list(group)] = group[0]
        return units

    @property
    def measured(self) -> Tensor:
        """Which columns hold quantities rather than categories, shape (features,), bool."""
        free = torch.ones(len(self.centre), dtype=torch.bool, device=self.centre.device)
        free[[one for group in self.structure.one_hot for one in group]] = False
        return free

    def possible(self, z: Tensor) -> Tensor:
        """Return the rows nearest to z, shape (n, features), float64, that the ends and the structure allow."""
        inside = self.structure.snap(torch.minimum(torch.maximum(z, self.low), self.high))
        step, offset = (
            torch.as_tensor(one, dtype=torch.float64, device=z.device).expand(z.shape[1])
            for one in (self.structure.step, self.structure.offset)
        )
        # The nearest whole number may lie just beyond an end that is none itself.
        spacing = torch.where(step > 0, step, 1.0)
        inside = torch.where((step > 0) & (inside > self.high), ((self.high - offset) / spacing).floor() * step + offset, inside)
        return torch.where((step > 0) & (inside < self.low), ((self.low - offset) / spacing).ceil() * step + offset, inside)
