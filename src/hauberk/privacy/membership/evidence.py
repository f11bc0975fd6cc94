"""What an attack with reference models looks at: one signal of each record, from the target and from every reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.kinds import MembershipScores
from hauberk.core.stats import Floats
from hauberk.core.target import Target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.references import References, Signal, own_references
from hauberk.privacy.membership.signals import Records

LEAST = 1e-12  # a variance below this is rounding
REACH = 11.5  # log-odds of 1e-5: beyond it an estimator's probability is a matter of rounding


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A signal of n records, those of the members first.

    Arguments:
        target: of the model under attack, shape (n,).
        references: of each reference, shape (k, n).
        inside: whether it was trained on the record, shape (k, n), bool.
        members: how many of the n are members. No score may depend on it.
        lost: which records the target answered with NaN, shape (n,); their scores are the lowest. None for none.
    """

    target: Floats
    references: Floats
    inside: NDArray[np.bool_]
    members: int
    lost: NDArray[np.bool_] | None = None

    def split(self, scores: Floats) -> MembershipScores:
        """Return scores of all records, shape (n,), by side."""
        kept = scores if self.lost is None else np.where(self.lost, -np.inf, scores)
        made = torch.from_numpy(np.ascontiguousarray(kept, dtype=np.float64))
        return signals.both_sides(made[: self.members], made[self.members :])

    def need(self, *, inside: bool) -> Evidence:
        """Return this, or raise DataError where a record has no reference that was trained without it (with it)."""
        for what, seen in (("with", self.inside), ("without", ~self.inside)):
            short = int((~seen.any(0)).sum())
            if short and (what == "without" or inside):
                raise DataError(
                    f"{short} of {self.inside.shape[1]} records have no reference model trained {what} them",
                    want="references in complementary halves of a pool that holds all records",
                    fix="Train more of them on these records; or attack offline, where none is trained with them",
                )
        return self


def gathered(
    view: Target, who: str, sides: tuple[Records, Records], references: References | None, signal: Signal
) -> Evidence:
    """Return the signal of both sides; without references, small perceptrons are trained on all records.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for labels that are not classes.
    """
    view.need(Access.SCORE, who)
    # One question for both sides: their answers then have the same number of classes, and the same rounding.
    answers = [signals.answers(view, side) for side in sides]
    own = torch.cat([signal(*one) for one in answers])
    if references is None:
        if not len(own):
            empty = np.zeros((2, 0))
            return Evidence(np.zeros(0), empty, empty > 0, 0)
        references = own_references(sides) if len(own) >= 4 else _too_few(len(own))
    told = [references.on(side, signal) for side in sides]
    theirs, inside = (torch.cat([one[part] for one in told], 1) for part in (0, 1))
    if view.outputs == "probabilities" or any(one.outputs == "probabilities" for one in references.models):
        own, theirs = own.clamp(-REACH, REACH), theirs.clamp(-REACH, REACH)
    parts = [one.detach().cpu() for one in (own, theirs)]
    far = beyond(*parts)
    clean = [torch.nan_to_num(one, nan=-REACH, posinf=far, neginf=-far).numpy() for one in parts]
    return Evidence(clean[0], clean[1], inside.numpy(), len(sides[0][0]), parts[0].isnan().numpy())


def beyond(*values: Tensor) -> float:
    """Return a number that stands for infinity among these: none that is finite lies further out."""
    return max([700.0, *(float(one.abs()[one.isfinite()].max()) for one in values if bool(one.isfinite().any()))])


def _too_few(n: int) -> References:
    raise DataError(f"there are {n} records", want="4 or more, for reference models to be trained on halves of them")


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of each record on one side: how many references there are, their mean, and the sum of squares around it; all (n,)."""

    count: Floats
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, references: Floats, side: NDArray[np.bool_]) -> Moments:
        """Return the moments over the references at `side`, both of shape (k, n); a record without any has mean 0."""
        count = side.sum(0).astype(float)
        mean = np.where(side, references, 0.0).sum(0) / np.maximum(count, 1)
        squares = (np.where(side, references - mean, 0.0) ** 2).sum(0)
        return cls(count, mean, squares)

    @property
    def pooled(self) -> float:
        """The variance around each record's own mean, of all records together; with one reference each, that of the means."""
        freedom = float(np.maximum(self.count - 1, 0).sum())
        if freedom:
            return float(self.squares.sum()) / freedom
        means = self.mean[self.count > 0]
        return float(means.var(ddof=1)) if len(means) > 1 else 1.0

    @property
    def typical(self) -> float:
        """The variance of the typical record: pooled by its logarithm, so that the few that vary most do not rule it.

        log s^2 of d degrees of freedom lies psi(d / 2) - log(d / 2) above log sigma^2, which is taken off; so that it estimates
        what `pooled` does where all records vary alike. A signal that is at a bound in all references tells nothing here.
        """
        freedom = self.count - 1
        own = self.squares / np.maximum(freedom, 1)
        told = (freedom > 0) & (own > LEAST)
        if not told.any():
            return self.pooled
        half = freedom[told] / 2
        return float(np.exp((np.log(own[told]) - special.digamma(half) + np.log(half)).mean()))
