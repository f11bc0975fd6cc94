"""How often each label is in a batch, from the size of its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.labels import answering


@reconstruction(
    question="Does the gradient of a batch hand over how often it holds each label?", tags=TAGS, preset="quick",
    paper="Wainakh et al. 2022, arXiv:2105.09369",
)
def label_counts(
    module: nn.Module, gradients: Mapping[str, Tensor], *, n: int = 1, probabilities: Tensor | None = None,
    layer: str | None = None,
) -> Reconstruction:
    """Return the labels of a batch, each as often as the gradient says.

    The gradient of the last bias is s (p - count / n), with p the mean probability of each class and s the scale it was sent at.
    A class whose entry is negative is in the batch; their sum gives s, and with p the counts, rounded so that they make n.
    Without a bias the row sums of the weight's gradient are read: the same where all features are of one size, close where none
    is negative (after a ReLU), and of little worth where many are.

    Arguments:
        module: the model; only its layout is read.
        gradients: by parameter name, of the mean cross-entropy of the batch.
        n: samples in the batch.
        probabilities: what the model answers on average on data like the client's, shape (classes,); None takes it to be equal,
            which holds before training.
        layer: name of the output layer; None takes the last `nn.Linear` registered.

    Returns:
        `y` of shape (n,), ascending, and an empty `x` of shape (n, 0).

    Raises:
        ModelError: when the model has no such layer.
        DataError: when its gradient is missing, or the probabilities are not those of its classes.
        UsageError: for n below 1.
    """
    if n < 1:
        raise UsageError(f"n is {n}", want="at least 1")
    slope = answering(module, gradients, layer, "bias")
    if slope is None:
        weight = answering(module, gradients, layer, "weight")
        assert weight is not None
        slope = weight.sum(1)
    if len(slope) == 1:  # one output stands for two classes: its gradient is p - y
        slope = torch.cat([-slope, slope])
    expected = torch.full_like(slope, 1 / len(slope)) if probabilities is None else probabilities.detach().to(slope)
    if expected.shape != slope.shape or bool((expected < 0).any()) or abs(float(expected.sum()) - 1) > 1e-3:
        raise DataError(f"probabilities have shape {tuple(expected.shape)}", want=f"({len(slope)},), not negative, of sum 1")
    slope = slope / slope.abs().max().clamp_min(torch.finfo(slope.dtype).tiny)
    there = slope < 0
    # Without a negative entry nothing is known but the most likely class.
    scale = -slope[there].sum() / (1 - expected[there].sum()).clamp_min(1e-6) if bool(there.any()) else slope.new_ones(())
    share = n * (expected - slope / scale)
    counts = torch.zeros_like(share)
    counts[slope.argsort()[: min(n, int(there.sum()))]] = 1  # surely there
    for _ in range(n - int(counts.sum())):
        counts[(share - counts).argmax()] += 1
    return Reconstruction(torch.empty(n, 0, dtype=torch.float64), y=torch.arange(len(counts)).repeat_interleave(counts.long()))
