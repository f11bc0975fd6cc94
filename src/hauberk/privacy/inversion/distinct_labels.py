"""The labels of a batch in which every label is another, read off the most negative weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.labels import answering


@reconstruction(
    question="Does the gradient of a batch hand over its labels, when all are different?", tags=TAGS, preset="quick",
    paper="Yin et al. 2021, arXiv:2104.07586",
)
def distinct_labels(
    module: nn.Module, gradients: Mapping[str, Tensor], *, n: int = 1, layer: str | None = None
) -> Reconstruction:
    """Return the n classes whose rows of the last weight's gradient hold the most negative entries.

    Only a sample of its own class pushes an entry of a row below zero, where the features are not negative (after a ReLU).

    Arguments:
        module: the model; only its layout is read.
        gradients: by parameter name, of the mean cross-entropy of the batch.
        n: samples in the batch.
        layer: name of the output layer; None takes the last `nn.Linear` registered.

    Returns:
        `y` of shape (n,), ascending, and an empty `x` of shape (n, 0).

    Raises:
        ModelError: when the model has no such layer.
        DataError: when its gradient is missing.
        UsageError: for more samples than classes: two must then share a label (`label_counts`).
    """
    slope = answering(module, gradients, layer, "weight")
    assert slope is not None
    if len(slope) == 1:  # one output stands for two classes
        slope = torch.cat([-slope, slope])
    if not 1 <= n <= len(slope):
        raise UsageError(f"n is {n} with {len(slope)} classes", want="at most one sample per class", fix="Use label_counts")
    found = slope.amin(1).topk(n, largest=False).indices.sort().values
    return Reconstruction(torch.empty(n, 0, dtype=torch.float64), y=found)
