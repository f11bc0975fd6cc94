"""hauberk obfuscate and unlock, as their users type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import Result

Run = Callable[..., Result]
CODE = '''"""A small net for the digits."""

import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 24), nn.ReLU(),
        nn.Linear(24, 10),
    )
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    made: dict[str, object] = {}
    exec(CODE, made)
    module = made["build"]()  # type: ignore[operator]
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    return tmp_path


def test_weights_are_locked_with_a_report_and_come_back(hauberk: Run, folder: Path) -> None:
    run = hauberk(
        "obfuscate", "net.py:build", "--weights", "w.safetensors", "--data", "sklearn:digits", "--method", "lock",
        "--key-file", "key", "--new-key", "--output", "locked.safetensors", "--report", "report.json",
    )
    assert run.exit_code == 0, run.stderr
    assert "verdict: " in run.stdout and " points over fresh weights [" in run.stdout
    assert "the same on fresh weights" in run.stdout and "whoever has it has the weights" in run.stderr
    told = json.loads((folder / "report.json").read_text())
    assert len(told["attempts"]) == 6 and told["n"] == 540
    before, locked = (safetensors.torch.load_file(folder / name) for name in ("w.safetensors", "locked.safetensors"))
    assert not torch.allclose(before["5.weight"], locked["5.weight"])
    run = hauberk("unlock", "locked.safetensors", "--key-file", "key", "--output", "back.safetensors")
    assert run.exit_code == 0, run.stderr
    back = safetensors.torch.load_file(folder / "back.safetensors")
    assert all(torch.allclose(back[name], value, rtol=3e-7) for name, value in before.items())
    hauberk("obfuscate", "w.pt", "--method", "lock", "--key-file", "other", "--new-key", "--output", "second.safetensors")
    run = hauberk("unlock", "locked.safetensors", "--key-file", "other", "--output", "wrong.safetensors")
    assert run.exit_code == 2 and "the key does not fit" in run.stderr and not (folder / "wrong.safetensors").exists()


def test_names_and_shapes_go_and_come_back_by_their_map(hauberk: Run, folder: Path) -> None:
    run = hauberk("obfuscate", "w.pt", "--strip-shapes", "--names", "names.json", "--output", "r.safetensors")
    assert run.exit_code == 0, run.stderr
    bare = safetensors.torch.load_file(folder / "r.safetensors")
    assert all(value.ndim == 1 and "weight" not in name for name, value in bare.items())
    run = hauberk("unlock", "r.safetensors", "--names", "names.json", "--output", "b.safetensors")
    assert run.exit_code == 0, run.stderr
    before, back = (safetensors.torch.load_file(folder / name) for name in ("w.safetensors", "b.safetensors"))
    assert all(torch.equal(back[name], value) for name, value in before.items()) and len(back) == len(before)


def test_decoys_are_undone_by_the_key(hauberk: Run, folder: Path) -> None:
    layers = "nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 6))"
    (folder / "wide.py").write_text(f"from torch import nn\n\ndef build():\n    return {layers}\n")
    made: dict[str, object] = {}
    exec((folder / "wide.py").read_text(), made)
    state = made["build"]().state_dict()  # type: ignore[operator]
    torch.save(state, folder / "wide.pt")
    words = ("wide.py:build", "--weights", "wide.pt", "--method", "rename", "--method", "decoys")
    run = hauberk("obfuscate", *words, "--key-file", "key", "--new-key", "--names", "names.json", "--output", "d.safetensors")
    assert run.exit_code == 0, run.stderr
    more = ("--names", "names.json", "--output")
    assert hauberk("unlock", "d.safetensors", *more, "b.safetensors").exit_code == 0
    branches = safetensors.torch.load_file(folder / "b.safetensors")
    assert branches.keys() != state.keys() and "selector_salt" in branches
    for words in (("d.safetensors", "--names", "names.json"), ("b.safetensors",)):
        run = hauberk("unlock", *words, "--key-file", "key", "--output", "o.safetensors", "--force")
        assert run.exit_code == 0 and "whether the key is the right one" in run.stderr
        back = safetensors.torch.load_file(folder / "o.safetensors")
        assert back.keys() == state.keys() and all(torch.equal(back[name], value) for name, value in state.items())


def test_another_structure_is_an_exported_program_that_answers_the_same(hauberk: Run, folder: Path) -> None:
    code = ("net.py:build", "--weights", "w.pt", "--data", "sklearn:digits")
    run = hauberk("obfuscate", *code, "--method", "split", "--output", "s.pt2")
    assert run.exit_code == 0, run.stderr
    made: dict[str, object] = {}
    exec(CODE, made)
    module = made["build"]().eval()  # type: ignore[operator]
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(torch.export.load(folder / "s.pt2").module()(x), module(x), atol=1e-5)


LOCK = ("w.pt", "--method", "lock", "--key-file", "k", "--new-key")


@pytest.mark.parametrize(("words", "told"), [
    (("w.pt", "--method", "mix", "--output", "o.safetensors"), "mix does not apply to bare weights. Expected rename | lock."),
    (("w.pt", "--output", "o.safetensors"), "--names is missing"),
    (("w.pt", "--method", "lock,lock", "--output", "o.safetensors"), "lock is asked for twice"),
    (("w.pt", "--method", "lock,rename", "--names", "n.json", "--output", "o.safetensors"), "lock is asked for before rename"),
    (("w.pt", "--method", "lok", "--output", "o.safetensors"), "Did you mean 'lock'?"),
    (("w.pt", "--output", "o.txt", "--names", "n"), "--output is o.txt. Expected a .safetensors file"),
    (("w.pt", "--method", "lock", "--output", "o.safetensors"), "--key-file is missing"),
    (("w.pt", "--method", "lock", "--key-file", "none", "--output", "o.safetensors"), "cannot be read"),
    (("w.pt", "--method", "lock", "--key-file", "net.py", "--output", "o.safetensors"), "64 hexadecimal digits"),
    (("w.pt", "--names", "n.json", "--output", "w.safetensors"), "w.safetensors exists already"),
    (("net.py:build", "--method", "mix", "--output", "o.safetensors"), "--data is missing"),
    ((*LOCK, "--report", "r", "--output", "o.safetensors"), "--report is given"),
    ((*LOCK, "--names", "n", "--output", "o.safetensors"), "--names is given"),
    (("n.onnx", "--method", "lock", "--method", "mix", "--output", "o.onnx"), "lock is asked for before mix"),
    (("missing.pt", "--method", "lock", "--key-file", "k", "--new-key", "--output", "o.safetensors"), "missing.pt"),
    (("missing.pt", "--names", "n.json", "--output", "o.safetensors"), "missing.pt"),
])
def test_each_wrong_use_has_one_clear_error(hauberk: Run, folder: Path, words: tuple[str, ...], told: str) -> None:
    run = hauberk("obfuscate", *words)
    assert run.exit_code == 2 and told in run.stderr and run.stderr.count("\n") == 1 + ("missing.pt" in words and "k" in words)
    assert not any((folder / name).exists() for name in ("o.safetensors", "n.json", "k"))
