"""Signals of membership, from logits, in float64 and without cancellation: a confident model must not turn them all into zero.

A softmax rounds to exactly 1 as soon as one logit leads by 17 (float32) or 37 (float64), and all such records tie. Here each
quantity is built from the *other* classes, so that records stay ordered while the lead is below 700.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import DataError
from hauberk.core.kinds import MembershipScores
from hauberk.core.target import Target

Records = tuple[Tensor, Tensor]
Held = dict[tuple[object, ...], tuple[tuple[object, ...], Tensor]]
_held: contextvars.ContextVar[Held | None] = contextvars.ContextVar("hauberk_answers", default=None)


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Within the block, a target is asked for its scores of the same tensors once, whichever attacks look at them.

    For several attacks on the same records: what they cost is then one answer of the target. Neither its weights nor the tensors
    may be changed within the block; a target that answers at random is judged by one answer.
    """
    token = _held.set({} if _held.get() is None else _held.get())
    try:
        yield
    finally:
        _held.reset(token)


def remembered(what: str, things: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
    """Return what `make` makes of the things; within `asked_once` it is made once, and copies of it are returned."""
    held = _held.get()
    if held is None:
        return make()
    key = (what, *map(id, things))
    if key not in held:
        held[key] = things, make()  # the things are held too: no other may take their place in memory
    return held[key][1].clone()


def answers(target: Target, records: Records) -> tuple[Tensor, Tensor]:
    """Return the logits of the records, shape (n, classes), float64, and their labels, shape (n,), int64.

    Raises:
        DataError: for labels that are not classes of the model, or not one per record.
    """
    x, y = paired(records)
    logits = remembered("logits", (target, x), lambda: target.logits(x.detach()).double())
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise foreign(y, logits.shape[1])
    return logits, y.to(logits.device).long()


def foreign(y: Tensor, classes: int | None = None) -> DataError:
    """Return the error of labels that are not classes of the model."""
    last = "on" if classes is None else f"to {classes - 1}"
    return DataError(f"labels span {int(y.min())} to {int(y.max())}", want=f"classes 0 {last} of the model")


def paired(records: Records) -> Records:
    """Return the records as they are. Raises DataError for labels that are not classes, or not one per record."""
    x, y = records
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise DataError(
            f"y has shape {tuple(y.shape)} and dtype {y.dtype} for {len(x)} records", want=f"({len(x)},) class labels"
        )
    return x, y


def both_sides(members: Tensor, non_members: Tensor) -> MembershipScores:
    """Return the scores on the CPU, one NaN of a broken model counting as the lowest score."""
    far = torch.inf
    clean = [torch.nan_to_num(one.detach().cpu(), nan=-far, posinf=far, neginf=-far) for one in (members, non_members)]
    return MembershipScores(*clean)


def unless_nan(scores: Tensor, logits: Tensor) -> Tensor:
    """Return the scores, shape (n,), and -inf where the model answered NaN: a broken answer is no sign of membership."""
    return torch.where(logits.isnan().any(1).to(scores.device), -torch.inf, scores)


def gap(logits: Tensor, y: Tensor) -> Tensor:
    """Return log sum_{j != y} exp(z_j) - z_y, shape (n,): minus the log-odds of the label."""
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(1) - own


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return log p_y / (1 - p_y), shape (n,): what LiRA takes to be Gaussian over trainings."""
    return -gap(logits, y)


def log_score(logits: Tensor, y: Tensor) -> Tensor:
    """Return log p_y, shape (n,)."""
    return -cross_entropy(logits, y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return -log p_y, shape (n,), to full relative precision however small."""
    return functional.softplus(gap(logits, y))


def log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 - p), both of shape (n, classes), to full relative precision at both ends."""
    log_p = logits.log_softmax(1)
    log_rest = torch.log1p(-log_p.exp().clamp(max=0.5))
    # Both are exact up to one half. One class at most is above, and of that one 1 - p is what the others hold.
    top = logits.argmax(1, keepdim=True)
    lead = gap(logits, top[:, 0])[:, None]  # log-odds against the top class
    above = lead < 0
    log_p = log_p.scatter(1, top, torch.where(above, -functional.softplus(lead), log_p.gather(1, top)))
    return log_p, log_rest.scatter(1, top, torch.where(above, -functional.softplus(-lead), log_rest.gather(1, top)))


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the scores in nats, shape (n,): a sum of terms that are all positive."""
    log_p, _ = log_probabilities(logits)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(1)


def label_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the modified entropy -(1 - p_y) log p_y - sum_{j != y} p_j log(1 - p_j), shape (n,) (Song and Mittal 2021)."""
    log_p, log_rest = log_probabilities(logits)
    p, rest = log_p.exp(), log_rest.exp()
    lowest = torch.finfo(log_p.dtype).min
    terms = -(p * log_rest.clamp(min=lowest)).scatter(1, y[:, None], 0.0)
    # Summed from small to large: the place of the label must not decide the last bit, which ranks records that are equal.
    others = terms.sort(1).values.sum(1)
    own = -(rest * log_p.clamp(min=lowest)).gather(1, y[:, None])[:, 0]
    return own + others
