"""The journal: nothing finished is lost, nothing foreign is taken up."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from hauberk.checks.journal import Journal
from hauberk.core.errors import UsageError
from hauberk.core.finding import Finding, Status

MARK = {"model": "abc", "data": "def", "seed": 0, "threats": ["linf"]}


def finding(name, status=Status.PASS, summary="ε ≤ 8/255"):
    return Finding(f"trust/{name}", "trust", "?", status, value=0.5, summary=summary)


def filled(folder, *findings):
    journal = Journal(folder, MARK, resume=False)
    for one in findings:
        journal.add(one)
    journal.close()
    return folder / "findings.jsonl"


def names(folder, **changes):
    journal = Journal(folder, {**MARK, **changes}, resume=True)
    journal.close()
    return [one.id.removeprefix("trust/") for one in journal.findings]


def test_each_finding_is_on_disk_before_the_next_is_made(tmp_path):
    journal = Journal(tmp_path, MARK, resume=False)
    for count, name in enumerate("abc", start=1):
        journal.add(finding(name))
        lines = (tmp_path / "findings.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["id"] for line in lines] == [f"trust/{one}" for one in "abc"[:count]]
    journal.close()


def test_findings_survive_a_process_that_is_killed(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from hauberk.checks.journal import Journal\n"
        "from hauberk.core.finding import Finding, Status\n"
        f"journal = Journal(Path(sys.argv[1]), {MARK!r}, resume=False)\n"
        "journal.add(Finding('trust/a', 'trust', '?', Status.PASS))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kept", range(1, 60))
def test_a_line_cut_anywhere_is_dropped_and_the_others_kept(tmp_path, kept):
    path = filled(tmp_path, finding("a"), finding("b", summary="ε"))
    content = path.read_bytes()
    second = content.index(b"\n") + 1
    # 59 cuts spread over the second line, one of them inside the character ε.
    spread = {second + (len(content) - second - 1) * step // 59 for step in range(59)}
    places = sorted(spread | {content.rindex(b"\\u03b5") + 3})
    path.write_bytes(content[: places[kept - 1]])
    assert names(tmp_path) == ["a"]
    assert path.read_bytes() == content[:second]


def test_bytes_that_are_no_text_cost_no_other_finding(tmp_path):
    path = filled(tmp_path, finding("a"), finding("b"))
    path.write_bytes(path.read_bytes() + '{"summary": "ε'.encode()[:-1])
    assert names(tmp_path) == ["a", "b"]


def test_a_lone_surrogate_in_a_message_is_kept(tmp_path):
    filled(tmp_path, finding("a", summary="half of a pair: \ud800"))
    journal = Journal(tmp_path, MARK, resume=True)
    journal.close()
    assert [one.summary for one in journal.findings] == ["half of a pair: \ud800"]


def test_text_with_odd_separators_is_one_line(tmp_path):
    filled(tmp_path, finding("a", summary="one\u2028two\x85three\x0bfour\nfive"))
    journal = Journal(tmp_path, MARK, resume=True)
    journal.close()
    assert [one.summary for one in journal.findings] == ["one\u2028two\x85three\x0bfour\nfive"]


def test_checks_that_ended_in_an_error_run_again_and_all_others_do_not(tmp_path):
    statuses = {"a": Status.PASS, "b": Status.ERROR, "c": Status.NOT_RUN, "d": Status.FAIL, "e": Status.WARN}
    filled(tmp_path, *(finding(name, status) for name, status in statuses.items()))
    assert names(tmp_path) == ["a", "c", "d", "e"]


def test_another_assessment_is_refused_and_left_alone(tmp_path):
    path = filled(tmp_path, finding("a"))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"another assessment: data, seed changed.*--resume"):
        names(tmp_path, seed=1, data="xyz")
    assert path.read_bytes() == before and names(tmp_path) == ["a"]


@pytest.mark.parametrize("mark", [b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_broken_mark_is_another_assessment(tmp_path, mark):
    filled(tmp_path, finding("a"))
    (tmp_path / "run.json").write_bytes(mark)
    with pytest.raises(UsageError, match="another assessment"):
        names(tmp_path)


def test_without_resume_all_begins_anew_and_an_empty_folder_resumes_to_nothing(tmp_path):
    assert names(tmp_path / "new") == []
    filled(tmp_path, finding("a"))
    assert filled(tmp_path).read_bytes() == b""


def test_a_full_disk_is_said_once_and_keeps_what_was_written(tmp_path, monkeypatch):
    journal = Journal(tmp_path, MARK, resume=False)
    journal.add(finding("a"))

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        journal.add(finding("b"))
    monkeypatch.undo()
    journal.close()
    assert [one.id for one in journal.findings] == ["trust/a"]
    assert names(tmp_path)[0] == "a"


def test_a_run_that_starts_removes_the_report_of_an_earlier_one_and_nothing_else(tmp_path):
    old = ["index.html", "report.json", "junit.xml", "report.sarif"]
    for resume in (False, True):
        for name in [*old, "notes.txt"]:
            (tmp_path / name).write_text("old")
        Journal(tmp_path, MARK, resume=resume).close()
        assert sorted(one.name for one in tmp_path.iterdir()) == ["findings.jsonl", "notes.txt", "run.json"]


def test_a_run_that_is_refused_removes_nothing(tmp_path):
    filled(tmp_path, finding("a"))
    (tmp_path / "report.json").write_text("old")
    with pytest.raises(UsageError, match="another assessment"):
        Journal(tmp_path, {**MARK, "seed": 1}, resume=True)
    assert (tmp_path / "report.json").read_text() == "old"
