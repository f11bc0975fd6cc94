"""Models that cannot be stacked, each trained by itself in another process or on another machine."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import perceptrons, progress
from hauberk.core.errors import HauberkError, ModelError
from hauberk.core.parallel import Outcome, attempt, run_tasks
from hauberk.core.stacked import PLAIN, Shelf, fit_group, refuse_unfit
from hauberk.core.train import Schedule

Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


def fit_apart(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, index: Sequence[Tensor], *, schedule: Schedule = PLAIN,
    lr: float = 1e-3, elsewhere: Elsewhere, shelf: Shelf | None = None,
) -> None:
    """Train models in place as `fit_stacked(..., batched=False)` does, and with what it draws, each in a task of its own.

    To the bit the same where torch rounds alike there: on this kind of processor, with as many threads or a small model.

    Arguments:
        models, x, y, index, schedule, lr, shelf: as in `fit_stacked`. Only a model and its own records are sent.
        elsewhere: runs the tasks.

    Raises:
        UsageError, DataError: as `fit_stacked`, with the number of the model.
        ModelError: for a model that cannot be sent, or whose training broke; the others are trained, and kept, all the same.
    """
    refuse_unfit(models, index, schedule, lr)
    left = [k for k, one in enumerate(models) if shelf is None or not shelf.take(k, one)]
    sparse = all(perceptrons.plain(one) for one in models) and perceptrons.Sparse.of(x) is not None
    whole = elsewhere.spread is not None
    items = [Lone(models[k], x, y, index[k], k, schedule, lr, sparse, whole) for k in left]
    failed: dict[int, BaseException] = {}
    for outcome in elsewhere(train_alone, items, f"{len(items)} models"):
        number = left[outcome.index]
        if outcome.error is not None or outcome.value is None:
            failed[number] = outcome.error or ValueError("nothing came back")
            continue
        put_weights(models[number], pickle.loads(outcome.value))  # noqa: S301  (made by `train_alone`)
        models[number].eval()
        if shelf is not None:
            shelf.keep(number, models[number])
    if failed:
        number = min(failed)
        raise broken(f"model {number}", failed[number]) from failed[number]


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Where tasks run.

    Arguments:
        workers: processes of this machine.
        spread: runs `spread(function, items)` in place of these, and returns the results in order.
    """

    workers: int = 1
    spread: Spread | None = None

    def __bool__(self) -> bool:
        """Whether it is anywhere but in this process."""
        return self.workers > 1 or self.spread is not None

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterable[Outcome[Any]]:
        """Yield the outcomes as they come, and report each; every item has one."""
        apart = f"in {min(self.workers, max(1, len(items)))} processes" if self.workers > 1 else "one at a time"
        label = f"{what}, {apart if self.spread is None else 'spread'}"
        found = run_tasks(function, items, workers=self.workers) if self.spread is None else self._spread_out(function, items)
        progress.update(label, 0, len(items))
        for done, outcome in enumerate(found, 1):
            yield outcome
            progress.update(label, done, len(items))

    def _spread_out(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Outcome[Any]]:
        assert self.spread is not None
        missing = dict(enumerate(items))
        try:
            for outcome in self.spread(Attempted(function), list(missing.items())):
                if isinstance(outcome, Outcome) and missing.pop(outcome.index, None) is not None:
                    yield outcome
        except Exception as error:
            first = next(iter(str(error).splitlines()), "")
            raise ModelError(f"`spread` failed ({type(error).__name__}: {first[:300]})", want="it to run a function on each item",
                             fix="Leave it out: they are then trained here") from error
        for index in missing:
            yield Outcome(index, error=ModelError("`spread` gave nothing back for it", want="one result for each item"))


@dataclasses.dataclass(frozen=True)
class Attempted:
    """A function of a numbered item that returns its outcome, whatever it raises."""

    function: Callable[[Any], Any]

    def __call__(self, numbered: tuple[int, Any]) -> Outcome[Any]:
        """Run the function."""
        return attempt(self.function, *numbered)


def broken(what: str, error: BaseException) -> HauberkError:
    """Return the error of a task by the name of what it was to make."""
    if isinstance(error, HauberkError):
        told = error.problem if what in error.problem else f"{what}: {error.problem}"
        return type(error)(told, want=error.want, fix=error.fix)
    first = next(iter(str(error).splitlines()), "")
    return ModelError(
        f"{what} could not be trained in another process ({type(error).__name__}: {first[:300]})",
        want="a module whose class can be imported there, and that fits into memory", fix="Train in this process: one worker",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Lone:
    """A model to be trained elsewhere; pickled, it is a `Sent`, made when it is sent, and no sooner.

    Arguments:
        model, x, y, rows: the model, all records, and which are its own.
        number, schedule, lr, sparse: of its training.
        whole: leave a class of the main script to the pickler, which can send it by value (Ray's does); else all is bytes.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    rows: Tensor
    number: int
    schedule: Schedule
    lr: float
    sparse: bool
    whole: bool = False

    def sent(self) -> Sent:
        """Return what travels: the model and its own records, on the CPU."""
        held = self.x.device
        own = [one[self.rows.to(one.device)].cpu() for one in (self.x, self.y)]
        names = sorted({type(one).__module__ for one in self.model.modules()})
        # Bytes, not tensors: those are sent between processes through shared memory, of which a container has little.
        model = self.model if self.whole and "__main__" in names else pickle.dumps(self.model)
        rest = pickle.dumps((*own, str(held), self.number, self.schedule, self.lr, self.sparse))
        files = [(name, getattr(sys.modules.get(name), "__file__", None)) for name in names]
        return Sent(model, rest, tuple((name, file) for name, file in files if file and name.split(".")[0] != "torch"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as bytes."""
        sent = self.sent()
        return Sent, (sent.model, sent.rest, sent.origins)


@dataclasses.dataclass(frozen=True)
class Sent:
    """A model and its records, as bytes where possible, and the files that its classes came from, by module."""

    model: bytes | nn.Module
    rest: bytes
    origins: tuple[tuple[str, str], ...]


def train_alone(item: Lone | Sent) -> bytes:
    """Train one model, and return its weights as bytes; importable by name, for other processes."""
    held = item.sent() if isinstance(item, Lone) else item
    for origin in held.origins:
        _reachable(*origin)
    # Bytes made by `Lone.sent`. What came as it is may be the sender's own, in the same process: it is not trained in place.
    model = pickle.loads(held.model) if isinstance(held.model, bytes) else copy.deepcopy(held.model)  # noqa: S301
    x, y, device, number, schedule, lr, sparse = pickle.loads(held.rest)  # noqa: S301
    x, y = x.to(device), y.to(device)
    known = perceptrons.Sparse(x.flatten(1)) if sparse else None
    rows = torch.arange(len(x), device=device)
    fit_group([model], x, y, [rows], numbers=[number], schedule=schedule, lr=lr, sparse=known)
    return pickle.dumps(weights_of(model))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what training changes, on the CPU: parameters and buffers, each once."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().cpu().clone().contiguous() for name, value in held.items()}


def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model the weights of another of its kind.

    Raises:
        ModelError: where they differ in name or shape.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (held, weights)]
    if shapes[0] != shapes[1]:
        odd = sorted({one[0] for one in shapes[0].items() ^ shapes[1].items()})
        raise ModelError(f"the weights differ in {', '.join(odd[:3])}", want="a model of one architecture")
    with torch.no_grad():
        for name, value in held.items():
            value.copy_(weights[name])


def _reachable(name: str, file: str) -> None:
    """Make a module that the sender had imported importable by its name here: from its package's folder, or its file."""
    place = Path(file)
    root = str(place.parents[min(name.count("."), len(place.parents) - 1)])
    if name in sys.modules or name == "__main__":
        return
    try:
        importlib.import_module(name)
        return
    except ImportError:
        if root not in sys.path:
            sys.path.append(root)
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, place)
        if spec is not None and spec.loader is not None:
            made = importlib.util.module_from_spec(spec)
            sys.modules[name] = made
            spec.loader.exec_module(made)
