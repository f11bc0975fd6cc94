"""The report folder: every file whole, and all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from hauberk.core.errors import UsageError
from hauberk.core.files import cannot_write, write_whole
from hauberk.core.finding import Finding
from hauberk.report.html import render
from hauberk.report.junit import junit
from hauberk.report.lock import lock_toml
from hauberk.report.report import Report
from hauberk.report.sarif import sarif_json

PAGE = "index.html"


def write_folder(report: Report, folder: Path) -> Path:
    """Write index.html, findings.jsonl, report.json, junit.xml, report.sarif and plan.lock.toml.

    All of them are written beside their places first and then renamed, so that a disk that fills leaves the old report as it was.

    Arguments:
        report: what to write.
        folder: made when it does not exist; other files in it are left alone.

    Returns:
        The path of index.html.

    Raises:
        UsageError: when the disk is full or the folder cannot be written; the old files are left intact.
    """
    files = contents(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        for name, content in files.items():
            _write(stage / name, content, folder / name)
        for name in files:
            try:
                os.replace(stage / name, folder / name)
            except OSError as error:
                raise cannot_write(folder / name, error) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(stage)
    return folder / PAGE


def contents(report: Report) -> dict[str, bytes]:
    """Return the files of a report by name; index.html is the last."""
    made = {
        "findings.jsonl": "".join(map(_line, report.findings)),
        "report.json": report.to_json() + "\n",
        "junit.xml": junit(report),
        "report.sarif": sarif_json(report),
        "plan.lock.toml": lock_toml(report),
        PAGE: render(report),
    }
    # A lone surrogate (an odd file name) has no UTF-8; within JSON text its escape is the right spelling.
    return {name: text.encode("utf-8", "backslashreplace") for name, text in made.items()}


def _line(finding: Finding) -> str:
    return json.dumps(finding.to_dict(), ensure_ascii=False, allow_nan=False) + "\n"


def _write(place: Path, content: bytes, final: Path) -> None:
    try:
        write_whole(place, content)
    except UsageError as error:
        if isinstance(error.__cause__, OSError):  # name the file the reader knows
            raise cannot_write(final, error.__cause__) from error.__cause__
        raise
