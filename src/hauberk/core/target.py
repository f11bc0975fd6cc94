"""Target: a model as one adversary sees it, with what was granted and what was spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk.core.access import Access, Budget, Ledger
from hauberk.core.errors import AccessDenied, DataError, ModelError, UsageError
from hauberk.core.predictors import CallablePredictor as CallablePredictor
from hauberk.core.predictors import ModulePredictor as ModulePredictor
from hauberk.core.predictors import Normalize as Normalize
from hauberk.core.predictors import Predictor as Predictor
from hauberk.core.predictors import evaluating as evaluating
from hauberk.core.predictors import through
from hauberk.core.threat import NO_LABEL, REFUSED, Bounds, labels_of

OUTPUTS = ("auto", "logits", "probabilities", "labels")
# Several yes-or-no answers per sample, each with a sigmoid of its own: never guessed, since they look like classes.
MULTI_LABEL = ("multilabel", "multilabel-probabilities", "multilabel-labels")
ENOUGH = 64  # answers of one column within [0, 1] that settle that they are probabilities


class _Shared:
    """What all views of one model share: how its outputs read, what it can grant, and what was noticed on the way."""

    def __init__(self, outputs: str, most: Access) -> None:
        self.outputs, self.most = outputs, most
        self.guessed = False
        self.column = 0  # answers of one column within [0, 1], while they settle nothing yet
        self.refused = 0  # questions that were not answered
        self.nan = 0  # answers that were asked for a label and held NaN
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
        self._shared = _Shared(read_as, most)
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
        return self._shared.outputs

    @property
    def multi_label(self) -> bool:
        """Whether the model answers several yes-or-no labels per sample instead of one class; labels then are (n, labels)."""
        return self._shared.outputs in MULTI_LABEL

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
            if self._shared.outputs == "multilabel-labels":
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
            answer = self._as_logits(self._ask(x))
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
        if self._shared.most > access:
            self._shared.most = access
            self._shared.notice(f"{reason}: it is assessed at {access.name} access")

    def _logits(self, x: Tensor) -> Tensor:
        return torch.cat([self._as_logits(part) for part in self._asked(x)])

    def _asked(self, x: Tensor) -> Sequence[Tensor]:
        """Return the raw answers part by part; all are there before one is read, so that all are read alike."""
        return [self._ask(part) for part in self._parts(x)]

    def _read(self, raw: Tensor) -> Tensor:
        """Return logits, shape (n, classes), or labels, shape (n,) or (n, labels): whichever the model gives."""
        if self._shared.outputs == "multilabel-labels":
            rows = _rows(raw)
            return (rows.nan_to_num(nan=-1.0) if rows.is_floating_point() else rows).long()
        if self._shared.outputs != "labels":
            return self._as_logits(raw)
        if raw.ndim > 2 or (raw.ndim == 2 and raw.shape[1] != 1):
            found = f"the model answered labels of shape {tuple(raw.shape)}"
            raise ModelError(found, want=f"one label per sample: ({len(raw)},)")
        raw = raw.reshape(len(raw))
        return (raw.nan_to_num(nan=-1.0) if raw.is_floating_point() else raw).long()

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
        self._learn(answer)
        if self._watch is not None:
            self._watch(x, answer)
        return answer

    def _charge(self, gradients: int) -> None:
        for ledger, budget in self._accounts:
            budget.check(ledger, gradients=gradients)
        for ledger, _ in self._accounts:
            ledger.gradients += gradients

    def _learn(self, raw: Tensor) -> None:
        if self._shared.outputs != "auto":
            return
        self._shared.outputs = self._recognise(raw)
        self._shared.guessed = self._shared.outputs == "probabilities"
        if self._shared.outputs == "labels":
            self.limit(Access.LABEL, "the model answers labels alone")

    def _as_logits(self, raw: Tensor) -> Tensor:
        if self._shared.outputs in ("labels", "multilabel-labels"):
            raise AccessDenied(
                "this model answers labels alone", want="a model that returns scores",
                fix="Choose a method for LABEL (hauberk list --access label)",
            )
        rows = _rows(raw)
        if self.multi_label:
            if self._shared.outputs == "multilabel":
                return rows
            sure = torch.finfo(rows.dtype).eps  # a sigmoid that has rounded to 0 or 1 has no finite logit
            return rows.clamp(sure, 1 - sure).logit()
        if self._highest >= (width := max(rows.shape[1], 2)):
            raise DataError(
                f"there is a label {self._highest} and the model returns {width} scores per sample",
                want=f"labels from 0 to {width - 1}", fix="Check that model and labels belong together",
            )
        kind = self._shared.outputs
        if kind == "auto":  # nothing is settled: no answer but NaN yet, or a few of one column and all of them within [0, 1]
            kind = "probabilities" if rows.shape[1] == 1 else "logits"
        if kind == "probabilities":
            if self._shared.guessed and bool(((rows.detach() < -1e-3) | (rows.detach() > 1.001)).any()):
                raise ModelError(
                    "the model's first answers looked like probabilities, and now one lies outside [0, 1]",
                    want="the same kind of output for every sample", fix="State it: outputs='logits'",
                )
            tiny = torch.finfo(rows.dtype).tiny
            both = torch.cat([1 - rows, rows], 1) if rows.shape[1] == 1 else rows
            return both.clamp(min=tiny).log()
        return torch.cat([torch.zeros_like(rows), rows], 1) if rows.shape[1] == 1 else rows

    def _recognise(self, raw: Tensor) -> str:
        if not raw.is_floating_point():
            return "labels"
        if not len(raw):  # an empty answer tells nothing
            return "auto"
        rows = raw.detach().reshape(len(raw), -1).double()
        rows = rows[~rows.isnan().any(1)]  # an answer of NaN tells nothing either
        if not len(rows):
            return "auto"
        short = raw.dtype in (torch.float16, torch.bfloat16)
        inside = bool(((rows >= -1e-6) & (rows <= 1 + 1e-5)).all())
        if rows.shape[1] == 1:
            before, self._shared.column = self._shared.column, self._shared.column + len(rows)
            if inside and self._shared.column < ENOUGH:
                # Logits may lie in [0, 1] by chance, and one column is cut at 0 or at 0.5: more answers have to settle it.
                return "auto"
            if before and not inside:
                self._shared.notice(
                    f"the model's first {before} answers, one column, lay within [0, 1] and were read as probabilities; a later "
                    "one lies outside, so that all from there on are read as logits: state outputs= to be sure"
                )
        if inside and (rows.shape[1] == 1 or bool(((rows.sum(1) - 1).abs() < (2e-2 if short else 1e-4)).all())):
            self._shared.notice(
                "the model returns probabilities where logits are expected; they are read as log-probabilities, "
                "and gradients through a saturated softmax can vanish: return logits if you can"
            )
            return "probabilities"
        return "logits"

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


def _rows(raw: Tensor) -> Tensor:
    rows = raw[:, None] if raw.ndim == 1 else raw
    if rows.ndim != 2 or not rows.shape[1]:
        raise ModelError(
            f"the model returned shape {tuple(raw.shape)}", want=f"({len(raw)}, classes)",
            fix="Flatten or pool the output to one score per class",
        )
    return rows


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
