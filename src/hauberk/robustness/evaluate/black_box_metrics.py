"""What a defence changes for an adversary who can only ask, and what it costs those who ask in good faith."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import numpy_generator
from hauberk.core.stats import Floats, bootstrap, newcombe
from hauberk.robustness.evaluate.figure import Figure, share


@dataclasses.dataclass(frozen=True)
class BlackBoxMetrics:
    """The metrics of a defence against queries.

    Arguments:
        qcv: queries an attack needs more, as a share of its budget: from the least possible to 1; 1 where the defence holds out
            through the whole budget.
        asv: share of attacks that the defence stops: success without minus success with it.
        fpr: share of good-faith queries that it takes for an attack.
        qrv: time that a good-faith query takes longer, as a share of the time without the defence.
    """

    qcv: Figure
    asv: Figure
    fpr: Figure
    qrv: Figure

    def rows(self) -> list[tuple[str, str, int]]:
        """Return name, value and n of each metric, as text."""
        names = {
            "qcv": "more queries needed (QCV)", "asv": "attacks stopped (ASV)", "fpr": "good-faith queries flagged (FPR)",
            "qrv": "time added to a query (QRV)",
        }
        return [(told, getattr(self, name).words(), getattr(self, name).n) for name, told in names.items()]


@dataclasses.dataclass(frozen=True)
class Campaign:
    """One black-box attack on many samples.

    Arguments:
        queries: spent on each sample, shape (n,); an attack that fails spends its budget.
        success: which samples it broke, shape (n,), bool.
    """

    queries: Tensor
    success: Tensor

    def __post_init__(self) -> None:
        if self.queries.shape != self.success.shape or self.queries.ndim != 1:
            raise DataError(
                f"queries have shape {tuple(self.queries.shape)} and success {tuple(self.success.shape)}",
                want="two of shape (n,): one figure for each sample",
            )


def black_box_metrics(
    raw: Campaign, defended: Campaign, *, budget: int, flagged: Tensor | None = None, raw_seconds: Tensor | None = None,
    defended_seconds: Tensor | None = None, seed: int = 0,
) -> BlackBoxMetrics:
    """Compare one attack on a model with the same attack on its defended form.

    Arguments:
        raw, defended: the attack on either, on the same samples.
        budget: queries per sample that the attack may spend.
        flagged: which good-faith queries the defence took for an attack, shape (m,), bool.
        raw_seconds, defended_seconds: time of the same good-faith queries on either, shape (m,).
        seed: of the bootstrap behind the intervals of `qcv` and `qrv`, which draws pairs.

    Raises:
        UsageError: for a budget below 1, or a count of queries beyond it.
        DataError: where the two campaigns, or the two lists of times, do not fit each other.
    """
    if budget < 1:
        raise UsageError(f"budget is {budget}", want="queries per sample, 1 or more")
    if len(raw.queries) != len(defended.queries):
        raise DataError(f"the attack was run on {len(raw.queries)} and {len(defended.queries)} samples", want="the same samples")
    most = max((int(one.queries.max()) for one in (raw, defended) if len(one.queries)), default=0)
    if most > budget:
        raise UsageError(f"an attack spent {most} queries on a sample", want=f"at most the budget of {budget}")
    return BlackBoxMetrics(
        _more_queries(raw, defended, budget, seed), _stopped(raw, defended),
        Figure() if flagged is None else share(flagged), _slower(raw_seconds, defended_seconds, seed),
    )


def _more_queries(raw: Campaign, defended: Campaign, budget: int, seed: int) -> Figure:
    def cost(pairs: Floats) -> float:
        before, after = pairs.mean(0)
        return 1.0 if after >= budget else float(min(after - before, budget) / budget)

    return _paired(raw.queries, defended.queries, cost, seed, "qcv") if len(raw.queries) else Figure()


def _stopped(raw: Campaign, defended: Campaign) -> Figure:
    n = len(raw.success)
    if not n:
        return Figure()
    before, after = int(raw.success.sum()), int(defended.success.sum())
    return Figure((before - after) / n, n, newcombe(before, n, after, n))


def _slower(raw: Tensor | None, defended: Tensor | None, seed: int) -> Figure:
    if raw is None or defended is None or not len(raw):
        return Figure()
    if raw.shape != defended.shape:
        raise DataError(f"the times have shapes {tuple(raw.shape)} and {tuple(defended.shape)}", want="the same queries")

    def slowdown(pairs: Floats) -> float:
        before, after = pairs.mean(0)
        return float(after / before - 1) if before > 0 else math.nan

    # A clock too coarse for the undefended query gives no ratio, and no huge one either.
    return _paired(raw, defended, slowdown, seed, "qrv") if float(raw.double().mean()) > 0 else Figure()


def _paired(raw: Tensor, defended: Tensor, statistic: Callable[[Floats], float], seed: int, name: str) -> Figure:
    """Return a statistic of pairs, shape (n, 2), with the bootstrap's interval over pairs; none of a single pair."""
    pairs = torch.stack([torch.as_tensor(one).double().cpu() for one in (raw, defended)], 1).numpy()
    interval = bootstrap(pairs, statistic, rng=numpy_generator(seed, "black box", name)) if len(pairs) > 1 else None
    return Figure(statistic(pairs), len(pairs), interval)
