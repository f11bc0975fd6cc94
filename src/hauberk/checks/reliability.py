"""Reliability: the same input gives the same answer, whoever else is in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.errors import AccessDenied, BudgetExceeded, ModelError
from hauberk.core.finding import Advice, Finding, Interval, Status, Table
from hauberk.core.kinds import check
from hauberk.core.stats import wilson
from hauberk.core.target import Target

_TAGS = ("trust:reliability",)
_EVAL = Advice("Put the whole model in evaluation mode before it serves or is exported", "model.eval()", "AML.M0008")
_MAXIMUM = "no interval: the largest difference seen is a fact about these samples, not an estimate"


@check(
    "trust/determinism", pillar="trust", unit="relative difference", better="lower", access=Access.LABEL, warn=1e-5, fail=1e-2,
    question="Does the same input give the same answer twice?", tags=_TAGS,
    advice=(_EVAL, Advice("Look for noise or dropout in the forward pass, and for kernels that are not deterministic",
                          "torch.use_deterministic_algorithms(True)")),
)
def determinism(context: Context) -> Finding:
    """Largest difference between two answers to the same batch, relative to the range of the answers."""
    x, _ = context.sample(128, 512, 2000)
    first, again = _answer(context.target, x), _answer(context.target, x)
    return _compare(context, first, {"the same batch again": again}, "asked twice")


@check(
    "trust/batch-invariance", pillar="trust", unit="relative difference", better="lower", access=Access.LABEL, warn=1e-4,
    fail=1e-2, question="Does an answer depend on the other samples in the batch?", tags=_TAGS,
    advice=(_EVAL, Advice("Replace batch statistics by running ones, or by layer or group normalisation")),
)
def batch_invariance(context: Context) -> Finding:
    """Answers to samples alone, in another order and in other company, against those to the whole batch."""
    x, _ = context.sample(32, 64, 256)
    whole = _answer(context.target, x)
    half = (len(x) + 1) // 2
    others = {}
    try:
        others["alone"] = torch.cat([_answer(context.target, one) for one in x.split(1)])
        others["in reverse order"] = _answer(context.target, x.flip(0)).flip(0)
        others["in half the company"] = torch.cat([_answer(context.target, part) for part in x.split(half)])
    except (AccessDenied, BudgetExceeded, ModelError):
        raise
    except Exception as error:  # whatever a model raises at a batch of one is the finding
        return context.finding(
            f"the model answers a batch of {len(x)} samples, but not fewer: {type(error).__name__}: {error}", n=len(x),
            status=Status.FAIL,
        )
    return _compare(context, whole, others, "alone or in other company")


@check(
    "trust/eval-mode", pillar="trust", unit="parts", better="lower", access=Access.GRADIENT,
    question="Is any part of the model still in training mode, or without the statistics it should have learnt?", tags=_TAGS,
    advice=(_EVAL, Advice("Train with batches larger than one before export, so that running statistics exist")),
)
def eval_mode(context: Context) -> Finding:
    """Dropout and normalisation layers left in training mode, and normalisation statistics that are missing or broken."""
    try:
        module = context.target.module
    except AccessDenied as reason:
        raise NotRun("the model is no torch module whose parts could be looked at") from reason
    parts = dict(module.named_modules())
    faults = [(name or "(the model)", _kind(part), fault) for name, part in parts.items() for fault in _faults(part)]
    broken = {name for name, *_ in faults}
    context.note("no interval: every part was looked at")
    # A model given wholly in training mode is questioned in evaluation mode here; what serves it may not be so careful.
    whole = bool(faults) and module.training and all(fault == _LEFT for *_, fault in faults)
    status = Status.PASS if not faults else Status.WARN if whole else Status.FAIL
    summary = f"all {len(parts)} parts of the model are ready to serve"
    if whole:
        summary = f"the model is in training mode, {len(broken)} of its {len(parts)} parts behave otherwise than when they serve"
        context.note("all other checks put it in evaluation mode for their questions")
    elif faults:
        summary = f"{len(broken)} of {len(parts)} parts are not ready to serve: {faults[0][0]} ({faults[0][1]}) {faults[0][2]}"
    table = Table("Parts that are not ready to serve", ("part", "kind", "fault"), faults[:30])
    return context.finding(summary, value=len(broken), n=len(parts), status=status, evidence=(table,) if faults else ())


_LEFT = "is in training mode"


def _faults(part: nn.Module) -> list[str]:
    kind, found = _kind(part), []
    batch_norm = "BatchNorm" in kind or (isinstance(part, nn.InstanceNorm2d) and part.track_running_stats)
    drops = "Dropout" in kind and getattr(part, "p", 0.5) > 0
    inner = isinstance(part, (nn.RNNBase, nn.MultiheadAttention)) and part.dropout > 0
    if part.training and (batch_norm or drops or inner or "RReLU" in kind):
        found.append(_LEFT)
    if not batch_norm:
        return found
    mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
    counted = getattr(part, "num_batches_tracked", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        found.append("keeps no running statistics: every answer depends on its batch")
    elif not bool(mean.isfinite().all() and variance.isfinite().all() and (variance >= 0).all()):
        found.append("has running statistics that are not finite or a negative variance")
    elif isinstance(counted, Tensor) and int(counted) == 0 and bool((mean == 0).all() and (variance == 1).all()):
        found.append("has never seen a batch: its running statistics are those it was made with")
    return found


def _kind(part: nn.Module) -> str:
    return str(getattr(part, "original_name", "") or type(part).__name__)


def _answer(target: Target, x: Tensor) -> Tensor:
    """Logits, or probabilities where the model gives those, or labels (n,) where it gives no more."""
    if target.access < Access.SCORE or target.outputs == "labels":
        return target.labels(x)
    try:
        logits = target.logits(x)
    except AccessDenied:  # only its first answer shows that it gives labels alone
        return target.labels(x)
    # The logarithm of a vanishing probability magnifies differences that change nothing.
    return (logits.softmax(1) if target.outputs == "probabilities" else logits).detach().double()


def _compare(context: Context, base: Tensor, others: dict[str, Tensor], how: str) -> Finding:
    n, scores = len(base), base.ndim == 2
    regression = not context.data.is_classification
    rows, largest, changed = [], 0.0, torch.zeros(n, dtype=torch.bool)
    if scores and not all(bool(one.isfinite().all()) for one in (base, *others.values())):
        return context.finding("the model gives answers that are not finite numbers", n=n, status=Status.FAIL)
    span = float(base.max() - base.min()) if scores else 1.0
    for name, other in others.items():
        gap = float((other - base).abs().max()) if scores else math.nan
        flipped = (other.argmax(1) != base.argmax(1)) if scores else other != base
        largest, changed = max(largest, gap if scores else 0.0), changed | flipped.cpu()
        rows.append((name, gap, gap / max(span, 1e-12), float(flipped.double().mean())))
    count = int(changed.sum())
    share, interval = count / max(n, 1), wilson(count, n)
    value, span_of_value = (largest / max(span, 1e-12), None) if scores else (share, interval)
    context.note(_MAXIMUM if scores else "labels alone are seen: the value is the share of them that changed")
    words = "" if regression else f"; {count} of {n} labels change {_words(interval)}"
    summary = f"{how}, scores differ by at most {largest:.2g}, {value:.1e} of their range{words}"
    if not scores:
        summary = f"{how}, {count} of {n} labels change {_words(interval)}"
    # A label that changes is worse than any figure of the scores says. Where labels are all there is, one change is too many,
    # and none is a pass: the limits are of scores.
    status = Status.FAIL if scores and count and not regression and value > context.card.facts["warn"] else None
    if not scores:
        status = Status.FAIL if count else Status.PASS
    table = Table("Answers compared with those to the whole batch", (
        "asked", "largest difference", "relative to the range", "labels changed (share)"), rows)
    return context.finding(summary, value=value, n=n, interval=span_of_value, status=status, evidence=(table,))


def _words(interval: Interval) -> str:
    return f"(95 % [{interval.low:.3f}, {interval.high:.3f}])"
