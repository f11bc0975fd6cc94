"""Where the examples lie in each operation's tensors: found out by calling the model with fewer of them.

A gradient given to the wrong example breaks the promise in silence, and shapes alone do not tell (as many tokens as
examples). So the first time a sequence of operations is met, and every 100 times after, the model runs on some of the examples,
in three orders and among others. The dimension whose size follows the number of examples is theirs, and what belongs to an
example must be the same wherever it stands and whoever stands beside it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.engine.parts import Layout, Parts, alike, same
from hauberk.privacy.dp.engine.trial import trials

if TYPE_CHECKING:
    from hauberk.privacy.dp.engine.intercept import Use


@dataclass
class Call:
    """One call of the model: its inputs, the number of uses recorded before it and after it, and its answers' shapes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int
    last: int = -1
    shapes: list[torch.Size] = field(default_factory=list)


AGAIN = 100  # records of the same operations between two looks
FEW = 8  # examples of a trial


@dataclass
class _Known:
    """Layouts of a sequence of operations, how often it was looked at, and the records until the next look."""

    layouts: list[Layout]
    looks: int = 1
    left: int = field(default_factory=lambda: AGAIN)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Known]] = weakref.WeakKeyDictionary()


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
        key = (model.training, tuple((use.name, len(use.shape)) for use in own), tuple(len(shape) for shape in call.shapes))
        met = _KNOWN.setdefault(model, {})
        known = met.get(key)
        if known is None:
            known = met[key] = _Known(_examine(model, tracked, call, own, batch, 0))
        elif known.left <= 0 or not all(one.fits(use.shape, batch) for one, use in zip(known.layouts, own, strict=True)):
            known = met[key] = _Known(_examine(model, tracked, call, own, batch, known.looks), known.looks + 1)
        known.left -= 1
        found[call.first : call.last] = known.layouts
    outside = [use.name for use, one in zip(uses, found, strict=True) if one is None]
    if outside:
        raise ModelError(
            f"trained parameters enter '{outside[0]}' outside a call of the model that is recorded",
            want="every use of a tracked parameter inside model(…)", fix="Record the module that makes the call.",
        )
    return [one for one in found if one is not None]


def _orders(batch: int, look: int) -> list[list[int]]:
    """Three orders, so that an example comes first, in the middle and last, with others beside it; then a few alone."""
    if batch <= FEW:  # One more than there are, so that sizes differ; two examples at least come three times.
        every = [(look + at) % batch for at in range(batch)]
        alone = [every[0], every[-1]] if batch > 2 else [*every, *every]
        return [[*every, every[-1]], [every[-1], *reversed(every)], [every[1], every[0], *every[1:]], alone]
    some = [(look + at * batch // FEW) % batch for at in range(FEW)]
    mixed = [one for row in some[: FEW // 2] for one in ((row + 1) % batch, row)]
    return [some, some[::-1], mixed, [some[0], some[-1]]]


def _examine(
    model: nn.Module, tracked: list[nn.Parameter], call: Call, uses: Sequence[Use], batch: int, look: int
) -> list[Layout]:
    orders = _orders(batch, look)
    few = len(orders[0])
    seen = trials(model, tracked, call, orders, batch, uses)
    for one in seen:
        if [use.name for use in one.uses] != [use.name for use in uses] or len(one.answers) != len(call.shapes):
            raise ModelError(
                f"the model takes another path for {few} examples than for {batch}", want="the same operations for any batch",
                fix="Take what depends on the number of examples out of the model's forward.",
            )
    for at, shape in enumerate(call.shapes):
        found = [one.answers[at] for one in seen]
        if found[0].layout is not None:
            _agree([one.result for one in found], "the model's answer")
        elif any(one.tracked for one in found):
            raise ModelError(
                f"in an answer of the model, of shape {tuple(shape)}, the examples cannot be told apart",
                want="answers that keep the examples along one dimension",
                fix="Compute the loss from them outside the model, and drop answers that sum over the batch.",
            )
    layouts = []
    for at, use in enumerate(uses):
        found = [one.uses[at] for one in seen]
        layout = found[0].layout
        if layout is None:
            raise ModelError(
                f"in '{use.name}' the examples cannot be told apart: its result has shape {tuple(use.shape)} for {batch} of "
                f"them, {tuple(found[0].shape)} for {few}",
                want="examples along one dimension, in their order", fix="Keep the examples along the first dimension.",
            )
        for which, given in enumerate(found[0].data):  # What a gate hides in the result.
            if given is not None:
                _agree([one.data[which] for one in found], f"what enters '{use.name}'")
        _agree([one.result for one in found], f"'{use.name}'", merged=layout.merged)
        layouts.append(layout)
    return layouts


def _agree(found: Sequence[Parts | None], where: str, merged: bool = False) -> None:
    """Refuse where an example's part is not the same in every trial."""
    whole = [one for one in found if one is not None]
    if len(whole) < len(found) or not same(whole):
        raise _mixed(where)
    if merged and alike(whole):
        raise ModelError(
            f"in {where} the examples are merged with other dimensions, in an order that equal examples do not show",
            want="examples that differ, in the first batch", fix="Keep the examples along a dimension of their own.",
        )


def _mixed(where: str) -> ModelError:
    return ModelError(
        f"in {where} an example's part changes with the other examples, or with its place among them",
        want="a model that keeps the examples of a batch apart, in their order",
        fix="Find the operation over the batch (check_model names layers) or the reordering, and take it out.",
    )
