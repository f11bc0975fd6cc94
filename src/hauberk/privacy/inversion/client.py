"""What a participant of joint training sends, and what who receives it knows."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import isolated
from hauberk.core.target import evaluating
from hauberk.privacy.inversion.known import Known


@dataclasses.dataclass(frozen=True)
class LocalSteps:
    """How a client trains before it sends: steps of plain gradient descent.

    Arguments:
        steps: how many.
        lr: learning rate.
        batch_size: samples per step, taken in order, round and round; None takes all of them at every step.
    """

    steps: int
    lr: float
    batch_size: int | None = None

    def check(self) -> None:
        """Raise UsageError for less than one step or sample, or a rate that is not above 0."""
        whole = isinstance(self.steps, int) and isinstance(self.batch_size, int | None)
        if not whole or self.steps < 1 or not 0 < self.lr < math.inf or (self.batch_size is not None and self.batch_size < 1):
            told = f"local steps are {self.steps} of {self.batch_size} samples at a rate of {self.lr}"
            raise UsageError(told, want="at least 1 of at least 1 sample, at a rate above 0")

    def batches(self, n: int) -> Iterator[slice]:
        """Yield which of n samples each step sees."""
        size = n if self.batch_size is None else min(self.batch_size, n)
        parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        for step in range(self.steps):
            yield parts[step % len(parts)]


@dataclasses.dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client sends.

    Arguments:
        gradients: by parameter name: the gradient of the mean cross-entropy of its samples, or, with `local`, how its weights
            changed.
        shape: of one input.
        n: samples behind it.
        labels: theirs, shape (n,), or label probabilities, shape (n, classes), where they are known; None has them read off the
            gradients.
        bounds: lowest and highest input; None where there are none.
        local: how the client trained; None for a gradient.
        training: whether batch normalisation used the statistics of the client's own batch.
        statistics: mean and variance that entered each batch normalisation, by layer, where the client shares them.
        known: what the receiver knows was done to the gradients; None takes them as they are.
    """

    gradients: Mapping[str, Tensor]
    shape: tuple[int, ...]
    n: int = 1
    labels: Tensor | None = None
    bounds: tuple[float, float] | None = (0.0, 1.0)
    local: LocalSteps | None = None
    training: bool = False
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None
    known: Known | None = None

    def check(self, module: nn.Module) -> None:
        """Raise DataError when the gradients, labels, shape or statistics are missing, not finite, or not those of the module."""
        if not isinstance(self.gradients, Mapping) or not self.gradients:
            raise DataError("the gradients are missing", want="one gradient per parameter name")
        named = dict(module.named_parameters())
        for name, one in self.gradients.items():
            if not isinstance(one, Tensor) or name not in named or one.shape != named[name].shape:
                got = f"has shape {tuple(one.shape)}" if isinstance(one, Tensor) else f"is of type {type(one).__name__}"
                has = f"one of shape {tuple(named[name].shape)}" if name in named else "no parameter of that name"
                raise DataError(
                    f"the gradient of '{name}' {got}, the model has {has}",
                    want="those of model.named_parameters(), which names a shared parameter once",
                )
            if not bool(one.isfinite().all()):
                raise DataError(f"the gradient of '{name}' is not finite", want="finite gradients")
        if not any(bool(one.any()) for one in self.gradients.values()):
            raise DataError("all gradients are zero", want="a gradient that says something", fix="Choose another sample")
        if self.n < 1 or (self.labels is not None and len(self.labels) != self.n):
            raise DataError(f"the update is of {self.n} samples, with {0 if self.labels is None else len(self.labels)} labels")
        if self.local is not None:
            self.local.check()
        like = next(module.parameters())
        empty = torch.zeros(self.n, *self.shape, dtype=like.dtype, device=like.device)
        y = torch.zeros(self.n, dtype=torch.int64) if self.labels is None else self.labels
        if y.ndim not in (1, 2):
            raise DataError(
                f"the labels have shape {tuple(y.shape)}", want=f"one class for each sample, ({self.n},), or probabilities"
            )
        _refuse_misfits(module, empty, y, self.training)
        self._refuse_statistics(module)
        if self.known is not None:
            self.known.check(self.gradients)
            odd = [name for name in self.known.draws if not hasattr(dict(module.named_modules()).get(name), "draw")]
            if odd:
                raise DataError(f"draws are known of '{odd[0]}', which draws nothing", want="the name of a Bottleneck")

    def _refuse_statistics(self, module: nn.Module) -> None:
        parts = dict(module.named_modules())
        for name, pair in (self.statistics or {}).items():
            part = parts.get(name)
            width = part.num_features if isinstance(part, _BatchNorm) else -1
            if any(one.shape != (width,) or not bool(one.isfinite().all()) for one in pair):
                raise DataError(
                    f"the statistics of '{name}' have shapes {tuple(tuple(one.shape) for one in pair)}",
                    want=f"finite ones of shape ({width},)" if width >= 0 else "the name of a batch normalisation of the model",
                )


def client_update(
    module: nn.Module, x: Tensor, y: Tensor, *, local: LocalSteps | None = None, training: bool = False,
    know_labels: bool = True, bounds: tuple[float, float] | None = (0.0, 1.0),
) -> ClientUpdate:
    """Return what a client with these samples would send. The model stays as it is; dropout is off.

    Arguments:
        module: the model that the client was given; returns logits.
        x: its samples, shape (n, ...).
        y: their labels, shape (n,), or label probabilities, shape (n, classes).
        local: None sends the mean gradient, else the change of the weights after so many steps.
        training: whether batch normalisation uses the statistics of the batch; they are then shared.
        know_labels: whether the receiver knows the labels.
        bounds: lowest and highest input.

    Raises:
        DataError: for an empty batch, labels of another length or that are not classes of the model, or samples it does not take.
        UsageError: for local steps below 1 or a rate that is not above 0.
    """
    if not len(x) or len(x) != len(y):
        raise DataError(f"there are {len(x)} samples and {len(y)} labels", want="as many labels as samples, at least one")
    if local is not None:
        local.check()
    # The smallest batch: normalisation over a batch does not take every size.
    least = len(x) if local is None else min(len(range(len(x))[part]) for part in local.batches(len(x)))
    _refuse_misfits(module, x, y, training, least)
    parameters = {name: one.detach().requires_grad_() for name, one in module.named_parameters()}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with isolated(0), serving(module, training), watching(module, seen if training else None), torch.enable_grad():
        sent = simulate(module, parameters, x.detach(), y, local, differentiable=False)
    kept = {name: one.detach() for name, one in sent.items()}
    statistics = {name: (mean.detach(), variance.detach()) for name, (mean, variance) in seen.items()} if training else None
    labels = (y if y.ndim == 1 else y.argmax(1)).detach().clone() if know_labels else None
    return ClientUpdate(kept, tuple(x.shape[1:]), len(x), labels, bounds, local, training, statistics)


def _refuse_misfits(module: nn.Module, x: Tensor, y: Tensor, training: bool, least: int | None = None) -> None:
    if y.ndim == 1 and (y.is_floating_point() or int(y.min()) < 0):
        raise DataError(f"the labels have dtype {y.dtype}, the least is {float(y.min()):g}", want="class labels from 0 on")
    held = {name: one.clone() for name, one in (*module.named_parameters(), *module.named_buffers())}
    some = x[:least] if training else x[:1]
    try:
        with isolated(0, x.device), serving(module, training), torch.no_grad():
            told = functional_call(module, held, (some,))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        count = f"{len(some)} " if training else ""
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the model refuses {count}samples of shape {tuple(x.shape[1:])} ({why})",
            want="samples as the model takes them, on its device and of its dtype",
        ) from error
    classes = told.shape[1] if isinstance(told, Tensor) and told.ndim == 2 else 0
    if classes and (int(y.max()) >= classes if y.ndim == 1 else y.shape[1] != classes):
        raise DataError(f"labels of shape {tuple(y.shape)} reach {float(y.max()):g}", want=f"those of {classes} classes")


def simulate(
    module: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, local: LocalSteps | None, *,
    differentiable: bool = True,
) -> dict[str, Tensor]:
    """Return what a client with samples x, (n, ...), and labels y, (n,) or (n, classes), would send, differentiable in both."""
    buffers = {name: one.clone() for name, one in module.named_buffers()}  # batch normalisation writes into its own
    names, weights = list(parameters), list(parameters.values())
    for part in [slice(None)] if local is None else local.batches(len(x)):
        logits = functional_call(module, {**dict(zip(names, weights, strict=True)), **buffers}, (x[part],))
        loss = functional.cross_entropy(logits, y[part])
        slopes = torch.autograd.grad(loss, weights, create_graph=differentiable, materialize_grads=True)
        if local is None:
            return dict(zip(names, slopes, strict=True))
        weights = [one - local.lr * slope for one, slope in zip(weights, slopes, strict=True)]
        if not differentiable:
            weights = [one.detach().requires_grad_() for one in weights]
    return {name: one - parameters[name] for name, one in zip(names, weights, strict=True)}


@contextlib.contextmanager
def serving(module: nn.Module, training: bool) -> Iterator[None]:
    """Put the module in evaluation mode for the block; with `training`, batch normalisation uses the batch's statistics."""
    with evaluating(module):
        changed = [part for part in module.modules() if training and isinstance(part, _BatchNorm) and not part.training]
        for part in changed:
            part.training = True
        try:
            yield
        finally:
            for part in changed:
                part.training = False


@contextlib.contextmanager
def watching(module: nn.Module, seen: dict[str, tuple[Tensor, Tensor]] | None) -> Iterator[None]:
    """Keep mean and variance, each (channels,), of what enters each batch normalisation in `seen`; None keeps nothing."""
    handles = []
    for name, part in module.named_modules():
        if seen is not None and isinstance(part, _BatchNorm):

            def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                over = [axis for axis in range(inputs[0].ndim) if axis != 1]
                variance, mean = torch.var_mean(inputs[0], over, correction=0)
                seen.setdefault(name, (mean, variance))

            handles.append(part.register_forward_pre_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def widened(module: nn.Module) -> nn.Module:
    """Return the module, or where it has less than single precision a copy that has it: a search's small steps need that."""
    if all(torch.finfo(one.dtype).bits >= 32 for one in module.parameters() if one.is_floating_point()):
        return module
    return copy.deepcopy(module).float()


def as_updates(found: ClientUpdate | Sequence[ClientUpdate], module: nn.Module) -> list[ClientUpdate]:
    """Return the updates as a list, checked, all of one shape and number of samples."""
    updates = [found] if isinstance(found, ClientUpdate) else list(found)
    if not updates or not all(isinstance(one, ClientUpdate) for one in updates):
        raise DataError("the client updates are missing", want="a ClientUpdate, or several", fix="Make one: client_update(…)")
    for one in updates:
        one.check(module)
    kinds = {
        (one.shape, one.n, one.bounds, one.local, one.training, tuple(one.gradients), tuple(one.known.draws if one.known else ()))
        for one in updates
    }
    if len(kinds) > 1:
        raise DataError("updates differ in shape, samples, bounds, local steps, parameters or draws", want="updates of one kind")
    return updates
