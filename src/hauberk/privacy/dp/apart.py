"""Looks for what the clip does not hold: a loss that mixes examples, and state that a forward pass learns from the data.

The gradients of a few real examples together are compared with those of each alone, the first time a loss is used and again
every 150 steps, and that of a whole batch with those of its halves: there are losses that mix from some number of examples on,
such as the mean of the 64 greatest. Gradients that differ in single precision are looked at again in float64 (`rounding.py`).
What the passes leave in buffers and parameters is compared as well.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils import _pytree as pytree

from hauberk.core import rng
from hauberk.core.errors import ModelError, UsageError
from hauberk.core.train import Loss
from hauberk.privacy.dp.draws import Even
from hauberk.privacy.dp.engine.trial import answers
from hauberk.privacy.dp.rounding import Doubt, norm, single, stands

EVERY = 150  # steps from one look to the next
FIRST, LATER = 8, 3  # examples looked at
KINDS = 8  # looks at losses of one function that differ in what they close over, before they count as one loss
LARGE = 1 << 20  # entries; of more than that only sums are compared
_MIXED = (
    "Divide by the number of examples, not of tokens or weights (reduction='none', the mean of each example's own terms, then "
    ".mean()), keep pairs, batch statistics and mixtures of examples out of the loss; for a sum, PrivateOptions(reduction='sum')"
)
_LEARNT = "Take the update out of the forward pass, freeze it by model.eval(), or learn it as a parameter by its gradient"


class Watch:
    """Watches the steps of one model; `allowed` are the buffers that change in a way that has nothing to do with the data."""

    def __init__(self, model: nn.Module, parameters: Sequence[Parameter], reduction: str) -> None:
        self.model, self.parameters, self.reduction = model, list(parameters), reduction
        self.allowed: set[str] = set()
        self._tracked = {id(one) for one in parameters}
        self._modules = list(model.named_modules())
        self._last: Loss | None = None
        self._kinds: dict[Any, int] = {}
        self._due = self._due_by_hand = 0
        self._held: list[Tensor] = []

    def look(self, loss: Loss, x: Tensor, y: Tensor, step: int, most: int | None) -> None:
        """Look at a loss where it is time to, on up to `most` examples of a batch.

        Raises:
            ModelError: for a loss that mixes examples, or a forward pass that learns.
        """
        kind = getattr(loss, "__code__", None) or type(loss)
        fresh = loss is not self._last and self._kinds.get(kind, 0) < KINDS
        if len(x) < 2 or (not fresh and step < self._due):
            return
        number = max(2, min(most or FIRST, FIRST if fresh else LATER))
        draw = rng.generator(step, "apart")
        picks = _picks(x, y, number, draw)
        whole = torch.randperm(min(most or len(x), len(x)), generator=draw).to(x.device)
        before = _fingerprints(self.model)
        with self._aside() as again:
            def slopes(rows: Tensor) -> tuple[float, list[Tensor]]:
                return self._slopes(lambda: loss(self.model, x[rows], y[rows]), again)

            def settled(found: float | Doubt | None) -> float | None:
                if not isinstance(found, Doubt):
                    return found
                why = stands(found, loss, self.model, self.parameters, x, y) if single(self.model, x) else "in float64"
                if why:
                    raise _mixing(found.number, f"{found.how}; {why}")
                return found.usual

            try:
                usual = settled(self._compare(slopes, picks, again))
                if usual is not None and len(whole) > len(picks):
                    settled(self._halves(slopes, whole, usual))
            finally:
                self._same_parameters(before)
        self._last, self._due = loss, step + EVERY
        self._kinds[kind] = self._kinds.get(kind, 0) + fresh

    @contextlib.contextmanager
    def forward(self, step: int) -> Iterator[list[int]]:
        """Watch a recorded pass; yield the batch sizes of the model's calls.

        Raises:
            ModelError: for state that it learnt from the data.
        """
        calls: list[tuple[Any, Any]] = []
        sizes: list[int] = []

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim()]
            sizes.extend(len(one) for one in given[:1])
            if not calls:
                calls.append((args, kwargs))

        before, handle = self._versions(), self.model.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            yield sizes
        finally:
            handle.remove()
        after = self._versions()
        changed = {name for name in after if after[name] != before.get(name)} - self.allowed
        if calls and sizes and sizes[0] and (changed or step >= max(self._due, self._due_by_hand)):
            self._due_by_hand = step + EVERY
            self._by_call(*calls[0], sizes[0], changed)
        elif changed:
            raise _learnt(changed)

    def _by_call(self, args: Any, kwargs: Any, size: int, changed: set[str]) -> None:
        """Compare what calls on different data leave and answer, where no loss is known."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        sized = [at for at, one in enumerate(leaves) if isinstance(one, Tensor) and one.dim() and len(one) == size]
        before = _fingerprints(self.model)
        for chosen in (sized, sized[:1]):  # a square mask may have as many rows as there are examples
            def call(rows: Tensor, scale: float = 1.0, chosen: Sequence[int] = chosen) -> list[Tensor]:
                given = list(leaves)
                for at in chosen:
                    one = leaves[at].detach()[rows.to(leaves[at].device)]
                    given[at] = one * scale if one.is_floating_point() else one
                args_, kwargs_ = pytree.tree_unflatten(given, tree)
                with rng.isolated(0, self.parameters[0].device), Even():
                    return answers(self.model(*args_, **kwargs_))

            try:
                with self._aside() as again, torch.no_grad():
                    self._by_rows(call, size, again)
                break
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if chosen is not sized or len(sized) < 2:
                    raise ModelError(
                        f"the model does not run on fewer examples than the {size} of the batch ({str(error)[:150]})",
                        want="a model of any number of examples", fix="Give the examples along the first dimension of each input",
                    ) from error
        self._same_parameters(before)
        if rest := changed - self.allowed:
            raise _learnt(rest)

    def _by_rows(self, call: Callable[..., list[Tensor]], size: int, again: Callable[[], None]) -> None:
        def run(rows: Tensor, scale: float = 1.0) -> list[Tensor]:
            found = call(rows, scale)
            again()
            return found

        run(torch.arange(1))
        run(torch.arange(min(1, size - 1), min(3, size)), 1.5)
        if size <= FIRST:  # as many as the trials of the model's layout run on
            return
        halves = torch.arange(size).split(size - size // 2)
        for one, *parts in zip(run(torch.arange(size)), *map(run, halves), strict=True):
            # Another dimension may be that of the examples.
            along = one.dim() and [len(each) * size for each in parts] == [len(one) * len(rows) for rows in halves]
            if along and not _near(one, torch.cat(parts)):
                raise ModelError(
                    f"the model's answers for {size} examples are not those for its halves: it mixes them, from some number on",
                    want="a model that keeps the examples of a batch apart", fix="Take the operation over the batch out",
                )

    def _slopes(self, loss: Callable[[], Tensor], again: Callable[[], None]) -> tuple[float, list[Tensor]]:
        """Return the loss, NaN where that or the gradient is not finite, and the gradient."""
        with rng.isolated(0, self.parameters[0].device), Even(), torch.enable_grad():
            value = one_number(loss())
            found = torch.autograd.grad(value, self.parameters, allow_unused=True)
        again()
        made = [torch.zeros(()) if one is None else one.detach() for one in found] or [torch.zeros(())]
        return float(value.detach()) if bool(value.isfinite().all() and norm(made).isfinite()) else math.nan, made

    def _halves(self, slopes: Callable[[Tensor], tuple[float, list[Tensor]]], rows: Tensor, usual: float) -> Doubt | None:
        """Compare the gradient of a batch with those of its halves; `usual` is the norm that one example's has."""
        value, left = slopes(rows)
        if math.isnan(value):
            return None  # an example that is not finite; the batch is looked at another time
        scale = usual * (len(rows) if self.reduction == "sum" else 1)
        scale, parts = max(scale, float(norm(left))), []
        for half in rows.split(len(rows) - len(rows) // 2):
            part, made = slopes(half)
            if math.isnan(part):
                raise _mixing(len(rows), "although that of a half of them is not finite")
            scale = max(scale, float(norm(made)))
            share = 1.0 if self.reduction == "sum" else len(half) / len(rows)
            parts.append((half, share, part))
            left = [a - b * share for a, b in zip(left, made, strict=True)]
        away, tolerance = float(norm(left)), _tolerance(left[0])
        if away <= tolerance * scale + torch.finfo(left[0].dtype).tiny ** 0.5:
            return None
        how = f"from those of its halves by {away:.3g}, where an example's has a norm of {usual:.3g}"
        return Doubt(len(rows), how, rows, value, parts, scale, usual, tolerance)

    def _compare(
        self, slopes: Callable[[Tensor], tuple[float, list[Tensor]]], picks: Tensor, again: Callable[[], None]
    ) -> float | Doubt | None:
        """Compare the gradient of a few examples with those of each alone; return one example's norm, if that is known."""
        def alone(row: Tensor) -> tuple[Tensor, float, list[Tensor]]:
            try:
                return row, *slopes(row)
            except (RuntimeError, ValueError, IndexError, TypeError):
                again()
            try:  # there are models that drop a first dimension of 1
                value, made = slopes(row.repeat(2))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ModelError(
                    f"the loss cannot be computed for one example alone ({str(error)[:150]})",
                    want="a loss of any batch, also of one", fix=_MIXED,
                ) from error
            return row.repeat(2), value, [one / 2 for one in made] if self.reduction == "sum" else made

        value, whole = slopes(picks)
        total: list[Tensor] = []
        size, kept, found = 0.0, [], []
        for row in picks.split(1):
            rows, one_value, made = alone(row)
            if not math.isnan(one_value):
                kept.append(row)
                found.append((rows, one_value))
                size += float(norm(made))
                total = made if not total else [a + b for a, b in zip(total, made, strict=True)]
            elif not math.isnan(value):
                raise _mixing(len(picks), "although the loss of one of them alone is not finite")
        if math.isnan(value):
            if len(kept) < 2 or len(kept) == len(picks):
                return None  # an example that is not finite adds nothing in the step; the others are looked at another time
            value, whole = slopes(torch.cat(kept))
            if math.isnan(value):
                return None
        share = 1.0 if self.reduction == "sum" else 1 / len(kept)
        away = float(norm([a - b * share for a, b in zip(whole, total, strict=True)]))
        tolerance, scale, usual = _tolerance(whole[0]), size * share, size / len(kept)
        if away <= tolerance * scale + torch.finfo(whole[0].dtype).tiny ** 0.5:
            return usual
        how = f"by {away:.3g}, where those of each alone have a norm of {scale:.3g} together"
        parts = [(rows, share / (len(rows) if self.reduction == "sum" else 1), one) for rows, one in found]
        return Doubt(len(kept), how, torch.cat(kept), value, parts, scale, usual, tolerance)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Callable[[], None]]:
        """Put copies in the place of the buffers; yield what compares a pass with the one before and puts copies there again."""
        own = [(f"{path}.{name}" if path else name, module, name, one) for path, module in self._modules
               for name, one in module._buffers.items() if one is not None]
        start = [one.detach().clone() for *_, one in own]
        first: dict[str, Tensor] = {}

        def put() -> None:
            for (_, module, name, _), value in zip(own, start, strict=True):
                module._buffers[name] = value.clone()

        def again() -> None:
            for (path, module, name, _), value in zip(own, start, strict=True):
                found = module._buffers.get(name)
                found = torch.zeros(0) if found is None else found.detach()
                if path in first and not _equal(found, first[path]):
                    raise _learnt({path})
                first[path] = found
                if not _equal(found, value):
                    self.allowed.add(path)
            put()

        before = set(self.allowed)
        put()
        try:
            yield again
        except BaseException:
            self.allowed = before
            raise
        finally:
            for _, module, name, one in own:
                module._buffers[name] = one

    def _versions(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        held: list[Tensor] = []
        for path, module in self._modules:
            for kind in (module._buffers, module._parameters):
                for name, one in kind.items():
                    if one is not None and id(one) not in self._tracked:
                        held.append(one)
                        found[f"{path}.{name}" if path else name] = (id(one), one._version)
        self._held = held  # so that no address is used again before it is compared
        return found

    def _same_parameters(self, before: Mapping[str, Any]) -> None:
        after = _fingerprints(self.model)
        if changed := {name for name, value in after.items() if name not in before or not _equal(value, before[name])}:
            raise _learnt(changed)


def _fingerprints(model: nn.Module) -> dict[str, Tensor]:
    """Return the values of the parameters, of large ones two sums."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        one = parameter.detach()
        if one.numel() <= LARGE:
            found[name] = one.clone()
        else:
            found[name] = torch.stack([part.sum(dtype=torch.float64) for part in (one, one[..., ::3])])
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.isclose(one, other, 0, 0, equal_nan=True).all())


def _tolerance(like: Tensor) -> float:
    """Return the share by which gradients may differ through rounding alone."""
    if torch.is_autocast_enabled(like.device.type) or like.dtype in (torch.float16, torch.bfloat16):
        return 0.1
    return 1e-2 if like.is_cuda else 1e-3


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    return float((one - other).abs().amax()) <= _tolerance(one) * float(one.abs().amax()) if one.numel() else True


def _picks(x: Tensor, y: Tensor, number: int, draw: torch.Generator) -> Tensor:
    """Return the positions of examples that differ: the least and the greatest by label and by input, and others at random."""
    if len(x) <= number:
        return torch.arange(len(x), device=x.device)
    sums = [one.detach().reshape(len(x), -1).sum(1, dtype=torch.float64).nan_to_num() for one in (y, x) if len(one) == len(x)]
    ends = [int(place) for one in sums for place in (one.argmin(), one.argmax())]
    others = torch.randint(len(x), (4 * number,), generator=draw).tolist()
    return torch.tensor(list(dict.fromkeys([*ends[: max(2, number - 1)], *others]))[:number], device=x.device)


def _mixing(number: int, how: str) -> ModelError:
    return ModelError(
        f"the loss mixes examples: its gradient for {number} of them together differs {how}",
        want="the mean of losses that each depend on one example alone", fix=_MIXED,
    )


def _learnt(names: set[str]) -> ModelError:
    return ModelError(
        f"a forward pass in training changes {', '.join(sorted(names)[:5])} by what the data is, without a clip or noise",
        want="buffers and frozen parameters that stay as they are, or change by the weights alone", fix=_LEARNT,
    )

def one_number(value: Any) -> Tensor:
    """Return what a loss returned. Raises UsageError where it is not one number with a graph."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"the loss returned {found}", want="one number, the mean or sum over the examples of the batch")
    if not value.requires_grad:
        raise UsageError("the loss does not depend on the parameters", want="a loss with its graph",
                         fix="Leave out detach(), item() and no_grad() on the way from the model to the loss")
    return value
