"""Substitutes: a student of our own, taught by the answers of the model that is copied."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import DataError, ModelError
from hauberk.core.target import Target, as_target, evaluating
from hauberk.core.train import Schedule, fit


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How often a substitute agrees with the model it copies.

    Arguments:
        queries: answers it was taught with.
        agreed: whether both give the same label, shape (n,), bool.
        student: the substitute.
    """

    queries: int
    agreed: Tensor
    student: nn.Module


def substitute(
    target: Target | nn.Module, pool: Tensor, *, student: nn.Module | None = None, soft: bool = True, epochs: int = 30,
    seed: int = 0,
) -> nn.Module:
    """Train a student on the answers to `pool` and return it (Orekondy et al. 2019, arXiv:1812.02766).

    Arguments:
        target: with SCORE access for `soft`, else LABEL; one query per sample of the pool.
        pool: unlabelled inputs of the adversary, shape (n, ...).
        student: trained in place; None makes a small network for images (n, channels, height, width), else a perceptron.
        soft: learn from scores, else from labels alone.
        epochs: of training.
        seed: of the student and the order of its samples.

    Returns:
        The student, in evaluation mode.

    Raises:
        AccessDenied: below the access that `soft` needs.
        DataError: for an empty pool.
    """
    view = as_target(target)
    view.need(Access.SCORE if soft else Access.LABEL, "a substitute")
    if not len(pool):
        raise DataError("the pool is empty", want="at least one input to ask about")
    answers = (view.scores(pool).float() if soft else view.labels(pool)).cpu()
    told = answers.isfinite().all(1) if soft else answers >= 0  # an answer of NaN teaches nothing
    if not bool(told.any()):
        raise ModelError("the model answered NaN to the whole pool", want="finite scores", fix="Mend the model")
    pool, answers = pool[told.to(pool.device)], answers[told]
    # Labels do not say how many classes there are: a student of ours knows those it was told of.
    classes = answers.shape[1] if soft else int(answers.max()) + 1
    learner = student if student is not None else _student(pool, classes, seed)

    def imitate(model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        wanted, logits = answers.to(x.device)[index.to(x.device)], model(x)
        return nn.functional.cross_entropy(logits, wanted.to(logits.dtype) if soft else wanted)

    steps = math.ceil(len(pool) / 32)
    # Few answers make few steps an epoch: small pools are read more often, so that every student has learnt what it was told.
    rounds = epochs * max(1, 16 // steps)
    optimizer = torch.optim.Adam(learner.parameters(), lr=2e-3)
    fit(learner, Split(_for(learner, pool), torch.arange(len(pool))), loss=imitate, optimizer=optimizer,
        schedule=Schedule(epochs=rounds, batch_size=32, seed=seed))
    return learner


def fidelity_curve(
    target: Target | nn.Module, pool: Tensor, test: Tensor, *, budgets: Sequence[int], soft: bool = True, epochs: int = 30,
    seed: int = 0,
) -> list[Fidelity]:
    """Return the agreement of substitutes with the target at each query budget.

    Arguments:
        target: with SCORE access for `soft`, else LABEL.
        pool: inputs of the adversary, shape (n, ...), asked in this order.
        test: inputs that the agreement is measured on; none of the pool, shape (m, ...).
        budgets: rising numbers of queries; those beyond the pool are left out.
        soft, epochs, seed: as in `substitute`.

    Returns:
        One entry per budget. The queries of smaller budgets are the beginning of larger ones; each is counted anew in the ledger.
    """
    view = as_target(target)
    truth = view.labels(test).cpu()
    found = []
    for budget in budgets:
        if budget > len(pool):
            continue
        learner = substitute(view, pool[:budget], soft=soft, epochs=epochs, seed=seed)
        with torch.no_grad(), evaluating(learner):
            guess = torch.cat([learner(_for(learner, part)).argmax(1).cpu() for part in test.split(512)])
        found.append(Fidelity(budget, guess == truth, learner))
    return found


def _for(learner: nn.Module, x: Tensor) -> Tensor:
    """Return x as the student takes it: our data may be of another precision than its weights."""
    weight = next((one for one in learner.parameters() if one.is_floating_point()), None)
    return x.cpu().float() if weight is None else x.to(weight.device, weight.dtype)


def _student(pool: Tensor, classes: int, seed: int) -> nn.Module:
    """A network that learns small tasks in seconds, standardised by the pool."""
    pool = pool.float()
    mean, std = float(pool.mean()), float(pool.std()) if len(pool) > 1 else 1.0
    with rng.isolated(rng.derive_seed(seed, "student")):
        if pool.ndim == 4 and min(pool.shape[2:]) >= 4:
            return nn.Sequential(
                _Standardise(mean, std), nn.Conv2d(pool.shape[1], 16, 3, padding=1), nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                nn.Linear(512, classes),
            )
        width = math.prod(pool.shape[1:])
        centre, scale = pool.flatten(1).mean(0), pool.flatten(1).std(0) if len(pool) > 1 else torch.ones(width)
        return nn.Sequential(
            nn.Flatten(), _Standardise(centre, scale), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
            nn.Linear(128, classes),
        )


class _Standardise(nn.Module):
    def __init__(self, mean: float | Tensor, std: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).float().cpu())
        self.register_buffer("std", torch.as_tensor(std).float().cpu().clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("mean")) / self.get_buffer("std")
