"""hauberk audit: both ε side by side, and an exit code that tells a broken trainer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]
TRAINERS = '''"""A trainer that adds no noise, and one that trains nothing."""

import torch


def silent(model, data, seed):
    x, y = data.tensors()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return 2.0


def lazy(model, data, seed):
    return 1.0


def short(model):
    return 1.0
'''


def test_the_recipe_of_the_library_stands(hauberk: Run) -> None:
    run = hauberk("audit", "--noise", 2, "--rate", 1, "--steps", 4, "--canaries", 200, "--output-format", "json", "--seed", 1)
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["violated"], told["confidence"], told["bound"]) == (False, 0.95, "gdp")
    assert 600 <= told["n"] <= 602  # three quarters of the trials
    assert 1 < told["audited"] < told["claimed"] and abs(told["claimed"] - 4.377) < 0.02
    assert hauberk("audit", "--noise", 2, "--rate", 1, "--steps", 4, "--canaries", 200, "--epsilon", 0.5).exit_code == 1


def test_a_trainer_without_noise_fails(hauberk: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TRAINERS)
    run = hauberk("audit", "mine.py:silent", "--canaries", 100)
    assert run.exit_code == 1, run.stderr
    rows = run.stdout.splitlines()
    assert rows[0] == "claimed    ε = 2.000 at δ = 1e-05"
    assert float(rows[1].split("≥")[1].split()[0]) >= 3 and "confidence 95%" in rows[1]
    assert "100 gradients" in rows[4] and rows[-1].startswith("verdict: the claim does not stand")


def test_an_audit_without_power_does_not_say_that_the_claim_stands(hauberk: Run) -> None:
    few = ("--noise", 0, "--canaries", 50, "--steps", 3, "--runs", 1)
    run = hauberk("audit", *few)
    assert run.exit_code == 0 and "verdict: cannot tell" in run.stdout and "not seen   groups" in run.stdout
    assert "nothing is claimed" in run.stdout and "--canaries or --runs" not in run.stdout  # no number of them would do
    told = json.loads(hauberk("audit", *few, "--epsilon", 50, "--output-format", "json").stdout)
    assert told["verdict"] == "cannot tell" and told["audited"] <= told["reach"] < 50
    assert json.loads(hauberk("audit", *few, "--epsilon", 1, "--output-format", "json").stdout)["verdict"] != "cannot tell"


@pytest.mark.parametrize("lr", ["nan", "-1", "inf"])
def test_a_learning_rate_that_is_none_is_refused(hauberk: Run, lr: str) -> None:
    run = hauberk("audit", "--canaries", 60, "--steps", 2, f"--lr={lr}")
    assert run.exit_code == 2 and "learning rate" in run.stderr


def test_a_black_box_on_a_model_and_data(hauberk: Run, shop: Path) -> None:
    run = hauberk(
        "audit", "--black-box", "--model", f"{shop / 'net.py'}:build", "--data", shop / "test.npz", "--canaries", 60, "--runs", 1,
        "--noise", 4, "--steps", 3,
    )
    assert run.exit_code == 0, run.stderr
    assert "60 mislabelled records" in run.stdout and "one-run: one run, no assumption" in run.stdout


def test_what_cannot_be_audited_ends_with_two(hauberk: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TRAINERS)
    for given, said in (
        (["mine.py:lazy"], "left the model as it was"), (["mine.py:short"], "3 arguments"), (["mine.py:other"], "has no 'other'"),
        (["mine"], "names no function"), (["--black-box"], "--model"), (["--data", "x.npz"], "both, or neither"),
        (["--bound", "best"], "the bound is 'best'"), (["--rate", "2"], "sampling rate"),
    ):
        run = hauberk("audit", *given)
        assert run.exit_code == 2 and said in run.stderr, (given, run.stderr)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from hauberk.cli import app; "
        "run = CliRunner().invoke(app, ['audit', '--help']); "
        "sys.exit(run.exit_code or 'torch' in sys.modules or '--companions' not in run.output)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"COLUMNS": "200"}).returncode == 0


def test_all_designs_in_one_table(hauberk: Run, tmp_path: Path) -> None:
    few = ("--noise", 2, "--rate", 1, "--steps", 2, "--canaries", 120, "--runs", 2, "--seed", 1)
    run = hauberk("audit", "--all", *few, "--output-format", "json")
    assert run.exit_code == 0, run.stderr
    told = {one["design"]: one for one in json.loads(run.stdout)}
    assert list(told) == ["gradients", "clipped in groups", "clip from the data"]
    assert all(one["audited"] <= one["claimed"] < 3.5 for one in told.values())
    assert told["gradients"]["reach"] > told["gradients"]["claimed"] and told["gradients"]["verdict"] == "stands"
    assert told["clip from the data"]["n"] == 46  # three quarters of 60 runs
    (tmp_path / "mine.py").write_text(TRAINERS)
    run = hauberk("audit", "mine.py:silent", "--all", "--canaries", 60)
    rows = [line for line in run.stdout.splitlines() if line.startswith(("gradients", "clipped"))]
    assert run.exit_code == 1 and len(rows) == 2 and all(line.endswith("violated") for line in rows[:1])
    assert "not run: losses" in run.stdout and "2.000" in rows[0]
    assert "Leave out --all" in hauberk("audit", "--all", "--spare", 9).stderr
