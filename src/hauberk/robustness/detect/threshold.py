"""The threshold of a detector: the stated false-positive rate holds for any law of the scores."""

from __future__ import annotations

import math

from torch import Tensor

from hauberk.core.errors import DataError, UsageError


class Threshold:
    """The score that clean samples pass at most at a stated rate.

    With n clean scores it is their ceil((n + 1)(1 - fpr))-th smallest. A new score exchangeable with them lies above it with a
    probability of at most `fpr`, however scores are spread (split conformal prediction: Vovk et al. 2005, Algorithmic Learning
    in a Random World).

    Arguments:
        fpr: the false-positive rate stated, between 0 and 1.
    """

    def __init__(self, fpr: float) -> None:
        if not 0 < fpr < 1:
            raise UsageError(f"fpr is {fpr}", want="a false-positive rate between 0 and 1")
        self.fpr = fpr
        self._value: float | None = None

    @property
    def value(self) -> float:
        """The threshold. Raises UsageError before `set`."""
        if self._value is None:
            raise UsageError("the detector has no threshold yet", fix="Call fit(clean, target) first")
        return self._value

    def set(self, scores: Tensor) -> None:
        """Learn the threshold from clean scores, shape (n,).

        Raises:
            DataError: for a NaN, or fewer scores than the rate needs.
        """
        rank = math.ceil((len(scores) + 1) * (1 - self.fpr) - 1e-9)
        if rank > len(scores):
            raise DataError(
                f"{len(scores)} clean samples cannot promise a false-positive rate of {self.fpr:g}",
                want=f"at least {math.ceil(1 / self.fpr - 1 - 1e-9)}", fix="Give more clean samples, or state a higher rate",
            )
        if bool(scores.isnan().any()):
            raise DataError("the score of a clean sample is NaN", want="a model that answers with finite numbers")
        self._value = float(scores.double().sort().values[rank - 1])
