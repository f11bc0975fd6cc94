"""The label of a sample, read off the sign of its gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, ModelError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.first_linear import TAGS, linear_layers


@reconstruction(
    question="Does the gradient of one sample hand over its label?", tags=TAGS, preset="quick",
    paper="Zhao et al. 2020, arXiv:2001.02610",
)
def idlg(module: nn.Module, gradients: Mapping[str, Tensor], *, layer: str | None = None) -> Reconstruction:
    """Return the label of the one sample behind a cross-entropy gradient.

    The gradient of the last bias is softmax(z) - onehot(y): it is negative at the label and nowhere else. Without a bias the row
    sums of the weight's gradient are read, which have the same signs where the features are not negative (after a ReLU).

    Arguments:
        module: the model; only its layout is read.
        gradients: by parameter name, as `named_parameters` calls them.
        layer: name of the output layer; None takes the last `nn.Linear` registered.

    Returns:
        `y` of shape (1,), and an empty `x` of shape (1, 0): no input is recovered.

    Raises:
        ModelError: when the model has no such layer.
        DataError: when its gradient is not given.
    """
    known = linear_layers(module)
    if not known or (layer is not None and layer not in known):
        raise ModelError(f"there is no linear layer '{layer or ''}'", want="a model with a linear output layer")
    name = list(known)[-1] if layer is None else layer
    key = ".".join(part for part in (name, "weight" if known[name].bias is None else "bias") if part)
    if key not in gradients:
        raise DataError(f"the gradient of '{key}' is missing", want="one gradient per parameter name")
    slope = gradients[key].detach().double()
    slope = slope.sum(1) if slope.ndim == 2 else slope
    # One output stands for two classes: its gradient is p - y.
    label = (slope < 0).long() if len(slope) == 1 else slope.argmin()[None]
    return Reconstruction(torch.empty(1, 0, dtype=torch.float64), y=label)
