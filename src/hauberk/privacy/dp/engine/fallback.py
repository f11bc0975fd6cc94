"""Operations without a rule: per-example gradients by torch.func, one operation at a time."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.engine.chunked import Chunked
from hauberk.privacy.dp.engine.parts import FIRST, Layout
from hauberk.privacy.dp.engine.per_example import KEEP, SCRATCH, Dense
from hauberk.privacy.dp.engine.registry import Gradients, tensors

if TYPE_CHECKING:
    from hauberk.privacy.dp.engine.intercept import Interceptor


def refuse(func: Any, why: str) -> ModelError:
    """The error for an operation that cannot be treated."""
    name = getattr(func, "__name__", str(func))
    return ModelError(
        f"per-example gradients cannot be taken through '{name}', which a trained parameter enters: {why}",
        want="an operation that keeps the examples apart along its first dimension",
        fix="Put a layer of torch.nn in its place, freeze the parameter, or give the operation a rule (treat); "
        "take penalties on weights out of the loss (the optimizer's weight_decay costs no privacy).",
    )


def in_place(func: Any, kwargs: Any) -> bool:
    """Whether an operation writes into its first argument, or into one given for its result."""
    name = getattr(func, "__name__", "")
    return name in _WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("out") is not None


_WRITES = {
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__", "__iand__",
    "__ior__", "__ixor__",
}


def fallback(state: Interceptor, func: Any, args: Any, kwargs: Any) -> Tensor:
    """Run any operation on each example by itself, in the backward pass, to give the gradients of what entered it.

    The first example, one in the middle and the last are run alone in the forward pass as well: an operation that then answers
    otherwise mixes the examples, or has them along another dimension, and is refused.
    """
    leaves, tree = pytree.tree_flatten((args, kwargs))
    own = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and id(leaf) in state.tracked]
    other = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and i not in own]
    batched = [i for i in other if state.is_data(leaves[i]) and leaves[i].dim() and len(leaves[i]) == state.batch]
    if len(own) != len({id(leaves[i]) for i in own}):
        raise refuse(func, "one parameter enters it twice")
    if not batched:
        raise refuse(func, f"no argument has the {state.batch} examples along its first dimension")
    fixed = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def call(values: dict[int, Tensor]) -> Tensor:
        args_, kwargs_ = pytree.tree_unflatten([values.get(i, leaf) for i, leaf in enumerate(fixed)], tree)
        return cast(Tensor, func(*args_, **kwargs_))

    versions = [leaves[i]._version for i in other]

    def run(inner: list[Tensor]) -> Tensor:
        out = call(dict(zip(other, inner, strict=True)))
        if not isinstance(out, Tensor) or not out.dim() or len(out) != state.batch:
            raise refuse(func, f"its result has not the {state.batch} examples along its first dimension")
        if [leaves[i]._version for i in other] != versions or [one._version for one in inner] != versions:
            raise refuse(func, "it changes its arguments in place")
        if state.batch:
            for row in sorted({0, state.batch // 2, state.batch - 1}):
                one = slice(row, row + 1)
                with torch.no_grad():
                    alone = call({i: fixed[i][one] for i in batched})
                if alone.shape != out[one].shape or not _near(alone, out[one]):
                    raise refuse(func, f"example {row} alone gives another result than in its batch")
        return out

    names = {str(i): leaves[i] for i in own}
    data = [fixed[i] for i in batched]

    def gradients(g: Tensor, layout: Layout) -> Gradients:
        if layout != FIRST:
            raise refuse(func, "the examples do not lie along its first dimension")
        parameters = [fixed[i] for i in own]
        places = torch.arange(len(g), device=g.device)

        def part(at: int, index: Tensor) -> Tensor:
            return _each(call, own, parameters, batched, [one[index] for one in data], g[index])[at]

        if len(g) * sum(p.nbytes for p in parameters) <= KEEP:
            values = _each(call, own, parameters, batched, data, g)
            return {str(i): functools.partial(Dense, value) for i, value in zip(own, values, strict=True)}
        return {
            str(i): functools.partial(Chunked, functools.partial(part, at), places, fixed[i].shape, fixed[i].new_empty(0))
            for at, i in enumerate(own)
        }

    return state.treat(getattr(func, "__name__", str(func)), run, [leaves[i] for i in other], names, gradients)


def _near(alone: Tensor, among: Tensor) -> bool:
    """Whether two results differ by rounding, of their greatest entry; in float64, where trials run, by next to nothing."""
    slack = {torch.float64: 1e-9, torch.float32: 1e-4 if among.device.type == "cpu" else 5e-3}.get(among.dtype, 0.02)
    among = among.detach()
    scale = among.abs().nan_to_num(posinf=0).amax() if among.numel() else 0.0
    near = (alone - among).abs() <= slack * scale
    return bool((near | (alone == among) | (alone.isnan() & among.isnan())).all())


def _each(
    call: Callable[[dict[int, Tensor]], Tensor], own: list[int], parameters: list[Tensor], batched: list[int], data: list[Tensor],
    g: Tensor,
) -> list[Tensor]:
    """Gradients of the parameters by example, by vmap over vjp; by a loop where vmap has no rule for the operation."""

    def one(gradient: Tensor, *example: Tensor) -> tuple[Tensor, ...]:
        def alone(*values: Tensor) -> Tensor:
            given = dict(zip(own, values, strict=True))
            given.update({i: row.unsqueeze(0) for i, row in zip(batched, example, strict=True)})
            return call(given).squeeze(0)

        return cast(tuple[Tensor, ...], torch.func.vjp(alone, *parameters)[1](gradient))

    if not len(g):
        return [p.new_zeros(0, *p.shape) for p in parameters]
    each = sum(p.numel() * p.element_size() for p in parameters)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # A slow batching rule is a right one.
            return list(torch.func.vmap(one, chunk_size=max(1, SCRATCH // max(each, 1)))(g, *data))
    except RuntimeError:
        found = []
        for row in range(len(g)):
            leaves = [p.detach().requires_grad_() for p in parameters]
            with torch.enable_grad():
                given = dict(zip(own, leaves, strict=True))
                given.update({i: x[row : row + 1] for i, x in zip(batched, data, strict=True)})
                out = call(given)
            found.append(torch.autograd.grad(out, leaves, g[row : row + 1], materialize_grads=True))
        return [torch.stack(rows) for rows in zip(*found, strict=True)]


def spread(state: Interceptor, func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Give each example its own copy of a parameter that is expanded over the batch, or None where it is not."""
    (own,) = [one for one in tensors((*args, *kwargs.values())) if id(one) in state.tracked]
    with torch.no_grad():
        out = func(*args, **kwargs)
    leading = own.dim() == out.dim()
    if len(out) != state.batch or (leading and len(own) != 1):
        return None
    shape = own.shape[1:] if leading else own.shape
    if state.batch and not bool((out[:1] == out).all()):
        return None
    if own.numel() and out.numel() and out[0].numel() % own.numel():
        return None
    if func is Tensor.repeat and out[0].numel() != own.numel():
        return None  # Copies within an example as well: left to the long way.

    def run(inner: list[Tensor]) -> Tensor:
        return cast(Tensor, func(*[one.detach() if isinstance(one, Tensor) else one for one in args], **kwargs)).clone()

    def gradients(g: Tensor, layout: Layout) -> Gradients:
        if layout != FIRST:
            raise refuse(func, "the examples do not lie along its first dimension")
        ones = (1,) * (g.dim() - 1 - len(shape))
        return {"0": lambda: Dense(g.sum_to_size(len(g), *ones, *shape).reshape(len(g), *own.shape))}

    return state.treat(getattr(func, "__name__", str(func)), run, [], {"0": own}, gradients)
