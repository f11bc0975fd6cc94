from __future__ import annotations

import json
import urllib.parse
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sample_report
from test_html import hostile_report

from hauberk.core.finding import Finding, Status
from hauberk.report.junit import junit
from hauberk.report.report import Report
from hauberk.report.sarif import sarif, sarif_json

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8"))


def test_junit_has_a_case_per_finding_with_its_outcome() -> None:
    report = sample_report.report()
    root = ET.fromstring(junit(report))
    counts = {name: int(root.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 30, "failures": 3, "errors": 1, "skipped": 5}
    outcome = {"failure": "fail", "error": "error", "skipped": "not run"}
    found = {}
    for case in root.iter("testcase"):
        name = f"{case.attrib['classname'].removeprefix('hauberk.')}/{case.attrib['name']}"
        said = [outcome[child.tag] for child in case if child.tag in outcome]
        text = case.findtext("system-out", "")
        found[name] = said[0] if said else "warn" if text.startswith("warning: ") else "pass"
    assert found == {one.id: one.status.value for one in report.findings}
    assert [suite.attrib["name"] for suite in root] == ["robustness", "integrity", "privacy", "assets", "trust"]
    assert sum(int(suite.attrib["failures"]) for suite in root) == 3


def test_junit_tells_time_and_reason() -> None:
    root = ET.fromstring(junit(sample_report.report()))
    failed = next(case for case in root.iter("testcase") if case.attrib["name"] == "pgd-linf")
    assert failed.attrib["time"] == "3.910"
    told = failed.find("failure")
    assert told is not None and told.attrib["message"] == "16.1% of 500 samples keep their label"
    assert "16.1% accuracy [13.1% to 19.6%] n=500" in str(told.text)
    assert "Train on adversarial examples (AML.M0003 Model Hardening): hauberk.recipes: adversarial(threat)" in str(told.text)
    skipped = next(case for case in root.iter("testcase") if case.attrib["name"] == "gradient-leak").find("skipped")
    assert skipped is not None and skipped.attrib["message"] == "the first layer is a convolution"


@pytest.mark.parametrize("report", [sample_report.report(), Report([]), hostile_report()], ids=["usual", "empty", "hostile"])
def test_sarif_is_valid_and_without_nulls(report: Report) -> None:
    log = json.loads(sarif_json(report))
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    assert not list(nulls(log))
    sarif_json(report).encode("utf-8")


def nulls(value: Any, place: str = "") -> Any:
    """The places of nulls and of empty texts, lists and tables."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from nulls(one, f"{place}.{key}")
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from nulls(one, f"{place}[{at}]")
    if value is None or (value in ("", {}) and not place.endswith("tags")):
        yield place


def test_the_schema_of_sarif_refuses_what_is_wrong() -> None:
    log = sarif(sample_report.report())
    log["runs"][0]["results"][0]["kind"] = "passed"
    assert not jsonschema.Draft4Validator(SCHEMA).is_valid(log)


def test_sarif_results_have_kind_level_rule_and_place() -> None:
    report = sample_report.report()
    run = sarif(report)["runs"][0]
    expected = {
        "fail": ("fail", "error"), "warn": ("fail", "warning"), "pass": ("pass", "none"), "not run": ("notApplicable", "none"),
        "error": ("open", "none"),
    }
    for one, result in zip(report.findings, run["results"], strict=True):
        assert (result["kind"], result["level"]) == expected[one.status.value]
        assert result["ruleId"] == one.id == run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "weights.safetensors", "index": 0}
    assert run["artifacts"] == [{"location": {"uri": "weights.safetensors"}, "hashes": {"sha-256": "9f2c" * 16}}]
    severities = {rule["id"]: rule["properties"].get("security-severity") for rule in run["tool"]["driver"]["rules"]}
    assert severities["robustness/pgd-linf"] == "8.0" and severities["robustness/fgsm"] == "5.0"
    assert severities["trust/drift"] is None
    reasons = {result["ruleId"]: result["message"]["text"] for result in run["results"]}
    assert reasons["trust/groups"] == "no groups were named (plan: data.groups)"


def test_sarif_says_when_a_check_broke() -> None:
    invocation = sarif(sample_report.report())["runs"][0]["invocations"][0]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["associatedRule"] == {"id": "privacy/inversion"}
    fine = Report([Finding("trust/a", "trust", "?", Status.PASS)])
    assert sarif(fine)["runs"][0]["invocations"] == [{"executionSuccessful": True}]


def test_fingerprints_depend_on_check_and_model_alone() -> None:
    def prints(report: Report) -> list[str]:
        return [one["partialFingerprints"]["hauberkCheck/v1"] for one in sarif(report)["runs"][0]["results"]]

    report, other = sample_report.report(), sample_report.report()
    for finding in other.findings:
        finding.status, finding.value, finding.summary = Status.FAIL, 0.1, "another day"
    assert prints(report) == prints(other) and len(set(prints(report))) == 30
    other.scope["model"]["name"] = "another model"
    assert not set(prints(report)) & set(prints(other))


@pytest.mark.parametrize(
    ("model", "uri"),
    [
        ({"path": "shop.models:build"}, "shop.models%3Abuild"), ({"path": "./a b/net.pt2"}, "a%20b/net.pt2"),
        ({"weights": "w.safetensors", "path": "m.py:f"}, "w.safetensors"), ({}, "plan.lock.toml"),
    ],
)
def test_the_place_of_a_finding_is_a_uri(model: dict[str, str], uri: str) -> None:
    run = sarif(Report([Finding("trust/a", "trust", "?", Status.PASS)], {}, {"model": model}))["runs"][0]
    found = run["artifacts"][0]["location"]["uri"]
    assert found == uri and urllib.parse.urlparse(found).scheme == ""


def test_without_a_plan_the_place_is_the_file_that_was_loaded() -> None:
    report = Report([Finding("trust/a", "trust", "?", Status.PASS)], {"model": {"name": "net", "files": ["net.safetensors"]}})
    assert sarif(report)["runs"][0]["artifacts"] == [{"location": {"uri": "net.safetensors"}}]
