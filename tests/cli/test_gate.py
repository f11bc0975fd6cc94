"""hauberk gate: limits that hold today's report, and that a plan accepts."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hauberk.checks.context import grade
from hauberk.cli import app
from hauberk.cli.gate import gate_table
from hauberk.core.finding import Finding, Interval, Status
from hauberk.core.stats import wilson
from hauberk.io.plan import parse_plan
from hauberk.report.report import Report


def finding(name: str, status: Status = Status.PASS, **more: Any) -> Finding:
    return Finding(name, name.split("/")[0], "?", status, **more)


REPORT = Report([
    finding("robustness/clean-accuracy", value=0.97, n=1000, interval=wilson(970, 1000), unit="accuracy"),
    finding("privacy/membership-loss", Status.WARN, value=0.02, n=500, interval=wilson(10, 500), unit="rate", better="lower"),
    finding("assets/unsafe-opcodes", value=0.0, n=3, better="lower"),
    finding("trust/determinism", summary="the same answers twice"),
    finding("privacy/gap", Status.NOT_RUN, reason="no train data was given"),
    finding("trust/drift", value=0.3, interval=Interval(float("-inf"), float("inf"), "student")),
])


def test_each_limit_is_the_unfavourable_end_of_the_interval() -> None:
    # Wilson: 970 of 1000 gives [.957497, .978906]; 10 of 500 gives [.0108991, .0364202].
    text = gate_table(REPORT)
    assert tomllib.loads(text) == {"gate": {
        "robustness/clean-accuracy": {"min": 0.9574, "run": True}, "privacy/membership-loss": {"max": 0.03643, "run": True},
        "assets/unsafe-opcodes": {"run": True}, "trust/determinism": {"run": True}, "trust/drift": {"run": True},
    }}
    rows = text.splitlines()
    assert rows[2] == "# pass: 97.0% accuracy [95.7% to 97.9%] n=1,000"
    assert "# privacy/gap: not run (no train data was given); no gate" in rows


def test_a_margin_widens_the_limits() -> None:
    table = tomllib.loads(gate_table(REPORT, 0.1))["gate"]
    assert table["robustness/clean-accuracy"]["min"] == 0.8574
    assert table["privacy/membership-loss"]["max"] == 0.1365
    assert table["trust/determinism"] == {"run": True}


def test_a_p_value_is_no_level_to_hold() -> None:
    made = finding("trust/drift-mmd", value=0.78, interval=Interval(0.74, 0.81), unit="p-value")
    assert tomllib.loads(gate_table(Report([made])))["gate"]["trust/drift-mmd"] == {"run": True}


def test_what_fails_today_is_told(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(Report([finding("privacy/leak", Status.FAIL, value=1.0)]).to_json())
    run = CliRunner().invoke(app, ["gate", "--from", str(tmp_path)])
    assert (run.exit_code, run.stderr) == (
        0, "failing in this report: privacy/leak. A limit made from a failure accepts it: mend it first, or mean it\n",
    )


@given(
    value=st.floats(-1e6, 1e6), below=st.floats(0, 1e3), above=st.floats(0, 1e3), better=st.sampled_from(["higher", "lower"])
)
def test_the_report_that_made_a_gate_passes_it(value: float, below: float, above: float, better: str) -> None:
    interval = Interval(value - below, value + above)
    made = finding("a/b", value=value, interval=interval, better=better)
    gate = tomllib.loads(gate_table(Report([made])))["gate"]["a/b"]
    assert grade(value, interval, {"better": better, "warn": None, "fail": None}, gate) == (Status.PASS, "")
    limit, end = (gate["min"], interval.low) if better == "higher" else (gate["max"], interval.high)
    assert abs(limit - end) <= max(1e-3 * abs(end), 1e-3)


def test_the_file_is_a_gate_of_a_plan_and_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(REPORT.to_json())
    place = tmp_path / "gate.toml"
    run = CliRunner().invoke(app, ["gate", "--from", str(tmp_path), "--output", str(place)])
    assert run.exit_code == 0
    assert run.stdout == f"{place} is written: 5 gates. Next: hauberk assess PLAN --gate {place}\n"
    plan = parse_plan({"model": {"path": "x"}, "data": {"test": "x"}, **tomllib.loads(place.read_text())})
    assert plan.gate["robustness/clean-accuracy"].min == 0.9574
    before = place.read_bytes()
    again = CliRunner().invoke(app, ["gate", "--from", str(tmp_path), "--output", str(place)])
    assert (again.exit_code, place.read_bytes()) == (2, before)
    assert again.stderr == f"error: {place} exists already. Expected a new file. Use --force to write over it.\n"
    printed = CliRunner().invoke(app, ["gate", "--from", str(tmp_path)])
    assert (printed.exit_code, printed.stdout) == (0, place.read_text())


@pytest.mark.parametrize("arguments", [["gate"], ["gate", "--from", "none.json"], ["gate", "--margin", "-1", "--from", "x"]])
def test_usage_errors_exit_with_two(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_the_locked_plan_is_named_where_it_is(tmp_path: Path) -> None:
    locked = dataclasses.replace(REPORT, plan={"model": {"path": "m.py:f"}, "data": {"test": "sklearn:wine"}})
    locked.to_html(tmp_path / "report")
    run = CliRunner().invoke(app, ["gate", "--from", str(tmp_path / "report"), "--output", str(tmp_path / "gate.toml")])
    assert run.stdout.endswith(f"Next: hauberk assess {tmp_path}/report/plan.lock.toml --gate {tmp_path}/gate.toml\n")


def test_a_gate_file_that_is_not_one_is_called_a_gate_file(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[model]\npath = "m.py:f"\n[data]\ntest = "sklearn:wine"\n')
    (tmp_path / "broken.toml").write_text("[gate")
    (tmp_path / "other.toml").write_text("[run]\n")
    for name, words in (
        ("nope.toml", "does not exist"), ("", "is a folder"),
        ("broken.toml", "is not TOML"), ("other.toml", "has no table [gate]"),
    ):
        run = CliRunner().invoke(app, ["assess", str(plan), "--gate", str(tmp_path / name)])
        assert run.exit_code == 2
        assert run.stderr.startswith("error: the gate file") and words in run.stderr and "a plan.toml" not in run.stderr
        assert f"Make one: hauberk gate --from REPORT --output {tmp_path / name}" in run.stderr
