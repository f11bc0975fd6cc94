"""Randomised response for labels (label differential privacy): features are public, each label is noised once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.noise import SecureSource, Source

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class NoisyLabels:
    """Labels that may be trained on.

    Arguments:
        labels: shape (n,), int64.
        releases: what the ledger records: each label was answered once, so that together they cost one ε (of a replaced label).
        k: for `rr_with_prior`, among how many of its likeliest labels each answer was drawn, shape (n,); None otherwise.
    """

    labels: Tensor
    releases: tuple[Release, ...]
    k: Tensor | None = None


def randomized_response(labels: Tensor, classes: int, epsilon: float, *, source: Source | None = None) -> NoisyLabels:
    """Keep each label with probability e^ε / (e^ε + K - 1), else answer one of the K - 1 others at random.

    Arguments:
        labels: shape (n,), integers 0 ... K - 1.
        classes: K, at least 2.
        epsilon: of each label, at least 0; infinite keeps all labels.
        source: of randomness; None takes a secure one.

    Raises:
        DataError: for labels that are not of these classes.
        UsageError: for an ε that cannot be.

    Paper: Warner 1965, JASA 60; Kairouz, Bonawitz and Ramage 2016, arXiv:1602.07387.
    """
    labels = _checked(labels, classes, epsilon)
    return NoisyLabels(_among(labels, torch.full_like(labels, classes), epsilon, source or SecureSource()), _released(epsilon))


def rr_with_prior(labels: Tensor, prior: Tensor, epsilon: float, *, source: Source | None = None) -> NoisyLabels:
    """Answer among the k likeliest labels alone, with the k that keeps the true label most often.

    A good prior (a model trained on an earlier, already noised part; public knowledge) makes the answers much better at the same
    ε. The prior itself must not have seen these labels.

    Arguments:
        labels: shape (n,), integers 0 ... K - 1.
        prior: probabilities of the labels, of each example (n, K), or of all (K,).
        epsilon: of each label, at least 0.
        source: of randomness; None takes a secure one.

    Raises:
        DataError: for labels or a prior that do not fit.
        UsageError: for an ε that cannot be.

    Paper: Ghazi, Golowich, Kumar, Manurangsi and Zhang 2021, "Deep learning with label differential privacy", arXiv:2102.06062.
    """
    classes = prior.shape[-1] if prior.ndim else 0
    labels = _checked(labels, classes, epsilon)
    if prior.shape not in ((classes,), (len(labels), classes)):
        raise DataError(f"the prior has shape {tuple(prior.shape)} for {len(labels)} labels", want="(n, K) or (K,)")
    each = prior.double().expand(len(labels), classes)
    if not bool(((each >= 0) & ((each.sum(1, keepdim=True) - 1).abs() < 1e-3)).all()):
        raise DataError("the prior has entries that are no probabilities, or a sum that is not 1", want="(n, K) or (K,)")
    top = each.sort(dim=1, descending=True).values.cumsum(1)  # (n, K)
    kept = top * torch.tensor([keep_probability(epsilon, k) for k in range(1, classes + 1)], dtype=torch.float64)
    k = kept.argmax(1) + 1
    return NoisyLabels(_answers(labels, each, k, epsilon, source), _released(epsilon), k)


def keep_probability(epsilon: float, k: int) -> float:
    """Return the probability of the true label among k: e^ε / (e^ε + k - 1)."""
    return 1 / (1 + (k - 1) * math.exp(-epsilon))


def transition(epsilon: float, prior: Tensor, k: int) -> Tensor:
    """Return P(answer | label) when answers come from the k likeliest labels of a prior, shape (K, K), rows of labels.

    Arguments:
        epsilon: at least 0.
        prior: shape (K,); equal entries count in order.
        k: 1 ... K.
    """
    chosen = prior.argsort(descending=True, stable=True)[:k]
    keep = keep_probability(epsilon, k)
    table = torch.zeros(len(prior), len(prior), dtype=torch.float64)
    table[:, chosen] = 1 / k  # a label that is not among them says nothing
    table[chosen[:, None], chosen[None]] = keep * math.exp(-epsilon)
    table[chosen, chosen] = keep
    return table


def unbiased_loss(epsilon: float) -> Loss:
    """Return a cross-entropy over labels of `randomized_response` whose expectation is that over the true labels.

    With p the chance to keep a label and q that of each other, it is (loss(answer) - q sum_y loss(y)) / (p - q). It can be
    negative, and a flexible model can drive it far below zero: stop early, or use `forward_loss`.

    Arguments:
        epsilon: the ε of the labels, above 0.

    Raises:
        UsageError: for an ε of 0, whose answers say nothing of the labels.

    Paper: Natarajan, Dhillon, Ravikumar and Tewari 2013, NeurIPS; Patrini et al. 2017, arXiv:1609.03683.
    """
    if not epsilon > 0:
        raise UsageError(f"ε is {epsilon}", want="above 0: at 0 the answers say nothing of the labels")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        losses = -functional.log_softmax(logits, dim=1)  # (n, K): the loss if each label were the true one
        keep = keep_probability(epsilon, logits.shape[1])
        other = keep * math.exp(-epsilon)
        answered = losses.gather(1, y[:, None])[:, 0]
        return ((answered - other * losses.sum(1)) / (keep - other)).mean()

    return loss


def forward_loss(table: Tensor) -> Loss:
    """Return the cross-entropy between the answers and what the model's probabilities become by the noise.

    Its minimum is at the true probabilities where the table is invertible; never negative.

    Arguments:
        table: P(answer | label), shape (K, K), of `transition`.

    Paper: Patrini et al. 2017, arXiv:1609.03683.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        probabilities = functional.softmax(model(x), dim=1)
        answered = probabilities @ table.to(probabilities)  # (n, K)
        return -answered.gather(1, y[:, None]).clamp_min(1e-30).log().mean()

    return loss


def _answers(labels: Tensor, prior: Tensor, k: Tensor, epsilon: float, source: Source | None) -> Tensor:
    order = prior.argsort(dim=1, descending=True, stable=True)  # (n, K): rank to label
    rank = (order == labels[:, None]).long().argmax(1)
    return order.gather(1, _among(rank, k, epsilon, source or SecureSource())[:, None])[:, 0]


def _among(rank: Tensor, k: Tensor, epsilon: float, source: Source) -> Tensor:
    """Answer a number from 0 to k - 1: the rank itself as often as ε allows, where it is one of them."""
    like = torch.empty(len(rank), dtype=torch.float64, device=rank.device)
    known, kept = rank < k, source.uniform(like) < 1 / (1 + (k.double() - 1) * math.exp(-epsilon))
    # One of the k - 1 others, or of all k where the true label is not among them.
    other = (source.uniform(like) * (k - known.long())).long()
    return torch.where(known & kept, rank, other + (known & (other >= rank)).long())


def _released(epsilon: float) -> tuple[Release, ...]:
    return (Release("randomized-response", epsilon),)


def _checked(labels: Tensor, classes: int, epsilon: float) -> Tensor:
    if classes < 2:
        raise UsageError(f"there are {classes} classes", want="at least 2")
    if not epsilon >= 0:
        raise UsageError(f"ε is {epsilon}", want="a number of 0 or more")
    if not isinstance(labels, Tensor):
        raise DataError(f"the labels are a {type(labels).__name__}", want="a tensor", fix="Pass torch.as_tensor(labels)")
    if labels.ndim != 1 or labels.is_floating_point() or bool(((labels < 0) | (labels >= classes)).any()):
        problem = f"the labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, or are out of range"
        raise DataError(problem, want=f"whole numbers from 0 to {classes - 1}, shape (n,)")
    return labels.long()
