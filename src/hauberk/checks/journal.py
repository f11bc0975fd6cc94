"""The journal: each finding is on disk as soon as it is made, so that a killed assessment loses none."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hauberk.checks.engine import TOO_LATE
from hauberk.core.errors import UsageError
from hauberk.core.files import cannot_write, write_whole
from hauberk.core.finding import Finding, Status

REPORT_FILES = ("index.html", "report.json", "junit.xml", "report.sarif")


class Journal:
    """`findings.jsonl` in a run folder, a line per finding, beside `run.json`, which says what is assessed.

    Arguments:
        folder: the run folder.
        fingerprint: what must be the same for a run to be resumed: plan, model, data, version; plain JSON values.
        resume: keep the findings of an interrupted run with the same fingerprint; else start anew. Checks that ended in an
            error, or for which the time was up, run again.

    The report of an earlier run goes: index.html, report.json, junit.xml and report.sarif belong to a run that has ended.

    Raises:
        UsageError: when the folder belongs to another assessment, or cannot be written.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], *, resume: bool) -> None:
        self.path, mark = folder / "findings.jsonl", folder / "run.json"
        plain = json.loads(json.dumps(fingerprint))
        self.findings: list[Finding] = []
        if resume:
            _refuse_another(mark, plain)
            self.findings = [one for one in _read(self.path) if one.status is not Status.ERROR and TOO_LATE not in one.reason]
        _remove_report(folder)
        write_whole(mark, json.dumps(plain, indent=1))
        # Written anew in full: a line that a kill cut short is dropped.
        write_whole(self.path, "".join(map(_line, self.findings)))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, finding: Finding) -> None:
        """Append a finding and see it to the disk."""
        try:
            self._file.write(_line(finding))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.findings.append(finding)

    def close(self) -> None:
        """Close the file."""
        # A line that did not fit on the disk was reported by `add`; closing would try it once more.
        with contextlib.suppress(OSError):
            self._file.close()


def _remove_report(folder: Path) -> None:
    """Remove the report of an earlier run: a run that is killed must not leave it in place as if it were its own."""
    for name in REPORT_FILES:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(folder / name, error) from error


def _refuse_another(mark: Path, fingerprint: dict[str, Any]) -> None:
    try:
        old = json.loads(mark.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        old = {}
    except OSError as error:
        raise UsageError(f"{mark} cannot be read ({error.strerror})", want="the folder of the interrupted run") from error
    old = old if isinstance(old, dict) else {}
    changed = sorted(key for key in {*old, *fingerprint} if old.get(key) != fingerprint.get(key))
    if changed:
        raise UsageError(
            f"{mark.parent} holds another assessment: {', '.join(changed)} changed",
            want="the same plan, model and data as the interrupted run", fix="Leave out --resume, or choose another --output",
        )


def _read(path: Path) -> list[Finding]:
    if not path.exists():
        return []
    found = []
    # Bytes, cut at line feeds alone: a kill can leave half a character, and text may hold other line separators.
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(Finding.from_dict(json.loads(line)))
        except (ValueError, UsageError):
            continue  # the line a kill cut short; its check runs again
    return found


def _line(finding: Finding) -> str:
    # ASCII alone: a lone surrogate in a message must not cost a finding.
    return json.dumps(finding.to_dict(), allow_nan=False) + "\n"
