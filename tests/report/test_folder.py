from __future__ import annotations

import errno
import json
import os
import tomllib
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import sample_report
from pages import HOSTILE
from test_html import hostile_report

from hauberk.core.errors import UsageError
from hauberk.core.finding import Finding, Status
from hauberk.report.folder import write_folder
from hauberk.report.html import render
from hauberk.report.lock import command, lock_toml
from hauberk.report.report import Report

NAMES = ["findings.jsonl", "index.html", "junit.xml", "plan.lock.toml", "report.json", "report.sarif"]


def schema() -> dict[str, object]:
    found: dict[str, object] = json.loads((resources.files("hauberk.report") / "report.schema.json").read_text(encoding="utf-8"))
    return found


def test_all_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    report = sample_report.report()
    assert write_folder(report, tmp_path / "out") == tmp_path / "out" / "index.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES
    again = Report.load(tmp_path / "out")
    assert again.to_dict() == report.to_dict()
    rows = (tmp_path / "out" / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Finding.from_dict(json.loads(row)).to_dict() for row in rows] == [one.to_dict() for one in report.findings]


def test_the_same_report_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(sample_report.report(), tmp_path / name)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in NAMES)


@pytest.mark.parametrize("report", [sample_report.report(), Report([]), hostile_report()], ids=["usual", "empty", "hostile"])
def test_report_json_is_valid(report: Report, tmp_path: Path) -> None:
    write_folder(report, tmp_path)
    jsonschema.Draft202012Validator.check_schema(schema())
    written = json.loads((tmp_path / "report.json").read_bytes())
    jsonschema.validate(written, schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_refuses_what_is_not_a_report() -> None:
    plain = sample_report.report().to_dict()
    check = jsonschema.Draft202012Validator(schema())
    for change in ({"status": "fine"}, {"n": 1.5}, {"better": "up"}, {"extra": 1}, {"evidence": [{"kind": "pie", "title": ""}]}):
        assert not check.is_valid({**plain, "findings": [{**plain["findings"][0], **change}]}), change
    assert not check.is_valid({**plain, "schema_version": "2.0"})


def test_hostile_text_comes_back_from_json(tmp_path: Path) -> None:
    write_folder(hostile_report(), tmp_path)
    assert Report.load(tmp_path).findings[0].question == HOSTILE


def test_figures_that_are_not_finite_are_null(tmp_path: Path) -> None:
    odd = Finding("trust/a", "trust", "?", Status.PASS, float("nan"))
    write_folder(Report([odd], {"worst": float("inf")}), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["findings"][0]["value"] is None and written["scope"] == {"worst": None}


@pytest.mark.parametrize("file", range(len(NAMES)))
def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int) -> None:
    write_folder(sample_report.report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done, real = [0], os.fsync

    def full(handle: int) -> None:
        if done[0] == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        done[0] += 1
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"could not be written \(No space left on device\).*--output") as caught:
        write_folder(Report([Finding("trust/a", "trust", "?", Status.PASS)]), tmp_path)
    assert any(str(tmp_path / name) in str(caught.value) for name in NAMES)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(UsageError, match="could not be written"):
        write_folder(sample_report.report(), tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_the_lock_is_the_plan_with_versions() -> None:
    report = sample_report.report()
    locked = tomllib.loads(lock_toml(report))
    hashes = {"model": "9f2c" * 16, "data": "71ab" * 16}
    assert locked == {**report.plan, "versions": report.scope["versions"], "hashes": hashes}
    assert f"# model sha256: {'9f2c' * 16}" in lock_toml(report)
    assert command(report) == "hauberk assess plan.lock.toml --output ../again"  # a report in a report helps nobody


def test_the_lock_is_a_plan_that_can_be_read_again() -> None:
    from hauberk.io.plan import parse_plan

    plan = parse_plan(tomllib.loads(lock_toml(sample_report.report())))
    assert plan.run.seed == 0 and plan.threat[0].eps == [0.02, 0.05, 0.1] and plan.gate["robustness/pgd-linf"].min == 0.4


def test_a_lock_without_a_plan_says_so_and_keeps_seed_and_preset() -> None:
    report = Report([], {"seed": 7, "preset": "quick", "odd": None}, {"hauberk": "0.1.0", "model": None})
    assert tomllib.loads(lock_toml(report)) == {"hauberk": "0.1.0", "run": {"seed": 7, "preset": "quick"}}
    assert "came as Python objects" in lock_toml(report)
    assert command(report) == "hauberk.assess(model, data, threat, preset='quick', seed=7)"


def test_a_run_that_names_its_own_command_is_repeated_by_it() -> None:
    again = "hauberk study robustness-privacy --data mnist.npz"
    report = Report([], {"seed": 7, "command": again, "study": {"name": "robustness-privacy"}})
    assert command(report) == again and f"Run it again with: {again}" in lock_toml(report)
    page = render(report)
    assert again in page and "Python objects" not in page and "<h1>robustness-privacy</h1>" in page
    assert command(Report([], {"command": ["rm"]})) == "hauberk.assess(model, data, threat)"


def test_a_hostile_plan_is_toml() -> None:
    locked = tomllib.loads(lock_toml(hostile_report()))
    assert locked["model"]["path"] == HOSTILE.replace("\ud800", "?")
