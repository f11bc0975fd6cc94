"""The oracle of the engine's tests: one backward pass for each example, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hauberk.privacy.dp.engine import record

Reduction = Literal["mean", "sum"]


def bent(out: Tensor, reduction: Reduction) -> Tensor:
    """A loss with a gradient that depends on every output: the mean or sum over examples of a bent sum."""
    each = (torch.sin(1.3 * out) + 0.3 * out**2).flatten(1).sum(1)
    return each.mean() if reduction == "mean" else each.sum()


def looped(model: nn.Module, x: Any, parameters: list[nn.Parameter], call: Callable[..., Tensor]) -> dict[nn.Parameter, Tensor]:
    """Per-example gradients, one example at a time."""
    found = []
    for i in range(len(x)):
        loss = bent(call(model, x[i : i + 1]), "sum")
        found.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    return {
        p: torch.stack([one[k] for one in found]) if found else p.new_zeros(0, *p.shape) for k, p in enumerate(parameters)
    }


def assert_equals_loop(
    model: nn.Module, x: Tensor, *, reduction: Reduction = "mean", norm: Literal["l1", "l2"] = "l2",
    dtype: torch.dtype = torch.float64, call: Callable[..., Tensor] = lambda model, x: model(x),
) -> None:
    """Norms and weighted sums equal the loop's: to 1e-10 in float64, 1e-4 in float32, relative to the greatest."""
    model = model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    truth = looped(model, x, parameters, call)
    with record(model, norm=norm) as tape:
        loss = bent(call(model, x), reduction)
    tape.backward(loss, reduction)
    assert tape.batch_size == len(x)
    weights = torch.linspace(0.1, 1, len(x), dtype=dtype)
    norms, sums = tape.norms(), tape.weighted(weights)
    bound = 1e-10 if dtype == torch.float64 else 1e-4
    order = 2 if norm == "l2" else 1
    for p, each in truth.items():
        wanted = torch.linalg.vector_norm(each.flatten(1), order, dim=1)
        assert norms[p].shape == (len(x),)
        assert sums[p].shape == p.shape and sums[p].dtype == p.dtype
        assert bool(_near(norms[p], wanted, bound).all())
        assert bool(_near(sums[p], torch.einsum("b,b...->...", weights, each), bound).all())
        assert p.grad is None
    tape.release()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def _near(got: Tensor, wanted: Tensor, bound: float) -> Tensor:
    greatest = float(wanted.abs().max()) if wanted.numel() else 0.0
    return (got - wanted).abs() <= bound * max(greatest, 1e-2)
