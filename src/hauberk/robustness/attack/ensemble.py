"""One model made of several, so that an example has to fool them all: every attack runs against it as against any other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.core.target import Target, as_target

AVERAGES = ("logits", "probabilities", "loss")


def ensemble(
    models: Sequence[nn.Module | Target], *, average: str = "logits", weights: Sequence[float] | None = None
) -> nn.Module:
    """Return one module that answers with the average of several.

    Dong et al. 2018, arXiv:1710.06081; Liu et al. 2017, arXiv:1611.02770. It is for attacks and not for training: members answer
    in evaluation mode and keep the modes and weights they have.

    Arguments:
        models: modules of the same classes, that return logits or probabilities, shape (n, classes); or targets with GRADIENT
            access, which state what they return and count what they are asked.
        average: of the `logits`; of the `probabilities`, returned as their logarithm; or of the `loss`: the mean
            log-probability of every class, whose cross-entropy is the mean of the members' cross-entropies plus the logarithm
            of what the mean probabilities add up to, which is zero where the members agree.
        weights: of the models, 0 or more; None: all alike. They are scaled to a sum of 1.

    Returns:
        A module: inputs (n, ...) to logits (n, classes).

    Raises:
        AccessDenied: when a target grants less than GRADIENT.
        UsageError: for no models, an average of another name, or weights that do not fit.
        ModelError: at the first answer, when the members' classes differ.
    """
    known_average(average)
    if not models:
        raise UsageError("no models were given", want="one or more modules")
    parts = [1.0] * len(models) if weights is None else [float(one) for one in weights]
    if len(parts) != len(models) or not all(0 <= one < math.inf for one in parts) or sum(parts) <= 0:
        raise UsageError(
            f"weights are {parts} for {len(models)} models", want="one number of 0 or more per model, not all zero"
        )
    return _Ensemble(models, average, [one / sum(parts) for one in parts])


class _Ensemble(nn.Module):
    """The average of several modules."""

    def __init__(self, models: Sequence[nn.Module | Target], average: str, weights: Sequence[float]) -> None:
        super().__init__()
        # A target reads what a member returns, and asks it in evaluation mode whatever mode it was left in.
        self._targets = [as_target(model) for model in models]
        self.models, self.average, self.weights = nn.ModuleList(one.module for one in self._targets), average, tuple(weights)
        self.training = False  # of this shell alone: nobody has to put the members into another mode

    def forward(self, x: Tensor) -> Tensor:
        """Return the averaged logits, shape (n, classes), of x, shape (n, ...)."""
        answers = [target.logits(x) for target in self._targets]
        widths = [one.shape[1] for one in answers]
        if len(set(widths)) > 1:
            raise ModelError(f"the members return {widths} classes", want="the same classes of every member")
        return averaged(answers, self.weights, self.average)


def averaged(answers: Sequence[Tensor], weights: Sequence[float], average: str) -> Tensor:
    """Return one answer for several, shape (n, classes) each, with weights that add up to 1; see `ensemble`."""
    share = torch.tensor(weights, dtype=answers[0].dtype, device=answers[0].device)[:, None, None]
    rows = torch.stack(list(answers))  # (models, n, classes)
    if average == "logits":
        return (share * rows).sum(0)
    rows = rows.log_softmax(2)
    return (share * rows).sum(0) if average == "loss" else (rows + share.log()).logsumexp(0)


def known_average(average: str) -> None:
    """Raise UsageError for an average of another name."""
    if average not in AVERAGES:
        raise UsageError(f"average is '{average}'", want=" | ".join(AVERAGES), fix=nearest(average, AVERAGES))
