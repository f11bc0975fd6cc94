"""A run that is killed or interrupted loses no finding, and goes on to the same report."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hauberk.report.report import Report

Start = Callable[..., subprocess.Popen[str]]


def wait_for_lines(place: Path, count: int, run: subprocess.Popen[str]) -> None:
    """Wait until a file has that many whole lines."""
    until = time.monotonic() + 120
    while not place.exists() or place.read_text().count("\n") < count:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < until, "no finding in two minutes"
        time.sleep(0.02)


def test_a_killed_run_goes_on_to_the_same_report(start: Start, shop: Path, tmp_path: Path) -> None:
    whole = start("assess", shop, "--output", "whole")
    whole.communicate()
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
    resumed = start("assess", shop, "--resume")
    resumed.communicate()
    assert resumed.returncode == whole.returncode
    assert (tmp_path / "report" / "findings.jsonl").read_text().startswith(first)

    def figures(folder: str) -> list[dict[str, object]]:
        report = Report.load(tmp_path / folder)
        return [{key: value for key, value in one.to_dict().items() if key != "seconds"} for one in report.findings]

    assert figures("report") == figures("whole")
    assert len(figures("report")) == 2


def test_another_assessment_is_not_resumed(start: Start, shop: Path) -> None:
    start("assess", shop, "--select", "robustness/clean-accuracy").communicate()
    other = start("assess", shop, "--select", "robustness/clean-accuracy", "--seed", "1", "--resume")
    _, err = other.communicate()
    assert other.returncode == 2
    assert err.splitlines()[-1].startswith("error: report holds another assessment: ")
    assert err.splitlines()[-1].endswith("Leave out --resume, or choose another --output.")
