"""TorchScript without trust: what would write, read or call out is refused by its text, and by its graphs whatever the text."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hauberk
from hauberk.core.errors import UnsafeFile
from hauberk.io.script_scan import check_script_graphs, check_script_text

pytestmark = pytest.mark.filterwarnings("ignore")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Rich(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.drop, self.attend = nn.LSTM(4, 4, batch_first=True), nn.Dropout(), nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.lstm(x)
        for step in range(3):
            if float(found.sum()) > step:
                found = self.drop(found)
        return self.attend(found, found, found)[0].mean(1)


def script_file(path: Path, line: str, *, method: str = "") -> Path:
    """A script saved by torch, with one line put into its forward, or a method behind it."""
    torch.jit.script(Plain()).save(str(path))
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist() if not one.endswith(".debug_pkl")}
    (main,) = [one for one, body in members.items() if one.endswith(".py") and b"class Plain" in body]
    code = members[main].decode()
    place = code.index("\n", code.index("->", code.index("def forward"))) + 1
    members[main] = (code[:place] + (f"    {line}\n" if line else "") + code[place:] + method).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for one, body in members.items():
            archive.writestr(one, body)
    return path


@pytest.mark.parametrize("line", [
    'torch.save(x, "{}")', 'torch.save (x, "{}")', 'torch . save(x, "{}")', 'ops.aten.save(x, "{}")',
    'ops . aten . save(x, "{}")',
    'y = torch.from_file ("{}", False, 4)',
])
def test_a_script_that_reaches_files_is_refused_however_it_is_spelled(tmp_path: Path, line: str) -> None:
    mark = tmp_path / "written"
    with pytest.raises(UnsafeFile, match="its script calls"):
        hauberk.load_model(script_file(tmp_path / "m.pt", line.format(mark)))
    assert not mark.exists()


def test_what_runs_while_it_is_loaded_is_refused_before(tmp_path: Path) -> None:
    state = "  def __setstate__(self,\n    state: int) -> NoneType:\n    return None\n"
    with pytest.raises(UnsafeFile, match="__setstate__"):
        hauberk.load_model(script_file(tmp_path / "m.pt", "", method=state))


def writes(x: Tensor) -> Tensor:
    torch.save(x, "somewhere")
    return x


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for step in range(2):
            if step == 1:
                x = writes(x)
        return x


class Beside(Plain):
    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return writes(x)


@pytest.mark.parametrize("module", [Nested(), nn.Sequential(Plain(), Beside())], ids=["nested", "beside"])
def test_graphs_are_walked_whatever_the_text_says(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(module)
    with pytest.raises(UnsafeFile, match="its script calls aten::save"):
        check_script_graphs(Path("m.pt"), script)


@pytest.mark.parametrize("how", ["script", "trace", "freeze"])
def test_scripts_that_compute_are_opened(tmp_path: Path, how: str) -> None:
    module, x = Rich().eval(), torch.ones(2, 3, 4)
    made = torch.jit.trace(module, x) if how == "trace" else torch.jit.script(module)
    if how == "freeze":
        made = torch.jit.freeze(made)
    made.save(str(tmp_path / "m.pt"))
    assert torch.allclose(hauberk.load_model(tmp_path / "m.pt").logits(x), module(x), atol=1e-6)


def test_an_archive_that_reads_in_two_ways_is_refused(tmp_path: Path) -> None:
    path = script_file(tmp_path / "m.pt", "")
    check_script_text(path)
    content = bytearray(path.read_bytes())
    content[-22 + 8 : -22 + 10] = b"\x01\x00"
    path.write_bytes(content)
    with pytest.raises((UnsafeFile, RuntimeError), match=r"reads in two ways|zip archive"):
        check_script_text(path)
    script_file(path, "")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/CODE/__torch__.py", b"")
        archive.writestr("m/code/__torch__.PY", b"")
    with pytest.raises(UnsafeFile, match="two members have one name"):
        check_script_text(path)
