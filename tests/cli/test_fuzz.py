"""hauberk fuzz: what it says is what it keeps, and what it keeps can be gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import Result

from hauberk.robustness.fuzz import load_failures

Run = Callable[..., Result]
NATURAL = "gaussian-noise,rotate,translate,salt-and-pepper"
LITTLE = ("--budget", 160, "--seeds", 30, "--mutator", NATURAL)


def test_what_is_said_is_what_is_kept(hauberk: Run, shop: Path, digits_model: nn.Module) -> None:
    run = hauberk("fuzz", shop, *LITTLE, "--seed", 3)
    assert run.exit_code == 0, run.stderr
    written = json.loads(Path("fuzz/results.json").read_text())
    guided, control = written["guided"], written["control"]
    assert guided["mutants"] == control["mutants"] == 160
    assert f"{guided['distinct']} failures" in run.stdout
    assert f"random control {control['distinct']} " in run.stdout
    assert "kept               fuzz: results.json" in run.stdout
    failures = load_failures("fuzz")
    assert len(failures) == guided["distinct"] == len(written["failures"]) > 0
    with np.load("fuzz/failures.npz", allow_pickle=False) as file, torch.no_grad():
        assert digits_model(torch.from_numpy(file["x"])).argmax(1).tolist() == [one.answer for one in failures]
        assert digits_model(torch.from_numpy(file["seed"])).argmax(1).tolist() == [one.label for one in failures]


def test_json_is_the_results_file_and_a_finished_campaign_is_found_again(hauberk: Run, shop: Path) -> None:
    first = hauberk("fuzz", shop, *LITTLE, "--output-format", "json", "--coverage", "nbc,snac")
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout) == json.loads(Path("fuzz/results.json").read_text())
    assert list(json.loads(first.stdout)["guided"]["coverage"]) == ["nbc", "snac"]
    refused = hauberk("fuzz", shop, *LITTLE, "--coverage", "nbc,snac")
    assert refused.exit_code == 2 and "--resume" in refused.stderr
    again = hauberk("fuzz", shop, *LITTLE, "--output-format", "json", "--coverage", "nbc,snac", "--resume")
    assert json.loads(again.stdout) == json.loads(first.stdout)


def test_two_models_are_compared(hauberk: Run, shop: Path) -> None:
    Path("other.py").write_text(
        f"import sys; sys.path.insert(0, {str(shop)!r})\n"
        "from safetensors.torch import load_file\nfrom net import build as plain\n"
        f"def build():\n    model = plain(); state = load_file({str(shop / 'weights.safetensors')!r})\n"
        "    model.load_state_dict({key: (one * 8).round() / 8 for key, one in state.items()}); return model\n"
    )
    run = hauberk("fuzz", shop, *LITTLE, "--against", "other.py:build", "--output-format", "json")
    sys.path[:] = [one for one in sys.path if one != str(shop)]
    assert run.exit_code == 0, run.stderr
    assert {one["kind"] for one in json.loads(run.stdout)["failures"]} == {"disagreement"}


WAITING = """
import time
from pathlib import Path

import sys
sys.path.insert(0, {shop!r})
from net import build as plain
from safetensors.torch import load_file


def build():
    net = plain()
    net.load_state_dict(load_file({weights!r}))
    net.register_forward_pre_hook(hold)
    return net


def hold(module, given):
    while Path("hold").exists() and Path("killed", {search!r}, "state.npz").exists():
        time.sleep(0.02)
"""


@pytest.mark.parametrize(("search", "stop"), [
    ("guided", signal.SIGKILL), pytest.param("control", signal.SIGINT, marks=pytest.mark.slow),
])
def test_a_campaign_that_was_stopped_goes_on_to_the_same_files(
    hauberk: Run, start: Callable[..., subprocess.Popen[str]], shop: Path, tmp_path: Path, search: str, stop: signal.Signals
) -> None:
    (tmp_path / "waiting.py").write_text(WAITING.format(shop=str(shop), weights=str(shop / "weights.safetensors"), search=search))
    given = ("fuzz", "--model", "waiting.py:build", "--data", shop / "test.npz", "--bounds", "0,1", *LITTLE)
    assert hauberk(*given, "--output", "whole").exit_code == 0
    (tmp_path / "hold").touch()
    run = start(*given, "--output", "killed")
    until = time.monotonic() + 120
    while not (tmp_path / "killed" / search / "state.npz").exists():
        assert run.poll() is None and time.monotonic() < until, run.communicate()
        time.sleep(0.02)
    run.send_signal(stop)
    _, err = run.communicate()
    if stop == signal.SIGINT:
        assert run.returncode == 130
        assert err.splitlines()[-1].endswith("are kept in killed: the same command with --resume goes on from there")
    (tmp_path / "hold").unlink()
    resumed = hauberk(*given, "--output", "killed", "--resume")
    sys.path[:] = [one for one in sys.path if one != str(shop)]
    assert resumed.exit_code == 0 and "a new one begins" not in resumed.stderr
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file():
            assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path.name


def test_resume_without_a_campaign_says_that_a_new_one_begins(hauberk: Run, shop: Path) -> None:
    run = hauberk("fuzz", shop, "--budget", 32, "--seeds", 10, "--mutator", "rotate", "--resume")
    assert run.exit_code == 0
    assert "fuzz holds no campaign to go on with: a new one begins" in run.stderr.splitlines()


def test_mutators_of_images_do_not_fit_a_table(hauberk: Run, shop: Path) -> None:
    Path("line.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(4, 3)\n")
    run = hauberk("fuzz", "--model", "line.py:build", "--data", "sklearn:iris", "--mutator", "rotat")
    assert run.exit_code == 2
    assert "the mutator 'rotat' is for images (channels, height, width), and a sample here has shape (4,)" in run.stderr
    assert "jitter | reset" in run.stderr
    run = hauberk("fuzz", "--model", "line.py:build", "--data", "sklearn:iris", "--objective", "foo")
    assert run.exit_code == 2 and run.stderr.count("label-invariance") == 1


def test_a_relation_is_given_with_its_figures(hauberk: Run, shop: Path) -> None:
    Path("flat.py").write_text(  # scores 0, x[2], 0: they rise with the third feature
        "import torch\nfrom torch import nn\n\n\ndef build():\n    net = nn.Linear(4, 3)\n    nn.init.zeros_(net.bias)\n"
        "    net.weight = nn.Parameter(torch.eye(4)[[0, 2, 0]] * torch.tensor([[0.0], [1.0], [0.0]]))\n    return net\n"
    )
    given = ("--model", "flat.py:build", "--data", "sklearn:iris", "--mutator", "jitter", "--budget", 40)
    run = hauberk("fuzz", *given, "--objective", "monotone:2:0.1")
    assert run.exit_code == 0, run.stderr
    assert "no failure was found" in run.stderr
    run = hauberk("fuzz", *given, "--objective", "falling:2:0.1", "--output", "other")
    assert run.exit_code == 2 and "fails on all of 45 seeds" in run.stderr


@pytest.mark.parametrize(("option", "named"), [
    (("--mutator", "rotat"), "rotate"), (("--coverage", "kmn"), "kmnc"), (("--objective", "nan"), "not-a-number"),
    (("--budget", "0"), "budget"),
])
def test_unknown_names_are_refused_with_the_nearest(hauberk: Run, shop: Path, option: tuple[str, str], named: str) -> None:
    run = hauberk("fuzz", shop, "--budget", 32, "--seeds", 10, *option)
    assert run.exit_code == 2
    assert named in run.stderr


def test_help_does_not_load_torch(start: Callable[..., object]) -> None:
    import subprocess

    code = "import sys; sys.argv = ['hauberk', 'fuzz', '--help']\ntry:\n    from hauberk.cli import main; main()\n"
    code += "except SystemExit:\n    assert 'torch' not in sys.modules\n    print('no torch')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.rstrip().endswith("no torch")
