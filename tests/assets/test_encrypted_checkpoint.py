"""Encrypted checkpoints of fit: a run that was interrupted ends where an uninterrupted one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hauberk import Split, fit
from hauberk.assets.encryption import EncryptedCheckpoint, Identity, load_encrypted
from hauberk.core.errors import UsageError
from hauberk.core.train import Callback, Schedule, State

KEY = bytes(range(32))
DATA = Split(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 3)


class Counting(Callback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs, self.stop_after = 0, stop_after

    def after_epoch(self, state: State) -> None:
        self.epochs += 1
        if self.epochs == self.stop_after:
            raise InterruptedError

    def state_dict(self) -> dict[str, int]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epochs = state["epochs"]


def run(checkpoint: EncryptedCheckpoint | None, stop_after: int | None = None) -> tuple[nn.Module, list[float], int]:
    torch.manual_seed(0)
    model, counting = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)), Counting(stop_after)
    plan = Schedule(epochs=5, batch_size=16, checkpoint=checkpoint, validation=DATA, patience=4)
    history = fit(model, DATA, schedule=plan, callbacks=[counting])
    return model, history.loss, counting.epochs


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        straight, losses, _ = run(None)
        kept = EncryptedCheckpoint(tmp_path / "run.hbke", KEY, also=(me := Identity.generate()).recipient)
        with pytest.raises(InterruptedError):
            run(kept, stop_after=4)
        assert load_encrypted(tmp_path / "run.hbke", me)["epoch"] == 3
        resumed, found, epochs = run(kept)
    assert (found, epochs) == (losses, 5)
    assert all(torch.equal(one, two) for one, two in zip(straight.parameters(), resumed.parameters(), strict=True))
    file = (tmp_path / "run.hbke").read_bytes()
    for weight in resumed.parameters():
        assert weight.detach().numpy().tobytes() not in file
    with torch.random.fork_rng(), pytest.raises(UsageError, match="does not open"):
        run(EncryptedCheckpoint(tmp_path / "run.hbke", bytes(32)))
    assert (tmp_path / "run.hbke").read_bytes() == file
    assert [path.name for path in tmp_path.iterdir()] == ["run.hbke"]


def test_every_so_often_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, seen = EncryptedCheckpoint(tmp_path / "run.hbke", KEY, every=2), []
    monkeypatch.setattr("hauberk.assets.encryption.checkpoints.save_encrypted", lambda held, *_, **__: seen.append(held["epoch"]))
    with torch.random.fork_rng():
        run(kept)
        assert seen == [2, 4, 5]
        monkeypatch.setattr("hauberk.assets.encryption.checkpoints._rank", lambda: 1)
        run(kept)
    assert seen == [2, 4, 5]
    with pytest.raises(UsageError, match="every is 0"):
        EncryptedCheckpoint(tmp_path / "run.hbke", KEY, every=0)
    with pytest.raises(UsageError, match="cannot open"):
        EncryptedCheckpoint(tmp_path / "run.hbke", Identity.generate().recipient)


WORKER = """
import sys
from torch import distributed
from hauberk.assets.encryption import EncryptedCheckpoint, load_encrypted

distributed.init_process_group("gloo", init_method="env://")
rank, kept = distributed.get_rank(), EncryptedCheckpoint("run.hbke", bytes(range(32)))
for epoch in range(1, 4):
    kept.write({"epoch": epoch, "rank": rank})
distributed.barrier()
assert kept.read() == {"epoch": 3, "rank": 0}
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], cwd=tmp_path,
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [one.wait(120) for one in workers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["run.hbke"]
