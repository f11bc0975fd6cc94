"""The scan of one file: which format it is, and the one place where trouble becomes an issue."""

from __future__ import annotations

import dataclasses
import io
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from hauberk.assets.scan.allowlist import Ruling, allowed_names, is_framework, judge
from hauberk.assets.scan.limits import Limits, Meter
from hauberk.assets.scan.polyglot import BLOCK, other_readings
from hauberk.assets.scan.verdict import Issue, Level, ScanResult, Unverifiable

HEAD = 512
LOOSE = 9  # the rank of formats that are known by their first byte alone


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format the scanner knows.

    Arguments:
        name: for the report.
        matches: whether a file with these first 512 bytes and this size is of the format.
        scan: `(scan, source, where)`: looks at it and adds issues.
        carries_code: whether the format can hold code.
        rank: formats with a loose mark are tried after those with a sharp one.
    """

    name: str
    matches: Callable[[bytes, int], bool]
    scan: Callable[[Scan, BinaryIO, str], None]
    carries_code: bool
    rank: int = 0


FORMATS: list[Format] = []


def file_format(
    name: str, matches: Callable[[bytes, int], bool], *, carries_code: bool, rank: int = 0
) -> Callable[[Callable[[Scan, BinaryIO, str], None]], Callable[[Scan, BinaryIO, str], None]]:
    """Return a decorator that registers the scanner of a format."""

    def record(function: Callable[[Scan, BinaryIO, str], None]) -> Callable[[Scan, BinaryIO, str], None]:
        FORMATS.append(Format(name, matches, function, carries_code, rank))
        FORMATS.sort(key=lambda one: one.rank)
        return function

    return record


class Scan:
    """The scan of one file in progress: issues so far, limits, and how deep in nested parts it is."""

    def __init__(self, result: ScanResult, limits: Limits, allow: Iterable[str] = ()) -> None:
        self.result, self.limits, self.meter, self.depth = result, limits, Meter(limits), 0
        self.allowed = allowed_names(allow)
        # The folder beside which a file may name others, where it lies in one; and names that the file itself defines.
        self.folder: Path | None = None
        self.script = False
        self.macros: set[str] = set()
        self.archive: tuple[zipfile.ZipFile, str] | None = None  # of torch, that is being read, and its topmost folder
        self._seen: set[tuple[Level, str]] = set()

    def issue(self, level: Level, where: str, what: str) -> None:
        """Add an issue, once per level and text; the list is kept short, the level is not."""
        if (level, what) in self._seen or (len(self._seen) >= 200 and level <= self.result.level):
            return
        self._seen.add((level, what))
        self.result.issues.append(Issue(level, where, what))

    def judge(self, module: str, name: str) -> Ruling:
        """Return what may be done with a name, by the list, by what the user allows, and by what a script defines itself."""
        return judge(module, name, allowed=self.allowed, script=self.script)

    def refers(self, name: str) -> None:
        """Note that the file names something importable."""
        if name not in self.result.globals and len(self.result.globals) < 1000:
            self.result.globals.append(name)
        if is_framework(name):
            self.holds(name)

    def holds(self, name: str) -> None:
        """Note that the file holds more than data, of a kind that is listed as harmless."""
        if name not in self.result.objects and len(self.result.objects) < 1000:
            self.result.objects.append(name)

    def part(self, source: BinaryIO, where: str, ending: str = "") -> str:
        """Scan one part, whatever format it has, and return the name of that format; trouble becomes an issue."""
        self.result.parts += 1
        self.depth += 1
        # Parsers of the standard library warn of odd bytes; odd bytes are what a scan expects.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            name = self._part(source, where, ending)
        self.depth -= 1
        return name

    def _part(self, source: BinaryIO, where: str, ending: str) -> str:
        name = "unknown"
        try:
            if self.depth > self.limits.depth:
                raise Unverifiable(f"parts nested deeper than {self.limits.depth}")
            self.meter.clock()
            size = source.seek(0, io.SEEK_END)
            source.seek(0)
            block = source.read(BLOCK)
            head = block[:HEAD]
            if not head:
                raise Unverifiable("it is empty")
            from hauberk.assets.scan.others import by_name

            marked = [one for one in FORMATS if one.matches(head, size)]
            known = next(iter(marked), None)
            named = by_name(self, source, where, ending)
            if named and (known is None or known.rank >= LOOSE - 1 or named == "source"):
                return named
            if known is None:
                raise Unverifiable(f"it is in no format that is known here (first bytes {head[:8].hex(' ')})")
            name = known.name
            # The loosest mark is one byte of many: only a second sharp one says that two readers may differ.
            others = [f"it also begins as {one.name}" for one in marked[1:] if one.rank < LOOSE]
            for what in [*others, *other_readings(name, source, block, ending)]:
                self.issue(Level.UNVERIFIABLE, where, what)
            source.seek(0)
            known.scan(self, source, where)
        except Exception as error:  # whatever a parser of hostile bytes stumbles over, and our own defects: never safe
            known_why = isinstance(error, Unverifiable)
            why = str(error) if known_why else f"it is malformed ({type(error).__name__}: {str(error)[:120]})"
            self.issue(Level.UNVERIFIABLE, where, why)
        return name


def scan_file(path: str | Path, *, limits: Limits | None = None, allow: Iterable[str] = ()) -> ScanResult:
    """Return what opening a model file would run; nothing of it is imported, called or loaded.

    Arguments:
        path: a pickle of any protocol, a torch file (zip, legacy), TorchScript, an exported program, joblib, npy, npz, skops,
            safetensors, ONNX, Keras (.keras, .h5), GGUF, a JSON manifest, or a zip or tar archive of these, plain or compressed.
        limits: how much to spend; None takes the defaults.
        allow: names that you vouch for, `module:name`; they count as framework objects.

    Returns:
        The verdict. A file that cannot be read or followed to its last byte is `UNVERIFIABLE`, never `SAFE`.

    Raises:
        UsageError: when a name to allow cannot be read, or is of a module that runs commands.
    """
    place = Path(path)
    result = ScanResult(str(place))
    try:
        if not place.is_file():
            raise OSError("it is not a regular file")
        with open(place, "rb") as source:
            return _scan(source, Scan(result, limits or Limits(), allow), place.parent)
    except OSError as error:
        result.issues.append(Issue(Level.UNVERIFIABLE, "", f"it cannot be read ({error.strerror or error})"))
    return result


def scan_bytes(
    content: bytes, *, name: str = "bytes", limits: Limits | None = None, allow: Iterable[str] = ()
) -> ScanResult:
    """Return what `scan_file` would say of a file with this content."""
    return _scan(io.BytesIO(content), Scan(ScanResult(name), limits or Limits(), allow), None)


def _ending(path: Path) -> str:
    """Return the ending that tells what a file is; of the usual files without one, the name."""
    name = path.name.lower()
    return ".license" if name in ("license", "readme", "notice", "copying") else path.suffix.lower() or name


def _scan(source: BinaryIO, scan: Scan, folder: Path | None) -> ScanResult:
    result, scan.folder = scan.result, folder
    result.format = scan.part(source, "", _ending(Path(result.path)))
    # The format says whether code can hide in it; an unknown one may hide anything.
    result.carries_code = next((one.carries_code for one in FORMATS if one.name == result.format), True)
    result.issues.sort(key=lambda issue: -issue.level)
    return result
