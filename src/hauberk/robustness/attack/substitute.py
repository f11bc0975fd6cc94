"""A substitute: a model of the adversary's own, trained on the answers of one it can only ask."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.access import Access
from hauberk.core.data import Split, TensorRows
from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Interval
from hauberk.core.rng import derive_seed
from hauberk.core.stats import wilson
from hauberk.core.target import Normalize, Target, as_target
from hauberk.core.threat import Bounds
from hauberk.core.train import Schedule, fit

_MOST = 10_000  # inputs, from which on augmentation stops


@dataclasses.dataclass
class Substitute:
    """A trained substitute and what it cost.

    Arguments:
        module: the model, which returns logits, in evaluation mode: any attack runs on it.
        queries: queries spent on the target, those of the held-out inputs included.
        agreement: share of held-out inputs that it gives the target's label.
        n: held-out inputs that the agreement was measured on.
        interval: of the agreement, 95 %.
    """

    module: nn.Module
    queries: int
    agreement: float
    n: int
    interval: Interval


def train_substitute(
    target: Target | nn.Module, x: Tensor, *, model: nn.Module | None = None, held_out: Tensor | None = None,
    scores: bool = False, rounds: int = 2, epochs: int = 15, seed: int = 0,
) -> Substitute:
    """Train a model on a target's answers, with Jacobian-based augmentation (Papernot et al. 2017, arXiv:1602.02697).

    Arguments:
        target: with LABEL access, or SCORE access for `scores`; one query per input and per augmented input.
        x: inputs that the adversary owns, shape (n, ...).
        model: the model to train, copied first; None takes a small CNN for images and a small MLP for other inputs.
        held_out: inputs to measure the agreement on, shape (m, ...), one query each; None keeps every fifth of x for that.
        scores: learn the class probabilities, and not the labels alone.
        rounds: rounds of augmentation, each of which doubles the inputs, up to 10,000.
        epochs: passes over the inputs in each round.
        seed: of weights and order.

    Returns:
        The substitute, its cost and its agreement with the target.

    Raises:
        AccessDenied: when the target grants less.
        DataError: when nothing can be learned: no inputs, or no answers but NaN.
    """
    if as_target(target).multi_label:
        raise UsageError("the target is a multi-label model", want="a model of classes that exclude each other")
    view = as_target(target).seen_at(Access.SCORE if scores else Access.LABEL)
    if held_out is None:
        kept = torch.arange(len(x), device=x.device) % 5 == 4
        x, held_out = x[~kept], x[kept]
    ask = view.scores if scores else view.labels
    ends = (min(float(x.min()), 0.0), max(float(x.max()), 1.0)) if len(x) else (0.0, 1.0)
    given = ask(x) if len(x) else torch.zeros(0, dtype=torch.long)
    if not bool(_readable(given).any()):
        raise DataError(f"none of {len(x)} answers can be learned from", want="inputs that the target answers")
    bounds = view.bounds if view.bounds is not None else ends
    schedule = Schedule(epochs=epochs, batch_size=64, seed=derive_seed(seed, "substitute"))
    with torch.inference_mode(False), torch.enable_grad():  # whatever block the caller is in
        made = taught(ask, x, given, model=model, classes=2, bounds=bounds, rounds=rounds, schedule=schedule)
    wanted = view.labels(held_out) if len(held_out) else torch.zeros(0, dtype=torch.long)
    n = int((wanted >= 0).sum())
    found = Target(made, outputs="logits").labels(held_out) if len(held_out) else wanted
    same = int(((found == wanted) & (wanted >= 0)).sum())
    return Substitute(made, view.ledger.queries, same / n if n else math.nan, n, wilson(same, n))


def taught(
    ask: Callable[[Tensor], Tensor], pool: Tensor, answers: Tensor, *, model: nn.Module | None, classes: int, bounds: Bounds,
    rounds: int, schedule: Schedule,
) -> nn.Module:
    """Return a model trained on the answers to the pool and to the inputs that augmentation adds to it.

    Arguments:
        ask: returns labels (n,), -1 for none, or class probabilities (n, classes).
        pool: inputs, shape (n, ...).
        answers: those to the pool, one of which can be read at least.
        model: copied first; None: the default one.
        classes: the fewest that the default model gets.
        bounds: of the inputs.
        rounds: rounds of augmentation.
        schedule: of the training in each round.

    Raises:
        DataError: when the given model has fewer classes than the answers.
    """
    dtype, readable = pool.dtype, _readable(answers)
    # Half types are for answering, not for training.
    pool = (pool if dtype in (torch.float32, torch.float64) else pool.float())[readable]
    answers = answers[readable].to(pool.device)
    low, high = (torch.as_tensor(end).to(pool) for end in bounds)
    reach = 0.1 * (pool.amax(0) - pool.amin(0))  # per feature
    made, width = (None, 0) if model is None else (copy.deepcopy(model).to(pool.device), _width(model, pool))
    for round_ in range(rounds + 1):
        seen = answers.shape[1] if answers.ndim == 2 else int(answers.max()) + 1
        if made is None or (model is None and seen > width):
            width = max(seen, classes)
            made = _fresh(pool, width, derive_seed(schedule.seed, "weights"))
        if seen > width:
            raise DataError(f"the substitute has {width} classes, the target {seen}", want="a model of as many classes")
        _learn(made, pool, answers, schedule)
        if round_ < rounds and len(pool) < _MOST:
            slope = _slope(made, pool, answers)
            grown = (pool + reach * slope.sign() * (1 if round_ % 2 == 0 else -1)).clamp(low, high)
            more = ask(grown.to(dtype)).to(pool.device)
            readable = _readable(more)
            pool, answers = torch.cat([pool, grown[readable]]), torch.cat([answers, more[readable]])
    assert made is not None
    return made


def _readable(answers: Tensor) -> Tensor:
    """Return which answers teach something, shape (n,): NaN does not."""
    return answers >= 0 if answers.ndim == 1 else answers.isfinite().all(1)


def _learn(model: nn.Module, pool: Tensor, answers: Tensor, schedule: Schedule) -> None:
    """Train on labels or on probabilities; the loop hands the positions of the samples to the loss."""

    def loss(model: nn.Module, x: Tensor, position: Tensor) -> Tensor:
        wanted = answers[position.to(answers.device)]
        logits: Tensor = model(x)
        return functional.cross_entropy(logits, wanted.to(logits) if wanted.ndim == 2 else wanted)

    # Sixteen steps an epoch at least, while there are samples for them: a few dozen inputs have to teach as well.
    size = min(schedule.batch_size, max(len(pool) // 16, 4))
    fit(
        model, Split(TensorRows(pool), torch.arange(len(pool))), loss=loss,
        schedule=dataclasses.replace(schedule, batch_size=size),
    )


def _width(model: nn.Module, pool: Tensor) -> int:
    return int(Target(copy.deepcopy(model).to(pool.device), outputs="logits").logits(pool[:1]).shape[1])


def _slope(model: nn.Module, x: Tensor, answers: Tensor) -> Tensor:
    """Return the gradient of the logit of each label, the row of the Jacobian that the paper follows."""
    labels = answers if answers.ndim == 1 else answers.argmax(1)
    parts = []
    for part, label in zip(x.split(256), labels.split(256), strict=True):
        start = part.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(start).gather(1, label[:, None]).sum(), start)
        parts.append(gradient)
    return torch.cat(parts)


def _fresh(pool: Tensor, classes: int, seed: int) -> nn.Module:
    """Return an untrained model, which standardises its inputs by the adversary's own."""
    others = [axis for axis in range(pool.ndim) if axis != 1]
    mean, std = pool.mean(others), pool.std(others, correction=0)
    width = pool.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if pool.ndim == 4:
            layers: list[nn.Module] = [
                nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, classes),
            ]
        else:
            wide = math.prod(pool.shape[1:])
            layers = [nn.Flatten(), nn.Linear(wide, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)]
    scale = Normalize(mean.tolist(), torch.where(std > 0, std, torch.ones_like(std)).tolist())
    return nn.Sequential(scale, *layers).to(pool.device, pool.dtype)
