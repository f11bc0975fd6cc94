"""Exposure of canaries: how far up a secret stands among all that could have stood in its place (secret sharer)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Interval
from hauberk.core.rng import generator
from hauberk.core.stats import clopper_pearson

Score = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Space:
    """All sequences of a length over an alphabet: what a secret could have been.

    Arguments:
        symbols: the tokens, such as those of the ten digits.
        length: of the secret.
    """

    symbols: Sequence[int]
    length: int

    def __len__(self) -> int:
        return len(self.symbols) ** self.length

    def all(self) -> Tensor:
        """Return every sequence, shape (size, length), in lexical order."""
        return torch.tensor(list(itertools.product(self.symbols, repeat=self.length)))

    def draw(self, n: int, draws: torch.Generator) -> Tensor:
        """Return n sequences drawn evenly, shape (n, length)."""
        return torch.tensor(self.symbols)[torch.randint(len(self.symbols), (n, self.length), generator=draws)]


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How exposed one canary is.

    Arguments:
        bits: log2 of the size of the space minus log2 of the canary's rank: 0 says nothing is given away, the size's own log2
            that the canary is the likeliest of all.
        size: of the space.
        method: `rank` (exact), `sample` (rank in a sample) or `skew-normal` (extrapolated from a sample).
        interval: of the bits; None where exact or extrapolated.
        fit: for `skew-normal`, the p-value of the Kolmogorov-Smirnov test of the fit on the half of the sample that it was not
            made from: a small one says not to believe the bits.
    """

    bits: float
    size: int
    method: str
    interval: Interval | None = None
    fit: float | None = None


def rank_exposure(losses: Tensor, canary: float) -> Exposure:
    """Return the exact exposure, from the losses of every candidate, the canary among them.

    Arguments:
        losses: of all candidates, shape (size,), lower is likelier.
        canary: the canary's own loss. Candidates that tie with it stand before it: a model that says nothing exposes nothing.

    Raises:
        DataError: for no candidate, a NaN, or a canary that is not among them.
    """
    _sound(losses)
    rank = int((losses <= canary).sum())
    if not rank or not bool((losses == canary).any()):
        raise DataError(f"no candidate has the canary's loss {canary:.6g}", want="the losses of all candidates, it among them")
    return Exposure(math.log2(len(losses)) - math.log2(rank), len(losses), "rank")


def sampled_exposure(losses: Tensor, canary: float, size: int) -> Exposure:
    """Return the exposure estimated from the rank among candidates drawn at random, with its interval (Clopper and Pearson).

    Arguments:
        losses: of candidates drawn evenly from the space, shape (m,).
        canary: the canary's own loss.
        size: of the whole space: no rank is better than 1 of it.

    Raises:
        DataError: for no candidate, or a NaN.
    """
    _sound(losses, canary)
    before, n = int((losses <= canary).sum()), len(losses)
    span = clopper_pearson(before, n)
    most = math.log2(size)
    low, high = (min(most, -math.log2(max(end, 1 / size))) for end in (span.high, span.low))
    bits = min(most, -math.log2((before + 1) / (n + 1)))
    return Exposure(bits, size, "sample", Interval(min(low, bits), max(high, bits), "clopper-pearson"))


def extrapolated_exposure(losses: Tensor, canary: float, size: int) -> Exposure:
    """Return the exposure by a skew-normal law fitted to the losses of a sample: -log2 P(loss <= canary's).

    Arguments:
        losses: of candidates drawn evenly from the space, shape (m,), at least 20.
        canary: the canary's own loss.
        size: of the whole space. The law may say more bits than its log2: the canary then is surely the first.

    Raises:
        DataError: for fewer than 20 losses, a NaN, losses that are infinite, or all equal.
    """
    _sound(losses, canary)
    rows = losses.double().numpy()
    if not np.isfinite(rows).all():
        raise DataError(f"{int((~np.isfinite(rows)).sum())} of {len(rows)} losses are infinite", want="finite ones, to fit a law")
    if len(rows) < 20 or float(rows.std()) == 0:
        raise DataError(f"there are {len(rows)} losses with deviation {rows.std():.3g}", want="at least 20 that differ")
    middle, spread = float(rows.mean()), float(rows.std())
    fit, held = (rows[0::2] - middle) / spread, (rows[1::2] - middle) / spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimiser tries shapes whose density underflows
        shape = stats.skewnorm.fit(fit)
        tail = float(stats.skewnorm.logcdf((canary - middle) / spread, *shape))
        p = float(stats.kstest(held, stats.skewnorm(*shape).cdf).pvalue)
    if not math.isfinite(tail):
        tail = -math.inf
    bits = -tail / math.log(2)
    return Exposure(min(bits, 1e4), size, "skew-normal", None, p)


def exposure_of(
    score: Score, canary: Sequence[int], space: Space, *, largest: int = 200_000, sample: int = 5000, batch_size: int = 4096,
    seed: int = 0,
) -> Exposure:
    """Return how exposed a canary is: exactly where the space is small enough to be scored whole, else extrapolated.

    Arguments:
        score: loss of sequences, (n, length) -> (n,), lower is likelier: the model's log-perplexity of the secret in its context.
        canary: the secret that was planted.
        space: what it was drawn from, evenly.
        largest: the largest space that is scored whole.
        sample: candidates drawn from a larger one.
        batch_size: sequences scored at once.
        seed: of the sample.

    Raises:
        UsageError: for a canary that is not of the space, or a space that lists a symbol twice.
        DataError: for scores that are not one loss a sequence, or NaN.
    """
    if len(set(space.symbols)) < len(space.symbols):
        raise UsageError(f"the symbols {list(space.symbols)[:12]} hold one twice", want="each once, as a rank counts secrets")
    if len(canary) != space.length or not set(canary) <= set(space.symbols):
        raise UsageError(f"the canary {list(canary)}", want=f"{space.length} of the symbols {list(space.symbols)[:12]}")
    whole = len(space) <= largest
    rows = space.all() if whole else space.draw(sample, generator(seed, "exposure"))
    losses = torch.cat([score(part).detach().cpu().double() for part in rows.split(batch_size)])
    if losses.shape != rows.shape[:1]:
        raise DataError(f"the scores of {len(rows)} sequences have shape {tuple(losses.shape)}", want=f"({len(rows)},)")
    if whole:
        place = int((rows == torch.tensor(list(canary))).all(1).nonzero()[0, 0])
        return rank_exposure(losses, float(losses[place]))
    return extrapolated_exposure(losses, float(score(torch.tensor([list(canary)]))[0]), len(space))


def _sound(losses: Tensor, canary: float = 0.0) -> None:
    if math.isnan(canary):
        raise DataError("the canary's loss is NaN", want="a number: a broken model exposes nothing that can be told")
    if losses.ndim != 1 or not len(losses) or bool(losses.isnan().any()):
        told = f"of shape {tuple(losses.shape)}, {int(losses.isnan().sum())} of them NaN"
        raise DataError(f"there are losses {told}", want="one number per candidate, none of them NaN")


def expected_exposure(size: int) -> float:
    """Return the mean exposure of a canary that the model never saw, whose rank is even on 1 to size: about 1 / ln 2 bits."""
    ranks = np.arange(1, size + 1, dtype=float)
    return float(math.log2(size) - np.log2(ranks).mean())
