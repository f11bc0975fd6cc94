"""Where the examples lie in each operation's tensors: found out by calling the model with fewer of them, once.

A gradient given to the wrong example breaks the promise in silence, and shapes alone do not tell (as many tokens as
examples). So the first time a sequence of operations is met, the model runs on two or three of the examples, twice, with another
second example. The dimension whose size follows the number of examples is theirs, and what belongs to the first example must
not change with the second.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hauberk.core.errors import ModelError

if TYPE_CHECKING:
    from hauberk.privacy.dp.engine.intercept import Use


@dataclass(frozen=True)
class Layout:
    """Examples along dimension `dim`, or, `merged`, along the first together with what comes after them in each example."""

    dim: int = 0
    merged: bool = False

    def fits(self, shape: tuple[int, ...], batch: int) -> bool:
        """Whether a shape can have this layout."""
        return shape[0] % batch == 0 if self.merged else shape[self.dim] == batch


FIRST = Layout()


@dataclass
class Call:
    """One call of the model: its inputs, and the number of uses recorded before it and after it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int
    last: int = -1


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Layout]]] = weakref.WeakKeyDictionary()


def layouts(model: nn.Module, tracked: list[nn.Parameter], calls: list[Call], uses: Sequence[Use], batch: int) -> list[Layout]:
    """Return the layout of every use.

    Raises:
        ModelError: where examples are mixed, or cannot be told apart.
    """
    if batch < 2:  # One example owns all there is.
        return [Layout(merged=batch == 1 and use.shape[0] != 1) for use in uses]
    found: list[Layout | None] = [None] * len(uses)
    for call in calls:
        own = uses[call.first : call.last]
        if not own:  # without gradients, such as an attack's look at the clean answer: the loss has none from there
            continue
        key = (model.training, tuple((use.name, len(use.shape)) for use in own))
        known = _KNOWN.setdefault(model, {}).get(key)
        if known is None or not all(one.fits(use.shape, batch) for one, use in zip(known, own, strict=True)):
            known = _examine(model, tracked, call, own, batch)
            _KNOWN[model][key] = known
        found[call.first : call.last] = known
    outside = [use.name for use, one in zip(uses, found, strict=True) if one is None]
    if outside:
        raise ModelError(
            f"trained parameters enter '{outside[0]}' outside a call of the model that is recorded",
            want="every use of a tracked parameter inside model(…)", fix="Record the module that makes the call.",
        )
    return [one for one in found if one is not None]


def _examine(model: nn.Module, tracked: list[nn.Parameter], call: Call, uses: Sequence[Use], batch: int) -> list[Layout]:
    few = 2 if batch > 2 else 3
    seconds = (1, batch - 1 if batch > 2 else 0)
    traces = [_trace(model, tracked, call, [0, *[second] * (few - 1)], batch) for second in seconds]
    for trace in traces:
        if [name for name, _ in trace] != [*(use.name for use in uses), ""]:
            raise ModelError(
                f"the model takes another path for {few} examples than for {batch}", want="the same operations for any batch",
                fix="Take what depends on the number of examples out of the model's forward.",
            )
    _same_first(traces[0][-1][1], traces[1][-1][1], FIRST, few, "the model's answer")
    found = []
    for use, (_, one), (_, other) in zip(uses, traces[0][:-1], traces[1][:-1], strict=True):
        layout = _layout(use, one.shape, batch, few)
        _same_first(one, other, layout, few, f"'{use.name}'")
        found.append(layout)
    return found


def _layout(use: Use, small: torch.Size, batch: int, few: int) -> Layout:
    changed = [at for at, (n, m) in enumerate(zip(use.shape, small, strict=False)) if n != m]
    if len(changed) == 1 and len(use.shape) == len(small):
        (at,) = changed
        if use.shape[at] == batch and small[at] == few:
            return Layout(at)
        if at == 0 and use.shape[0] % batch == 0 and use.shape[0] // batch * few == small[0]:
            return Layout(merged=True)
    raise ModelError(
        f"in '{use.name}' the examples cannot be told apart: its result has shape {tuple(use.shape)} for {batch} of them, "
        f"{tuple(small)} for {few}",
        want="examples along one dimension, in their order", fix="Keep the examples along the first dimension.",
    )


def _same_first(one: Tensor, other: Tensor, layout: Layout, few: int, where: str) -> None:
    """Refuse where the first example's part changed with the second example."""
    if layout.merged:
        a, b = one.unflatten(0, (few, -1)), other.unflatten(0, (few, -1))
    elif one.dim() > layout.dim and one.shape[layout.dim] == few:
        a, b = one.movedim(layout.dim, 0), other.movedim(layout.dim, 0)
    else:
        return
    slack = 1e-5 if one.dtype in (torch.float32, torch.float64) else 1e-2
    scale = float(a[0].abs().nan_to_num(posinf=0).max()) if a[0].numel() else 0.0
    if not torch.allclose(a[0], b[0], rtol=slack, atol=slack * max(scale, 1e-30), equal_nan=True):
        raise ModelError(
            f"in {where} the first example's part changes with the second example",
            want="a model that keeps the examples of a batch apart, in their order",
            fix="Find the operation over the batch (check_model names layers) or the reordering, and take it out.",
        )
    if layout.merged and a.numel() and torch.equal(a.nan_to_num(), b.nan_to_num()):
        raise ModelError(
            f"in {where} the examples are merged with other dimensions, in an order that equal examples do not show",
            want="examples that differ, in the first batch", fix="Keep the examples along a dimension of their own.",
        )


def _trace(model: nn.Module, tracked: list[nn.Parameter], call: Call, rows: list[int], batch: int) -> list[tuple[str, Tensor]]:
    """Run the model on some of the examples; return each use's name and result, and last the model's first answer."""
    from hauberk.privacy.dp.engine.intercept import Interceptor

    leaves, tree = pytree.tree_flatten((call.args, call.kwargs))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == batch]
    error: Exception | None = None
    # A square mask may have as many rows as there are examples: if taking some of its rows fails, only the first tensor has them.
    for chosen in (batched, batched[:1]):
        taken = [leaf[rows] if i in chosen else leaf for i, leaf in enumerate(leaves)]
        args, kwargs = pytree.tree_unflatten(taken, tree)
        seen = _Seen()
        mode = Interceptor(seen, tracked, model)
        mode.batch = len(rows)
        buffers = {name: one.clone() for name, one in model.named_buffers()}
        mode.constant.update((id(one), one) for one in buffers.values())
        devices = sorted({one.device.index or 0 for one in model.parameters() if one.device.type == "cuda"})
        try:
            with torch.random.fork_rng(devices=devices), torch.enable_grad(), mode:
                out = torch.func.functional_call(model, buffers, args, kwargs)
        except ModelError:
            raise
        except Exception as problem:
            error = problem
            continue
        answers = [one for one in pytree.tree_leaves(out) if isinstance(one, Tensor)]
        return [*seen.results, ("", answers[0].detach() if answers else torch.zeros(0))]
    raise ModelError(
        f"the model does not run on {len(rows)} examples of the batch of {batch} ({error})",
        want="a model for any number of examples",
        fix="Give the examples along the first dimension of every input.",
    ) from error


class _Seen:
    """Takes a tape's place."""

    def __init__(self) -> None:
        self.results: list[tuple[str, Tensor]] = []

    def used(self, use: Use, out: Tensor) -> None:
        self.results.append((use.name, out.detach()))

    def reached(self, use: Use, g: Tensor) -> None:
        """An attack's search inside the model passes by; a gradient with a graph of its own does not."""
        if torch.is_grad_enabled():
            from hauberk.privacy.dp.engine.intercept import twice

            raise twice(use.name)
