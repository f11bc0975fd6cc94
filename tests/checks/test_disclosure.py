"""What model files tell by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import hauberk
from hauberk.assets.obfuscate import rename
from hauberk.assets.obfuscate.files import save_locked
from hauberk.assets.obfuscate.similarity import words_of
from hauberk.core.finding import Finding, Status, Table


class Kept(nn.Module):
    """A net that says which file it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(torch.relu(self.front(x.flatten(1))))


def _finding(path: Path, folder: Path) -> Finding:
    data = hauberk.load_data("sklearn:digits")
    target = hauberk.Target(Kept(), bounds=data.bounds, files=[path])
    return hauberk.assess(target, data, select="assets/disclosure", output=str(folder)).findings[0]


def test_names_are_counted_and_gone_after_rename(tmp_path: Path) -> None:
    state = Kept().state_dict()
    safetensors.torch.save_file(state, tmp_path / "open.safetensors")
    found = _finding(tmp_path / "open.safetensors", tmp_path / "a")
    assert (found.status, found.value, found.n) == (Status.PASS, 1.0, 4)
    assert any("hauberk obfuscate" in note for note in found.notes)
    save_locked(rename(state).state, tmp_path / "hidden.safetensors", bytes(32))
    found = _finding(tmp_path / "hidden.safetensors", tmp_path / "b")
    table = found.evidence[0]
    assert isinstance(table, Table) and found.value == 0.0 and table.rows[0][1:3] == ("locked", "0 of 4")


@pytest.mark.parametrize(("name", "words"), [
    ("layer1.0.conv2.weight", {"layer", "conv", "weight"}), ("00ffabcdef123456", set()), ("0.1", set()), ("deadbeefcafe", set()),
    ("selfAttn.outProj", {"self", "attn", "out", "proj"}),
])
def test_words_of_a_name(name: str, words: set[str]) -> None:
    assert words_of(name) == words
