"""Several processes find what one finds, and a time budget ends a check that is under way."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Linf, Target
from hauberk.assessment import Run, carry_out, default_threats
from hauberk.checks.context import Settings
from hauberk.checks.engine import TOO_LATE, run_checks, select_checks
from hauberk.checks.journal import Journal
from hauberk.core.access import Budget
from hauberk.core.errors import UsageError
from hauberk.core.finding import Status
from hauberk.io.plan import read_plan
from hauberk.planned import prepare

MODELS = """
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.kind, self.weight = kind, nn.Parameter(torch.randn(5, 8, generator=draw))

    def forward(self, x):
        if self.kind == "cut":
            with torch.no_grad():
                return x @ self.weight.T
        scores = x @ self.weight.T
        if self.kind == "noisy":
            scores = scores + 0.3 * torch.randn_like(scores)
        return {"labels": scores.argmax(1), "probabilities": scores.softmax(1)}.get(self.kind, scores)


def cut(): return Odd("cut")
def labels(): return Odd("labels")
def probabilities(): return Odd("probabilities")
def noisy(): return Odd("noisy")
"""
CHECKS = [
    "robustness/clean-accuracy", "robustness/pgd-linf", "robustness/random-noise", "robustness/square", "trust/determinism",
    "privacy/membership-loss", "trust/brier",
]


def figures(kind: str, folder: Path, workers: int) -> list[dict[str, Any]]:
    plan = read_plan(folder / f"{kind}.toml")
    target, data, settings = prepare(plan, False)
    run = Run(select=CHECKS, workers=workers, material=functools.partial(prepare, plan, False))
    report = carry_out(target, data, settings, run)
    return [{**json.loads(json.dumps(one.to_dict())), "seconds": 0} for one in report.findings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("odd")
    (place / "odd.py").write_text(MODELS)
    draw = np.random.default_rng(0)
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).numpy()
    x = draw.random((120, 8), dtype=np.float32)
    y = (x @ weight.T).argmax(1)
    np.savez(place / "data.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    for kind in ("cut", "labels", "probabilities", "noisy"):
        (place / f"{kind}.toml").write_text(
            f'model = {{ path = "odd.py:{kind}" }}\ndata = {{ test = "data.npz", bounds = [0, 1] }}\n'
            'threat = { norm = "linf", eps = 0.1, queries = 50 }\n'
        )
    return place


# One kind by default: two processes load the libraries twice, for each.
@pytest.mark.parametrize(
    "kind", ["noisy", *(pytest.param(one, marks=pytest.mark.slow) for one in ("cut", "labels", "probabilities"))]
)
def test_two_processes_find_what_one_finds(kind: str, folder: Path) -> None:
    alone, together = figures(kind, folder, 1), figures(kind, folder, 2)
    assert [one["status"] for one in alone].count("error") == 0
    assert together == alone


class Slow(nn.Module):
    """Takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05)
        return self.last(x.flatten(1))


def test_a_spent_budget_ends_the_check_that_is_under_way(digits: Data) -> None:
    cards = select_checks("quick", ["robustness/pgd-linf", "robustness/fgsm"])
    began = time.monotonic()
    found = list(run_checks(cards, Target(Slow()), digits, Settings(), budget=Budget(seconds=0.02)))
    assert time.monotonic() - began < 10  # 40 steps alone would take longer than the budget; this only guards against a hang
    assert [one.status for one in found] == [Status.NOT_RUN] * 2
    assert {one.reason.endswith(("while it ran", "before its turn")) for one in found} == {True}
    assert all(one.reason.startswith(f"{TOO_LATE} 0.02 s") for one in found)


def test_what_the_time_left_out_runs_again_on_resume(tmp_path: Path, digits: Data, digits_model: nn.Module) -> None:
    run = Run(select=["trust/brier"], output=tmp_path, seconds=0.0)
    settings = Settings(threats=(Linf(0.1),))
    assert carry_out(Target(digits_model), digits, settings, run).findings[0].status is Status.NOT_RUN
    again = Run(select=["trust/brier"], output=tmp_path, resume=True)
    assert carry_out(Target(digits_model), digits, settings, again).findings[0].value is not None
    mark = json.loads((tmp_path / "run.json").read_text())
    journal = Journal(tmp_path, mark, resume=True)
    journal.close()
    assert len(journal.findings) == 1


def test_without_bounds_no_threat_is_made_up(digits: Data) -> None:
    with pytest.raises(UsageError, match="no finite bounds"):
        default_threats(Data(digits.test, bounds=(-float("inf"), float("inf"))))


def test_radii_per_sample_are_for_attacks_alone(digits: Data, digits_model: nn.Module) -> None:
    import hauberk

    with pytest.raises(UsageError, match="one radius per sample"):
        hauberk.assess(digits_model, digits, Linf(torch.full((len(digits.test),), 0.1)))
