"""CSV files, plain or gzipped, as tables: streamed, so that the file may be larger than the memory."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from hauberk.core.errors import DataError
from hauberk.io.tables import Column, numbers_of

CHUNK = 8192
LINE_LIMIT = 1 << 20
COLUMN_LIMIT = 50_000


@dataclasses.dataclass
class CsvTable:
    """A CSV file with a header line, separated by commas, in UTF-8.

    Raises:
        DataError: for a file without a usable header.
    """

    path: Path

    def __post_init__(self) -> None:
        self.where = str(self.path)
        header = next(self._lines(), (0, []))[1]
        self.names: Sequence[str] = tuple(header)
        if not header:
            raise DataError(f"{self.path} is empty", want="a header line with the names of the columns")
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise DataError(f"{self.path} has one column, '{header[0][:60]}'", want="columns separated by commas",
                            fix="Save it again with commas")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice or "" in header:
            raise DataError(f"the header of {self.path} names '{twice[0] if twice else ''}' more than once or not at all",
                            want="a different name for each column", fix="Correct the first line")
        if len(header) > 1 and numbers_of(list(header)) is not None:
            raise DataError(f"the first line of {self.path} holds only numbers", want="a header line with the names of columns",
                            fix="Put one at the top")

    def chunks(self) -> Iterator[dict[str, Column]]:
        """Yield the columns as words, some thousand rows at a time."""
        rows: list[list[str]] = []
        lines = self._lines()
        next(lines, None)
        for number, row in lines:
            if len(row) != len(self.names):
                raise DataError(f"line {number} of {self.path} has {len(row)} values", want=f"{len(self.names)} as in the header",
                                fix="Correct the line; a value that holds a comma belongs in quotes")
            rows.append(row)
            if len(rows) == CHUNK:
                yield self._columns(rows)
                rows = []
        if rows:
            yield self._columns(rows)

    def _columns(self, rows: Sequence[Sequence[str]]) -> dict[str, Column]:
        return {name: list(values) for name, values in zip(self.names, zip(*rows, strict=True), strict=True)}

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        packed = self.path.suffix.lower() == ".gz"
        try:
            with (gzip.open if packed else open)(self.path, "rt", encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(_limited(file, self.path), skipinitialspace=True, strict=True)
                for row in reader:
                    if len(row) > COLUMN_LIMIT:
                        raise DataError(f"{self.path} has {len(row)} columns", want=f"at most {COLUMN_LIMIT}")
                    if row:
                        yield reader.line_num, [value.strip() for value in row]
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8 text ({error.reason} at byte {error.start})", want="UTF-8",
                            fix="Save it again as UTF-8") from error
        except (csv.Error, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.path} cannot be read ({type(error).__name__}: {error})", want="a whole CSV file",
                            fix="Copy the file again: it may have been cut short") from error


def _limited(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LINE_LIMIT):
        if len(line) == LINE_LIMIT:
            raise DataError(f"{path} has a line of more than {LINE_LIMIT} characters", want="one line per sample",
                            fix="Save data that wide as .npz")
        yield line
