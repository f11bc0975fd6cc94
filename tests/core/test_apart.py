"""Models trained in other processes: the same to the bit as here, each error by its model, and what is done is kept."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk import Schedule
from hauberk.core import stacked
from hauberk.core.apart import Elsewhere, Lone, fit_apart, put_weights, train_alone, weights_of
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.parallel import run_tasks
from hauberk.core.progress import listening
from hauberk.core.rng import isolated
from hauberk.io.code import from_code


class Recurrent(nn.Module):
    """Has layers that no stacked pass takes, buffers that training changes, and random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.norm, self.head = nn.GRU(2, 6, batch_first=True), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Read the record as three steps of two."""
        return self.head(nn.functional.dropout(self.norm(self.steps(x.view(-1, 3, 2))[0][:, -1]), 0.3, self.training))


SCHEDULE = Schedule(epochs=2, batch_size=8, seed=5)


def made(count: int = 4) -> tuple[list[nn.Module], Tensor, Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(41, 6, generator=draw), torch.randint(0, 3, (41,), generator=draw)
    with isolated(1):
        models: list[nn.Module] = [Recurrent() for _ in range(count)]
    return models, x, y, [torch.randperm(41, generator=draw)[: 20 + 3 * (k % 2)] for k in range(count)]


def posted(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Run each item as a far machine would: from bytes, to bytes, last first."""
    return [pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(one))))) for one in reversed(items)]


def alike(one: nn.Module, other: nn.Module) -> bool:
    held, theirs = weights_of(one), weights_of(other)
    return held.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in held.items())


class Memory:
    """A shelf."""

    def __init__(self) -> None:
        self.held: dict[int, dict[str, Tensor]] = {}

    def take(self, number: int, model: nn.Module) -> bool:
        """Give back what is held."""
        if number in self.held:
            put_weights(model, self.held[number])
        return number in self.held

    def keep(self, number: int, model: nn.Module) -> None:
        """Hold it."""
        self.held[number] = weights_of(model)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int | None]] = []

    def update(self, label: str, done: int, total: int | None) -> None:
        """Note it."""
        self.told.append((label, done, total))


def test_processes_give_what_this_one_gives_and_a_model_that_cannot_be_sent_costs_no_other() -> None:
    models, x, y, index = made()
    assert stacked.one_at_a_time(models, x, y)
    here = [copy.deepcopy(one) for one in models]
    stacked.fit_stacked(here, x, y, index, schedule=SCHEDULE, lr=0.01)
    models[2].note = lambda: None  # type: ignore[assignment]
    shelf, heard, state = Memory(), Heard(), torch.get_rng_state()
    with listening(heard), pytest.raises(ModelError, match=r"model 2 could not be trained in another process \(.*lambda"):
        fit_apart(models, x, y, index, schedule=SCHEDULE, lr=0.01, elsewhere=Elsewhere(2), shelf=shelf)
    assert torch.equal(state, torch.get_rng_state())
    assert [alike(one, other) for one, other in zip(models, here, strict=True)] == [True, True, False, True]
    assert not models[0].training and sorted(shelf.held) == [0, 1, 3]
    assert heard.told == [("4 models, in 2 processes", done, 4) for done in range(5)]


def test_elsewhere_gives_the_same_and_only_what_is_not_kept_is_sent() -> None:
    models, x, y, index = made()
    here, shelf = [copy.deepcopy(one) for one in models], Memory()
    stacked.fit_stacked(here, x, y, index, schedule=SCHEDULE, lr=0.01)
    fit_apart(models[:2], x, y, index[:2], schedule=SCHEDULE, lr=0.01, elsewhere=Elsewhere(spread=posted), shelf=shelf)
    sent: list[int] = []

    def watched(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        sent.extend(one.number for _, one in items)
        return posted(function, items)

    again = made()[0]
    fit_apart(again, x, y, index, schedule=SCHEDULE, lr=0.01, elsewhere=Elsewhere(spread=watched), shelf=shelf)
    assert sent == [2, 3] and all(alike(one, other) for one, other in zip(again, here, strict=True))
    # Large perceptrons too, whose sums over sparse records are another arithmetic: chosen by all records, not by their own.
    draw = torch.Generator().manual_seed(0)
    x = (torch.rand(41, 6, generator=draw) < 0.15).float()
    x[:20] = 1
    x[20:] *= 0
    nets: list[nn.Module] = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
    for rows, share in ((x, 0.49), (x.clone().index_fill_(0, torch.arange(4, 20), 0), 0.1)):
        assert float(rows.mean()) == pytest.approx(share, abs=0.01)
        one, other = copy.deepcopy(nets), copy.deepcopy(nets)
        own = [torch.arange(0, 8), torch.arange(30, 38)]
        fit_apart(one, rows, y, own, schedule=SCHEDULE, elsewhere=Elsewhere(spread=posted))
        stacked.fit_stacked(other, rows, y, own, schedule=SCHEDULE, batched=False)
        assert all(alike(a, b) for a, b in zip(one, other, strict=True))


def test_a_class_of_the_main_script_is_left_to_a_pickler_that_sends_it_by_value() -> None:
    class ByValue(pickle.Pickler):
        """Sends classes of the main script whole, as Ray's does."""

        def reducer_override(self, thing: Any) -> Any:
            """Take a class apart."""
            if isinstance(thing, type) and thing.__module__ == "__main__":
                return type, (thing.__name__, thing.__bases__, {"forward": vars(thing)["forward"], "__module__": "__main__"})
            return NotImplemented

    def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        found = []
        for one in items:
            ByValue(post := io.BytesIO()).dump(one)
            found.append(function(pickle.loads(post.getvalue())))
        return found

    models, x, y, index = made(2)
    here = [copy.deepcopy(one) for one in models]
    for one in models:
        one.__class__ = type("Scripted", (nn.Module,), {"forward": Recurrent.forward, "__module__": "__main__"})
    stacked.fit_stacked(here, x, y, index, schedule=SCHEDULE, lr=0.01, batched=False)
    fit_apart(models, x, y, index, schedule=SCHEDULE, lr=0.01, elsewhere=Elsewhere(spread=spread))
    assert all(alike(one, other) for one, other in zip(models, here, strict=True))
    # Run in this very process, it trains a copy: the model itself is given its weights once all is well.
    again = made(1)[0][0]
    again.__class__ = type(models[0])
    before = weights_of(again)
    train_alone(Lone(again, x, y, index[0], 0, SCHEDULE, 0.01, False, True))
    assert all(torch.equal(value, before[name]) for name, value in weights_of(again).items())


def test_errors_name_their_model() -> None:
    models, x, y, index = made()
    x[index[1]] = float("nan")
    for elsewhere in (Elsewhere(spread=posted), Elsewhere()):
        with pytest.raises(DataError, match=r"training of model \d ended in weights that are not finite.*Lower the learning"):
            fit_apart(made()[0], x, y, [index[1]] * 4, schedule=SCHEDULE, elsewhere=elsewhere)
    with pytest.raises(ModelError, match="model 1: `spread` gave nothing back for it"):
        fit_apart(models, made()[1], y, index, schedule=SCHEDULE, elsewhere=Elsewhere(spread=lambda f, items: [f(items[0])]))

    def lost(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        raise ConnectionError("no such host")

    with pytest.raises(ModelError, match=r"`spread` failed \(ConnectionError: no such host\)"):
        fit_apart(models, x, y, index, elsewhere=Elsewhere(spread=lost))
    with pytest.raises(UsageError, match="model 1 has no weights to train"):
        fit_apart([models[0], models[1].requires_grad_(False)], x, y, index[:2], elsewhere=Elsewhere(spread=posted))
    with pytest.raises(ModelError, match=r"the weights differ in head\.bias"):
        put_weights(models[0], {**weights_of(models[1]), "head.bias": torch.zeros(4)})


@pytest.mark.parametrize("source", ["nets.py:Net", "shelf.nets:Net"])
def test_classes_of_a_file_are_found_again(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "parts.py").write_text("WIDTH = 3\n")
    whence = ".parts" if source.startswith("shelf") else "parts"
    (folder / "nets.py").write_text(
        f"from torch import nn\nfrom {whence} import WIDTH\n\n\nclass Net(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(6, WIDTH)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    model, _ = from_code(source if source.startswith("shelf") else f"shelf/{source}")
    _, x, y, index = made(1)
    before = weights_of(copy.deepcopy(model))
    here = pickle.loads(train_alone(Lone(copy.deepcopy(model), x, y, index[0], 0, SCHEDULE, 0.01, False)))
    post = pickle.dumps(Lone(model, x, y, index[0], 0, SCHEDULE, 0.01, False))
    for name in [type(model).__module__, "shelf.parts", "shelf", "parts"]:  # as in a process that never saw it
        sys.modules.pop(name, None)
    put_weights(model, pickle.loads(train_alone(pickle.loads(post))))
    found = weights_of(model)
    assert all(torch.equal(one, here[name]) and not torch.equal(one, before[name]) for name, one in found.items())
    for name in [type(model).__module__, "shelf.parts", "shelf", "parts"]:
        sys.modules.pop(name, None)


def linger(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


@pytest.mark.slow
def test_who_interrupts_does_not_wait_for_what_runs(tmp_path: Path) -> None:
    def stop() -> None:
        while not (tmp_path / "0").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)  # to this process alone: its workers hear nothing

    threading.Thread(target=stop, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(linger, [str(tmp_path / str(k)) for k in range(6)], workers=2))
    assert time.monotonic() - began < 55  # a minute is what one of them takes
