"""What the model says of the evaluation sample: asked once, read by every check of confidence, mistakes and groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.errors import AccessDenied
from hauberk.core.target import Target
from hauberk.core.threat import labels_of

_SIZES = {"quick": 1000, "standard": 5000, "thorough": 50_000}


@dataclasses.dataclass(frozen=True)
class Answers:
    """The model's answers to some test samples.

    Arguments:
        positions: of the samples in the test split, shape (n,).
        y, labels: true and predicted labels, shape (n,); -1 where the answer was NaN.
        logits: shape (n, classes), float64; None where the model shows labels alone.
    """

    positions: Tensor
    y: Tensor
    labels: Tensor
    logits: Tensor | None

    @property
    def probabilities(self) -> Tensor:
        """Class probabilities, shape (n, classes), float64."""
        assert self.logits is not None
        return self.logits.softmax(1)

    @property
    def correct(self) -> Tensor:
        """Which labels are right, shape (n,), bool."""
        return self.labels == self.y


def answers(context: Context) -> Answers:
    """Return the answers to the evaluation sample of the preset, at most 1,000, 5,000 or 50,000 test samples."""
    positions = context.positions(**_SIZES)
    return context.shared(("answers", len(positions)), lambda target: _ask(target, context, positions))


def scored(context: Context) -> tuple[Answers, Tensor]:
    """Return the answers and their logits, or end the check as not run: for regression, label-only models, broken logits."""
    context.need_classes()
    found = answers(context)
    if found.logits is None:
        raise NotRun("the model answers labels alone, which carry no confidence")
    if not bool(found.logits.isfinite().all()):
        raise NotRun("the model gives logits that are not finite, so its confidence has no meaning")
    return found, found.logits


def rng_of(context: Context, *names: object) -> np.random.Generator:
    """Return a NumPy generator derived from the seed, the check and the names."""
    from hauberk.core.rng import numpy_generator

    return numpy_generator(context.seed, context.card.name, *names)


def _ask(target: Target, context: Context, positions: Tensor) -> Answers:
    split, logits, labels = context.data.test, [], []
    scores = target.access >= Access.SCORE and target.outputs != "labels"
    for part in positions.split(target.batch_size):
        x = split.x.take(part)
        if scores:
            try:
                logits.append(target.logits(x).detach().cpu().double())
                continue
            except AccessDenied:  # only its first answer shows that it gives labels alone
                scores = False
        labels.append(target.labels(x).cpu())
    y = split.y[positions]
    if scores:
        joined = torch.cat(logits)
        labels_seen = labels_of(joined)
        broken = int((labels_seen < 0).sum())
        if broken:
            target.notice(f"the model answered NaN to {broken:,} of {len(y):,} evaluation samples: those count as wrong")
        return Answers(positions, y, labels_seen, joined)
    return Answers(positions, y, torch.cat(labels), None)
