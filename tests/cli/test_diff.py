"""hauberk diff: only what is more than chance is called better or worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hauberk.cli import app
from hauberk.cli.diff import Change, compare
from hauberk.core.finding import Finding, Interval, Status
from hauberk.core.stats import wilson
from hauberk.report.report import Report


def finding(name: str = "robustness/pgd-linf", status: Status = Status.PASS, **more: Any) -> Finding:
    given = {"unit": "accuracy", "threat": "Linf, ε = 0.1", "access": "GRADIENT", **more}
    return Finding(name, name.split("/")[0], "?", status, **given)


def rate(right: int, n: int, status: Status = Status.PASS, **more: Any) -> Finding:
    return finding(status=status, value=right / n, n=n, interval=wilson(right, n), **more)


def verdict(old: Finding, new: Finding) -> str:
    (change,) = compare(Report([old]), Report([new]))
    return change.verdict


# Wilson at n = 1000: 600 gives [.569, .630], 530 gives [.499, .561], 545 gives [.514, .576].
@pytest.mark.parametrize(("old", "new", "expected"), [
    (600, 530, "worse"), (530, 600, "better"), (600, 545, "same"), (545, 600, "same"), (600, 600, "same"),
])
def test_a_rate_changes_only_where_the_intervals_separate(old: int, new: int, expected: str) -> None:
    assert verdict(rate(old, 1000), rate(new, 1000)) == expected


def test_lower_is_better_turns_the_sign() -> None:
    assert verdict(rate(530, 1000, better="lower"), rate(600, 1000, better="lower")) == "worse"
    assert verdict(rate(600, 1000, better="lower"), rate(530, 1000, better="lower")) == "better"


def test_a_status_that_flips_within_the_noise_is_no_change_for_the_worse() -> None:
    assert verdict(rate(600, 1000), rate(545, 1000, Status.FAIL)) == "changed"
    assert verdict(rate(600, 1000), rate(530, 1000, Status.FAIL)) == "worse"
    (change,) = compare(Report([rate(600, 1000)]), Report([rate(600, 1000, Status.FAIL)]))
    assert (change.verdict, change.words[-24:]) == ("changed", "; judged by other limits")


def test_without_intervals_the_status_decides() -> None:
    assert verdict(finding(value=1.0), finding(value=2.0)) == "same"
    assert verdict(finding(value=1.0), finding(status=Status.FAIL, value=2.0)) == "worse"
    assert verdict(finding(status=Status.FAIL), finding(status=Status.WARN)) == "better"


def test_not_run_is_never_green() -> None:
    silent = finding(status=Status.NOT_RUN, reason="no train data was given")
    assert verdict(rate(600, 1000), silent) == "lost"
    assert verdict(rate(600, 1000), finding(status=Status.ERROR)) == "lost"
    assert verdict(silent, rate(10, 1000, Status.FAIL)) == "new"
    assert verdict(silent, silent) == "same"


def test_figures_under_other_conditions_are_not_compared() -> None:
    (change,) = compare(Report([rate(600, 1000)]), Report([rate(100, 1000, threat="Linf, ε = 0.3")]))
    assert (change.verdict, change.worse) == ("other", False)
    assert change.words.endswith("measured otherwise: Linf, ε = 0.1, GRADIENT access → Linf, ε = 0.3, GRADIENT access")


def test_findings_that_appear_and_vanish() -> None:
    old = Report([finding("a/gone"), finding("a/kept"), finding("a/silent", Status.NOT_RUN)])
    new = Report([finding("a/kept"), finding("a/fresh", Status.FAIL)])
    assert compare(old, new) == [
        Change("a/kept", "same", "pass → pass"), Change("a/fresh", "new", "absent → fail"),
        Change("a/gone", "lost", "pass → absent"), Change("a/silent", "changed", "not run → absent"),
    ]


def test_an_infinite_end_of_an_interval_separates_from_nothing(tmp_path: Path) -> None:
    wide = finding(value=0.5, interval=Interval(float("-inf"), float("inf"), "student"))
    place = tmp_path / "report.json"
    place.write_text(Report([wide]).to_json())  # infinite ends are null in the file
    assert verdict(Report.load(place).findings[0], rate(10, 1000)) == "same"


def test_the_command_says_what_changed_and_exits_accordingly(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new.json"
    old.mkdir()
    (old / "report.json").write_text(Report([rate(600, 1000), finding("trust/kept")]).to_json())
    new.write_text(Report([rate(530, 1000, Status.WARN), finding("trust/kept")]).to_json())
    run = CliRunner().invoke(app, ["diff", str(old), str(new)])
    assert run.exit_code == 1
    figures = "pass 60.0% accuracy [56.9% to 63.0%] n=1,000 → warn 53.0% accuracy [49.9% to 56.1%] n=1,000"
    assert run.stdout.splitlines() == [f"worse    robustness/pgd-linf  {figures}", "1 worse, 1 same"]
    back = CliRunner().invoke(app, ["diff", str(new), str(old)])
    assert (back.exit_code, back.stdout.splitlines()[-1]) == (0, "1 better, 1 same")
    same = CliRunner().invoke(app, ["diff", "--all", str(old), str(old)])
    assert (same.exit_code, len(same.stdout.splitlines())) == (0, 3)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["diff", str(tmp_path / "none"), str(tmp_path)])
    assert run.exit_code == 2
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert run.stderr.endswith("Expected a report folder or its report.json.\n")
    assert run.stderr.count("\n") == 1
