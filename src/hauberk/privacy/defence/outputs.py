"""Defences that change what a model answers and leave the model alone: each wraps a target and returns one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.target import Target, as_target

Change = Callable[[Tensor, Tensor], Tensor]
Records = tuple[Tensor, Tensor]
Protect = Callable[[Target, Records, Records], Target]  # (target, its members, others) -> the target behind the defence


@dataclasses.dataclass
class Answering:
    """A predictor that returns `change(scores, x)` where the target's scores, shape (n, classes), were asked for.

    Arguments:
        target: asked for the scores.
        change: of them.
        again: puts the same defence around another target, as an adversary would who knows all of it but the owner's key.
        step: by which given scores differ at least; 0 where they are as fine as the numbers.
        same_labels: whether no label ever changes: then an adversary who wants labels need not wait for the scores.
    """

    target: Target
    change: Change
    again: Protect | None = None
    step: float = 0.0
    same_labels: bool = False
    access: Access = Access.SCORE
    outputs: str = "probabilities"

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.change(self.target.scores(x.detach()), x)


def answering(target: Target | nn.Module, change: Change, *, name: str, again: Protect | None = None) -> Target:
    """Return a target with SCORE access that answers with changed scores; what is asked of it counts on the inner one too.

    Arguments:
        target: with SCORE access.
        change: (scores (n, classes), inputs (n, ...)) -> scores that sum to about 1 and keep the label.
        name: of the defence, for reports.
        again: `(target, members, non_members) -> target`, puts the same defence around another model, so that `judge_defence`
            can train reference models behind it; None where nobody else could.

    Raises:
        AccessDenied: below SCORE access.
    """
    return behind(as_target(target), name, change, again)


def behind(
    target: Target, name: str, change: Change, again: Protect | None, *, step: float = 0.0, same_labels: bool = False
) -> Target:
    """Return the target behind a change of its scores; see `Answering`."""
    target.need(Access.SCORE, name)
    return Target(
        Answering(target.seen_at(Access.SCORE), change, again, step, same_labels), bounds=target.bounds,
        batch_size=target.batch_size, name=f"{target.name} behind {name}",
    )


def labels_alone(target: Target | nn.Module) -> Target:
    """Return the target with its confidence masked: it answers labels and nothing else.

    What is left to the adversary is whether a label is right, and where it changes: judge it by attacks that ask no more.
    """
    return as_target(target).seen_at(Access.LABEL)


def rounded(target: Target | nn.Module, *, digits: int = 1) -> Target:
    """Return a target whose scores are rounded; the label keeps a lead of one step where rounding would tie it.

    Arguments:
        target: with SCORE access.
        digits: decimals kept.

    Raises:
        UsageError: for fewer than 1 digit.
        AccessDenied: below SCORE access.
    """
    if digits < 1:
        raise UsageError(f"digits is {digits}", want="at least 1", fix="labels_alone(target) gives no score at all")
    step = 10.0**-digits

    def change(scores: Tensor, _: Tensor) -> Tensor:
        label = scores.argmax(1, keepdim=True)
        found = (scores / step).round()
        others = found.scatter(1, label, -1.0).max(1, keepdim=True).values
        own = found.gather(1, label)
        return found.scatter(1, label, torch.maximum(own, others + 1)) * step

    return behind(
        as_target(target), f"rounding to {digits} digits", change, lambda other, *_: rounded(other, digits=digits), step=step
    )


def top_scores(target: Target | nn.Module, *, k: int = 1) -> Target:
    """Return a target that gives the k highest scores; what is left of 1 is shared evenly by the other classes.

    Sharing is what an adversary would do with scores withheld, and keeps their order below the k-th.

    Arguments:
        target: with SCORE access.
        k: scores given as they are.

    Raises:
        UsageError: for k below 1.
        AccessDenied: below SCORE access.
    """
    if k < 1:
        raise UsageError(f"k is {k}", want="at least 1", fix="labels_alone(target) gives no score at all")

    def change(scores: Tensor, _: Tensor) -> Tensor:
        classes = scores.shape[1]
        if k >= classes:
            return scores
        kept, places = scores.topk(k, dim=1)
        share = (1 - kept.sum(1, keepdim=True)).clamp_min(0) / (classes - k)
        return share.expand(-1, classes).clone().scatter(1, places, kept)

    return answering(target, change, name=f"the top {k} scores", again=lambda other, *_: top_scores(other, k=k))
