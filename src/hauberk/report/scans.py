"""Verdicts on model files, as text for one screen, JSON, SARIF and JUnit. Knows nothing of torch."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hauberk.assets.scan.verdict import Level, ScanResult
from hauberk.report.sarif import SCHEMA
from hauberk.report.words import clean, line

_SARIF = {Level.FRAMEWORK: "note", Level.UNKNOWN: "warning", Level.UNVERIFIABLE: "warning", Level.DANGEROUS: "error"}
_SEVERITY = {Level.FRAMEWORK: "1.0", Level.UNKNOWN: "5.0", Level.UNVERIFIABLE: "6.0", Level.DANGEROUS: "9.0"}
_MEANS = {
    Level.FRAMEWORK: "The file makes objects of listed classes of an installed framework.",
    Level.UNKNOWN: "The file would run code that is not on the list of harmless names.",
    Level.UNVERIFIABLE: "The file could not be followed to its last byte, so nothing is known of what it would run.",
    Level.DANGEROUS: "The file would run commands or code, or reach files, when it is opened.",
}
_SHOWN = 20


def text(results: Sequence[ScanResult]) -> str:
    """Return a summary for one screen: what is not safe first, each with its reason, place and next step."""
    unsafe = sorted((one for one in results if not one.safe), key=lambda one: -one.level)
    fine = [one for one in results if one.safe]
    rows = []
    for one in unsafe[:_SHOWN]:
        first = one.issues[0]
        rows.append(f"{one.level.words:<22}  {line(one.path, 300)}  ({one.format})")
        more = f" (and {len(one.issues) - 1} more)" if len(one.issues) > 1 else ""
        where = f" at {line(first.where, 200)}" if first.where else ""
        rows += [f"{'':<22}  {line(first.what, 240)}{where}{more}", f"{'':<22}  next: {line(one.next_step, 300)}"]
    if len(unsafe) > _SHOWN:
        rows.append(f"{'':<22}  {len(unsafe) - _SHOWN} further files are not safe: --format json lists them")
    for one in fine[: max(0, _SHOWN - len(unsafe))]:
        held = "".join((": " if not index else ", ") + line(name, 80) for index, name in enumerate(one.objects[:3]))
        held += ", …" if len(one.objects) > 3 else ""
        rows.append(f"{one.level.words:<22}  {line(one.path, 300)}  ({one.format}{held})")
    if len(fine) > max(0, _SHOWN - len(unsafe)):
        rows.append(f"{'':<22}  {len(fine) - max(0, _SHOWN - len(unsafe))} further files are safe")
    counts = [f"{sum(one.level is level for one in results)} {level.words}" for level in reversed(Level)
              if any(one.level is level for one in results)]
    return "\n".join([*rows, f"{len(results)} file{'' if len(results) == 1 else 's'}: {', '.join(counts) or 'none'}"]) + "\n"


def as_json(results: Sequence[ScanResult], version: str) -> str:
    """Return every verdict with every issue."""
    worst = max((one.level for one in results), default=Level.SAFE)
    files = [{
        "path": clean(one.path), "format": one.format, "level": one.level.name.lower(), "verdict": one.level.words,
        "safe": one.safe, "carries_code": one.carries_code, "parts": one.parts,
        "globals": [line(name, 300) for name in one.globals],
        "framework_objects": [line(name, 300) for name in one.objects],
        "issues": [
            {"level": issue.level.name.lower(), "where": line(issue.where), "what": line(issue.what)} for issue in one.issues
        ],
        "next": line(one.next_step, 300),
    } for one in results]
    made = {"hauberk": version, "safe": all(one.safe for one in results), "level": worst.name.lower(), "files": files}
    return json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_sarif(results: Sequence[ScanResult], version: str, *, least: Level = Level.UNKNOWN) -> str:
    """Return a SARIF 2.1.0 log: a rule for each level, a result for each issue, at the file it is in."""
    levels = [level for level in _SARIF if level >= least or level >= Level.UNKNOWN]
    found: list[dict[str, Any]] = []
    for index, one in enumerate(results):
        issues = [(issue.level, issue.where, issue.what) for issue in one.issues]
        if one.level is Level.FRAMEWORK and least is Level.FRAMEWORK:
            issues = [(Level.FRAMEWORK, "", f"makes objects of {', '.join(one.objects[:5])}")]
        for level, where, what in issues:
            told = f"{line(what)}{f' at {line(where)}' if where else ''}"
            print_ = hashlib.sha256(f"{level.name}\n{_uri(one.path)}\n{told}".encode()).hexdigest()
            found.append({
                "ruleId": _rule(level), "ruleIndex": levels.index(level), "kind": "fail", "level": _SARIF[level],
                "message": {"text": f"{told}. {line(one.next_step, 300)}".strip()},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(one.path), "index": index}}}],
                "partialFingerprints": {"hauberkScan/v1": print_},
            })
    rules = [{
        "id": _rule(level), "name": "".join(word.capitalize() for word in level.words.split()),
        "shortDescription": {"text": _MEANS[level]}, "fullDescription": {"text": _MEANS[level]},
        "properties": {"tags": ["security", "model-file"], "security-severity": _SEVERITY[level]},
    } for level in levels]
    run = {
        "tool": {"driver": {"name": "hauberk", "version": version, "rules": rules}}, "automationDetails": {"id": "hauberk/scan/"},
        "invocations": [{"executionSuccessful": True}], "columnKind": "unicodeCodePoints",
        "artifacts": [{"location": {"uri": _uri(one.path)}} for one in results], "results": found,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_junit(results: Sequence[ScanResult], *, least: Level = Level.UNKNOWN) -> str:
    """Return JUnit XML: a case for each file, a failure for each that is `least` or worse."""
    failed = [one for one in results if one.level >= least]
    totals = {"tests": str(len(results)), "failures": str(len(failed)), "errors": "0", "skipped": "0"}
    root = ET.Element("testsuites", {"name": "hauberk", **totals})
    suite = ET.SubElement(root, "testsuite", {"name": "scan", **totals})
    for one in results:
        case = ET.SubElement(suite, "testcase", name=line(one.path, 400), classname="hauberk.scan")
        rows = [f"{issue.level.words}: {line(issue.what)} {f'at {line(issue.where)}' if issue.where else ''}".rstrip()
                for issue in one.issues]
        if one.level >= least:
            said = line(one.issues[0].what, 500) if one.issues else f"makes objects of {', '.join(one.objects[:5])}"
            ET.SubElement(case, "failure", message=f"{one.level.words}: {said}", type=one.level.name.lower()).text = "\n".join(
                [*rows, f"next: {line(one.next_step, 300)}"])
        else:
            ET.SubElement(case, "system-out").text = "\n".join([one.level.words, *rows])
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _rule(level: Level) -> str:
    return f"scan/{level.words.replace(' ', '-')}"


def _uri(path: str) -> str:
    return urllib.parse.quote(Path(path).as_posix(), safe="/:", errors="replace")
