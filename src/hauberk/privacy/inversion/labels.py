"""The gradient that names labels: of the layer that answers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, ModelError
from hauberk.privacy.inversion.client import ClientUpdate
from hauberk.privacy.inversion.first_linear import linear_layers, read


def answering(module: nn.Module, gradients: Mapping[str, Tensor], layer: str | None, kind: str) -> Tensor | None:
    """Return the gradient of the answering layer's weight, (classes, features), or bias, (classes,); None where it has no such.

    Arguments:
        module: only its layout is read.
        gradients: by parameter name.
        layer: name of the layer; None takes the last `nn.Linear` registered.
        kind: `weight` or `bias`.

    Raises:
        ModelError: when there is no such layer.
        DataError: when its gradient is missing, of another shape, not finite, or zero: then nothing names a label.
    """
    known = linear_layers(module)
    if not known or (layer is not None and layer not in known):
        raise ModelError(f"there is no linear layer '{layer or ''}'", want="a model with a linear output layer")
    name = list(known)[-1] if layer is None else layer
    if getattr(known[name], kind) is None:
        return None
    slope = read(gradients, f"{name}.{kind}" if name else kind, getattr(known[name], kind))
    if not bool(slope.any()):
        raise DataError(f"the gradient of '{name}' is zero", want="a gradient that says something", fix="Choose another sample")
    return slope


def width_of(module: nn.Module) -> int:
    """Return the number of classes: the outputs of the last linear layer registered, else the length of the last parameter."""
    known = linear_layers(module)
    return list(known.values())[-1].out_features if known else len(list(module.parameters())[-1])


def labels_of(module: nn.Module, update: ClientUpdate) -> Tensor:
    """Return the labels of an update, shape (n,): those known, else those that its gradients give away.

    Known label probabilities are returned as logits, (n, classes), of which they are the softmax.
    """
    if update.labels is not None:
        soft = update.labels.detach()
        return soft.long() if soft.ndim == 1 else soft.clamp_min(torch.finfo(soft.dtype).tiny).log()
    from hauberk.privacy.inversion.idlg import idlg
    from hauberk.privacy.inversion.label_counts import label_counts

    # A change of the weights points the other way.
    turned = update.gradients if update.local is None else {name: -one for name, one in update.gradients.items()}
    found = idlg(module, turned).y if update.n == 1 else label_counts(module, turned, n=update.n).y
    assert isinstance(found, torch.Tensor)
    return found


def hard(labels: Tensor) -> Tensor:
    """Return labels (n,) of labels (n,) or of their logits (n, classes)."""
    return labels if labels.ndim == 1 else labels.argmax(1)
