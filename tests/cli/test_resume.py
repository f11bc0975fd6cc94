"""A run that is killed or interrupted loses no finding, and goes on to the same report."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from hauberk.report.report import Report

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., Result]  # what is neither killed nor interrupted runs in this process: it starts at once


def wait_for_lines(place: Path, count: int, run: subprocess.Popen[str]) -> None:
    """Wait until a file has that many whole lines."""
    until = time.monotonic() + 120
    while not place.exists() or place.read_text().count("\n") < count:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < until, "no finding in two minutes"
        time.sleep(0.02)


def test_a_killed_run_goes_on_to_the_same_report(start: Start, hauberk: Run, shop: Path, tmp_path: Path) -> None:
    whole = hauberk("assess", shop, "--output", "whole")
    block, journal = tmp_path / "block", tmp_path / "report" / "findings.jsonl"
    block.touch()

    killed = start("assess", shop)
    wait_for_lines(journal, 1, killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    first = journal.read_text()
    assert first.count("\n") == 1
    assert not (tmp_path / "report" / "index.html").exists()

    interrupted = start("assess", shop, "--resume")
    wait_for_lines(journal, 1, interrupted)
    while "pass     robustness/clean-accuracy" not in (line := interrupted.stderr.readline()):  # type: ignore[union-attr]
        assert line, "the finding that was kept is not told"
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate()
    assert (interrupted.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        "error: interrupted; 1 findings are kept in report: the same command with --resume goes on from there"
    )
    assert journal.read_text() == first

    block.unlink()
    assert hauberk("assess", shop, "--resume").exit_code == whole.exit_code
    assert (tmp_path / "report" / "findings.jsonl").read_text().startswith(first)

    def figures(folder: str) -> list[dict[str, object]]:
        report = Report.load(tmp_path / folder)
        return [{key: value for key, value in one.to_dict().items() if key != "seconds"} for one in report.findings]

    assert figures("report") == figures("whole")
    assert len(figures("report")) == 2


def test_another_assessment_is_not_resumed(hauberk: Run, shop: Path) -> None:
    hauberk("assess", shop, "--select", "robustness/clean-accuracy")
    other = hauberk("assess", shop, "--select", "robustness/clean-accuracy", "--seed", "1", "--resume")
    assert other.exit_code == 2
    assert other.stderr.splitlines()[-1].startswith("error: report holds another assessment: ")
    assert other.stderr.splitlines()[-1].endswith("Leave out --resume, or choose another --output.")


def test_a_killed_run_does_not_pass_the_old_report_off_as_its_own(
    start: Start, hauberk: Run, shop: Path, tmp_path: Path
) -> None:
    hauberk("assess", shop, "--select", "robustness/clean-accuracy")
    report, block = tmp_path / "report", tmp_path / "block"
    whole = Report.load(report)
    block.touch()
    (report / "findings.jsonl").unlink()  # else its old line is taken for a new one here
    # From the locked plan in the very folder that is written to.
    killed = start("assess", "report/plan.lock.toml", "--select", "robustness/clean-accuracy,robustness/pgd-linf")
    wait_for_lines(report / "findings.jsonl", 1, killed)
    killed.kill()
    killed.communicate()
    assert sorted(one.name for one in report.iterdir()) == ["findings.jsonl", "plan.lock.toml", "run.json"]
    for command in (["diff", "report", "report"], ["gate", "--from", "report"]):
        told = hauberk(*command)
        assert told.exit_code == 2
        assert told.stderr == (
            "error: the run in report is unfinished: findings.jsonl is there, report.json is not. Expected a run that has ended. "
            "Finish it: the same hauberk assess, with --output report --resume.\n"
        )

    block.unlink()
    resumed = hauberk("assess", "report/plan.lock.toml", "--output", "report", "--resume")  # the lock is that of the killed run
    assert "1 finding is taken over from the interrupted run in report" in resumed.stderr.splitlines()
    found = Report.load(report)
    assert [one.id for one in found.findings] == ["robustness/clean-accuracy", "robustness/pgd-linf"]
    assert found.findings[0].value == whole.findings[0].value
