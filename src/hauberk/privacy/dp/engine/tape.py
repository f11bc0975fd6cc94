"""The tape: one backward pass over a recorded loss, then per-example norms and weighted sums of gradients.

Book-keeping as in Bu, Wang, Zha, Karypis, "Differentially private optimization on large model at small cost" (ICML 2023).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hauberk.core.errors import ModelError, UsageError
from hauberk.privacy.dp.engine.chunked import Pulled, pulled
from hauberk.privacy.dp.engine.intercept import Interceptor, Use, checkpointed, twice
from hauberk.privacy.dp.engine.layout import Call, layouts
from hauberk.privacy.dp.engine.outer import together
from hauberk.privacy.dp.engine.per_example import Kept, Norm, PerExample, wide
from hauberk.privacy.dp.engine.trial import answers

SPARE = 128 * 2**20  # bytes of buffers that stay between steps
_SPARE: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()


class Tape:
    """What a `with record(…)` block leaves behind: made there, filled by `backward`, emptied by `release`."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], norm: Norm) -> None:
        self._model, self._parameters, self._norm = model, list(parameters), norm
        self._mode = Interceptor(self, self._parameters, model)
        self._uses: list[Use] = []
        self._count: dict[int, int] = {}
        self._parts: dict[int, list[PerExample]] = {}
        self._sums: dict[nn.Parameter, PerExample] = {}
        self._norms: dict[nn.Parameter, Tensor] = {}
        self._factor = 1.0
        self._open = False  # whether the backward pass that counts is under way
        self._whole: bool | None = None
        self._calls: list[Call] = []
        self._spare = _SPARE.pop(model, [])
        self._versions = [one._version for one in self._parameters]

    @property
    def batch_size(self) -> int:
        """The number of examples, from the model's first input, which is that of every call."""
        if self._mode.batch is None:
            raise UsageError(
                "the number of examples is not known: the model was not called inside the block",
                want="a forward pass inside `with record(model)`", fix="Call the model in the block.",
            )
        return self._mode.batch

    def backward(self, loss: Tensor, reduction: Literal["mean", "sum"] = "mean", scale: float = 1.0) -> None:
        """Take the loss backwards once, through activations alone.

        Arguments:
            loss: scalar computed inside the block, the mean or the sum over the examples of the batch.
            reduction: which of the two.
            scale: what the loss was multiplied with (GradScaler); it is divided out of norms and sums.

        Raises:
            ModelError: where the loss reaches a tracked parameter past every recorded operation.
        """
        if reduction not in ("mean", "sum"):
            raise UsageError(f"reduction is {reduction!r}", want="'mean' or 'sum'")
        if loss.numel() != 1:
            raise UsageError(f"the loss has shape {tuple(loss.shape)}", want="a scalar", fix="Take its mean over the batch.")
        self._factor = (self.batch_size if reduction == "mean" else 1) / scale
        self._check_versions()
        self._mode.active = False
        if self.batch_size and loss.requires_grad:
            found_out = layouts(self._model, self._parameters, self._calls, self._uses, self.batch_size)
            for use, layout in zip(self._uses, found_out, strict=True):
                use.layout = layout
            self._calls.clear()
            self._open = True
            try:
                found = torch.autograd.grad(
                    loss, [self._mode.anchor, *self._parameters], torch.ones_like(loss), allow_unused=True
                )
            except RuntimeError as problem:
                if "torch.utils.checkpoint" in str(problem):
                    raise checkpointed("use_reentrant=True") from problem
                raise
            finally:
                self._open = False
            past = {id(p) for p, one in zip(self._parameters, found[1:], strict=True) if one is not None}
            if past:
                names = [name for name, p in self._model.named_parameters() if id(p) in past]
                raise ModelError(
                    f"the loss depends on {', '.join(names) or 'a parameter'} past every layer",
                    want="parameters that act through the examples alone",
                    fix="Take penalties on weights out of the loss (the optimizer's weight_decay costs no privacy).",
                )
        self._gather()

    def norms(self) -> dict[nn.Parameter, Tensor]:
        """Return the norm of each example's gradient, shape (B,), by parameter; inf or nan where a gradient is not finite."""
        return {p: self._norms[p] * abs(self._factor) for p in self._parameters}

    def weighted(self, weights: Tensor | Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """Return sum_i w_i g_i by parameter, in its shape and type (float32 for the half types: noise comes before rounding).

        Arguments:
            weights: shape (B,), or one such by parameter. An example of weight 0 is absent, whatever its gradient holds.
        """
        sums = {}
        if self._whole is None:
            self._whole = bool(torch.stack([one.sum() for one in self._norms.values()]).sum().isfinite()) if self._norms else True
        for p in self._parameters:
            w = weights if isinstance(weights, Tensor) else weights[p]
            if w.shape != (self.batch_size,):
                raise UsageError(f"weights have shape {tuple(w.shape)}", want=f"({self.batch_size},)")
            part = self._sums.get(p)
            if part is None:
                sums[p] = torch.zeros_like(p, dtype=wide(p.dtype), requires_grad=False)
                continue
            w = w.detach()
            if not self._whole and bool((broken := ~self._norms[p].isfinite() & (w == 0)).any()):
                stay = (~broken).nonzero().squeeze(1)
                part, w = part.rows(stay), w[stay]
            sums[p] = part.weighted(w * self._factor).to(wide(p.dtype))
        return sums

    def release(self) -> None:
        """Free what is held; nothing was ever left on the model.

        Up to 128 MB of buffers stay for the next record of the same model, and go with the model.
        """
        mode, room, spare = self._mode, SPARE, []
        buffers = [one for part in self._sums.values() if isinstance(part, Kept) for one in part.kept]
        for one in [*buffers, *self._spare]:
            if (room := room - one.nbytes) >= 0:
                spare.append(one)
        self._spare = []
        if spare:
            _SPARE[self._model] = spare
        for held in (self._uses, self._parts, self._sums, self._norms, mode.derived, mode.constant, mode.tracked):
            held.clear()

    def used(self, use: Use, out: Tensor) -> None:
        """Note an operation that tracked tensors entered (called by the interceptor)."""
        self._uses.append(use)
        for one in use.entered.values():
            self._count[id(one)] = self._count.get(id(one), 0) + 1

    def reached(self, use: Use, g: Tensor) -> None:
        """Take the output gradient of a use: work out norms at once where it is the parameter's only one."""
        if torch.is_grad_enabled() or (self._open and use.gradients is None):
            raise twice(use.name)
        if not self._open:  # a backward pass inside the block, such as an attack's search: its gradients are not the loss's
            use.gradients, use.data = None, []
            for one in use.entered.values():
                self._count[id(one)] -= 1
            return
        if any(one._version != version for one, version in use.data):
            raise ModelError(
                f"an input of '{use.name}' was changed in place after it was used", want="the input as the layer met it",
                fix="Make that operation out of place.",
            )
        # Half precision would round the weights, and with them let an example exceed its clip.
        assert use.gradients is not None
        found = use.gradients(g.detach().to(wide(g.dtype)), use.layout)
        use.gradients, use.data = None, []
        for name, one in use.entered.items():
            part = found[name]()
            self._parts.setdefault(id(one), []).append(part)
            if self._count[id(one)] == 1 and id(one) not in self._mode.derived and not self._mode.derived:
                self._settle(one)

    def _settle(self, one: Any) -> None:
        part = self._sums[one] = self._together(id(one), one)
        if isinstance(part, Kept):
            part.spare = self._spare
        self._norms[one] = self._sums[one].norms(self._norm)

    def _together(self, key: int, one: Tensor) -> PerExample:
        like = one.detach().new_empty(0, dtype=wide(one.dtype))
        return together(self._parts.pop(key), one.shape, self.batch_size, like)

    def _gather(self) -> None:
        """Bring what came by way of derived tensors to the parameters, and give those that were not reached their zeros."""
        by_id = {id(p): p for p in self._parameters}
        for key, (tensor, same) in self._mode.derived.items():
            if key not in self._parts:
                continue
            base = self._together(key, tensor)
            zeros = torch.zeros_like(tensor)
            reaches = torch.autograd.grad(tensor, self._parameters, zeros, retain_graph=True, allow_unused=True)
            for p, one in zip(self._parameters, reaches, strict=True):
                if one is not None:
                    self._parts.setdefault(id(p), []).append(
                        Pulled(base, tensor, p) if same else pulled(base, tensor, p, self.batch_size)
                    )
        for key in list(self._parts):
            self._settle(by_id[key])
        for p in self._parameters:
            if p not in self._norms:
                self._norms[p] = torch.zeros(self.batch_size, dtype=wide(p.dtype), device=p.device)

    def _check_versions(self) -> None:
        if [one._version for one in self._parameters] != self._versions:
            raise ModelError(
                "a parameter was changed in place during the forward pass", want="parameters that only the optimizer changes",
                fix="Take the update out of the model's forward.",
            )


@contextmanager
def record(model: nn.Module, parameters: Sequence[nn.Parameter] | None = None, *, norm: Norm = "l2") -> Iterator[Tape]:
    """Record a forward pass and its loss, for per-example gradients in one backward pass.

    The model is not changed. Its inputs have the examples along their first dimension.

    Arguments:
        model: any module that keeps its examples apart; `check_model` tells.
        parameters: to be tracked; all that require a gradient by default.
        norm: of each example's gradient, "l2" or "l1".

    Yields:
        The tape: call its `backward(loss)`, then `norms()` and `weighted(weights)`, then `release()`.
    """
    tracked = [p for p in model.parameters() if p.requires_grad] if parameters is None else list(dict.fromkeys(parameters))
    if any(not p.requires_grad for p in tracked):
        raise UsageError("a parameter to track does not require a gradient", want="requires_grad=True for each")
    scripted = [name or "the model" for name, layer in model.named_modules() if isinstance(layer, torch.jit.ScriptModule)]
    if scripted:
        raise ModelError(
            f"{scripted[0]} is compiled by TorchScript, whose operations cannot be seen", want="a module of Python code",
            fix="Train the module it was compiled from, and compile it after training.",
        )
    tape = Tape(model, tracked, norm)
    mode = tape._mode

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch._C.DisableTorchFunction():
            given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim()]
            size = len(given[0]) if given else None
        if mode.batch is None:
            mode.batch = size
        if torch.is_grad_enabled() and size is not None and size != mode.batch:
            raise ModelError(
                f"the model is called with {size} examples, and was called with {mode.batch} in the same recording",
                want="the same examples in every call", fix="Call it once, or record each part by itself (micro_batch).",
            )
        for one in given:  # Even where they were made inside the block.
            mode.as_data(one)
        tape._calls.append(Call(args, kwargs, len(tape._uses)))

    def end(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        tape._calls[-1].last = len(tape._uses)
        with torch._C.DisableTorchFunction():
            tape._calls[-1].shapes = [one.shape for one in answers(out)]

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True), model.register_forward_hook(end)]
    try:
        with mode:
            yield tape
    finally:
        for handle in handles:
            handle.remove()
        mode.active = False
