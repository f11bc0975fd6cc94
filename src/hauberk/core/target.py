"""Target: a model as one adversary sees it, with what was granted and what was spent."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hauberk.core.access import Access, Budget, Ledger
from hauberk.core.errors import AccessDenied, ModelError
from hauberk.core.threat import Bounds

OUTPUTS = ("auto", "logits", "probabilities", "labels")


@runtime_checkable
class Predictor(Protocol):
    """Anything that answers: raw outputs for a batch, and the most that it can grant."""

    access: Access
    outputs: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return the raw outputs, shape (n, classes), or labels, shape (n,)."""
        ...


@dataclasses.dataclass
class ModulePredictor:
    """A `torch.nn.Module` in evaluation mode, whatever mode its owner left it in."""

    module: nn.Module
    outputs: str = "auto"
    access: Access = Access.GRADIENT

    def __call__(self, x: Tensor) -> Tensor:
        place = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        moved = x if place is None else x.to(place.device, place.dtype)
        with evaluating(self.module):
            answer = self.module(moved)
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"the model returned {type(answer).__name__}", want="one tensor of shape (n, classes)",
                fix="Wrap the model in a module that returns the class scores alone",
            )
        return answer.to(x.device)


@dataclasses.dataclass
class CallablePredictor:
    """A function of a batch that returns scores or labels, as a tensor or an array."""

    function: Callable[[Tensor], object]
    outputs: str = "auto"
    access: Access = Access.SCORE

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            answer = torch.as_tensor(self.function(x.detach()))
        return answer.to(x.device)


class _Shared:
    """What all views of one model share: how its outputs read, and what was noticed on the way."""

    def __init__(self, outputs: str) -> None:
        self.outputs = outputs
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)


class Target:
    """A model as one adversary sees it.

    Arguments:
        model: an `nn.Module`, a `Predictor`, or a function of a batch that returns scores or labels.
        access: the most that is granted; None grants all that the model can give.
        bounds: lowest and highest input; numbers, or one per feature.
        outputs: what the model returns: `logits`, `probabilities`, `labels`, or `auto` to find out at the first answer.
        batch_size: the largest batch sent to the model at once: what bounds memory.
        budget: limits on what may be spent.
        name: how reports call the model.
        files: the files it was loaded from, for scans and hashes.

    Raises:
        ModelError: when `model` cannot be called, or cannot grant `access`.
    """

    def __init__(
        self,
        model: nn.Module | Predictor | Callable[[Tensor], object],
        *,
        access: Access | None = None,
        bounds: Bounds | None = None,
        outputs: str = "auto",
        batch_size: int = 256,
        budget: Budget | None = None,
        name: str = "",
        files: Sequence[Path] = (),
    ) -> None:
        self._predictor = _predictor(model, outputs)
        self.access = self._predictor.access if access is None else Access.parse(access)
        if self.access > self._predictor.access:
            raise ModelError(
                f"{self.access.name} access was asked of a model that grants {self._predictor.access.name}",
                want=f"at most {self._predictor.access.name}",
            )
        self.bounds, self.batch_size = bounds, batch_size
        self.name = name or _name(model)
        self.files = tuple(files)
        self.ledger = Ledger()
        self._accounts: tuple[tuple[Ledger, Budget], ...] = ((self.ledger, budget or Budget()),)
        self._shared = _Shared(self._predictor.outputs)
        if isinstance(self._predictor, ModulePredictor) and self._predictor.module.training:
            self._shared.notice("the model was given in training mode; it is questioned in evaluation mode")

    @property
    def module(self) -> nn.Module:
        """The module itself, for those who were granted GRADIENT access.

        Raises:
            AccessDenied: below GRADIENT access.
        """
        self.need(Access.GRADIENT, "the module")
        if not isinstance(self._predictor, ModulePredictor):  # a predictor of another kind that differentiates
            raise AccessDenied("this target has no torch module", want="a target made from an nn.Module")
        return self._predictor.module

    @property
    def notices(self) -> Sequence[str]:
        """What was noticed about the model so far, one sentence each."""
        return tuple(self._shared.notices)

    @property
    def outputs(self) -> str:
        """What the model returns: `logits`, `probabilities`, `labels`, or `auto` while it has not answered yet."""
        return self._shared.outputs

    def need(self, access: Access, who: str) -> None:
        """Raise AccessDenied when this view grants less than `access`."""
        if self.access < access:
            raise AccessDenied(
                f"{who} needs {access.name} access, this target grants {self.access.name}",
                fix=f"Grant {access.name} access, or choose a method for {self.access.name} (hauberk list --access "
                f"{self.access.name.lower()})",
            )

    def seen_at(self, access: Access, *, budget: Budget | None = None) -> Target:
        """Return a view with less access, its own ledger, and a further budget; spending counts here as well.

        Raises:
            AccessDenied: when `access` is more than this view grants.
        """
        self.need(access, "the view")
        view = object.__new__(Target)
        view.__dict__.update(self.__dict__)
        view.access, view.ledger = access, Ledger()
        view._accounts = (*self._accounts, (view.ledger, budget or Budget()))
        return view

    def fresh(self) -> Target:
        """Return a view with the same access and a ledger of its own that starts at zero."""
        return self.seen_at(self.access)

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted labels, shape (n,), int64. Needs LABEL access; never differentiable."""
        with torch.no_grad():
            if self._shared.outputs == "labels":
                return torch.cat([self._ask(part).reshape(-1).long() for part in self._parts(x)])
            return self._logits(x).argmax(1) if len(x) else x.new_zeros(0, dtype=torch.long)

    def scores(self, x: Tensor) -> Tensor:
        """Return class probabilities, shape (n, classes). Needs SCORE access."""
        return self.logits(x).softmax(1)

    def logits(self, x: Tensor) -> Tensor:
        """Return class logits, shape (n, classes). Needs SCORE access.

        With GRADIENT access, and x (or a caller's graph) asking for gradients, the answer is differentiable and made in one
        batch; else x is sent in parts of `batch_size`. A model that returns probabilities is read as log-probabilities.
        """
        self.need(Access.SCORE, "the score of a sample")
        if self.access >= Access.GRADIENT and x.requires_grad and torch.is_grad_enabled():
            answer = self._as_logits(self._ask(x))
            if answer.requires_grad:
                answer.register_hook(lambda _: self._charge(gradients=len(x)))
            return answer
        with torch.no_grad():
            return self._logits(x.detach())

    def probe(self, x: Tensor) -> int:
        """Return the number of classes after one query with x; learns what the outputs mean."""
        with torch.no_grad():
            return self._logits(x).shape[1]

    def _logits(self, x: Tensor) -> Tensor:
        return torch.cat([self._as_logits(self._ask(part)) for part in self._parts(x)])

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        return x.split(self.batch_size) if len(x) else (x,)

    def _ask(self, x: Tensor) -> Tensor:
        for ledger, budget in self._accounts:
            budget.check(ledger, queries=len(x))
        answer = self._predictor(x)
        for ledger, _ in self._accounts:
            ledger.queries += len(x)
            ledger.calls += 1
        if answer.ndim == 0 or len(answer) != len(x):
            raise ModelError(
                f"the model answered shape {tuple(answer.shape)} to {len(x)} samples",
                want=f"one row per sample: ({len(x)}, classes)",
                fix="Return class scores for each sample of the batch",
            )
        return answer

    def _charge(self, gradients: int) -> None:
        for ledger, budget in self._accounts:
            budget.check(ledger, gradients=gradients)
        for ledger, _ in self._accounts:
            ledger.gradients += gradients

    def _as_logits(self, raw: Tensor) -> Tensor:
        if self._shared.outputs == "auto":
            self._shared.outputs = self._recognise(raw)
        if self._shared.outputs == "labels":
            raise AccessDenied("this model answers labels alone", want="a model that returns scores")
        rows = raw.reshape(len(raw), -1) if raw.ndim <= 2 else raw
        if rows.ndim != 2:
            raise ModelError(f"the model returned shape {tuple(raw.shape)}", want="(n, classes)")
        if self._shared.outputs == "probabilities":
            tiny = torch.finfo(rows.dtype).tiny
            both = torch.cat([1 - rows, rows], 1) if rows.shape[1] == 1 else rows
            return both.clamp(min=tiny).log()
        return torch.cat([torch.zeros_like(rows), rows], 1) if rows.shape[1] == 1 else rows

    def _recognise(self, raw: Tensor) -> str:
        if not raw.is_floating_point():
            return "labels"
        rows = raw.detach().reshape(len(raw), -1).double()
        if not len(rows):
            return "auto" if raw.shape[-1:] == (0,) else "logits"
        inside = bool(((rows >= -1e-6) & (rows <= 1 + 1e-5)).all())
        whole = rows.shape[1] == 1 or bool(((rows.sum(1) - 1).abs() < 1e-4).all())
        if inside and whole and (rows.shape[1] > 1 or len(rows) > 1):
            self._shared.notice(
                "the model returns probabilities where logits are expected; they are read as log-probabilities, "
                "and gradients through a saturated softmax can vanish: return logits if you can"
            )
            return "probabilities"
        return "logits"


def as_target(model: Target | nn.Module | Predictor | Callable[[Tensor], object]) -> Target:
    """Return `model` itself when it is a Target, else a target that grants all that the model can give."""
    return model if isinstance(model, Target) else Target(model)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for the block and give every part back the mode it had."""
    if not module.training:
        yield
        return
    # Flags are set one by one: exported programs refuse `.eval()`, and each part must get its own flag back.
    flipped = [part for part in module.modules() if part.training]
    for part in flipped:
        part.training = False
    try:
        yield
    finally:
        for part in flipped:
            part.training = True


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that a model with its own normalisation can be attacked in input space.

    Arguments:
        mean, std: one number, or one per channel (the first axis of a sample).
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).float(), persistent=False)
        self.register_buffer("std", torch.as_tensor(std).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shape (n, channels, ...), normalised."""
        shape = (-1,) + (1,) * (x.ndim - 2)
        mean, std = self.get_buffer("mean").to(x), self.get_buffer("std").to(x)
        return (x - mean.reshape(shape if mean.ndim else ())) / std.reshape(shape if std.ndim else ())


def _predictor(model: object, outputs: str) -> Predictor:
    if outputs not in OUTPUTS:
        raise ModelError(f"outputs is '{outputs}'", want=" | ".join(OUTPUTS))
    if isinstance(model, nn.Module):
        return ModulePredictor(model, outputs)
    if isinstance(model, Predictor):
        return model
    if callable(model):
        return CallablePredictor(model, outputs, Access.LABEL if outputs == "labels" else Access.SCORE)
    raise ModelError(f"a {type(model).__name__} was given as the model", want="a torch module or a function of a batch")


def _name(model: object) -> str:
    inner = getattr(model, "module", model)
    return str(getattr(model, "name", "") or getattr(inner, "__name__", "") or type(inner).__name__)
