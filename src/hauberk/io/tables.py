"""Tables: columns of numbers and words become features; read twice in chunks, never held whole but for the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hauberk.core.errors import DataError, nearest
from hauberk.io.arrays import ArrayRows
from hauberk.io.labels import GROUP_LIMIT
from hauberk.io.parts import MEMORY_LIMIT, Part, Source

CATEGORY_LIMIT = 1000
CLASS_LIMIT = 1000
MISSING = frozenset(("", "?", "na", "n/a", "nan", "null"))

Column = list[str] | NDArray[Any]
"""A chunk of a column: words as written, or numbers (a missing one is NaN)."""


class Table(Protocol):
    """A table that is read in chunks, as often as wanted."""

    where: str
    names: Sequence[str]

    def chunks(self) -> Iterator[dict[str, Column]]:
        """Yield the columns of some thousand rows at a time, each of the same length."""
        ...


@dataclasses.dataclass
class Survey:
    """What the first reading of a column found."""

    numeric: bool = True
    decimals: bool = False
    missing: int = 0
    rows: int = 0
    words: set[str] | None = dataclasses.field(default_factory=set)

    def add(self, column: Column) -> None:
        """Take note of one chunk."""
        self.rows += len(column)
        numbers = numbers_of(column)
        if isinstance(column, list):
            self.missing += sum(one.strip().lower() in MISSING for one in column)
            self.decimals |= numbers is not None and any("." in one or "e" in one.lower() for one in column)
            if self.words is not None:
                self.words.update(column)
        elif numbers is not None:
            self.missing += int(np.isnan(numbers).sum())
            self.decimals |= column.dtype.kind == "f"
            if self.words is not None:
                self.words.update(map(str, np.unique(column).tolist()))
        self.numeric &= numbers is not None
        if self.words is not None and len(self.words) > max(CATEGORY_LIMIT, CLASS_LIMIT):
            self.words = None

    def values(self, name: str, where: str, limit: int) -> list[str]:
        """Return the different values: numbers by size, words in sorted order."""
        if self.words is None or len(self.words) > limit:
            count = f"more than {limit}" if self.words is None else str(len(self.words))
            raise DataError(
                f"column '{name}' of {where} has {count} different values", want=f"at most {limit} categories",
                fix="Leave out identifiers and free text; put amounts into bins, or write them as decimals if they are the label",
            )
        return sorted(self.words, key=float) if self.numeric else sorted(self.words)


def numbers_of(column: Column) -> NDArray[np.float64] | None:
    """Return a chunk as numbers, or None when some of it is no number (missing entries count as numbers, as NaN)."""
    if not isinstance(column, list):
        return column.astype(np.float64) if column.dtype.kind in "biuf" else None
    plain = [one if one.strip().lower() not in MISSING else "nan" for one in column]
    try:
        made = np.array([float(one) for one in plain])
    except ValueError:
        return None
    return None if any("_" in one for one in plain) else made


def encode(tables: Mapping[str, Table], label: str | None, groups: Sequence[str]) -> Source:
    """Return the tables of all roles as features that mean the same in each.

    Columns of numbers stay as they are. Columns of words become one column per category (`colour=red`), with the categories of
    the training table (of the test table where there is none) in sorted order; a category that it does not have is zero in all of
    them. Group columns are kept as features too. Bounds are the lowest and highest value of each feature in the training table,
    widened by the other tables, so that every sample lies inside.

    Arguments:
        tables: by role.
        label: the column to predict; None takes the last.
        groups: columns that name the group of each sample.

    Raises:
        DataError: for missing values, columns that differ between tables, or that cannot be encoded.
    """
    first = tables.get("train") or next(iter(tables.values()))
    target = first.names[-1] if label is None else label
    for name in (target, *groups):
        if name not in first.names:
            raise DataError(
                f"{first.where} has no column '{name}'", want="the name of a column", fix=nearest(name, list(first.names))
            )
    if target in groups:
        raise DataError(f"column '{target}' is both the label and a group", want="two columns", fix="Set label=...")
    surveys = {role: _survey(table, first) for role, table in tables.items()}
    learnt = surveys["train" if "train" in tables else next(iter(tables))]
    columns = [name for name in first.names if name != target]
    categories = {name: learnt[name].values(name, first.where, CATEGORY_LIMIT) for name in columns if not learnt[name].numeric}
    classes = _classes(learnt[target], target, first.where)
    features = [
        one for name in columns for one in ([f"{name}={value}" for value in categories[name]] if name in categories else [name])
    ]
    if not features:
        raise DataError(f"{first.where} has no column beside the label '{target}'", want="features")
    parts, lows, highs = {}, [], []
    for role, table in tables.items():
        for name in groups:
            surveys[role][name].values(name, table.where, GROUP_LIMIT)
        numeric = {name: all(one[name].numeric for one in surveys.values()) for name in groups}
        plan = _Plan(table.where, columns, categories, target, classes, numeric)
        parts[role] = plan.read(table, surveys[role][target].rows, len(features))
        values = parts[role].x.values
        if len(values):
            lows.append(values.amin(0))
            highs.append(values.amax(0))
    bounds = (torch.stack(lows).amin(0), torch.stack(highs).amax(0)) if lows else None
    return Source(first.where, dict(parts.items()), feature_names=features, bounds=bounds, modality="tabular")


def _survey(table: Table, first: Table) -> dict[str, Survey]:
    if set(table.names) != set(first.names):
        gone, new = set(first.names) - set(table.names), set(table.names) - set(first.names)
        told = [f"lacks {', '.join(sorted(gone))}"] * bool(gone) + [f"adds {', '.join(sorted(new))}"] * bool(new)
        raise DataError(f"{table.where} {' and '.join(told)}", want=f"the columns of {first.where}",
                        fix="Give both tables the same columns")
    found = {name: Survey() for name in table.names}
    for chunk in table.chunks():
        for name, column in chunk.items():
            found[name].add(column)
    holes = [f"'{name}' in {one.missing} of {one.rows} rows" for name, one in found.items() if one.missing]
    if holes:
        more = f" and {len(holes) - 5} more columns" if len(holes) > 5 else ""
        raise DataError(
            f"{table.where} has missing values: {', '.join(holes[:5])}{more}", want="a value in every cell",
            fix="Fill them in or leave the rows out; where a hole has a meaning, write it as a word of its own",
        )
    return found


def _classes(survey: Survey, name: str, where: str) -> list[str] | None:
    return None if survey.numeric and survey.decimals else survey.values(name, where, CLASS_LIMIT)


@dataclasses.dataclass
class _TablePart(Part):
    x: ArrayRows


@dataclasses.dataclass
class _Plan:
    """How the columns of one table are turned into numbers."""

    where: str
    columns: Sequence[str]
    categories: Mapping[str, Sequence[str]]
    target: str
    classes: Sequence[str] | None
    groups: Mapping[str, bool]

    def read(self, table: Table, rows: int, width: int) -> _TablePart:
        """Return the samples, labels and groups of a table with so many rows and features."""
        if rows * width * 4 > MEMORY_LIMIT:
            raise DataError(
                f"{self.where} makes {rows} rows of {width} features", want=f"at most {MEMORY_LIMIT} bytes in memory",
                fix="Leave out columns with many categories, or save the features as an uncompressed .npz: it is memory-mapped",
            )
        x = np.zeros((rows, width), np.float32)
        labels: list[NDArray[Any]] = []
        groups: dict[str, list[NDArray[Any]]] = {name: [] for name in self.groups}
        lookup = {name: {word: at for at, word in enumerate(words)} for name, words in self.categories.items()}
        start = 0
        for chunk in table.chunks():
            size = len(chunk[self.target])
            place, at = x[start : start + size], 0
            for name in self.columns:
                if name in lookup:
                    codes = np.array([lookup[name].get(word, -1) for word in _words(chunk[name])])
                    known = np.flatnonzero(codes >= 0)
                    place[known, at + codes[known]] = 1
                    at += len(lookup[name])
                else:
                    place[:, at] = self._numbers(chunk[name], name)
                    at += 1
            labels.append(self._labels(chunk[self.target]))
            for name in groups:
                groups[name].append(self._numbers(chunk[name], name) if self.groups[name] else np.asarray(_words(chunk[name])))
            start += size
        if start != rows:
            raise DataError(f"{self.where} changed while it was read", want=f"{rows} rows", fix="Load it again")
        y = np.concatenate(labels) if labels else np.zeros(0, np.int64)
        joined = {
            name: np.concatenate(parts) if parts else np.zeros(0, np.float64 if self.groups[name] else "U1")
            for name, parts in groups.items()
        }
        names = self.classes if self.classes is not None else ()
        return _TablePart(ArrayRows(torch.from_numpy(x)), y, self.where, joined, names)

    def _numbers(self, column: Column, name: str) -> NDArray[np.float64]:
        made = numbers_of(column)
        if made is None:
            strange = next((one for one in _words(column) if numbers_of([one]) is None), "?")
            raise DataError(f"column '{name}' of {self.where} holds '{strange}'", want="numbers, as in the training table",
                            fix="Write the column in the same way in both tables")
        if np.isinf(made).any() or (np.abs(made) > np.finfo(np.float32).max).any():
            raise DataError(f"column '{name}' of {self.where} has {np.isinf(made).sum()} infinite values", want="finite numbers",
                            fix="Correct them, or leave the rows out")
        return made

    def _labels(self, column: Column) -> NDArray[Any]:
        if self.classes is None:
            return self._numbers(column, self.target)
        place = {word: code for code, word in enumerate(self.classes)}
        words = _words(column)
        strange = next((word for word in words if word not in place), None)
        if strange is not None:
            raise DataError(
                f"{self.where} has the label '{strange}' in column '{self.target}', which the training table does not know",
                want="one of " + ", ".join(self.classes[:12]), fix="Check the spelling, or leave these rows out",
            )
        return np.array([place[word] for word in words], np.int64)


def _words(column: Column) -> list[str]:
    return column if isinstance(column, list) else list(map(str, column.tolist()))
