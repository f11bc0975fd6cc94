"""The exact input of a linear layer, read off the gradient of one sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, ModelError, nearest
from hauberk.core.kinds import Reconstruction, reconstruction

TAGS = ("aisec:data-recovery-in-gradient", "atlas:AML.T0024.001", "owasp:ML03", "nist:NISTAML.032")


@reconstruction(
    question="Does the gradient of one sample hand over what entered the first linear layer?", tags=TAGS, preset="quick",
    paper="Phong et al. 2018, IEEE TIFS 13(5); Geiping et al. 2020, arXiv:2003.14053",
)
def first_linear_layer(
    module: nn.Module, gradients: Mapping[str, Tensor], *, layer: str | None = None
) -> Reconstruction:
    """Return the input of a linear layer from the gradient of a batch of one, without any search.

    With z = W x + b the gradients are dW = g x' and db = g, so that x = dW' db / (db' db): a least-squares average of the rows of
    dW over the entries of db.

    Arguments:
        module: the model; only its layout is read.
        gradients: by parameter name, as `named_parameters` calls them.
        layer: name of an `nn.Linear` with a bias; None takes the first one registered.

    Returns:
        `x` of shape (1, in_features), float64: what entered the layer, which is the sample itself only where nothing but
        flattening comes before it; not finite where the gradient vanished. `loss` of shape (1,): the share of dW that one sample
        does not explain; far from 0 when the gradient is of several samples or positions.

    Raises:
        ModelError: when there is no such layer, or it has no bias.
        DataError: when its gradients are not given, or not finite.
    """
    name = first_linear(module) if layer is None else layer
    bias, weight = (_gradient(module, gradients, name, part) for part in ("bias", "weight"))
    size = bias.abs().max()
    # A converged model's gradients are tiny: scale first, or their squares underflow.
    scaled, rows = bias / size, weight / size
    x = (rows.T @ scaled) / scaled.square().sum()  # (in_features,)
    explained = torch.outer(scaled, x)
    loss = (rows - explained).norm() / rows.norm()
    return Reconstruction(x[None], loss=loss[None])


def first_linear(module: nn.Module) -> str:
    """Return the name of the first `nn.Linear` in order of registration. Raises ModelError when there is none."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            return name
    raise ModelError("the model has no nn.Linear layer", want="a linear layer", fix="Name the layer to read")


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers by name, in order of registration."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}


def _gradient(module: nn.Module, gradients: Mapping[str, Tensor], layer: str, part: str) -> Tensor:
    known = linear_layers(module)
    if layer not in known:
        raise ModelError(f"there is no linear layer '{layer}'", want="an nn.Linear", fix=nearest(layer, list(known)))
    if getattr(known[layer], part) is None:
        raise ModelError(f"layer '{layer}' has no {part}", want="a linear layer with a bias", fix="Name another layer")
    return read(gradients, f"{layer}.{part}" if layer else part, getattr(known[layer], part))


def read(gradients: Mapping[str, Tensor], key: str, parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter in double precision.

    Raises:
        DataError: when it is missing, no tensor of the parameter's shape, or not finite.
    """
    if key not in gradients or gradients[key] is None:
        raise DataError(f"the gradient of '{key}' is missing", want="one gradient per parameter name")
    one = gradients[key]
    if not isinstance(one, Tensor) or one.shape != parameter.shape:
        got = f"has shape {tuple(one.shape)}" if isinstance(one, Tensor) else f"is of type {type(one).__name__}"
        raise DataError(f"the gradient of '{key}' {got}", want=f"{tuple(parameter.shape)}, the shape of the parameter")
    if not bool(one.isfinite().all()):
        raise DataError(f"the gradient of '{key}' is not finite", want="finite gradients")
    return one.detach().double()
