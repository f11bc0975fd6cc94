"""Trial runs of a model on a few of its examples, in several orders.

Parameters, buffers and inputs are copied to float64, so that rounding hides no mixing; parameters that are all zero (a gate that
is still shut) get numbers. Drawn numbers are the same for every example. A model that does not run so runs as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.engine.parts import Layout, Parts, layout_of, parts

if TYPE_CHECKING:
    from hauberk.privacy.dp.engine.intercept import Use
    from hauberk.privacy.dp.engine.layout import Call


@dataclass
class Noted:
    """What is kept of an operation, or of an answer, in a trial.

    Arguments:
        name: of the operation.
        shape: of the result.
        layout: where the examples lie in it, by the first trial; None where that cannot be told.
        tracked: whether a parameter has part in it.
        result: its parts, None where they have another layout.
        data: those of what entered; None where the examples do not lie as in the result, or had another layout.
    """

    name: str
    shape: torch.Size
    layout: Layout | None
    tracked: bool
    result: Parts | None
    data: list[Parts | None] = field(default_factory=list)


@dataclass
class Seen:
    """What a trial run showed; takes a tape's place.

    Arguments:
        rows: the examples, in their order.
        wanted: the operations of the recorded call, whose shapes tell the layouts.
        batch: the examples of that call.
        first: the first trial, None for itself.
    """

    rows: list[int]
    wanted: Sequence[Use]
    batch: int
    first: Seen | None = None
    uses: list[Noted] = field(default_factory=list)
    answers: list[Noted] = field(default_factory=list)

    def used(self, use: Use, out: Tensor) -> None:
        """Note an operation, as it is now: it may be changed in place later."""
        at = len(self.uses)
        if at >= len(self.wanted):
            self.uses.append(Noted(use.name, out.shape, None, True, None))
            return
        met = self._noted(self.first.uses[at : at + 1] if self.first else None, use.name, self.wanted[at].shape, out)
        self.uses.append(met)
        if met.layout is None:
            return
        for which, (one, _) in enumerate(use.data):
            if self.first is None:
                given = self.wanted[at].data[which : which + 1]
                follows = bool(given) and met.layout.follows(given[0][0].shape, self.batch, one.shape, len(self.rows))
            else:
                follows = which < len(self.first.uses[at].data) and self.first.uses[at].data[which] is not None
            met.data.append(parts(one, self.rows, met.layout) if follows else None)

    def answered(self, shapes: Sequence[torch.Size], found: Sequence[Tensor]) -> None:
        """Note the model's answers."""
        for at, (shape, out) in enumerate(zip(shapes, found, strict=True)):
            self.answers.append(self._noted(self.first.answers[at : at + 1] if self.first else None, "", shape, out))

    def _noted(self, before: list[Noted] | None, name: str, shape: Sequence[int], out: Tensor) -> Noted:
        if before is None:
            layout = layout_of(shape, self.batch, out.shape, len(self.rows))
        else:
            layout = before[0].layout if before else None
        return Noted(name, out.shape, layout, out.requires_grad, parts(out, self.rows, layout) if layout else None)

    def reached(self, use: Use, g: Tensor) -> None:
        """An attack's search inside the model passes by; a gradient with a graph of its own does not."""
        if torch.is_grad_enabled():
            from hauberk.privacy.dp.engine.intercept import twice

            raise twice(use.name)


def answers(out: Any) -> list[Tensor]:
    """Return the tensors of a model's answer, also those that objects hold."""
    leaves = pytree.tree_leaves([vars(leaf) if _holds(leaf) else leaf for leaf in pytree.tree_leaves(out)])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def trials(
    model: nn.Module, tracked: list[nn.Parameter], call: Call, orders: list[list[int]], batch: int, uses: Sequence[Use]
) -> list[Seen]:
    """Run the model on the examples of each order.

    Raises:
        ModelError: where it does not run on them.
    """
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == batch]
    error: Exception | None = None
    names = [use.name for use in uses]
    for exact in (True, False):
        # A square mask may have as many rows as there are examples: if taking some of its rows fails, the first tensor alone has
        # them.
        for chosen in (batched, batched[:1]):
            try:
                copies = _copies(model, tracked) if exact else {}
                found: list[Seen] = []
                for rows in orders:
                    seen = Seen(rows, uses, batch, found[0] if found else None)
                    _run(model, tracked, call, seen, chosen, copies)
                    found.append(seen)
            except ModelError as problem:
                if not exact or not isinstance(problem.__cause__, RuntimeError):
                    raise
                error = problem  # a model with types of its own inside does not run in float64
                continue
            except Exception as problem:
                error = problem
                continue
            if exact and any([use.name for use in seen.uses] != names for seen in found):
                break
            return found
    raise ModelError(
        f"the model does not run on {len(orders[0])} examples of the batch of {batch} ({error})",
        want="a model for any number of examples",
        fix="Give the examples along the first dimension of every input.",
    ) from error


def _holds(leaf: Any) -> bool:
    return hasattr(leaf, "__dict__") and not isinstance(leaf, (Tensor, nn.Module, type))


def _copies(model: nn.Module, tracked: list[nn.Parameter]) -> dict[int, Tensor]:
    own, given = {id(one) for one in tracked}, [one for layer in model.modules() for one in layer._parameters.values()]
    return {id(one): _copy(one, id(one) in own) for one in given if one is not None}


def _run(
    model: nn.Module, tracked: list[nn.Parameter], call: Call, seen: Seen, chosen: list[int], copies: dict[int, Tensor]
) -> None:
    """Run the model, on copies of its parameters where there are any; nothing of the run's graph outlives it."""
    from hauberk.privacy.dp.engine.intercept import Interceptor

    leaves, tree = pytree.tree_flatten((call.args, call.kwargs))
    taken = [leaf[seen.rows] if i in chosen else leaf for i, leaf in enumerate(leaves)]
    # Each name once for each module: torch's own way to tie weights leaves the copies in a module that comes twice.
    layers = [(f"{name}." if name else "", layer) for name, layer in model.named_modules()]
    buffers = {name + key: one for name, layer in layers for key, one in layer._buffers.items() if one is not None}
    fresh = {id(one): one.detach().clone() for one in buffers.values()}
    values = {name: fresh[id(one)] for name, one in buffers.items()}
    entering = [copies.get(id(one), one) for one in tracked]
    if copies:
        taken = [leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in taken]
        values = {name: one.double() if one.is_floating_point() else one for name, one in values.items()}
        parameters = {name + key: one for name, layer in layers for key, one in layer._parameters.items() if one is not None}
        values.update((name, copies[id(one)]) for name, one in parameters.items())
    args, kwargs = pytree.tree_unflatten(taken, tree)
    mode = Interceptor(seen, cast(Any, entering), model)
    mode.batch = len(seen.rows)
    mode.constant.update((id(one), one) for one in values.values() if id(one) not in mode.tracked)
    devices = sorted({one.device.index or 0 for one in model.parameters() if one.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), _SameForAll(), mode:
        out = torch.func.functional_call(model, values, args, kwargs, tie_weights=False)
    found = answers(out)
    if len(found) == len(call.shapes):  # else the model took another path, as its examiner says
        seen.answered(call.shapes, found)


def _copy(one: nn.Parameter, trained: bool) -> Tensor:
    wide = one.detach().double() if one.is_floating_point() else one.detach()
    if trained and not bool(wide.any()):
        wide = torch.linspace(0.1, 0.4, one.numel(), dtype=wide.dtype, device=one.device).sin().reshape(one.shape)
    return wide.clone().requires_grad_(one.requires_grad)


class _SameForAll(TorchFunctionMode):
    """Draws the same number for every example, and drops nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            given = args[0] if args else kwargs["input"]
            return given if kwargs.get("inplace") else given.clone()
        if func is functional.gumbel_softmax:
            return torch.softmax(args[0] if args else kwargs["logits"], kwargs.get("dim", -1))
        if func is functional.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs.pop("dropout_p", None)
        if func is functional.multi_head_attention_forward:
            kwargs["training"] = False
        if func is torch.bernoulli and len(args) == 1:
            return args[0].ge(0.5).to(args[0].dtype)
        out = func(*args, **kwargs)
        if func is torch.normal and isinstance(args[0], Tensor):
            return args[0] + 0.5 * args[1] if len(args) > 1 else args[0]
        if func in _DRAWS and isinstance(out, Tensor):
            whole = [one for one in args if isinstance(one, int)]
            out.fill_(1 if func in _COINS else 0.5 if out.is_floating_point() else min(whole) if len(whole) > 1 else 0)
        return out


_DROPOUTS = {
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
    functional.feature_alpha_dropout, torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
}
_COINS = {torch.bernoulli, Tensor.bernoulli, Tensor.bernoulli_}
_DRAWS = {
    *_COINS, torch.rand, torch.rand_like, torch.randn, torch.randn_like, torch.normal, torch.randint, torch.randint_like,
    torch.poisson, torch.multinomial, Tensor.multinomial, Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.random_,
    Tensor.log_normal_, Tensor.cauchy_, Tensor.geometric_,
}
