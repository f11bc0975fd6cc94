"""JUnit XML: one test case per check, for the test view of any CI."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hauberk.core.finding import Finding, Status
from hauberk.report.overview import answer, pillars
from hauberk.report.report import Report
from hauberk.report.taxonomy import mitigation
from hauberk.report.words import clean, figure, line


def junit(report: Report) -> str:
    """Return the report as JUnit XML: a suite per pillar, a case per finding.

    A finding that fails is a `failure`, one that broke an `error`, one that was not run `skipped` with its reason. JUnit knows no
    warning: a finding that warns is a case that passes, whose `system-out` says what it warns of. To gate on warnings, use the
    exit code of `hauberk assess --fail-on warn`.
    """
    root = ET.Element("testsuites", {"name": "hauberk", **_totals(list(report.findings))})
    for pillar in pillars(report):
        if not pillar.findings:
            continue
        suite = ET.SubElement(root, "testsuite", {"name": line(pillar.name, 200), **_totals(list(pillar.findings))})
        for finding in pillar.findings:
            _case(suite, finding)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, finding: Finding) -> None:
    name = finding.id.split("/", 1)[-1] or finding.id
    case = ET.SubElement(
        suite, "testcase", name=line(name, 200), classname=line(f"hauberk.{finding.pillar}", 200), time=_time(finding.seconds)
    )
    said = line(answer(finding), 500)
    if finding.status is Status.FAIL:
        ET.SubElement(case, "failure", message=said, type="finding").text = _details(finding)
    elif finding.status is Status.ERROR:
        ET.SubElement(case, "error", message=said, type="error").text = _details(finding)
    elif finding.status is Status.NOT_RUN:
        ET.SubElement(case, "skipped", message=said)
    else:
        head = "warning: " if finding.status is Status.WARN else ""
        ET.SubElement(case, "system-out").text = head + _details(finding)


def _details(finding: Finding) -> str:
    rows = [finding.question, finding.summary, finding.reason, figure(finding)]
    rows += [f"threat: {finding.threat}" if finding.threat else ""]
    rows += [f"note: {note}" for note in finding.notes]
    for one in finding.advice:
        named = f" ({mitigation(one.mitigation)})" if one.mitigation else ""
        rows.append(f"to do: {one.text}{named}{f': {one.command}' if one.command else ''}")
    return "\n".join(clean(row) for row in rows if row)


def _totals(findings: list[Finding]) -> dict[str, str]:
    def count(status: Status) -> str:
        return str(sum(one.status is status for one in findings))

    return {
        "tests": str(len(findings)), "failures": count(Status.FAIL), "errors": count(Status.ERROR),
        "skipped": count(Status.NOT_RUN), "time": _time(sum(one.seconds for one in findings if one.seconds == one.seconds)),
    }


def _time(seconds: float) -> str:
    return f"{seconds:.3f}" if 0 <= seconds < 1e12 else "0.000"
