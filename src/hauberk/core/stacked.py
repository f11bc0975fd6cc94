"""Many models of one architecture trained side by side: their weights are stacked, and one pass serves them all."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from hauberk.core import perceptrons, progress, rng
from hauberk.core.adam import FusedAdam
from hauberk.core.errors import DataError, UsageError
from hauberk.core.predictors import evaluating
from hauberk.core.train import Schedule, class_logits

CACHE = 12 * 2**20  # bytes of weights, gradients and moments of the models that are trained at once: what stays in the cache
PLAIN = Schedule()


@dataclasses.dataclass(frozen=True)
class Batch:
    """What each of k models sees in one step: records at `rows` (k, b), labels (k, b), weights (k, b) that sum to 1."""

    rows: Tensor
    y: Tensor
    weights: Tensor


class Shelf(Protocol):
    """Keeps models that are trained, by their number."""

    def take(self, number: int, model: nn.Module) -> bool:
        """Give the model the weights kept under the number; return whether there are any."""
        ...

    def keep(self, number: int, model: nn.Module) -> None:
        """Keep the weights of a model."""
        ...


def fit_stacked(
    models: Sequence[nn.Module], x: Tensor, y: Tensor, index: Sequence[Tensor], *, schedule: Schedule = PLAIN,
    lr: float = 1e-3, batched: bool = True, shelf: Shelf | None = None,
) -> None:
    """Train models of one architecture in place, each on its own records, with cross-entropy and Adam.

    Each model draws its own order of its own records, so that what it becomes depends neither on its neighbours nor on how many
    of them are trained at once. Models whose state stays in the cache together are trained together.

    Arguments:
        models: k modules of the same layout, each with weights of its own; left in evaluation mode.
        x, y: all records, shapes (n, ...) and (n,).
        index: for each model the positions of its records.
        schedule: epochs, batch size and seed; it stops early and keeps checkpoints for one model alone, so neither is taken.
        lr: rate of Adam.
        batched: False trains them one after another, as is done by itself where the layers cannot be stacked.
        shelf: where finished models are put; those that lie there are not trained again.

    Raises:
        UsageError: for a schedule with patience, validation or checkpoint, or a rate that is not above 0.
        DataError: for a model without records, or a loss that is not finite.
    """
    refuse_unfit(models, index, schedule, lr)
    if not models:
        return
    sparse = perceptrons.Sparse.of(x) if all(perceptrons.plain(one) for one in models) else None
    together = width(models) if batched and _stackable(models, x, y) else 1
    left = [k for k, one in enumerate(models) if shelf is None or not shelf.take(k, one)]
    steps = {k: -(-len(index[k]) // schedule.batch_size) for k in left}
    for group in progress.track(_groups(steps, together), f"{len(left)} models, {together} at once"):
        fit_group([models[k] for k in group], x, y, [index[k] for k in group], numbers=group, schedule=schedule, lr=lr,
                  sparse=sparse)
        if shelf is not None:
            for k in group:
                shelf.keep(k, models[k])


def refuse_unfit(models: Sequence[nn.Module], index: Sequence[Tensor], schedule: Schedule, lr: float) -> None:
    """Raise UsageError or DataError for what `fit_stacked` cannot train."""
    if not 0 < lr < math.inf:
        raise UsageError(f"the learning rate is {lr}", want="a number above 0")
    if schedule.patience is not None or schedule.validation is not None or schedule.checkpoint is not None:
        raise UsageError("the schedule stops early or keeps a checkpoint", want="epochs, batch_size and seed alone")
    if len(index) != len(models) or any(not len(one) for one in index):
        raise DataError(f"{len(models)} models get {[len(one) for one in index]} records", want="at least one each")
    for k, one in enumerate(models):
        if not any(weight.requires_grad for weight in one.parameters()):
            raise UsageError(f"model {k} has no weights to train", want="a module with parameters that ask for gradients")


def one_at_a_time(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> bool:
    """Whether models are trained one by one: their layers cannot be stacked, or two are too large to stay in the cache."""
    return len(models) < 2 or width(models) == 1 or not _stackable(models, x, y)


def fit_group(
    models: list[nn.Module], x: Tensor, y: Tensor, index: list[Tensor], *, numbers: list[int], schedule: Schedule, lr: float,
    sparse: perceptrons.Sparse | None,
) -> None:
    """Train models side by side, see `fit_stacked`; what they draw depends on their numbers and the schedule's seed alone."""
    with rng.isolated(rng.derive_seed(schedule.seed, "stacked", *numbers), x.device):
        quick = perceptrons.stack(models, x, sparse)
        learner = quick or (_Stack(models, x) if len(models) > 1 else _Alone(models[0], x))
        _fit(learner, y, index, numbers, schedule, lr)
    for number, one in zip(numbers, models, strict=True):
        one.eval()
        if not all(bool(weight.isfinite().all()) for weight in one.parameters()):
            raise DataError(f"training of model {number} ended in weights that are not finite", fix="Lower the learning rate")


def _groups(steps: dict[int, int], together: int) -> list[list[int]]:
    """Return which models are trained at once: at most so many, all of as many steps an epoch; `steps` is by number.

    A model that waits for others to finish their epoch would take steps of its own momentum.
    """
    alike = [[k for k, count in steps.items() if count == one] for one in dict.fromkeys(steps.values())]
    return [one[first : first + together] for one in alike for first in range(0, len(one), together)]


def width(models: Sequence[nn.Module]) -> int:
    """Return how many of the models are trained at once."""
    held = sum(one.numel() * one.element_size() for one in models[0].parameters())
    return max(1, min(len(models), CACHE // max(1, 4 * held)))


def logits_of(models: Sequence[nn.Module], x: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Return what each model answers to x in evaluation mode, shape (k, n, classes)."""
    answers = []
    with torch.no_grad():
        for one in models:
            held = next(iter(one.parameters()), x)
            with evaluating(one):
                parts = [class_logits(one(part.to(held.device, held.dtype))) for part in x.split(batch_size)]
                answers.append(torch.cat(parts).to(x.device))
    return torch.stack(answers)


def _fit(
    learner: _Stack | _Alone | perceptrons.Stacked, y: Tensor, index: list[Tensor], numbers: list[int], schedule: Schedule,
    lr: float,
) -> None:
    parameters = learner.parameters
    optimizer = FusedAdam(parameters, lr=lr)
    longest = max(len(rows) for rows in index)
    size = _batch_size(learner, longest, schedule.batch_size)
    weights = [part.to(parameters[0]) for part in _weights([len(rows) for rows in index], size)]
    for epoch in range(schedule.epochs):
        orders = [_shuffled(rows, schedule.seed, number, epoch) for rows, number in zip(index, numbers, strict=True)]
        # Shorter orders are filled up with a record of theirs.
        order = torch.stack([torch.cat([one, one[:1].expand(longest - len(one))]) for one in orders])
        for rows, labels, part in zip(
            order.split(size, 1), y[order].split(size, 1), weights, strict=True
        ):
            learner.backward(Batch(rows, labels, part))
            optimizer.step()
    learner.give_back()


def _batch_size(learner: _Stack | _Alone | perceptrons.Stacked, n: int, size: int) -> int:
    """Return the size, or the next one that leaves no batch of a single record where layers normalise over the batch."""
    module = getattr(learner, "base", getattr(learner, "model", None))
    over_batch = module is not None and any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in module.modules())
    while over_batch and 1 < size < n and n % size == 1:
        size += 1
    return size


def _shuffled(rows: Tensor, seed: int, number: int, epoch: int) -> Tensor:
    order = torch.randperm(len(rows), generator=rng.generator(seed, "stacked order", number, epoch))
    return rows[order.to(rows.device)]


def _weights(lengths: list[int], size: int) -> list[Tensor]:
    """Return what each record counts for, (k, b) by step: equal shares of its batch, 0 for what fills a shorter order up."""
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return [part / part.sum(1, keepdim=True).clamp(min=1) for part in there.split(size, 1)]


def _loss(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (functional.cross_entropy(class_logits(logits), y, reduction="none") * weights).sum()


class _Stack:
    """Any architecture, by vmap over stacked parameters and buffers."""

    def __init__(self, models: list[nn.Module], x: Tensor) -> None:
        self.models, self.x = models, x
        for one in models:
            one.train()
        parameters, self.buffers = stack_module_state(models)
        self.trained = {name: value.detach().requires_grad_(value.requires_grad) for name, value in parameters.items()}
        self.base = copy.deepcopy(models[0])
        self.parameters = [one for one in self.trained.values() if one.requires_grad]

    def backward(self, batch: Batch) -> None:
        """Leave the gradient of each model's mean loss."""
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            return _loss(functional_call(self.base, (parameters, buffers), (x,)), y, w)

        losses = vmap(one, randomness="different")(self.trained, self.buffers, self.x[batch.rows], batch.y, batch.weights)
        found = torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = None if gradient is None else gradient.contiguous()

    def give_back(self) -> None:
        """Write the weights and buffers into the models they came from."""
        with torch.no_grad():
            for k, model in enumerate(self.models):
                own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
                for name, stacked in {**self.trained, **self.buffers}.items():
                    own[name].copy_(stacked[k])


class _Alone:
    """One model at a time, for layers that cannot be stacked."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model.train(), x
        self.parameters = [one for one in model.parameters() if one.requires_grad]

    def backward(self, batch: Batch) -> None:
        """Leave the gradient of the mean loss."""
        x, y, weights = self.x[batch.rows[0]], batch.y[0], batch.weights[0]
        found = torch.autograd.grad(_loss(self.model(x), y, weights), self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient

    def give_back(self) -> None:
        """Leave no gradient behind."""
        for one in self.parameters:
            one.grad = None


def _stackable(models: Sequence[nn.Module], x: Tensor, y: Tensor) -> bool:
    """Whether one step of two stacked copies works: layers with rules of their own, or that branch on values, do not."""
    layout = [(name, tuple(one.shape)) for name, one in models[0].named_parameters()]
    if any([(name, tuple(one.shape)) for name, one in model.named_parameters()] != layout for model in models[1:]):
        raise UsageError("the models differ in their layers", want="models of one architecture")
    if len(models) < 2 or perceptrons.plain(models[0]):
        return True
    pair = [copy.deepcopy(one) for one in models[:2]]
    rows = torch.arange(min(2, len(x)), device=x.device).expand(2, -1)
    weights = torch.full(rows.shape, 1 / rows.shape[1], device=x.device)
    try:
        with warnings.catch_warnings(), rng.isolated(0, x.device):
            warnings.simplefilter("ignore")  # torch tells where it has no batching rule; then it is slow, and right
            _Stack(pair, x).backward(Batch(rows, y[rows], weights.to(x)))
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True
