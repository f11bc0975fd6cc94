"""fit: the one training loop. Hardening is a loss, differential privacy a gradient transform, suppression a callback."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import progress, rng
from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.files import whole_file
from hauberk.core.target import evaluating

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Gradients:
    """How a batch is drawn and how its gradients are made: shuffled once an epoch, the plain mean. Another transform derives.

    `fit` asks for the batches of an epoch, has the gradients of each computed, lets the optimizer step, and keeps
    `state_dict` in its checkpoint.
    """

    def order(self, data: Split, plan: Schedule, epoch: int) -> Sequence[Tensor]:
        """Return the positions of the samples of each batch of an epoch; a batch may be empty."""
        shuffled = torch.randperm(len(data), generator=rng.generator(plan.seed, "order", epoch))
        return shuffled.split(plan.batch_size)

    def compute(self, state: State, loss: Loss, x: Tensor, y: Tensor) -> float:
        """Leave in `.grad` what the optimizer shall use, and return the mean loss of the batch.

        Raises:
            DataError: for a loss that is not finite.
        """
        value = loss(state.model, x, y)
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()
        if not torch.isfinite(value):
            raise DataError(
                f"the training loss is {float(value.detach())} at epoch {state.epoch + 1}", want="a finite loss",
                fix="Lower the learning rate, or check the data for extreme values",
            )
        return float(value.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, of plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        if state:
            raise ValueError("the run was made with another transform of its gradients")


class Callback:
    """Hooks into `fit`; each gets the state of the run and may change it. Setting `state.stop` ends the run there.

    What a callback has to remember between the parts of an interrupted run goes into its `state_dict`: the checkpoint keeps it.
    """

    def before_batch(self, state: State) -> None:
        """Before the gradients of a batch are computed; a stop here leaves it unused."""

    def before_step(self, state: State) -> None:
        """After the gradients of a batch are computed, before the optimizer uses them; a stop here leaves them unused."""

    def after_step(self, state: State) -> None:
        """After the optimizer has changed the weights."""

    def after_epoch(self, state: State) -> None:
        """After the last batch of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what to keep in the checkpoint: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned when the checkpoint was written."""


class Store(Protocol):
    """Another place for checkpoints than a plain file: encrypted, for one."""

    def read(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None where there is none."""

    def write(self, content: dict[str, Any], *, last: bool = False) -> None:
        """Keep a checkpoint, made after an epoch; `last` where the run ends with it."""


@dataclasses.dataclass
class State:
    """Where a run of `fit` stands."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    loss: float = float("nan")
    stop: bool = False


@dataclasses.dataclass
class Schedule:
    """How long and in what portions to train.

    Arguments:
        epochs: passes over the data.
        batch_size: samples per step.
        seed: order of the samples, and whatever the model draws at random.
        patience: stop after so many epochs without a better validation loss, and keep the best weights; None never stops early.
        validation: the split for that loss.
        checkpoint: a file, or another store, that holds the run after every epoch; a run that finds it goes on from there.
    """

    epochs: int = 10
    batch_size: int = 128
    seed: int = 0
    patience: int | None = None
    validation: Split | None = None
    checkpoint: str | Path | Store | None = None


@dataclasses.dataclass
class History:
    """What a run recorded: mean training loss and validation loss per epoch."""

    loss: list[float] = dataclasses.field(default_factory=list)
    validation: list[float] = dataclasses.field(default_factory=list)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch: ordinary training. One column is the logit of class 1.

    Raises:
        DataError: for labels that are not classes of the model.
    """
    logits = class_logits(model(x))
    if y.is_floating_point() and y.ndim == 1:
        raise DataError(
            f"the labels are numbers of {y.dtype}", want="whole numbers: classes",
            fix="For numbers to predict give a loss: fit(..., loss=lambda model, x, y: (model(x)[:, 0] - y).square().mean())",
        )
    try:
        return functional.cross_entropy(logits, y)
    except IndexError as error:
        raise DataError(
            f"there are labels from {int(y.min())} to {int(y.max())} and the model returns {logits.shape[1]} classes",
            want=f"labels from 0 to {logits.shape[1] - 1}", fix="Check that model and labels belong together",
        ) from error


def class_logits(raw: Tensor) -> Tensor:
    """Return one logit per class, shape (n, classes): of one column, (n,) or (n, 1), which is the logit of class 1, two."""
    raw = raw[:, None] if raw.ndim == 1 else raw
    return torch.cat([torch.zeros_like(raw), raw], 1) if raw.ndim == 2 and raw.shape[1] == 1 else raw


def fit(
    model: nn.Module, data: Split, *, loss: Loss = cross_entropy, optimizer: torch.optim.Optimizer | None = None,
    schedule: Schedule | None = None, epochs: int | None = None, callbacks: Sequence[Callback] = (),
    gradients: Gradients | None = None,
) -> History:
    """Train `model` in place on `data`.

    Arguments:
        model: trained where it is; left in evaluation mode.
        data: the training split.
        loss: `(model, x, y) -> scalar`; a recipe such as `adversarial(threat)` for robust training.
        optimizer: over the model's parameters; None takes AdamW at a rate of 1e-3.
        schedule: epochs, batch size, seed, early stopping, checkpoint.
        epochs: short for `Schedule(epochs=...)`.
        callbacks: called around steps and epochs.
        gradients: how batches are drawn and gradients made; None takes the mean gradient of shuffled batches.

    Returns:
        The losses by epoch.

    Raises:
        DataError: for an empty split, or a loss that is not finite (the weights of the last good epoch are in the checkpoint).
        UsageError: for a schedule that cannot be followed, or a checkpoint that cannot be read or written.
    """
    plan = schedule or Schedule()
    plan = plan if epochs is None else dataclasses.replace(plan, epochs=epochs)
    if not len(data):
        raise DataError("the training split is empty", want="at least one sample")
    if plan.patience is not None and plan.validation is None:
        raise UsageError("patience is set without a validation split", want="Schedule(validation=...)")
    made = optimizer if optimizer is not None else torch.optim.AdamW(model.parameters(), lr=1e-3)
    state, history, source = State(model, made), History(), gradients or Gradients()
    best: dict[str, Tensor] | None = None
    store = _File(Path(plan.checkpoint)) if isinstance(plan.checkpoint, (str, Path)) else plan.checkpoint
    if store is not None:
        best = _resume(store, state, history, callbacks, source)
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with rng.isolated(None, place):
        while state.epoch < plan.epochs and not state.stop:
            # One seed per epoch: a resumed run draws what the uninterrupted one would have drawn.
            rng.seed_global(rng.derive_seed(plan.seed, "fit", state.epoch), place)
            history.loss.append(_epoch(state, data, loss, plan, callbacks, source))
            state.epoch += 1
            if plan.validation is not None:
                history.validation.append(_validation_loss(model, plan.validation, plan.batch_size))
                if history.validation[-1] <= min(history.validation):
                    best = {name: value.clone() for name, value in model.state_dict().items()}
                rounds = len(history.validation) - 1 - history.validation.index(min(history.validation))
                state.stop = state.stop or (plan.patience is not None and rounds >= plan.patience)
            for callback in callbacks:
                callback.after_epoch(state)
            if store is not None:
                held = _content(state, history, best, callbacks, source)
                store.write(held, last=state.stop or state.epoch >= plan.epochs)
    if plan.patience is not None and best is not None:
        model.load_state_dict(best)
    model.eval()
    return history


def _epoch(
    state: State, data: Split, loss: Loss, plan: Schedule, callbacks: Sequence[Callback], gradients: Gradients,
) -> float:
    place = next((parameter.device for parameter in state.model.parameters()), torch.device("cpu"))
    state.model.train()
    total, seen = 0.0, 0
    for batch in progress.track(gradients.order(data, plan, state.epoch), f"epoch {state.epoch + 1}/{plan.epochs}"):
        for callback in callbacks:
            callback.before_batch(state)
        if _stopped(state):
            break
        x, y = (part.to(place) for part in data.take(batch))
        state.loss = gradients.compute(state, loss, x, y)
        for callback in callbacks:
            callback.before_step(state)
        if _stopped(state):
            break
        state.optimizer.step()
        state.step += 1
        for callback in callbacks:
            callback.after_step(state)
        if len(batch) and math.isfinite(state.loss):
            total, seen = total + state.loss * len(batch), seen + len(batch)
        if _stopped(state):
            break
    return total / seen if seen else math.nan


def _stopped(state: State) -> bool:
    return state.stop


def _validation_loss(model: nn.Module, split: Split, size: int) -> float:
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total = 0.0
    with torch.no_grad(), evaluating(model):
        for x, y in split.batches(size):
            total += float(functional.cross_entropy(class_logits(model(x.to(place))), y.to(place), reduction="sum"))
    mean = total / max(len(split), 1)
    return mean if math.isfinite(mean) else math.inf  # NaN would compare as neither better nor worse


class _File:
    """A plain file as a store, written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        held: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        return held

    def write(self, content: dict[str, Any], *, last: bool = False) -> None:
        with whole_file(self.path, mode=0o600) as file:
            torch.save(content, file)


def _content(
    state: State, history: History, best: dict[str, Tensor] | None, callbacks: Sequence[Callback], gradients: Gradients,
) -> dict[str, Any]:
    return {
        "model": state.model.state_dict(), "optimizer": state.optimizer.state_dict(), "epoch": state.epoch,
        "step": state.step, "stop": state.stop, "best": best, "loss": history.loss, "validation": history.validation,
        "callbacks": [(type(one).__name__, one.state_dict()) for one in callbacks], "gradients": gradients.state_dict(),
    }


def _resume(
    store: Store, state: State, history: History, callbacks: Sequence[Callback], gradients: Gradients,
) -> dict[str, Tensor] | None:
    try:
        content = store.read()
        if content is None:
            return None
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.epoch, state.step, state.stop = content["epoch"], content["step"], content["stop"]
        history.loss[:], history.validation[:] = content["loss"], content["validation"]
        best: dict[str, Tensor] | None = content["best"]
        gradients.load_state_dict(content.get("gradients", {}))
        kept = content.get("callbacks", [])  # a checkpoint of an earlier version has none
        names = [type(one).__name__ for one in callbacks]
        if kept and [name for name, _ in kept] != names:
            raise ValueError(f"it was written with the callbacks {[name for name, _ in kept]}, and {names} are given")
        for callback, (_, held) in zip(callbacks, kept, strict=False):
            callback.load_state_dict(held)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"the checkpoint {store} cannot be resumed ({type(error).__name__}: {str(error)[:200]})",
            want="a checkpoint of this model and optimizer", fix="Remove the file to start anew, or name another",
        ) from error
    return best
