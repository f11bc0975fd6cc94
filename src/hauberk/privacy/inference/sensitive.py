"""A sensitive attribute of records: the columns that hold it, and the values it takes there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.core.kinds import Reconstruction


@dataclasses.dataclass(frozen=True)
class Sensitive:
    """Columns of a record that hold one attribute: one column, or those of a one-hot code.

    Arguments:
        columns: positions in the flat record.
        values: what these columns hold for each value of the attribute, shape (values, columns).
        names: of the values, for people; may be empty.
    """

    columns: tuple[int, ...]
    values: Tensor
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, x: Tensor, columns: int | Sequence[int], *, most: int = 50) -> Sensitive:
        """Return the attribute of these columns, with each value that occurs in x, shape (n, features).

        Raises:
            DataError: for a column that is not there, fewer than 2 values, or more than `most`: bin those of a continuous one.
        """
        places = (columns,) if isinstance(columns, int) else tuple(columns)
        if x.ndim != 2 or not places or not 0 <= min(places) <= max(places) < x.shape[1]:
            raise DataError(f"the columns {places} of records of shape {tuple(x.shape)}", want="columns of a table (n, features)")
        values = x[:, list(places)].unique(dim=0)
        if not 2 <= len(values) <= most:
            raise DataError(f"the columns {places} hold {len(values)} values", want=f"2 to {most}", fix="Bin those of a number")
        return cls(places, values)

    def __len__(self) -> int:
        return len(self.values)

    def codes(self, x: Tensor) -> Tensor:
        """Return which value each record holds, the nearest one, shape (n,), int64."""
        return torch.cdist(x[:, list(self.columns)].double(), self.values.double()).argmin(1)

    def put(self, x: Tensor, codes: Tensor | int) -> Tensor:
        """Return the records with these values, shape (n, features)."""
        changed = x.clone()
        changed[:, list(self.columns)] = self.values[codes].to(x)
        return changed

    def without(self, x: Tensor) -> Tensor:
        """Return the other columns, shape (n, features - columns)."""
        kept = [k for k in range(x.shape[1]) if k not in self.columns]
        return x[:, kept]


@dataclasses.dataclass
class Guesses(Reconstruction):
    """Records completed by a guess of their sensitive attribute.

    Arguments:
        x: the completed records, shape (n, features).
        y: their labels, as given.
        scores: how likely the attack holds each value, shape (n, values), higher is likelier; float64.
    """

    scores: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    @property
    def codes(self) -> Tensor:
        """The value guessed, shape (n,); ties go to the first."""
        return self.scores.argmax(1)

    @classmethod
    def made(cls, x: Tensor, y: Tensor, sensitive: Sensitive, scores: Tensor) -> Guesses:
        """Return the guesses that scores of shape (n, values) stand for."""
        exact = scores.detach().cpu().double()
        return cls(sensitive.put(x, exact.argmax(1)), y, None, exact)
