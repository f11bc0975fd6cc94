"""Parquet files: pictures as the Hugging Face hub lays them out, decoded when they are read, or plain columns."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.errors import DataError, nearest, require
from hauberk.io.arrays import BYTE_SCALE
from hauberk.io.images import PROBES, Shape, common_shape, decode
from hauberk.io.parts import Part
from hauberk.io.tables import Column

GROUP_BYTES = (1 << 31) - 1
CACHE_BYTES = 1 << 29
CHUNK = 8192


def parquet_rows(files: Sequence[Path], label: str | None, groups: Sequence[str]) -> Part | ParquetTable:
    """Return Parquet files of one split: pictures with their labels, or a table of plain columns.

    Arguments:
        files: one file, or the shards of one split in order.
        label: the label column. None takes, with pictures, `label` or else the only column of integers.
        groups: columns with the group of each sample.

    Raises:
        DataError: for a broken file, shards that differ, or columns that are not understood.
        UsageError: when pyarrow is not installed.
    """
    schema = _schema(files[0])
    for file in files[1:]:
        if _schema(file).names != schema.names:
            raise DataError(f"{file} has the columns {', '.join(_schema(file).names)}", want=f"those of {files[0]}")
    pictures = [name for name in schema.names if _is_picture(schema.field(name).type)]
    if not pictures:
        return ParquetTable(files, str(files[0]))
    where = str(files[0])
    label = label or _label(schema, where)
    for name in (label, *groups):
        if name not in schema.names:
            raise DataError(f"{where} has no column '{name}'", want="the name of a column", fix=nearest(name, schema.names))
    read = _columns(files, [label, *groups])
    held = {name: read[name] for name in groups}
    return Part(ParquetImages(files, pictures[0]), read[label], where, held, _names(schema, label))


@dataclasses.dataclass
class ParquetImages:
    """Pictures in a column of `{bytes, path}`: a row group is read when one of its pictures is asked for, and kept compressed.

    All become RGB if one of 64 pictures spread over the first row group is. The row groups read last stay in memory up to half a
    gigabyte, so that shuffled reading does not go to the disk each time.
    """

    files: Sequence[Path]
    column: str

    def __post_init__(self) -> None:
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        for file in self.files:
            with _opened(file) as opened:
                meta = opened.metadata
                for at in range(meta.num_row_groups):
                    group = meta.row_group(at)
                    size = sum(
                        part.total_uncompressed_size for part in map(group.column, range(group.num_columns))
                        if part.path_in_schema == f"{self.column}.bytes"
                    )
                    if size > GROUP_BYTES:
                        raise DataError(f"row group {at} of {file} holds {size} bytes of pictures", want=f"at most {GROUP_BYTES}",
                                        fix="Write the file again with smaller row groups")
                    self._groups.append((file, at))
                    sizes.append(group.num_rows)
        self._ends = np.cumsum(sizes) if sizes else np.zeros(0, np.int64)
        self._kept: collections.OrderedDict[int, Any] = collections.OrderedDict()
        if not len(self):
            raise DataError(f"{self.files[0]} holds no rows", want="at least one picture")
        group = int(np.flatnonzero(np.array(sizes))[0])
        probed = range(0, sizes[group], max(1, sizes[group] // PROBES))
        self.size: Shape = common_shape(self._encoded(group, row) for row in probed)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, channels, height, width)."""
        return (len(self), *self.size)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, index: Tensor) -> Tensor:
        """Return the pictures at those positions, in [0, 1]."""
        wanted = index.cpu().reshape(-1).numpy()
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"sample {wanted.max()} of {len(self)}")
        made = np.empty((len(wanted), *self.size), np.uint8)
        group = np.searchsorted(self._ends, wanted, side="right")
        for row in np.argsort(group, kind="stable"):  # each row group once
            at = int(group[row])
            start = int(self._ends[at - 1]) if at else 0
            made[row] = decode(*self._encoded(at, int(wanted[row]) - start), self.size)
        return torch.from_numpy(made).to(torch.get_default_dtype()) * BYTE_SCALE

    def _encoded(self, group: int, row: int) -> tuple[bytes, str]:
        file, at = self._groups[group]
        if group not in self._kept:
            arrow: Any = require("pyarrow", "parquet", "reading Parquet")
            with _opened(file) as opened:
                # In batches: reading a row group at once takes three times its size on the way.
                read = opened.iter_batches(CHUNK // 8, row_groups=[at], columns=[f"{self.column}.bytes"], use_threads=False)
                self._kept[group] = arrow.chunked_array([batch.column(0).field("bytes") for batch in read])
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        where = f"row {row} of row group {at} of {file}"
        content = self._kept[group][row].as_py()
        if content is None:
            raise DataError(f"{where} has no bytes", want="the picture itself", fix="Write the file with its pictures embedded")
        return content, where

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": collections.OrderedDict()}


@dataclasses.dataclass
class ParquetTable:
    """Plain columns of Parquet files as a table; words and numbers, read in batches."""

    files: Sequence[Path]
    where: str

    def __post_init__(self) -> None:
        schema = _schema(self.files[0])
        # pandas keeps its row numbers in a column of this name.
        self.names: Sequence[str] = [name for name in schema.names if not name.startswith("__index_level_")]
        for name in self.names:
            if _kind(schema.field(name).type) is None:
                raise DataError(
                    f"column '{name}' of {self.where} holds {schema.field(name).type}", want="numbers or words",
                    fix="Leave it out, or spread it over columns of its own",
                )

    def chunks(self) -> Iterator[dict[str, Column]]:
        """Yield the columns of some thousand rows at a time."""
        for file in self.files:
            with _opened(file) as opened:
                for batch in opened.iter_batches(CHUNK, columns=list(self.names)):
                    yield {name: _column(batch.column(name)) for name in self.names}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    arrow: Any = require("pyarrow", "parquet", "reading Parquet")
    parquet: Any = require("pyarrow.parquet", "parquet", "reading Parquet")
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {str(error)[:200]})", want="a whole Parquet file",
                        fix="Copy the file again: it may have been cut short") from error


def _schema(file: Path) -> Any:
    with _opened(file) as opened:
        return opened.schema_arrow


def _is_picture(kind: Any) -> bool:
    types: Any = require("pyarrow.types", "parquet", "reading Parquet")
    return bool(types.is_struct(kind)) and "bytes" in [kind.field(at).name for at in range(kind.num_fields)]


def _kind(kind: Any) -> str | None:
    types: Any = require("pyarrow.types", "parquet", "reading Parquet")
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return "numbers"
    return "words" if types.is_string(kind) or types.is_large_string(kind) else None


def _column(values: Any) -> Column:
    types: Any = require("pyarrow.types", "parquet", "reading Parquet")
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _kind(values.type) == "words":
        return [one.strip() if one is not None else "" for one in values.to_pylist()]
    if types.is_boolean(values.type):
        values = values.cast("int8")
    return values.to_numpy(zero_copy_only=False)


def _columns(files: Sequence[Path], names: Sequence[str]) -> dict[str, Any]:
    parts: dict[str, list[Any]] = {name: [] for name in names}
    for file in files:
        with _opened(file) as opened:
            for batch in opened.iter_batches(CHUNK, columns=list(dict.fromkeys(names))):
                for name in names:
                    column = batch.column(name)
                    if column.null_count:
                        raise DataError(f"column '{name}' of {file} has missing values", want="a value in every row",
                                        fix="Leave out the rows without one")
                    parts[name].append(np.asarray(_column(column)))
    return {name: np.concatenate(part) if part else np.zeros(0, np.int64) for name, part in parts.items()}


def _label(schema: Any, where: str) -> str:
    types: Any = require("pyarrow.types", "parquet", "reading Parquet")
    whole = [name for name in schema.names if types.is_integer(schema.field(name).type)]
    for name in ("label", "labels", "fine_label"):
        if name in schema.names:
            return name
    if len(whole) == 1:
        return str(whole[0])
    raise DataError(f"{where} has the columns {', '.join(schema.names)}", want="one of labels", fix="Name it with label=...")


def _names(schema: Any, label: str) -> list[str]:
    """The names of the classes, where the hub's own notes on the columns give them."""
    try:
        notes = json.loads((schema.metadata or {})[b"huggingface"])
        names = notes["info"]["features"][label]["names"]
        return [str(one) for one in names] if isinstance(names, list) else []
    except (KeyError, ValueError, TypeError):
        return []
