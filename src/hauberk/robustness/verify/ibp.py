"""Interval bound propagation: boxes through the network, layer by layer."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _modules
from torch.nn.utils import parametrize

from hauberk.core.errors import DataError, ModelError
from hauberk.core.kinds import bound
from hauberk.core.threat import Threat
from hauberk.robustness.verify.interval import Box, double, error_share, push, unsupported

MODAL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@bound(
    question="For how many inputs is it proven that no allowed change alters the answer?",
    paper="Gowal et al. 2018, arXiv:1810.12715",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.M0003", "owasp:ML01", "nist:NISTAML.022"),
)
def ibp(module: nn.Module, x: Tensor, threat: Threat, *, labels: Tensor | None = None, batch_size: int = 128) -> Tensor:
    """Return lower bounds of logit_y - logit_j over all that the threat allows; all above zero is a proof of robustness.

    The bounds hold for the network as it runs: they are widened by its rounding. They are exact, up to that, for one linear layer
    in Linf. An L1 or L2 ball is enclosed in the Linf ball of its radius, an L0 ball in the bounds: sound, and loose.

    Arguments:
        module: `nn.Sequential` (nested is fine) of linear, convolution, batch norm, pooling and ReLU-like layers, as it is in
            evaluation mode, and in arithmetic of its own dtype (TF32 is coarser than float32). One output z is read as the
            two logits (0, z).
        x: clean inputs, shape (n, ...).
        threat: any norm; its bounds default to (0, 1). The goal does not matter.
        labels: the labels y to prove, shape (n,); None takes those the bounds favour at x itself.
        batch_size: samples at once.

    Returns:
        Shape (n, classes), float64; zero in the column of y.

    Raises:
        ModelError: for a layer without a rule, or one that hooks or its mode make do something else, by name.
        DataError: for labels that do not fit x, or that no output stands for.
    """
    layers, unit = _layers(module, "", module.training), _unit(module)
    place = next((value.device for value in module.parameters()), x.device)
    if labels is not None and labels.shape != x.shape[:1]:
        raise DataError(f"labels have shape {tuple(labels.shape)}", want=f"({len(x)},): one for each sample")
    if labels is not None and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise DataError(f"labels are of {labels.dtype}", want="whole numbers, one class for each sample")
    found = []
    for index in torch.arange(len(x), device=x.device).split(batch_size):
        part = x[index].to(place)
        low, high = _box(part, threat.subset(index, x))
        y = _favoured(layers, part, unit) if labels is None else labels[index.to(labels.device)].to(place)
        found.append(_margins(layers, Box(low, high, unit), y).to(x.device))
    if not found:
        return torch.zeros(0, 0, dtype=torch.float64, device=x.device)
    return torch.cat(found)


def certified(margins: Tensor, labels: Tensor) -> Tensor:
    """Return which samples are proven, shape (n,), bool, from `ibp(..., labels=labels)`: every other class stays below."""
    others = margins.scatter(1, labels[:, None], math.inf)
    # A NaN bound proves nothing: the comparison is false.
    return (others > 0).all(1)


def _margins(layers: list[tuple[str, nn.Module]], box: Box, y: Tensor) -> Tensor:
    """Push the box through all layers but the last linear one, and bound the differences of its outputs at once."""
    *body, (name, last) = layers
    for inner, layer in body:
        box = push(layer, box, inner)
    if type(last) is not nn.Linear:  # a subclass may do something else, and `push` refuses it
        box = _two(push(last, box, name), last, name)
        _known(y, box.low.shape[1])
        return (box.low.gather(1, y[:, None]) - box.high).scatter(1, y[:, None], 0.0)
    weight, bias = double(last.weight), double(last.bias)
    if box.low.ndim != 2:
        raise ModelError(f"the last layer is given shape {tuple(box.low.shape)}", want="(n, features)")
    if len(weight) == 1:
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = None if bias is None else torch.cat([torch.zeros_like(bias), bias])
    _known(y, len(weight))
    centre, radius, size = box.centre, box.radius, box.size
    own = weight[y]  # (n, width)
    base = (own * centre).sum(1, keepdim=True) - centre @ weight.T  # (n, classes)
    absolute = (own.abs() * size).sum(1, keepdim=True) + size @ weight.abs().T
    if bias is not None:
        base = base + bias[y][:, None] - bias
        absolute = absolute + bias[y].abs()[:, None] + bias.abs()
    # One class at a time: the tensor of all differences of weights would be (n, classes, width).
    spread = torch.stack([((own - row).abs() * radius).sum(1) for row in weight], 1)
    slack = error_share(last.in_features, box.unit) * absolute
    return (base - spread - slack).scatter(1, y[:, None], 0.0)


def _two(box: Box, last: nn.Module, name: str) -> Box:
    """Return the box of the logits, shape (n, classes): one column z becomes (0, z), as a Target reads it."""
    if box.low.ndim != 2 or not box.low.shape[1]:
        raise ModelError(f"the model returns shape {tuple(box.low.shape)}", want="(n, classes)")
    if box.low.shape[1] > 1:
        return box
    if isinstance(last, nn.Sigmoid):
        raise ModelError(f"the only output comes from a Sigmoid, '{name}'", want="a logit", fix="Leave the Sigmoid out")
    return box.to(*(torch.cat([torch.zeros_like(end), end], 1) for end in (box.low, box.high)))


def _known(y: Tensor, classes: int) -> None:
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise DataError(f"labels span {int(y.min())} to {int(y.max())}", want=f"0 to {classes - 1}, the outputs of the model")


def _box(x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return the ends of the smallest box that holds all allowed inputs, in float64."""
    flat = threat.within((0.0, 1.0))
    if flat.norm == "l0":
        flat = dataclasses.replace(flat, eps=torch.where(torch.as_tensor(flat.eps) >= 1, math.inf, 0.0))
    ball = dataclasses.replace(flat, norm="linf").around(x.detach())
    return ball.low.double(), ball.high.double()


def _favoured(layers: list[tuple[str, nn.Module]], x: Tensor, unit: float) -> Tensor:
    box = Box(x.detach().double(), x.detach().double(), unit)
    for name, layer in layers:
        box = push(layer, box, name)
    return _two(box, layers[-1][1], layers[-1][0]).centre.argmax(1)


def _layers(module: nn.Module, name: str, training: bool) -> list[tuple[str, nn.Module]]:
    """Return the layers of nested Sequentials in order, by name; a layer that stands twice comes twice.

    `training` is the mode of the whole: in evaluation mode, parts left in training mode stay so when the model answers.
    """
    _plain(module, name or type(module).__name__, training)
    if type(module) is nn.Sequential:
        # Not `named_children`, which leaves out a layer that stands there a second time.
        parts = [(f"{name}.{key}" if name else key, layer) for key, layer in module._modules.items() if layer is not None]
        inner = [_layers(layer, called, training) for called, layer in parts]
        flat = [one for part in inner for one in part]
        if not flat:
            raise ModelError("the model has no layers", want="at least one")
        return flat
    if list(module.children()):
        raise unsupported(module, name or type(module).__name__)
    return [(name or type(module).__name__, module)]


def _plain(layer: nn.Module, name: str, training: bool) -> None:
    """Raise ModelError where a layer does more, or something else, than its type says: its rule would prove a falsehood."""
    hooked = (layer._forward_hooks, layer._forward_pre_hooks, _modules._global_forward_hooks, _modules._global_forward_pre_hooks)
    why = ""
    if any(hooked):
        why = "has forward hooks"
    elif parametrize.is_parametrized(layer):
        why = "computes its weights by a parametrization"
    elif any(own in vars(layer) for own in ("forward", "_conv_forward", "_call_impl", "__call__")):
        why = "has a forward of its own"
    elif layer.training and not training and isinstance(layer, MODAL):
        why = "was left in training mode, and answers so"
    if why:
        raise ModelError(
            f"the layer '{name}' of type {type(layer).__name__} {why}", want="layers that do what their type says",
            fix="Remove hooks (torch.nn.utils.remove_weight_norm, prune.remove, parametrize.remove_parametrizations), "
            "and call model.eval()",
        )


def _unit(module: nn.Module) -> float:
    types = {value.dtype for value in module.parameters() if value.is_floating_point()} or {torch.float32}
    return max(torch.finfo(dtype).eps / 2 for dtype in types)
