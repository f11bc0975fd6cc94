"""How good the model is before anyone disturbs it."""

from __future__ import annotations

import torch

from hauberk.checks.context import Context
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Finding
from hauberk.core.kinds import check
from hauberk.core.target import Target


@check(
    "robustness/clean-accuracy", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.8, fail=0.5,
    question="How often is the model right on undisturbed test data?", tags=("aisec:model-misjudgment", "nist:NISTAML.02"),
    advice=(Advice("Train longer or look at the data: no defence mends a model that is wrong on clean inputs"),),
)
def clean_accuracy(context: Context) -> Finding:
    """Accuracy on the whole test split."""
    context.need_classes()
    right = context.shared("clean correct", lambda target: correct(target, context))
    figure = context.rate(right)
    return context.finding(f"{figure['value']:.1%} of {figure['n']} test samples are classified correctly", **figure)


def correct(target: Target, context: Context) -> torch.Tensor:
    """Return which test samples are classified correctly, shape (n,), read batch by batch."""
    hits = [target.labels(x) == y for x, y in context.data.test.batches(target.batch_size)]
    return torch.cat(hits)
