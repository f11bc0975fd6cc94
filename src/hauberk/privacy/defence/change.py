"""What a defence changes for the strongest of several attacks, at few false alarms, with an interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hauberk.core.finding import Interval
from hauberk.core.kinds import MembershipScores
from hauberk.core.rng import numpy_generator
from hauberk.core.stats import Floats

ALARMS = 10  # false alarms that a rate leaves at least: resampling does not tell how far the extreme few of them would move
DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Change:
    """What the strongest attack finds with a defence, less what the strongest finds without it.

    Arguments:
        fpr: the false-positive rate: 0.1 %, or the lowest that leaves ten false alarms, at most one half.
        plain, defended: the largest true-positive rate there over the attacks.
        interval: of the difference, by resampling records; the strongest attack on either side is chosen anew in each sample,
            and where one side was attacked in more ways than the other, what that choice wins by chance is allowed for.
    """

    fpr: float
    plain: float
    defended: float
    interval: Interval

    @property
    def value(self) -> float:
        """The difference: below 0 the defence hides members."""
        return self.defended - self.plain


def change_of(
    plain: Sequence[MembershipScores], defended: Sequence[MembershipScores], *, seed: int, draws: int = DRAWS,
    confidence: float = 0.95,
) -> Change:
    """Return the change of the largest true-positive rate over attacks, its percentile interval paired over records.

    The records of both sides are drawn with replacement, the same ones for all attacks on both models, and thresholds, rates and
    the choice of the strongest are made anew in each of the draws: so the interval allows for that choice where it is one of as
    many on both sides. The best of more attacks is better by chance alone: against the side that has fewer, as where scores are
    denied, the interval reaches as far as that of any one attack of the others, at a confidence divided among them (Bonferroni).

    Arguments:
        plain, defended: scores of the same members and non-members, in one order, by at least one attack each.
        seed: of the draws.
        draws: of records.
        confidence: of the interval.
    """
    members, others = len(plain[0].members), len(plain[0].non_members)
    fpr = min(0.5, max(1e-3, ALARMS / others))
    allowed = int(fpr * others + 1e-9)
    dice = numpy_generator(seed, "change under a defence")
    # The first row counts every record once: the figures themselves.
    counts = [
        np.concatenate([np.ones((1, n), dtype=np.int64), dice.multinomial(n, np.full(n, 1 / n), draws)])
        for n in (members, others)
    ]
    rates = [np.stack([_rates(one, counts[0], counts[1], allowed) for one in side]) for side in (plain, defended)]
    best, tail = [one.max(0) for one in rates], (1 - confidence) / 2
    low, high = np.quantile((best[1] - best[0])[1:], [tail, 1 - tail])
    if len(plain) > len(defended):
        high = max(high, np.quantile(best[1] - rates[0], 1 - tail / len(plain), axis=1).min())
    elif len(defended) > len(plain):
        low = min(low, np.quantile(rates[1] - best[0], tail / len(defended), axis=1).max())
    return Change(fpr, float(best[0][0]), float(best[1][0]), Interval(float(low), float(high), "bootstrap, paired", confidence))


def _rates(scores: MembershipScores, members: NDArray[np.int64], others: NDArray[np.int64], allowed: int) -> Floats:
    """Return the true-positive rate at `allowed` false alarms for each row of counts, (draws, m) and (draws, k)."""
    inside, outside = scores.members.numpy(), scores.non_members.numpy()
    rising, falling = np.argsort(inside), np.argsort(-outside)
    # The first non-member that is one too many bars all scores up to its own, ties included.
    first = (others[:, falling].cumsum(1) > allowed).argmax(1)
    start = np.searchsorted(inside[rising], outside[falling][first], side="right")
    below = np.concatenate([np.zeros((len(members), 1), dtype=np.int64), members[:, rising].cumsum(1)], 1)
    beyond = members.shape[1] - np.take_along_axis(below, start[:, None], 1)[:, 0]
    return np.asarray(beyond / members.shape[1], dtype=np.float64)
