"""What a scan found."""

from __future__ import annotations

import dataclasses
import enum


class Level(enum.IntEnum):
    """How bad a file is, from best to worst; only `SAFE` may be opened without asking."""

    SAFE = 0
    UNKNOWN = 1
    UNVERIFIABLE = 2
    DANGEROUS = 3

    @property
    def words(self) -> str:
        """The level in words."""
        return ("safe", "unknown code", "cannot be verified", "dangerous")[self]


@dataclasses.dataclass(frozen=True)
class Issue:
    """One thing that keeps a file from being safe.

    Arguments:
        level: how bad it is.
        where: the member of an archive, and the byte where it was met.
        what: in words, with the name of the code that would run.
    """

    level: Level
    where: str
    what: str


@dataclasses.dataclass
class ScanResult:
    """The verdict on one file.

    Arguments:
        path: of the file.
        format: what it was read as.
        carries_code: whether that format can hold code at all.
        issues: what was found, worst first; empty for a safe file.
        globals: every importable name the file refers to, `module.name`, in order of first use.
        parts: how many pickles, arrays and archive members were looked into.
    """

    path: str
    format: str = "unknown"
    carries_code: bool = True
    issues: list[Issue] = dataclasses.field(default_factory=list)
    globals: list[str] = dataclasses.field(default_factory=list)
    parts: int = 0

    @property
    def level(self) -> Level:
        """The worst of the issues."""
        return max((issue.level for issue in self.issues), default=Level.SAFE)


class Unverifiable(Exception):
    """The bytes cannot be followed further; the message says why. Always ends as an issue, never as a clean verdict."""


class Stumble(Unverifiable):
    """The real unpickler would fail at this very place too, so nothing behind it runs."""
