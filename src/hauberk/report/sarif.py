"""SARIF 2.1.0: findings as code scanning shows them. A finding has no source line: its place is the model's file."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hauberk.core.finding import Finding, Status
from hauberk.report.overview import answer
from hauberk.report.report import Report
from hauberk.report.scope import model_name, model_place
from hauberk.report.taxonomy import mitigation
from hauberk.report.words import clean, figure, is_number, line

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
# SARIF wants the level `none` wherever the kind is not `fail`.
_KINDS = {
    Status.FAIL: ("fail", "error"), Status.WARN: ("fail", "warning"), Status.PASS: ("pass", "none"),
    Status.NOT_RUN: ("notApplicable", "none"), Status.ERROR: ("open", "none"),
}
# GitHub reads 7.0 to 8.9 as high and 4.0 to 6.9 as medium; nothing is given where nothing was found.
_SEVERITY = {Status.FAIL: "8.0", Status.WARN: "5.0"}


def sarif(report: Report) -> dict[str, Any]:
    """Return the report as a SARIF log of one run, without any null.

    Rules are the checks, by their stable ids. A finding that fails or warns is of kind `fail` with level `error` or `warning`;
    one that passes is `pass`, one not run `notApplicable` with its reason, one that broke `open`, beside a notification.
    """
    place, name = model_place(report), model_name(report)
    findings = list(report.findings)
    ids = list(dict.fromkeys(line(one.id, 200) for one in findings))
    first = {line(one.id, 200): one for one in reversed(findings)}
    driver: dict[str, Any] = {"name": "hauberk", "rules": [_rule(identifier, first[identifier]) for identifier in ids]}
    version = line(report.plan.get("hauberk", ""), 40)
    if version:
        driver["version"] = version
    broken = [_notification(one) for one in findings if one.status is Status.ERROR]
    invocation: dict[str, Any] = {"executionSuccessful": not broken}
    if broken:
        invocation["toolExecutionNotifications"] = broken
    artifact: dict[str, Any] = {"location": {"uri": place}}
    digest = _digest(report)
    if digest:
        artifact["hashes"] = {"sha-256": digest}
    run = {
        "tool": {"driver": driver}, "automationDetails": {"id": f"hauberk/{name}/"}, "invocations": [invocation],
        "artifacts": [artifact], "columnKind": "unicodeCodePoints",
        "results": [_result(one, ids.index(line(one.id, 200)), place, name) for one in findings],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def sarif_json(report: Report) -> str:
    """Return the log as JSON text."""
    return json.dumps(sarif(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rule(identifier: str, finding: Finding) -> dict[str, Any]:
    question = clean(finding.question or finding.id, 1000)
    properties: dict[str, Any] = {"tags": _unique(["security", finding.pillar, *finding.tags])}
    if finding.status in _SEVERITY:
        properties["security-severity"] = _SEVERITY[finding.status]
    rule: dict[str, Any] = {
        "id": identifier, "name": "".join(word.capitalize() for word in identifier.replace("/", "-").split("-")) or "Check",
        "shortDescription": {"text": question}, "fullDescription": {"text": question}, "properties": properties,
    }
    advice = _advice(finding)
    if advice:
        rule["help"] = {"text": advice}
    return rule


def _result(finding: Finding, index: int, place: str, name: str) -> dict[str, Any]:
    kind, level = _KINDS[finding.status]
    identifier = line(finding.id, 200)
    said = [answer(finding) or finding.question or finding.id, _advice(finding) if kind == "fail" else ""]
    print_ = hashlib.sha256(f"{identifier}\n{name}".encode()).hexdigest()
    return {
        "ruleId": identifier, "ruleIndex": index, "kind": kind, "level": level,
        "message": {"text": "\n".join(clean(one) for one in said if one)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": place, "index": 0}}}],
        "partialFingerprints": {"hauberkCheck/v1": print_}, "properties": _measured(finding),
    }


def _measured(finding: Finding) -> dict[str, Any]:
    made: dict[str, Any] = {"status": finding.status.value, "pillar": line(finding.pillar, 80), "tags": _unique(finding.tags)}
    if is_number(finding.value):
        made |= {"value": finding.value, "figure": line(figure(finding), 200), "better": finding.better}
        if finding.unit:
            made["unit"] = line(finding.unit, 80)
    if finding.n is not None:
        made["n"] = finding.n
    if finding.interval is not None and is_number(finding.interval.low) and is_number(finding.interval.high):
        made["interval"] = [finding.interval.low, finding.interval.high]
    if finding.threat:
        made["threat"] = line(finding.threat, 400)
    return made


def _notification(finding: Finding) -> dict[str, Any]:
    return {
        "level": "error", "message": {"text": clean(f"{finding.id}: {answer(finding)}")},
        "associatedRule": {"id": line(finding.id, 200)},
    }


def _advice(finding: Finding) -> str:
    told = []
    for one in finding.advice:
        named = f" ({mitigation(one.mitigation)})" if one.mitigation else ""
        told.append(clean(f"{one.text}{named}{f': {one.command}' if one.command else ''}"))
    return "\n".join(told)


def _digest(report: Report) -> str:
    model = report.scope.get("model")
    values = [model.get(key) for key in ("sha256", "hash", "sha-256")] if isinstance(model, dict) else []
    return next((one for one in values if isinstance(one, str) and len(one) == 64), "")


def _unique(tags: Any) -> list[str]:
    return list(dict.fromkeys(line(tag, 200) for tag in tags if line(tag, 200)))
