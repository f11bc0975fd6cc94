"""The label of a sample, read off the sign of its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.labels import answering


@reconstruction(
    question="Does the gradient of one sample hand over its label?", tags=TAGS, preset="quick",
    paper="Zhao et al. 2020, arXiv:2001.02610",
)
def idlg(module: nn.Module, gradients: Mapping[str, Tensor], *, layer: str | None = None) -> Reconstruction:
    """Return the label of the one sample behind a cross-entropy gradient.

    The gradient of the last bias is softmax(z) - onehot(y): it is negative at the label and nowhere else. Without a bias the rows
    of the weight's gradient are read, the features times those numbers: the row of the label points away from all others. Where
    two classes alone have a gradient they point away from each other, and the label is the one that points away from features
    that are not negative (after a ReLU).

    Arguments:
        module: the model; only its layout is read.
        gradients: by parameter name, as `named_parameters` calls them.
        layer: name of the output layer; None takes the last `nn.Linear` registered.

    Returns:
        `y` of shape (1,), and an empty `x` of shape (1, 0): no input is recovered.

    Raises:
        ModelError: when the model has no such layer.
        DataError: when its gradient is not given, of another shape, not finite, or zero.
    """
    slope = answering(module, gradients, layer, "bias")
    if slope is None:
        weight = answering(module, gradients, layer, "weight")
        assert weight is not None
        slope = _along(weight)
    # One output stands for two classes: its gradient is p - y.
    label = (slope < 0).long() if len(slope) == 1 else slope.argmin()[None]
    return Reconstruction(torch.empty(1, 0, dtype=torch.float64), y=label)


def _along(rows: Tensor) -> Tensor:
    """Return the rows as multiples of the features behind them, (classes,), negative for one class where that can be told."""
    rows = rows / rows.abs().max()
    size = rows.norm(dim=1)
    slope = rows @ (rows[size.argmax()] / size.max())
    ahead, behind = int((slope > 0).sum()), int((slope < 0).sum())
    if ahead == 1 and behind > 1:
        return -slope
    return slope if behind == 1 and ahead > 1 else rows.sum(1)
