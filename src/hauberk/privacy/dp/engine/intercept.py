"""What happens to tracked parameters inside a `with record(…)` block: every operation that one enters is seen here.

An operation with a rule is run on detached parameters, so that its backward pass works out the gradient of its input alone and
hands the gradient of its output to the tape. An operation on parameters alone gives a derived tensor, tracked like a parameter.
Any other goes the long way (`fallback.py`), or is refused: none is let through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.engine.chunked import merged
from hauberk.privacy.dp.engine.fallback import fallback, in_place, refuse, spread
from hauberk.privacy.dp.engine.parts import FIRST, Layout
from hauberk.privacy.dp.engine.registry import REWRITES, RULES, Gradients, Rule, tensors

Operation = Callable[..., Any]
# The derived tensor is the parameter with its entries in another order.
REARRANGING = {
    Tensor.t, torch.t, Tensor.transpose, torch.transpose, Tensor.permute, torch.permute, Tensor.view, Tensor.reshape,
    torch.reshape, Tensor.flatten, torch.flatten, Tensor.contiguous, Tensor.unsqueeze, torch.unsqueeze, Tensor.squeeze,
    torch.squeeze, Tensor.clone, torch.clone, Tensor.unflatten, Tensor.view_as,
    *(getattr(getattr(Tensor, name), "__get__") for name in ("T", "mT")),  # noqa: B009
}
SPREADING = {Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.broadcast_to, Tensor.broadcast_to}


@dataclass(eq=False)
class Use:
    """One operation that tracked tensors entered.

    Arguments:
        name: of the operation, for messages.
        entered: tracked tensors, parameters or derived ones, by the name the rule knows them under.
        gradients: from the output gradient and its layout to each name's per-example gradient; dropped once used.
        data: the tensors whose values the gradient needs, with their version at the time.
        shape: of the result.
        layout: of the result and the data.
        backwards: from the output gradient to the one data tensor's, where autograd is not asked.
    """

    name: str
    entered: dict[str, Tensor]
    gradients: Callable[[Tensor, Layout], Gradients] | None
    data: list[tuple[Tensor, int]] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    layout: Layout = FIRST
    backwards: Callable[[Tensor], Tensor] | None = None


class _Treated(torch.autograd.Function):
    """Run an operation whose graph holds its data inputs alone; in the backward pass show its output gradient to the tape."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tape: Any, use: Use, run: Callable[[list[Tensor]], Tensor], *data: Tensor) -> Tensor:
        ctx.tape, ctx.use = tape, use
        if use.backwards is not None or not any(one.requires_grad for one in data):
            ctx.out = ctx.inner = None
            return run(list(data)).detach()
        ctx.inner = [one.detach().requires_grad_(one.requires_grad) for one in data]
        with torch.enable_grad():
            ctx.out = run(ctx.inner)
        return cast(Tensor, ctx.out).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        use, needed = ctx.use, ctx.needs_input_grad[4:]
        found: list[Tensor | None] = [None] * len(needed)
        if any(needed):
            if use.backwards is not None:
                found[0] = use.backwards(grads[0])
            else:
                out, inner, ctx.out, ctx.inner = ctx.out, ctx.inner, None, None
                answers = torch.autograd.grad(out, [one for one in inner if one.requires_grad], grads[0], allow_unused=True)
                del out
                for at, one in zip([at for at, need in enumerate(needed) if need], answers, strict=True):
                    found[at] = one
        ctx.tape.reached(use, grads[0])
        return (None, None, None, None, *found)


class Interceptor(TorchFunctionMode):
    """The mode that is on inside the block.

    Arguments:
        tape: is told of each use (`tape.used`) and of each output gradient (`tape.reached`).
        tracked: the parameters.
        model: whose other parameters and buffers are known not to depend on the examples.
    """

    def __init__(self, tape: Any, tracked: list[nn.Parameter], model: nn.Module) -> None:
        super().__init__()
        self.tape = tape
        self.active = True
        self.batch: int | None = None
        self.anchor = torch.empty(0, requires_grad=True)
        self.tracked: dict[int, Tensor] = {id(one): one for one in tracked}
        self.derived: dict[int, tuple[Tensor, bool]] = {}
        self.constant: dict[int, Tensor] = {}
        for layer in model.modules():
            for known in (layer._parameters, layer._buffers):
                self.constant.update((id(one), one) for one in known.values() if one is not None and id(one) not in self.tracked)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.active:
            return func(*args, **kwargs)
        given = tensors((*args, *kwargs.values()))
        entering = [one for one in given if id(one) in self.tracked]
        if not entering or not torch.is_grad_enabled():
            out = func(*args, **kwargs)
            self._note_constant(func, given, out)
            return out
        if func in REWRITES:
            with self:
                return REWRITES[func](self, *args, **kwargs)
        if in_place(func, kwargs) and not (given and id(given[0]) in self.tracked):
            raise refuse(func, "it writes into a tensor, as h[:, 0] = p and h += p do; make a new one: h = h + p, torch.cat")
        data = [one for one in given if self.is_data(one)]
        if not data:
            return self._derive(func, args, kwargs, entering)
        self.learn_batch(data)
        rule = RULES.get(func)
        if rule is not None:
            bound = rule.bind(args, kwargs)
            entered = {name: bound[name] for name in rule.parameters if id(bound.get(name)) in self.tracked}
            x = bound.get(rule.data)
            if len(entered) == len(entering) and isinstance(x, Tensor) and self.is_data(x) and self._fits(func, x, entered):
                return self._treat(func, bound, rule, entered)
        return fallback(self, func, args, kwargs)

    def run(self, func: Operation, *args: Any) -> Any:
        """Run a function of our own that has a rule, as if torch had called it."""
        return self.__torch_function__(func, (), args)

    def as_data(self, one: Tensor) -> Tensor:
        """Return a tensor that counts as one that depends on the examples: a state of zeros is one for each example."""
        self.constant.pop(id(one), None)
        return one

    def is_data(self, one: Tensor) -> bool:
        """Whether a tensor may depend on the examples."""
        return id(one) not in self.tracked and id(one) not in self.constant

    def learn_batch(self, data: list[Tensor]) -> None:
        """Take the batch size from the first tensor that depends on the examples, where the model's inputs did not tell it."""
        if self.batch is None and data and data[0].dim():
            self.batch = len(data[0])

    def treat(
        self, name: str, run: Callable[[list[Tensor]], Tensor], data: list[Tensor], entered: dict[str, Tensor],
        gradients: Callable[[Tensor, Layout], Gradients], backwards: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run an operation on data and detached parameters; its output gradient will go to `gradients`."""
        if (packs := _saved_tensor_hooks()) and getattr(packs[0], "__module__", "") == "torch.utils.checkpoint":
            raise checkpointed(f"'{name}' is inside it")
        use = Use(name, entered, gradients, [(one, one._version) for one in data], backwards=backwards)
        out = cast(Tensor, _Treated.apply(self.anchor, self.tape, use, run, *data))  # type: ignore[no-untyped-call]
        use.shape = out.shape
        self.tape.used(use, out)
        return out

    def _fits(self, func: Operation, x: Tensor, entered: dict[str, Tensor]) -> bool:
        # A layout with the examples elsewhere is found out before the loss is taken backwards.
        if not x.dim() or (self.batch and len(x) % self.batch and self.batch not in x.shape):
            return False
        return func not in _PRODUCTS or (x.dim() > 1 and entered["other"].dim() == 2)

    def _treat(self, func: Operation, bound: dict[str, Any], rule: Rule, entered: dict[str, Tensor]) -> Tensor:
        plain = {key: value.detach() if isinstance(value, Tensor) else value for key, value in bound.items()}
        data = [key for key, value in bound.items() if isinstance(value, Tensor) and key not in entered]

        def run(inner: list[Tensor]) -> Tensor:
            call = {**plain, **dict(zip(data, inner, strict=True))}
            return cast(Tensor, func(*(call[name] for name in rule.names)))

        def gradients(g: Tensor, layout: Layout) -> Gradients:
            batch, call = self.batch or 0, dict(plain)
            if layout.dim:
                call.update({key: plain[key].movedim(layout.dim, 0) for key in data if plain[key].dim() > layout.dim})
                g = g.movedim(layout.dim, 0)
            if not layout.merged:
                return rule.gradients(g, **call)
            if rule.positions:
                call[rule.data] = call[rule.data].unflatten(0, (batch, -1))
                return rule.gradients(g.unflatten(0, (batch, -1)), **call)
            found, frames, like = rule.gradients(g, **call), len(g) // batch, g.new_empty(0)
            return {
                name: functools.partial(lambda name, make: merged(make(), entered[name].shape, batch, frames, like), name, make)
                for name, make in found.items() if name in entered
            }

        backwards = None
        plainly = len(data) == 1 and not any(isinstance(one, str) for one in bound.values())  # padding="same"
        if rule.backwards is not None and plainly and not torch.is_autocast_enabled(bound[rule.data].device.type):
            backwards = functools.partial(rule.backwards, **plain)
        try:
            return self.treat(_name(func), run, [bound[key] for key in data], entered, gradients, backwards)
        except RuntimeError as problem:
            kinds = {one.dtype for one in bound.values() if isinstance(one, Tensor) and one.is_floating_point()}
            if len(kinds) < 2:
                raise
            own, x = next(iter(entered.values())).dtype, bound[rule.data].dtype
            raise ModelError(
                f"'{_name(func)}' is given numbers of type {x} for parameters of {own} ({problem})", want="one type for both",
                fix="Cast the input (x.float()) or the model (model.double()), or train under torch.autocast.",
            ) from problem

    def _derive(self, func: Operation, args: Any, kwargs: Any, entering: list[Tensor]) -> Any:
        """Track what is made of parameters and constants; give each example its own copy where one is spread over the batch."""
        if func in SPREADING and self.batch is not None:
            own = spread(self, func, args, kwargs)
            if own is not None:
                return own
        out = func(*args, **kwargs)
        whole = func in REARRANGING and len(entering) == 1
        for one in tensors(out if isinstance(out, (list, tuple)) else [out]):
            if not one.requires_grad:
                self.constant[id(one)] = one
            elif id(one) not in self.tracked:
                same = whole and one.numel() == entering[0].numel() and self.derived.get(id(entering[0]), (None, True))[1]
                self.tracked[id(one)], self.derived[id(one)] = one, (one, same)
        return out

    def _note_constant(self, func: Operation, given: list[Tensor], out: Any) -> None:
        if any(id(one) not in self.constant for one in given):
            if given and id(given[0]) in self.constant and (func is Tensor.__setitem__ or _name(func).endswith("_")):
                del self.constant[id(given[0])]  # Written to in place.
            return
        made = [out] if isinstance(out, Tensor) else tensors(out) if isinstance(out, (list, tuple)) else []
        for one in made:
            spread_out = func in SPREADING and one.dim() and len(one) == self.batch and not (
                given and given[0].dim() == one.dim() and len(given[0]) == len(one)
            )
            if not spread_out:
                self.constant[id(one)] = one


_saved_tensor_hooks: Callable[[], Any] = functools.partial(torch._C._autograd._top_saved_tensors_default_hooks, True)
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}


def checkpointed(where: str) -> ModelError:
    """The error for activation checkpointing: what is run again in the backward pass is not what was recorded."""
    return ModelError(
        f"the model runs a part of itself again in the backward pass (torch.utils.checkpoint; {where})",
        want="one forward pass, as it was recorded",
        fix="Turn checkpointing off, and save memory by parts of a batch instead: PrivateOptions(micro_batch=…).",
    )


def twice(name: str) -> ModelError:
    """The error for a gradient that the loss goes back through."""
    return ModelError(
        f"'{name}' is gone back through twice: a gradient is part of the loss or the answer (a gradient penalty, an energy)",
        want="a loss of the model's answers, taken backwards once",
        fix="Leave the penalty out, or bound the slope another way: spectral_norm, or gradients by finite differences.",
    )


def _name(func: Operation) -> str:
    return getattr(func, "__name__", str(func))
