"""How good the model is before anyone disturbs it."""

from __future__ import annotations

import torch

from hauberk.checks.context import Context
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Finding, Status
from hauberk.core.kinds import check
from hauberk.core.target import Target


@check(
    "robustness/clean-accuracy", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.8, fail=0.5,
    question="How often is the model right on undisturbed test data?", tags=("aisec:model-misjudgment", "nist:NISTAML.02"),
    advice=(
        Advice("Check that the trained weights were loaded (plan: model.weights) and that inputs are scaled as in training"),
        Advice("Train longer or look at the data: no defence mends a model that is wrong on clean inputs"),
    ),
)
def clean_accuracy(context: Context) -> Finding:
    """Accuracy on the whole test split, and whether it is better than naming the commonest class."""
    context.need_classes()
    right = context.shared("clean correct", lambda target: correct(target, context))
    figure = context.rate(right)
    commonest = float(context.data.test.y.bincount().max()) / len(right)
    told = f"{figure['value']:.1%} of {figure['n']} test samples are classified correctly"
    if context.data.test.y.unique().numel() > 1 and figure["interval"].low <= commonest:
        told += f"; always naming the commonest class would give {commonest:.1%}: the model is not surely better than that"
        return context.finding(told, status=Status.FAIL, **figure)
    return context.finding(told, **figure)


def correct(target: Target, context: Context) -> torch.Tensor:
    """Return which test samples are classified correctly, shape (n,), read batch by batch."""
    hits = [target.labels(x) == y for x, y in context.data.test.batches(target.batch_size)]
    return torch.cat(hits)
