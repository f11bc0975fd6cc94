"""hauberk assess: what is written, where words go, which exit code says what."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import Result

from hauberk import Data
from hauberk import planned as prepare
from hauberk.checks.context import Context
from hauberk.cli import assess
from hauberk.cli.watch import Watcher, finding_line
from hauberk.core import progress
from hauberk.core.card import Card, registry
from hauberk.core.errors import UsageError
from hauberk.core.finding import Finding, Interval, Status
from hauberk.io.plan import changed, read_plan
from hauberk.report import text
from hauberk.report.report import Report

Run = Callable[..., Result]
CLEAN, PGD = "robustness/clean-accuracy", "robustness/pgd-linf"
FILES = {"index.html", "report.json", "findings.jsonl", "junit.xml", "report.sarif", "plan.lock.toml", "run.json"}


def figures(report: Report) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.to_dict().items() if key != "seconds"} for one in report.findings]


def test_a_plan_becomes_a_report_folder(hauberk: Run, shop: Path, digits: Data, digits_model: nn.Module) -> None:
    run = hauberk("assess", shop)
    assert run.exit_code in (0, 1), run.stderr
    assert {one.name for one in Path("report").iterdir()} == FILES
    report = Report.load("report")
    assert [one.id for one in report.findings] == [CLEAN, PGD]
    assert run.exit_code == report.exit_code("fail")
    assert run.stdout.rstrip() == text.summary(report, "report/plan.lock.toml").rstrip()
    assert run.stdout.splitlines()[-1] == "Again: hauberk assess report/plan.lock.toml"
    clean = report.find(CLEAN)
    x, y = digits.test.first(200)
    assert (clean.value, clean.n) == (int((digits_model(x).argmax(1) == y).sum()) / 200, 200)
    assert finding_line(clean).plain in run.stderr.splitlines()
    assert run.stderr.splitlines()[-1] == "report: report/index.html"


def test_a_single_check_passes_and_a_gate_fails_it(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    assert hauberk("assess", shop, "--select", CLEAN).exit_code == 0
    gate = tmp_path / "gate.toml"
    gate.write_text(f'[gate]\n"{CLEAN}" = {{ min = 1.01 }}\n')
    assert hauberk("assess", shop, "--select", CLEAN, "--gate", gate).exit_code == 1
    assert Report.load("report").find(CLEAN).status is Status.FAIL
    assert hauberk("assess", shop, "--select", CLEAN, "--gate", gate, "--fail-on", "never").exit_code == 0
    gate.write_text(f'[gate]\n"{CLEAN}" = {{ min = 0.1 }}\n')
    assert hauberk("assess", shop, "--select", CLEAN, "--gate", gate, "--fail-on", "warn").exit_code == 0


def test_gates_made_from_a_report_hold_for_the_same_run(hauberk: Run, shop: Path) -> None:
    hauberk("assess", shop, "--output", "first")
    assert hauberk("gate", "--from", "first", "--output", "gate.toml").exit_code == 0
    run = hauberk("assess", shop, "--gate", "gate.toml", "--fail-on", "warn")
    assert run.exit_code == 0, run.stdout
    assert hauberk("diff", "first", "report").exit_code == 0


def made_check(name: str, function: Callable[[Context], Finding], preset: str) -> Card:
    facts = {"pillar": "trust", "unit": "", "better": "higher", "warn": None, "fail": None, "advice": ()}
    return Card(name, "check", function, "Does it break?", facts=facts, preset=preset)


def broken(context: Context) -> Finding:
    """Break."""
    raise RuntimeError("the cause")


def test_a_gated_check_runs_whatever_the_preset(
    hauberk: Run, shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(registry._cards["check"], "trust/late", made_check("trust/late", broken, "thorough"))
    plan = read_plan(shop)
    plain = changed(plan, {"run": {"select": []}}, name="test")
    gated = changed(plain, {"gate": {"trust/late": {"run": True}}}, name="test")
    quick = {card.name for card in registry.cards("check") if card.runs_at("quick")}
    assert set(prepare.selection(plain)) == quick
    assert set(prepare.selection(gated)) == {*quick, "trust/late"}
    assert set(prepare.selection(changed(gated, {"run": {"ignore": ["trust"]}}, name="test"))) == {
        name for name in quick if not name.startswith("trust/")
    }
    # What the user selects is run and nothing else, but the gate that is left without its check is told.
    (tmp_path / "gate.toml").write_text('[gate]\n"trust/late" = { run = true }\n')
    run = hauberk("assess", shop, "--select", CLEAN, "--gate", "gate.toml")
    assert run.exit_code == 0
    assert "gates without a check in this run: trust/late" in run.stderr.splitlines()


def test_a_check_in_error_exits_with_three(hauberk: Run, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._cards["check"], "trust/broken", made_check("trust/broken", broken, "quick"))
    run = hauberk("assess", shop, "--select", "trust/broken", "--fail-on", "never")
    assert run.exit_code == 3
    assert "error    trust/broken                        RuntimeError: the cause" in run.stderr.splitlines()


@pytest.mark.parametrize("form", list(assess.Format))
def test_stdout_holds_the_form_asked_for_and_nothing_else(hauberk: Run, shop: Path, form: assess.Format) -> None:
    run = hauberk("assess", shop, "--select", CLEAN, "--output-format", form.value)
    assert run.exit_code == 0
    report = Report.load("report")
    if form is assess.Format.JSON:
        assert json.loads(run.stdout) == json.loads(Path("report/report.json").read_text())
    elif form is assess.Format.JUNIT:
        assert [case.get("name") for case in ElementTree.fromstring(run.stdout).iter("testcase")] == ["clean-accuracy"]
        assert run.stdout.strip() == Path("report/junit.xml").read_text().strip()
    elif form is assess.Format.SARIF:
        assert json.loads(run.stdout)["version"] == "2.1.0"
    else:
        place = "report/plan.lock.toml"
        made = {
            assess.Format.FULL: text.full(report, place), assess.Format.CONCISE: text.concise(report),
            assess.Format.GITHUB: text.github(report, place),
        }
        assert run.stdout.rstrip() == made[form].rstrip()
    assert CLEAN in run.stderr


def test_quiet_and_verbose(hauberk: Run, shop: Path) -> None:
    quiet = hauberk("assess", shop, "--select", CLEAN, "-q")
    assert quiet.stderr == ""
    assert quiet.stdout.rstrip() == text.concise(Report.load("report")).rstrip()
    verbose = hauberk("assess", shop, "--select", CLEAN, "-v")
    assert f"        {Report.load('report').find(CLEAN).summary}" in verbose.stderr.splitlines()


def test_options_come_before_the_plan(hauberk: Run, shop: Path) -> None:
    run = hauberk(
        "assess", shop, "--seed", "7", "--threat", "linf:0.05,0.2", "--threat", "l2:1", "--preset", "standard",
        "--select", f"{CLEAN},{PGD}", "--ignore", CLEAN, "--access", "gradient", "--budget", "2m", "--data", shop / "train.npz",
    )
    assert run.exit_code in (0, 1), run.stderr
    report = Report.load("report")
    assert [one.id for one in report.findings] == [PGD]
    assert "ε = 0.2" in report.findings[0].threat
    lock = tomllib.loads(Path("report/plan.lock.toml").read_text())
    assert lock["run"] == {
        "preset": "standard", "seed": 7, "minutes": 2.0, "select": [CLEAN, PGD], "ignore": [CLEAN], "workers": 1, "device": "cpu",
    }
    assert lock["threat"] == [{"norm": "linf", "eps": [0.05, 0.2]}, {"norm": "l2", "eps": 1.0}]
    assert lock["model"] == {"path": "net.py:build", "weights": "weights.safetensors", "access": "gradient"}
    assert lock["data"]["test"] == str(shop / "train.npz")


def test_a_lock_notices_another_model_and_other_data(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shop, copy)
    assert hauberk("assess", copy, "--select", CLEAN).exit_code == 0
    lock = tomllib.loads(Path("report/plan.lock.toml").read_text())
    before = Report.load("report").scope
    assert lock["hashes"] == {"model": before["model"]["sha256"], "data": before["data"]["sha256"]}
    same = hauberk("assess", "report/plan.lock.toml", "--output", "same")
    assert "recorded" not in same.stderr and "recorded" not in Path("same/report.json").read_text()

    weights = load_file(copy / "weights.safetensors")
    last = next(reversed(weights))
    save_file({**weights, last: weights[last] + 1e-3}, copy / "weights.safetensors")
    x, y = (np.load(copy / "test.npz")[name] for name in ("x", "y"))
    np.savez(copy / "test.npz", x=x[:150], y=y[:150])
    other = hauberk("assess", "report/plan.lock.toml", "--output", "other", "--quiet")
    now = Report.load("other").scope
    for part in ("model", "data"):
        told = [one for one in now["notices"] if one.startswith(f"the {part} ") and "recorded" in one]
        assert len(told) == 1 and before[part]["sha256"] in told[0] and now[part]["sha256"] in told[0]
        assert f"notice: {told[0]}" in other.stderr
        assert now[part]["sha256"] == tomllib.loads(Path("other/plan.lock.toml").read_text())["hashes"][part]


def test_a_run_is_repeated_from_its_lock(hauberk: Run, shop: Path) -> None:
    hauberk("assess", shop)
    run = hauberk("assess", "report/plan.lock.toml", "--output", "again")
    assert run.exit_code in (0, 1), run.stderr
    assert figures(Report.load("again")) == figures(Report.load("report"))
    assert str(shop.parent) not in Path("report/plan.lock.toml").read_text()


def test_without_a_plan(hauberk: Run, shop: Path) -> None:
    hauberk("assess", shop)
    run = hauberk(
        "assess", "--model", f"{shop / 'net.py'}:build", "--weights", shop / "weights.safetensors", "--data", shop / "test.npz",
        "--train", shop / "train.npz", "--bounds", "0,1", "--threat", "linf:1/10", "--select", CLEAN, "--select", PGD,
        "--output", "options",
    )
    assert run.exit_code in (0, 1), run.stderr
    assert figures(Report.load("options")) == figures(Report.load("report"))


def test_the_plan_of_this_folder_is_found(hauberk: Run, shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hauberk("assess").exit_code == 2
    monkeypatch.chdir(shop)
    assert hauberk("assess", "--select", CLEAN, "--output", tmp_path / "report").exit_code == 0


def test_time_that_is_spent_is_not_green(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    run = hauberk("assess", shop, "--budget", "0.000001s")
    report = Report.load("report")
    assert {one.status for one in report.findings} == {Status.NOT_RUN}
    assert run.exit_code == report.exit_code("fail") == 0
    gate = tmp_path / "gate.toml"
    gate.write_text(f'[gate]\n"{CLEAN}" = {{ run = true }}\n')
    assert hauberk("assess", shop, "--budget", "0.000001s", "--gate", gate).exit_code == 1


@pytest.mark.slow  # the budget alone, and workers alone, are tried by default
def test_the_budget_holds_for_workers_too(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(f'[gate]\n"{CLEAN}" = {{ run = true }}\n')
    run = hauberk("assess", shop, "--budget", "0.000001s", "--workers", "2", "--gate", "gate.toml")
    reason = "the time budget of 1e-06 s was spent before its turn"
    assert {one.id: (one.status, one.reason) for one in Report.load("report").findings} == {
        CLEAN: (Status.FAIL, f"the gate wants it run, but {reason}"), PGD: (Status.NOT_RUN, reason),
    }
    assert run.exit_code == 1


def test_two_workers_find_what_one_finds(hauberk: Run, shop: Path) -> None:
    hauberk("assess", shop)
    run = hauberk("assess", shop, "--workers", "2", "--output", "parallel")
    assert run.exit_code in (0, 1), run.stderr
    assert figures(Report.load("parallel")) == figures(Report.load("report"))


@pytest.mark.parametrize(("change", "words"), [
    (("path =", "pth ="), "plan.toml: model.pth is unknown. Did you mean 'path'?"),
    (("eps = 0.1", 'eps = "lots"'), "plan.toml: threat.eps is 'lots'. Expected a number, or a fraction such as '8/255'."),
    (("clean-accuracy", "clean-acuracy"), f"no check is named by 'robustness/clean-acuracy'. Did you mean '{CLEAN}'?"),
    (("[run]", f'[gate]\n"{CLEAN}x" = {{ min = 1 }}\n[run]'),
     f"plan.toml: gate.\"{CLEAN}x\" names no check. Did you mean '{CLEAN}'?"),
])
def test_a_wrong_plan_is_one_line_and_exit_code_two(
    hauberk: Run, shop: Path, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    (tmp_path / "plan.toml").write_text((shop / "plan.toml").read_text().replace(*change))
    run = hauberk("assess")
    assert run.exit_code == 2
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1] == f"error: {words}"
    assert "Traceback" not in run.stderr
    assert not Path("report").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--budget", "10"], "--budget is '10'. Expected a duration such as 90s, 10m or 1h."),
    (["--budget", "0m"], "--budget is '0m'. Expected a duration such as 90s, 10m or 1h."),
    (["--threat", "linf"], "the threat is 'linf'. Expected norm:eps, e.g. linf:8/255 or l2:0.5,1,2."),
    (["--threat", "lif:1"], "command line: threat[0].norm is 'lif'. Expected linf | l2 | l1 | l0. Did you mean 'linf'?"),
    (["--bounds", "1,0"], "command line: data.bounds is [1.0, 0.0]. Expected [lowest, highest], the lowest first."),
    (["--device", "gpu"], "command line: run.device is 'gpu'. Expected cpu, cuda, cuda:1, mps or xpu."),
])
def test_wrong_options_are_refused_before_anything_is_loaded(hauberk: Run, shop: Path, arguments: list[str], words: str) -> None:
    run = hauberk("assess", shop, *arguments)
    assert (run.exit_code, run.stderr) == (2, f"error: {words}\n")


def test_a_model_without_data_is_refused(hauberk: Run) -> None:
    run = hauberk("assess", "--model", "net.py:build")
    assert (run.exit_code, run.stderr) == (
        2, "error: --model is given without --data. Expected both, or a plan. Add --data, e.g. --data test.npz.\n",
    )


def test_data_that_does_not_fit_is_refused_before_checks_start(hauberk: Run, shop: Path) -> None:
    np.savez("wide.npz", x=np.full((8, 1, 8, 8), 3.0, dtype=np.float32), y=np.arange(8))
    run = hauberk("assess", shop, "--data", "wide.npz")
    assert run.exit_code == 2
    assert run.stderr.splitlines()[-1].startswith("error: ")
    assert not Path("report/index.html").exists()


def test_a_traceback_is_shown_on_demand_alone(hauberk: Run, shop: Path) -> None:
    assert "Traceback" not in hauberk("assess", shop, "--data", "none.npz").stderr
    assert "Traceback" in hauberk("assess", shop, "--data", "none.npz", "-v").stderr


def test_a_fault_of_ours_is_no_finding(hauberk: Run, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hauberk.assessment.carry_out", lambda *_, **__: 1 / 0)
    run = hauberk("assess", shop)
    assert (run.exit_code, run.stderr.splitlines()[-1]) == (
        3, "error: ZeroDivisionError: division by zero. This is a fault in hauberk: -v shows where.",
    )


FOUND = Finding(
    CLEAN, "robustness", "?", Status.PASS, value=0.97, unit="accuracy", n=1000, interval=Interval(0.9574, 0.9789),
)


def test_a_terminal_shows_bars_and_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    watcher, page = Watcher(), io.StringIO()
    watcher.console = rich.console.Console(file=page, force_terminal=True, width=120, highlight=False, _environ={"TERM": "xterm"})
    with watcher.watching():
        for _ in progress.track(range(3), "pgd"):
            progress.update("checks", 1, 4)
        assert set(watcher._tasks) == {"checks"}
        watcher.finding(FOUND)
    assert watcher.findings == 1
    assert "\x1b[32mpass   \x1b[0m  robustness/clean-accuracy" in page.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", page.getvalue())
    assert "pass     robustness/clean-accuracy           97.0% accuracy [95.7% to 97.9%] n=1,000" in plain


def test_statuses_of_the_summary_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    page = io.StringIO()
    made = functools.partial(rich.console.Console, file=page, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    monkeypatch.setattr(rich.console, "Console", made)
    rows = ["ROBUSTNESS", "  fail     Is it?", "  Privacy     warn  1 warn", "not run  a/b", "passed along", "           fail"]
    assess._print("\n".join(rows), coloured=True)
    shown = page.getvalue().splitlines()
    assert shown[:4] == [
        "\x1b[1mROBUSTNESS\x1b[0m", "  \x1b[31mfail\x1b[0m     Is it?", "  Privacy     \x1b[33mwarn\x1b[0m  1 warn",
        "\x1b[2mnot run\x1b[0m  a/b",
    ]
    assert shown[4:] == rows[4:]


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    monkeypatch.setenv("NO_COLOR", "1")
    console = rich.console.Console(file=page, force_terminal=True, highlight=False, width=120)
    console.print(finding_line(FOUND), soft_wrap=True)
    assert "\x1b[32m" not in page.getvalue()


def test_text_of_a_report_cannot_command_the_terminal() -> None:
    hostile = Finding("a/b", "trust", "?", Status.NOT_RUN, reason="\x1b[2Jgone\nsecond [red]line")
    assert "\x1b" not in finding_line(hostile).plain
    assert "\n" not in finding_line(hostile).plain
    assert "[red]line" in finding_line(hostile).plain


@pytest.mark.parametrize(("given", "found"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 m", 120)])
def test_durations(given: str, found: float) -> None:
    from hauberk.cli.options import seconds

    assert seconds(given) == found


@pytest.mark.parametrize("given", ["", "10", "m", "-1m", "1d", "10m20s"])
def test_durations_that_are_none(given: str) -> None:
    from hauberk.cli.options import seconds

    with pytest.raises(UsageError, match="Expected a duration such as 90s, 10m or 1h"):
        seconds(given)


def test_a_fresh_folder_has_nothing_to_go_on_with(hauberk: Run, shop: Path) -> None:
    run = hauberk("assess", shop, "--select", CLEAN, "--resume")
    assert run.exit_code == 0
    assert "report holds no findings to go on with: a new run begins" in run.stderr.splitlines()
    assert "0 findings" not in run.stderr


def test_many_gates_without_a_check_are_counted(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    names = [card.name for card in registry.cards("check") if card.name != CLEAN][:7]
    (tmp_path / "gate.toml").write_text("[gate]\n" + "".join(f'"{one}" = {{ run = true }}\n' for one in names))
    run = hauberk("assess", shop, "--select", CLEAN, "--gate", "gate.toml")
    assert f"gates without a check in this run: {', '.join(names[:3])} and 4 more" in run.stderr.splitlines()


def test_a_place_that_cannot_be_written_to_is_refused_before_an_attack_runs(hauberk: Run, shop: Path) -> None:
    run = hauberk("attack", "fgsm", shop, "--output", "/proc/nowhere/adv.npz")
    assert run.exit_code == 2 and "Choose one with --output" in run.stderr and "success" not in run.stdout
