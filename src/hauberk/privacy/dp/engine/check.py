"""Which layers cannot be trained with per-example clipping, and the rewriter to GroupNorm."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from hauberk.core.errors import ModelError

GROUPS = 32  # Wu and He, "Group Normalization" (ECCV 2018).


def check_model(model: nn.Module) -> None:
    """Refuse a model with layers that mix the examples of a batch or learn past the gradient, naming each with its replacement.

    What a forward pass alone can show (an operation across examples, a parameter changed in place) is refused by `record`.

    Arguments:
        model: any module.

    Raises:
        ModelError: with every such layer, by name.
    """
    faults = [(name or "the model", type(layer).__name__, _fault(layer)) for name, layer in model.named_modules()]
    found = [f"{name} ({kind}): {why}" for name, kind, why in faults if why]
    if found:
        raise ModelError(
            "per-example gradients do not exist or would not be the whole of what is learnt. " + "; ".join(found),
            want="layers that keep the examples of a batch apart and change by the optimizer alone",
            fix="Replace them; to_group_norm(model) returns a copy with the normalisations replaced.",
        )


def to_group_norm(model: nn.Module) -> nn.Module:
    """Return a copy of the model with GroupNorm for BatchNorm, and without the running statistics of InstanceNorm.

    The groups are the largest number up to 32 that divides the channels; scales and shifts are kept. Train it anew: what a
    layer saw with batch statistics differs.

    Arguments:
        model: any module; it is not changed.

    Returns:
        A model that `check_model` has no normalisation to refuse in.
    """
    made: nn.Module = copy.deepcopy(model)
    replaced: dict[int, nn.Module] = {}
    for parent in list(made.modules()):
        for name, layer in list(parent._modules.items()):
            if layer is not None and (_batch_norm(layer) or _running(layer)):
                setattr(parent, name, replaced.setdefault(id(layer), _replacement(layer)))
    return _replacement(made) if _batch_norm(made) or _running(made) else made


def _batch_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and not isinstance(layer, _InstanceNorm)


def _running(layer: nn.Module) -> bool:
    return isinstance(layer, _InstanceNorm) and layer.track_running_stats


def _replacement(layer: Any) -> nn.Module:
    if _running(layer):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        return layer
    channels = layer.num_features
    groups = max(n for n in range(1, min(GROUPS, channels) + 1) if channels % n == 0)
    norm = nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        norm.weight, norm.bias = layer.weight, layer.bias
    return norm.train(layer.training)


def _fault(layer: nn.Module) -> str:
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        return "has no parameters yet; run one forward pass first"
    if _batch_norm(layer):
        return "mixes the examples of a batch; use GroupNorm (to_group_norm)"
    if _running(layer):
        return "keeps running statistics; build it with track_running_stats=False (to_group_norm)"
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        if layer.max_norm is not None:
            return "changes its parameters in place (max_norm); build it with max_norm=None"
        if layer.scale_grad_by_freq:
            return "scales gradients by frequencies in the batch; build it with scale_grad_by_freq=False"
        if layer.sparse:
            return "gives sparse gradients, which noise would fill; build it with sparse=False"
    return ""
