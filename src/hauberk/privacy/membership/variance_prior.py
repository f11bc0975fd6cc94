"""A variance that is shared as far as the records allow: a normal-inverse-gamma prior, fitted over records."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import optimize, special, stats
from torch import nn

from hauberk.core.access import Access
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.stats import Floats
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.evidence import Evidence, Moments, gathered
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.references import References
from hauberk.privacy.membership.signals import Records


@inference(
    question="How many training records stand out where only a few reference models could be trained?", access=Access.SCORE,
    paper="after Brännvall 2026 (BaVarIA), arXiv:2603.11799", tags=TAGS, references=True,
)
def variance_prior(
    target: Target | nn.Module, members: Records, non_members: Records, *, references: References | None = None,
    linked: bool = True,
) -> MembershipScores:
    """Score each record by the log-ratio of two posterior predictive laws of its log-odds: trained on it, or not.

    On each side the log-odds of a record over trainings are normal, with mean and variance drawn from one normal-inverse-gamma
    law for all records. That law is fitted to all references (empirical Bayes); what it predicts for the target is a Student-t.
    Few references leave it close to one variance for all, many to one for each: between the two variants of LiRA.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        references: from `train_references`; None trains four small perceptrons on all records, the weakest choice.
        linked: let the prior mean of a record on one side follow its mean on the other: a record that is hard without having
            been trained on is less sure with it too. False gives every record the same prior mean.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below SCORE access.
        DataError: where a record has no reference on a side.
    """
    found = gathered(as_target(target), "variance-prior", (members, non_members), references, signals.log_odds).need(inside=True)
    return found.split(prior_ratio(found, linked))


def prior_ratio(found: Evidence, linked: bool = True) -> Floats:
    """Return the log-ratio of the posterior predictive laws of what the target says, trained on a record or not, shape (n,)."""
    if not len(found.target):
        return found.target
    sides = [Moments.of(found.references, found.inside), Moments.of(found.references, ~found.inside)]
    laws = [fit_prior(one, other.mean if linked else None) for one, other in (sides, sides[::-1])]
    within, outside = (law.log_predictive(found.target, one) for law, one in zip(laws, sides, strict=True))
    return np.asarray(within - outside)


@dataclasses.dataclass(frozen=True)
class Prior:
    """mean | variance ~ N(centre, variance / weight), variance ~ InverseGamma(shape, scale).

    Arguments:
        centre: prior mean of each record, shape (n,).
        weight: how many references the prior mean counts for.
        shape, scale: of the variance.
    """

    centre: Floats
    weight: float
    shape: float
    scale: float

    def posterior(self, seen: Moments) -> tuple[Floats, Floats, Floats, Floats]:
        """Return centre, weight, shape and scale after the references, each of shape (n,)."""
        weight = self.weight + seen.count
        centre = (self.weight * self.centre + seen.count * seen.mean) / weight
        scale = self.scale + seen.squares / 2 + self.weight * seen.count * (seen.mean - self.centre) ** 2 / (2 * weight)
        return centre, weight, self.shape + seen.count / 2, scale

    def log_predictive(self, s: Floats, seen: Moments) -> Floats:
        """Return the log-density of the next training's value, shape (n,): a Student-t."""
        centre, weight, shape, scale = self.posterior(seen)
        return np.asarray(stats.t.logpdf(s, 2 * shape, centre, np.sqrt(scale * (weight + 1) / (shape * weight))))

    def log_evidence(self, seen: Moments) -> Floats:
        """Return the log marginal likelihood of each record's references, shape (n,), up to a constant of the data."""
        _, weight, shape, scale = self.posterior(seen)
        made: Floats = (
            special.gammaln(shape) - special.gammaln(self.shape) + self.shape * np.log(self.scale) - shape * np.log(scale)
            + 0.5 * np.log(self.weight / weight)
        )
        return made


def fit_prior(seen: Moments, other: Floats | None = None) -> Prior:
    """Return the prior that makes the references of all records likeliest.

    Arguments:
        seen: the references of one side.
        other: what the prior mean follows, shape (n,), by a line; None for a constant.
    """
    # In one order, whatever the records came in: sums then round alike, and so do all steps of the search.
    order = np.lexsort((np.zeros(len(seen.mean)) if other is None else other, seen.squares, seen.mean))
    mean, squares, count = seen.mean[order], seen.squares[order], seen.count[order]
    if (count == count[0]).all():
        count = count[:1]  # what depends on it alone is worked out once, not for each record
    centre, unit = float(mean.mean()), max(float(mean.std()), 1e-6)
    lead, slopes = np.zeros(len(mean)), (0.0, 0.0)
    middle, width = 0.0, 1.0
    if other is not None:
        middle, width = float(other[order].mean()), max(float(other[order].std()), 1e-6)
        lead, slopes = (other[order] - middle) / width, (-3.0, 3.0)
    # In units of the spread between records, so that one start and one set of limits serve any signal.
    scaled = Moments(count, (mean - centre) / unit, squares / unit**2)

    def worse(at: Floats) -> float:
        weight, shape, scale = (float(one) for one in np.exp(at[2:]))
        return -float(Prior(at[0] + at[1] * lead, weight, shape, scale).log_evidence(scaled).mean())

    # A shape of at least 1/2 keeps the variance from being drawn from a law so heavy that it says nothing.
    limits = [(-3.0, 3.0), slopes, (-7.0, 7.0), (np.log(0.5), np.log(1e3)), (-16.0, np.log(1e3))]
    best = optimize.minimize(worse, np.array([0.0, 0.0, -0.7, 0.7, -1.0]), method="L-BFGS-B", bounds=limits).x
    follows = np.zeros(len(order)) if other is None else np.asarray((other - middle) / width)
    weight, shape, scale = (float(one) for one in np.exp(best[2:]))
    return Prior(centre + unit * (best[0] + best[1] * follows), weight, shape, scale * unit**2)
