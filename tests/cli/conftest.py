"""A folder as a user has it: a model in a file, its weights, data, a plan."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from hauberk import Data
from hauberk.cli import app

NET = '''"""The network of the tests; it waits at the gradient of many samples while a file `block` lies in the current folder."""

import time
from pathlib import Path

from torch import nn


class Patient(nn.Sequential):
    def forward(self, x):
        while x.requires_grad and len(x) > 32 and Path("block").exists():
            time.sleep(0.05)
        return super().forward(x)


def build():
    return Patient(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )
'''
PLAN = """
[model]
path = "net.py:build"
weights = "weights.safetensors"

[data]
test = "test.npz"
train = "train.npz"
bounds = [0, 1]

[threat]
eps = 0.1

[run]
select = ["robustness/clean-accuracy", "robustness/pgd-linf"]
"""


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, digits: Data, digits_model: nn.Module) -> Path:
    """A folder with net.py, weights.safetensors, test.npz (200 digits), train.npz and plan.toml."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "net.py").write_text(NET)
    save_file(digits_model.state_dict(), folder / "weights.safetensors")
    x, y = digits.test.first(200)
    np.savez(folder / "test.npz", x=x.numpy(), y=y.numpy())
    assert digits.train is not None
    x, y = digits.train.first(200)
    np.savez(folder / "train.npz", x=x.numpy(), y=y.numpy())
    (folder / "plan.toml").write_text(PLAN)
    return folder


@pytest.fixture
def hauberk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in an empty folder, inside this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in an empty folder, as a process of its own; none outlives the test."""
    started = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        # As from a terminal: a runner in the background may have told its children to ignore interrupts.
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[0] = 'hauberk'; "
            "from hauberk.cli import main; main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()
