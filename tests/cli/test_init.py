"""hauberk init: the plan it writes says what was seen, works as it is, and replaces nothing unasked."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from hauberk.io.plan import read_plan
from hauberk.report.report import Report

Run = Callable[..., Result]


def init(hauberk: Run, shop: Path, *more: object) -> Result:
    return hauberk("init", f"{shop / 'net.py'}:build", shop / "test.npz", "--weights", shop / "weights.safetensors", *more)


def test_it_writes_what_it_saw(hauberk: Run, shop: Path) -> None:
    run = init(hauberk, shop, "--train", shop / "train.npz")
    assert run.exit_code == 0, run.stderr
    assert run.stdout == "plan.toml is written. Next: hauberk assess\n"
    table = tomllib.loads(Path("plan.toml").read_text())
    assert table == {
        "model": {"path": f"{shop / 'net.py'}:build", "weights": str(shop / "weights.safetensors"), "access": "gradient"},
        "data": {"test": str(shop / "test.npz"), "train": str(shop / "train.npz"), "bounds": [0.0, 1.0]},
        "threat": {"norm": "linf", "eps": [0.02, 0.05, 0.1]}, "run": {"preset": "quick", "seed": 0},
    }
    text = Path("plan.toml").read_text()
    assert "image, 200 test, 200 train; 1 x 8 x 8 each, 10 classes" in text
    assert "% of the first 200 test samples are right" in text


def test_the_plan_works_as_it_is_and_paths_start_from_it(hauberk: Run, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    run = hauberk("init", "net.py:build", "test.npz", "--weights", "weights.safetensors", "--output", "plans/mine.toml")
    assert (run.exit_code, run.stdout) == (0, "plans/mine.toml is written. Next: hauberk assess plans/mine.toml\n")
    plan = read_plan("plans/mine.toml")
    assert (plan.model.path, plan.model.weights, plan.data.test) == ("../net.py:build", "../weights.safetensors", "../test.npz")
    run = hauberk("assess", "plans/mine.toml", "--select", "robustness/clean-accuracy", "--output", "plans/report")
    assert run.exit_code == 0, run.stderr
    assert Report.load("plans/report").findings[0].n == 200


def test_the_commented_keys_are_right_too(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    assert init(hauberk, shop).exit_code == 0
    rows = Path("plan.toml").read_text().splitlines()
    # Every commented key is switched on; keys of a table stay in it.
    switched = [row[2:] if row.startswith("# ") and ("=" in row or row.startswith("# [")) else row for row in rows]
    (tmp_path / "all.toml").write_text("\n".join(row for row in switched if not row.startswith("weights = \"weights")))
    plan = read_plan("all.toml")
    assert (plan.data.train, plan.data.groups, plan.threat[0].queries, plan.run.minutes) == ("train.npz", ["sex"], 5000, 10)
    assert (plan.run.select, plan.run.workers, plan.run.device) == (["robustness", "privacy/*"], 2, "cuda")
    assert plan.gate["robustness/clean-accuracy"].model_dump() == {"min": 0.9, "max": None, "run": True}


def test_nothing_is_written_over_unasked(hauberk: Run, shop: Path) -> None:
    Path("plan.toml").write_text("# mine\n")
    run = init(hauberk, shop)
    assert (run.exit_code, Path("plan.toml").read_text()) == (2, "# mine\n")
    assert run.stderr == "error: plan.toml exists already. Expected a new file. Use --force, or choose another --output.\n"
    assert init(hauberk, shop, "--force").exit_code == 0
    assert tomllib.loads(Path("plan.toml").read_text())["run"]["seed"] == 0


def test_what_does_not_fit_writes_no_plan(hauberk: Run, shop: Path) -> None:
    np.savez("flat.npz", x=np.zeros((4, 7), dtype=np.float32), y=np.arange(4))
    net = shop / "net.py"
    for model, data in ((f"{net}:build", "flat.npz"), (f"{net}:bild", shop / "test.npz"), ("m.py:f", "x.npz")):
        run = hauberk("init", model, data)
        assert run.exit_code == 2
        assert run.stderr.splitlines()[-1].startswith("error: ")
        assert not Path("plan.toml").exists()
    run = hauberk("init", f"{shop / 'net.py'}:bild", shop / "test.npz")
    assert "Did you mean 'build'?" in run.stderr


def test_columns_have_bounds_of_their_own(hauberk: Run) -> None:
    Path("pair.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Linear(30, 2)\n"
    )
    run = hauberk("init", "pair.py:build", "sklearn:breast_cancer")
    assert run.exit_code == 0, run.stderr
    plan = read_plan("plan.toml")
    text = Path("plan.toml").read_text()
    assert "tabular" in text
    assert "# train comes with the test data" in text
    assert plan.data.bounds is not None
    run = hauberk("assess", "--select", "robustness/clean-accuracy", "--fail-on", "never")
    assert run.exit_code == 0, run.stderr
