"""What a scan found."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

# Formats that convert_safe takes the numbers out of.
_CONVERTIBLE = frozenset({"pickle", "zip", "npy", "compressed"})


class Level(enum.IntEnum):
    """How bad a file is, from best to worst; only the first two may be opened without asking.

    `SAFE` is numbers, text and containers; `FRAMEWORK` makes objects of listed classes besides (a module of torch, an estimator
    of scikit-learn), whose code is that of the installed library and not of the file.
    """

    SAFE = 0
    FRAMEWORK = 1
    UNKNOWN = 2
    UNVERIFIABLE = 3
    DANGEROUS = 4

    @property
    def words(self) -> str:
        """The level in words."""
        return ("safe data", "safe framework objects", "unknown code", "cannot be verified", "dangerous")[self]


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
        objects: of these, the listed classes and functions of frameworks that are more than containers of numbers.
        parts: how many pickles, arrays and archive members were looked into.
    """

    path: str
    format: str = "unknown"
    carries_code: bool = True
    issues: list[Issue] = dataclasses.field(default_factory=list)
    globals: list[str] = dataclasses.field(default_factory=list)
    objects: list[str] = dataclasses.field(default_factory=list)
    parts: int = 0

    @property
    def level(self) -> Level:
        """The worst of the issues; without any, whether there is more than data."""
        return max((issue.level for issue in self.issues), default=Level.FRAMEWORK if self.objects else Level.SAFE)

    @property
    def safe(self) -> bool:
        """Whether opening the file runs no code but that of the libraries that open it."""
        return self.level <= Level.FRAMEWORK


    @property
    def next_step(self) -> str:
        """What to do about the file; nothing for a safe one."""
        if self.safe:
            return ""
        if self.format in _CONVERTIBLE:
            return f"hauberk convert {Path(self.path).name} --safe"
        if self.level is Level.UNKNOWN:
            return "read the code it names; hauberk scan --allow module:name where you trust it"
        return "do not open it; ask its maker for safetensors"


class Unverifiable(Exception):
    """The bytes cannot be followed further; the message says why. Always ends as an issue, never as a clean verdict."""


class Stumble(Unverifiable):
    """The real unpickler would fail at this very place too, so nothing behind it runs."""
