"""What can be stated of a model, measured when it is signed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from hauberk.assets.files import sha256
from hauberk.assets.scan import Level, scan_file
from hauberk.assets.signing.digest import hash_files, list_files, root_digest
from hauberk.assets.signing.facts import DataClaim, ScanClaim, WatermarkClaim
from hauberk.core.errors import DataError, UsageError

TEXTS = (".md", ".txt", ".json", ".yaml", ".yml", ".csv")
NOTICES = ("LICENSE", "NOTICE", "README")
LARGEST_TEXT = 64 << 20


def scan_claim(path: str | Path, *, ignored: Iterable[str] = (), report: str | Path | None = None) -> ScanClaim:
    """Return the worst verdict over all files of a model, scanned now.

    Arguments:
        path: the model.
        ignored: names to leave out.
        report: a fuller report, whose digest is stated with the verdict.
    """
    files = list_files(Path(path), [*ignored])
    worst = max((_level(file) for file in files.values()), default=Level.UNVERIFIABLE)
    digest = sha256(_readable(report, "scan report")) if report is not None else None
    # A statement tells safe from not; which of the safe levels it is, a scan tells better when it is read.
    verdict = "safe" if worst <= Level.FRAMEWORK else worst.words
    return ScanClaim.model_validate({"verdict": verdict, "files": len(files), "scanner": "hauberk", "report": digest})


def data_claim(path: str | Path) -> DataClaim:
    """Return the digest of training data: of a file, or of all files of a folder."""
    place = Path(path)
    if not place.exists():
        raise DataError(f"the training data {place} is not there", want="a file or a folder")
    resources = hash_files(list_files(place))
    digest = resources[0].digest.hex() if len(resources) == 1 else root_digest(resources)  # as a bill of materials has it
    return DataClaim(digest=digest, files=max(len(resources), 1), name=place.name)


def watermark_claim(secret: str | Path) -> WatermarkClaim:
    """Return the commitment to a watermark: the SHA-256 of the file with its secret.

    The file must be hard to guess (a key of 16 random bytes or more): else anybody can try guesses against the commitment.
    """
    place = _readable(secret, "watermark's secret")
    if place.stat().st_size < 16:
        size = place.stat().st_size
        raise UsageError(f"the watermark's secret {place} has {size} bytes", want="at least 16: fewer are guessed")
    return WatermarkClaim(commitment=sha256(place))


def text_digest(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _level(file: Path) -> Level:
    found = scan_file(file)
    # A text for people, or a configuration, is in no format of models, and nothing of it runs.
    a_text = file.suffix.lower() in TEXTS or file.name in NOTICES
    if a_text and found.format in ("unknown", "pickle") and found.level == Level.UNVERIFIABLE and _text(file):
        return Level.SAFE
    return found.level


def _text(file: Path) -> bool:
    if file.stat().st_size > LARGEST_TEXT:
        return False
    try:
        content = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return content.isprintable() or all(one.isprintable() or one in "\t\r\n" for one in content)


def _readable(path: str | Path, what: str) -> Path:
    place = Path(path)
    if not place.is_file():
        raise UsageError(f"the {what} {place} is not there", want="a file")
    return place
