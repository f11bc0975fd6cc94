"""Where to cut the scores of canaries: candidate cuts, and what they cost in confidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hauberk.core.errors import DataError, UsageError

Counts = NDArray[np.int64]
STRATEGIES = ("grid", "hull", "split")
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of all canaries, called members: few, and fixed before any score is seen


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an attack said of canaries: higher for those it takes for members.

    Arguments:
        members: scores of the canaries that were trained on, shape (a,).
        others: scores of the canaries that were left out, shape (b,).

    Raises:
        DataError: for a side without scores, or with scores that are NaN.
    """

    members: NDArray[np.float64]
    others: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("members", "others"):
            side = np.asarray(getattr(self, name), dtype=float).reshape(-1)
            if not len(side) or np.isnan(side).any():
                raise DataError(
                    f"the {name} have {len(side)} scores, {int(np.isnan(side).sum())} of them NaN",
                    want="at least one score a side, and a number each",
                )
            object.__setattr__(self, name, side)

    @classmethod
    def of(cls, members: ArrayLike, others: ArrayLike) -> Scores:
        """Return scores from anything that NumPy takes for numbers."""
        return cls(np.asarray(members, dtype=float), np.asarray(others, dtype=float))

    @property
    def turned(self) -> Scores:
        """The same question from the other side: who was left out?"""
        return Scores(-self.others, -self.members)

    def counts(self, cuts: NDArray[np.float64]) -> tuple[Counts, Counts]:
        """Return how many members, and how many others, score at least each cut."""
        members, others = np.sort(self.members), np.sort(self.others)
        return len(members) - np.searchsorted(members, cuts), len(others) - np.searchsorted(others, cuts)

    def halves(self, rng: np.random.Generator) -> tuple[Scores, Scores]:
        """Return two halves, each side split at random."""
        sides = [rng.permutation(side) for side in (self.members, self.others)]
        first = Scores(*(side[: len(side) // 2] for side in sides))
        return first, Scores(*(side[len(side) // 2 :] for side in sides))


def grid(scores: Scores) -> NDArray[np.float64]:
    """Return cuts that call fixed shares of the canaries members, whichever they are: their number depends on no score."""
    pool = np.sort(np.concatenate([scores.members, scores.others]))[::-1]
    called = np.unique(np.ceil(np.array(SHARES) * len(pool)).astype(int).clip(1))
    return pool[called - 1]


def hull(scores: Scores) -> NDArray[np.float64]:
    """Return the cuts at the corners of the convex hull of the ROC curve, the highest first, the two trivial ones among them."""
    cuts = np.concatenate([[np.inf], np.unique(np.concatenate([scores.members, scores.others]))[::-1]])
    right, wrong = scores.counts(cuts)
    kept: list[int] = []
    for here in range(len(cuts)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            turn = (wrong[b] - wrong[a]) * (right[here] - right[a]) - (right[b] - right[a]) * (wrong[here] - wrong[a])
            if turn < 0:
                break
            kept.pop()
        kept.append(here)
    return cuts[kept]


def best(
    scores: Scores, bound: Callable[[Scores, NDArray[np.float64], float], NDArray[np.float64]], *, confidence: float,
    strategy: str | float, rng: np.random.Generator | None = None,
) -> float:
    """Return the largest lower bound over the cuts of a strategy, at the confidence that all of them together leave.

    Arguments:
        scores: of the canaries.
        bound: `(scores, cuts, confidence) -> bounds`, one for each cut, each holding with that confidence on its own.
        confidence: of the answer.
        strategy: `grid` (Bonferroni over cuts fixed beforehand), `split` (one half of the scores finds the cut, the other half
            gives the bound), `hull` (Bonferroni over the corners of the ROC curve, as jax_privacy does; their choice looks at
            the scores, so that the confidence is nominal) or a number, the one cut.
        rng: draws the halves; needed for `split`.

    Raises:
        UsageError: for another strategy, a confidence outside (0, 1), or `split` without a generator.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"the confidence is {confidence}", want="a number between 0 and 1, such as 0.95")
    if isinstance(strategy, (int, float)):
        return max(0.0, float(bound(scores, np.array([float(strategy)]), confidence).max()))
    if strategy not in STRATEGIES:
        raise UsageError(f"the cuts are '{strategy}'", want=f"a number, or one of {', '.join(STRATEGIES)}")
    if strategy != "split":
        cuts = grid(scores) if strategy == "grid" else hull(scores)
        return max(0.0, float(bound(scores, cuts, 1 - (1 - confidence) / len(cuts)).max()))
    if rng is None:
        raise UsageError("the scores are to be split without a generator", want="rng=numpy_generator(seed, 'split')")
    if min(len(scores.members), len(scores.others)) < 2:
        raise DataError("one side has a single score", want="two a side at least, to split them")
    first, second = scores.halves(rng)
    cuts = np.unique(np.concatenate([first.members, first.others]))
    # Extreme cuts look good by luck: each has to hold its own among all of them.
    found = bound(first, cuts, 1 - (1 - confidence) / len(cuts))
    return max(0.0, float(bound(second, cuts[[int(found.argmax())]], confidence).max()))
