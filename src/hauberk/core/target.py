"""Target: a model as one adversary sees it, with what was granted and what was spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk.core.access import Access, Budget, Ledger
from hauberk.core.errors import AccessDenied, ModelError, UsageError
from hauberk.core.outputs import ENOUGH as ENOUGH
from hauberk.core.outputs import MULTI_LABEL as MULTI_LABEL
from hauberk.core.outputs import OUTPUTS as OUTPUTS
from hauberk.core.outputs import Outputs
from hauberk.core.predictors import CallablePredictor as CallablePredictor
from hauberk.core.predictors import ModulePredictor as ModulePredictor
from hauberk.core.predictors import Normalize as Normalize
from hauberk.core.predictors import Predictor as Predictor
from hauberk.core.predictors import evaluating as evaluating
from hauberk.core.predictors import through
from hauberk.core.threat import NO_LABEL, REFUSED, Bounds, labels_of


class Target:
    """A model as one adversary sees it.

    Arguments:
        model: an `nn.Module`, a `Predictor`, or a function of a batch that returns scores or labels.
        access: the most that is granted; None grants all that the model can give.
        bounds: lowest and highest input; numbers, or one per feature.
        outputs: what the model returns: `logits`, `probabilities`, `labels`, or `auto` to find out at the first answer. One
            column within [0, 1] is read as probabilities, cut at .5; it takes 64 such answers to settle that, and until then
            the first outside makes it logits, cut at 0. A model of several yes-or-no labels is told from one of classes only by
            saying so: `multilabel` (a logit per label), `multilabel-probabilities` or `multilabel-labels` (zeros and ones).
        batch_size: the largest batch sent to the model at once: what bounds memory.
        budget: limits on what may be spent.
        name: how reports call the model.
        files: the files it was loaded from, for scans and hashes.

    Raises:
        ModelError: when `model` cannot be called, or cannot grant `access`.
        UsageError: for a batch size below 1, or a name that is not an access.
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
        read_as = self._predictor.outputs if outputs == "auto" else outputs
        most = Access.LABEL if read_as in ("labels", "multilabel-labels") else self._predictor.access
        self._granted = most if access is None else Access.parse(access)
        if self._granted > most:
            raise ModelError(
                f"{self._granted.name} access was asked of a model that grants {most.name}", want=f"at most {most.name}",
                fix="Leave the access out, or give the model in a form that grants more",
            )
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", want="1 or more", fix="Give the largest batch that fits in memory")
        self.bounds, self.batch_size = bounds, batch_size
        self.name = name or _name(model)
        self.files = tuple(files)
        self.ledger = Ledger()
        self._accounts: tuple[tuple[Ledger, Budget], ...] = ((self.ledger, budget or Budget()),)
        self._highest = -1
        self._watch: Callable[[Tensor, Tensor], None] | None = None  # is told of each question and its raw answer
        self._shared = Outputs(read_as, most)
        if isinstance(self._predictor, ModulePredictor):
            self._notice_modes(self._predictor.module)

    @property
    def access(self) -> Access:
        """What this view grants: what was asked for, and never more than the model turned out to give."""
        return min(self._granted, self._shared.most)

    @property
    def predictor(self) -> Predictor:
        """What answers behind this view; for those who describe or scan a model: it counts nothing and refuses nothing."""
        return self._predictor

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
        broken = self._shared.nan
        told = (f"the model answered NaN {broken:,} times when a label was asked for: that counts as wrong for every class",)
        refused = self._shared.refused
        closed = (f"the model refused {refused:,} questions when a label was asked for: a refusal reaches no goal",)
        return (*self._shared.notices, *(told if broken else ()), *(closed if refused else ()))

    @property
    def outputs(self) -> str:
        """What the model returns: `logits`, `probabilities`, `labels`, or `auto` while it has not answered yet."""
        return self._shared.kind

    @property
    def multi_label(self) -> bool:
        """Whether the model answers several yes-or-no labels per sample instead of one class; labels then are (n, labels)."""
        return self._shared.multi_label

    def need(self, access: Access, who: str) -> None:
        """Raise AccessDenied when this view grants less than `access`."""
        if self.access < access:
            raise AccessDenied(
                f"{who} needs {access.name} access, this target grants {self.access.name}",
                fix=f"Grant {access.name} access, or choose a method for {self.access.name} (hauberk list --access "
                f"{self.access.name.lower()})",
            )

    def seen_at(self, access: Access, *, budget: Budget | None = None, highest: int = -1) -> Target:
        """Return a view with less access, its own ledger, and a further budget; spending counts here as well.

        Arguments:
            access: at most what this view grants.
            budget: of the new view alone.
            highest: the highest label that the view will be used with: scores that have no place for it raise a DataError.

        Raises:
            AccessDenied: when `access` is more than this view grants.
        """
        self.need(access, "the view")
        view = object.__new__(Target)
        view.__dict__.update(self.__dict__)
        view._granted = access if access < self.access else self._granted
        view.ledger, view._highest = Ledger(), max(highest, self._highest)
        view._accounts = (*self._accounts, (view.ledger, budget or Budget()))
        return view

    def behind(self, change: Callable[[Tensor], Tensor]) -> Target:
        """Return a view, with a ledger of its own, that asks about `change(x)`, shape of x, where x is meant."""
        view = self.fresh()
        view._predictor = through(self._predictor, change)
        return view

    def fresh(self) -> Target:
        """Return a view with the same access and a ledger of its own that starts at zero."""
        return self.seen_at(self.access)

    def labels(self, x: Tensor) -> Tensor:
        """Return the predicted labels, shape (n,), or (n, labels) of a multi-label model, int64. Needs LABEL access.

        Never differentiable. An answer that holds NaN has the label -1, which is never right; a notice tells how many there were.
        """
        with torch.no_grad():
            answers = [self._read(part) for part in self._asked(x)]
            if self._shared.kind == "multilabel-labels":
                labels = torch.cat(answers)
            else:
                labels = torch.cat([one if one.ndim == 1 else labels_of(one, several=self.multi_label) for one in answers])
            self._shared.nan += int((labels == NO_LABEL).sum())
            self._shared.refused += int((labels == REFUSED).sum())
            return labels

    def scores(self, x: Tensor) -> Tensor:
        """Return the probability of each class, or of each label of a multi-label model, (n, classes). Needs SCORE access."""
        logits = self.logits(x)
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def logits(self, x: Tensor) -> Tensor:
        """Return class logits, shape (n, classes). Needs SCORE access.

        With GRADIENT access, and x (or a caller's graph) asking for gradients, the answer is differentiable and made in one
        batch; else x is sent in parts of `batch_size`. A model that returns probabilities is read as log-probabilities.
        """
        self.need(Access.SCORE, "the score of a sample")
        if self.access >= Access.GRADIENT and x.requires_grad and torch.is_grad_enabled():
            answer = self._shared.logits(self._ask(x), self._highest)
            if answer.requires_grad:
                answer.register_hook(lambda _: self._charge(gradients=len(x)))
            return answer
        with torch.no_grad():
            return self._logits(x.detach())

    def probe(self, x: Tensor) -> int | None:
        """Return the number of classes after one query per sample of x, None where labels alone come back.

        Learns what the outputs mean, and what the model can grant.
        """
        with torch.no_grad():
            answer = self._read(self._ask(x))
            return None if answer.ndim == 1 else answer.shape[1]

    def notice(self, text: str) -> None:
        """Add a sentence to what was noticed about the model, once."""
        self._shared.notice(text)

    def limit(self, access: Access, reason: str) -> None:
        """Take note that the model itself gives no more than `access`; every view of it is narrowed, and a notice says why."""
        self._shared.limit(access, reason)

    def _logits(self, x: Tensor) -> Tensor:
        return torch.cat([self._shared.logits(part, self._highest) for part in self._asked(x)])

    def _asked(self, x: Tensor) -> Sequence[Tensor]:
        """Return the raw answers part by part; all are there before one is read, so that all are read alike."""
        return [self._ask(part) for part in self._parts(x)]

    def _read(self, raw: Tensor) -> Tensor:
        return self._shared.read(raw, self._highest)

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        if len(x) <= self.batch_size:
            return (x,)
        # All or nothing: what cannot be paid for in full is refused before the first part is sent.
        for ledger, budget in self._accounts:
            budget.check(ledger, queries=len(x))
        return x.split(self.batch_size)

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
        self._shared.learn(answer)
        if self._watch is not None:
            self._watch(x, answer)
        return answer

    def _charge(self, gradients: int) -> None:
        for ledger, budget in self._accounts:
            budget.check(ledger, gradients=gradients)
        for ledger, _ in self._accounts:
            ledger.gradients += gradients

    def _notice_modes(self, module: nn.Module) -> None:
        if module.training:
            self._shared.notice("the model was given in training mode; it is questioned in evaluation mode")
            return
        kept = [name for name, part in module.named_modules() if part.training and _acts_by_mode(part)]
        if kept:
            self._shared.notice(
                f"parts of the model were left in training mode and stay so: {', '.join(kept[:3])}"
                f"{', …' if len(kept) > 3 else ''}; call model.eval() if that is not meant"
            )


def as_target(model: Target | nn.Module | Predictor | Callable[[Tensor], object]) -> Target:
    """Return `model` itself when it is a Target, else a target that grants all that the model can give."""
    return model if isinstance(model, Target) else Target(model)


def _predictor(model: object, outputs: str) -> Predictor:
    if outputs not in (*OUTPUTS, *MULTI_LABEL):
        raise ModelError(f"outputs is '{outputs}'", want=" | ".join((*OUTPUTS, *MULTI_LABEL)))
    if isinstance(model, type):
        called = model.__name__
        raise ModelError(f"the class {called} was given as the model", want="an instance", fix=f"Make one: {called}(...)")
    if isinstance(model, nn.Module):
        return ModulePredictor(model, outputs)
    if isinstance(model, Predictor):
        return model
    if callable(model):
        return CallablePredictor(model, outputs, Access.LABEL if outputs.endswith("labels") else Access.SCORE)
    raise ModelError(f"a {type(model).__name__} was given as the model", want="a torch module or a function of a batch")


def _acts_by_mode(part: nn.Module) -> bool:
    return isinstance(part, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd))


def _name(model: object) -> str:
    inner = getattr(model, "module", model)
    return str(getattr(model, "name", "") or getattr(inner, "__name__", "") or type(inner).__name__)
