"""hauberk fuzz: what it says is what it keeps, and what it keeps can be gone on with."""

from __future__ import annotations

import json
import sys
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
