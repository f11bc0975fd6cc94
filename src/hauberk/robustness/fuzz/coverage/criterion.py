"""A criterion of coverage: what has been seen so far, and what each sample of a batch adds to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.robustness.fuzz.coverage.reading import Reading

State = dict[str, Tensor]


class Criterion(Protocol):
    """What all criteria offer."""

    name: str

    def update(self, reading: Reading) -> None:
        """Take note of a batch."""
        ...

    def gains(self, reading: Reading) -> Tensor:
        """Take note of a batch; return what each sample adds to those before it, shape (n,), float32. 0 is nothing new."""
        ...

    @property
    def value(self) -> float:
        """The coverage so far."""
        ...

    def state(self) -> State:
        """Return all that has been seen, as tensors."""
        ...

    def load(self, state: State) -> None:
        """Go on from a state."""
        ...


def fitting(criterion: str, state: State, name: str, *shape: int) -> Tensor:
    """Return a tensor of a stored state, of that shape; -1 takes any length.

    Raises:
        DataError: where it is missing, or has another shape.
    """
    held = state.get(name)
    if held is None or held.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, held.shape, strict=True)):
        raise DataError(
            f"the state of {criterion} holds {name} of shape {None if held is None else tuple(held.shape)}",
            want=f"shape {tuple('any' if one < 0 else one for one in shape)}, as this criterion writes it on this model",
        )
    return held


class Cells:
    """A criterion of cells that are covered or not: coverage is the share of the cells ever hit.

    Arguments:
        name: of the criterion.
        size: number of cells.
        hits: of a reading: flags, shape (n, size), or the cells that each sample hits, (n, any) int64 with -1 for none.
    """

    def __init__(self, name: str, size: int, hits: Callable[[Reading], Tensor]) -> None:
        self.name, self._hits = name, hits
        self.covered = torch.zeros(size, dtype=torch.bool)

    def update(self, reading: Reading) -> None:
        """Take note of a batch."""
        found = self._hits(reading)
        if found.dtype == torch.bool:
            self.covered |= found.any(0).to(self.covered.device)
            return
        # One cell more than there are takes what hit none, so that nothing has to be sorted out first.
        wide = torch.zeros(len(self.covered) + 1, dtype=torch.bool, device=found.device)
        wide[torch.where(found < 0, len(self.covered), found)] = True
        self.covered |= wide[:-1].to(self.covered.device)

    def gains(self, reading: Reading) -> Tensor:
        """Take note of a batch; return how many new cells each sample is the first to hit, shape (n,)."""
        found = self._hits(reading).cpu()
        fresh = found & ~self.covered if found.dtype == torch.bool else (found >= 0) & ~self.covered[found.clamp(min=0)]
        rows, columns = fresh.nonzero(as_tuple=True)
        cells, order = (columns if found.dtype == torch.bool else found[rows, columns]).sort(stable=True)
        first = torch.ones_like(cells, dtype=torch.bool)  # whether a sample is the first one at that cell
        first[1:] = cells[1:] != cells[:-1]
        self.covered[cells] = True
        return torch.bincount(rows[order[first]], minlength=len(found)).float()

    @property
    def value(self) -> float:
        """The share of the cells covered."""
        return float(self.covered.double().mean()) if len(self.covered) else 0.0

    def state(self) -> State:
        """Return the flags."""
        return {"covered": self.covered}

    def load(self, state: State) -> None:
        """Go on from flags."""
        self.covered = fitting(self.name, state, "covered", len(self.covered)).bool().clone()
