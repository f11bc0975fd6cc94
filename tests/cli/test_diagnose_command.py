"""hauberk diagnose: the verdict in words and as JSON, and what it makes of the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn
from typer.testing import Result

from hauberk import Data, Linf
from hauberk.robustness.diagnose import diagnose

Run = Callable[..., Result]
CUT = '''"""The network of the shop with its input cut from the graph."""

import net
from torch import nn


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net.build()

    def forward(self, x):
        return self.net(x.detach())


def build():
    return Cut()
'''


@pytest.fixture
def place(shop: Path, tmp_path: Path, digits_model: nn.Module) -> Path:
    """A folder with the shop's net, and its twin with the graph cut."""
    from safetensors.torch import save_file

    for name in ("net.py", "test.npz", "weights.safetensors"):
        (tmp_path / name).write_bytes((shop / name).read_bytes())
    (tmp_path / "cut.py").write_text(CUT)
    save_file({f"net.{key}": value for key, value in digits_model.state_dict().items()}, tmp_path / "cut.safetensors")
    return tmp_path


def test_a_sound_model_is_believed_and_the_figures_are_those_of_the_library(
    hauberk: Run, shop: Path, digits: Data, digits_model: nn.Module
) -> None:
    run = hauberk("diagnose", shop, "--n", 60, "--seed", 3, "--output-format", "json")
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["n"], told["believed"], len(told["alarms"])) == (60, True, 14)
    assert told["verdict"].startswith("this figure can be believed: ")
    x, y = digits.test.first(200)
    order = Data((x, y), bounds=(0, 1)).test.sample(60, 3, "diagnose")
    again = diagnose(digits_model, *order, Linf(0.1), seed=3)
    assert (told["before"], told["clean"]) == (again.before, again.clean)
    assert told["alarms"] == again.to_dict()["alarms"]


def test_a_masked_model_fails_and_the_remedy_is_shown(hauberk: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))
    given = ("diagnose", "cut.py:build", "--weights", "cut.safetensors", "--data", "test.npz", "--n", 64, "--threat", "linf:0.1")
    run = hauberk(*given)
    assert run.exit_code == 1, run.stderr
    rows = run.stdout.splitlines()
    zero = next(row for row in rows if row.startswith("gradients are exactly zero"))
    assert zero.split()[4] == "1"
    assert zero.endswith("raised")
    assert rows[-1].startswith("verdict: this figure cannot be believed: gradients are exactly zero")
    assert "--remedy" in rows[-3]
    run = hauberk(*given, "--remedy", "--fail-on", "never")
    assert run.exit_code == 0, run.stderr
    assert "gradients led past the part at fault (BPDA): the code between the input and 'net', straight through" in run.stdout
    assert "left under all that was tried: " in run.stdout
    assert sum(row.startswith(("answers ", "outputs ", "the attack misses ")) for row in run.stdout.splitlines()) == 3


def test_what_cannot_be_diagnosed_ends_with_two(
    hauberk: Run, shop: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(place))
    assert hauberk("diagnose", "net.py:build").exit_code == 2
    both = hauberk("diagnose", "net.py:build", "--model", "net.py:build", "--data", "test.npz")
    assert both.exit_code == 2
    assert "two models are named" in both.stderr
    few = hauberk("diagnose", shop, "--n", 3)
    assert few.exit_code == 2
    assert "samples are classified correctly" in few.stderr
    flat = hauberk("diagnose", shop, "--threat", "linf:0")
    assert flat.exit_code == 2
    assert "radius above zero" in flat.stderr
    refusing = "if x.requires_grad:\n            raise RuntimeError('no derivative here')\n        return self.net(x)"
    (place / "deaf.py").write_text(CUT.replace("return self.net(x.detach())", refusing))
    deaf = hauberk("diagnose", "deaf.py:build", "--weights", "cut.safetensors", "--data", "test.npz", "--n", 40)
    assert deaf.exit_code == 2
    assert "no derivative here" in deaf.stderr
    (place / "answers.py").write_text("def build():\n    return lambda x: x.flatten(1)[:, :10]\n")
    closed = hauberk("diagnose", "answers.py:build", "--data", "test.npz")
    assert closed.exit_code == 2
    assert "GRADIENT" in closed.stderr


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from hauberk.cli import app; "
        "run = CliRunner().invoke(app, ['diagnose', '--help']); "
        "sys.exit(run.exit_code or 'torch' in sys.modules or '--remedy' not in run.output)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"COLUMNS": "200"}).returncode == 0
