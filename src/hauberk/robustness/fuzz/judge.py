"""Judging mutants: what the model answers, at which it breaks down, and which objective each fails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.core.errors import AccessDenied, BudgetExceeded
from hauberk.robustness.fuzz.coverage import Reader, Reading
from hauberk.robustness.fuzz.objectives import Case, Objective


def ask(reader: Reader, x: Tensor, like: Reading) -> tuple[Reading, Tensor]:
    """Read mutants; where the model raises, find out at which of them.

    Arguments:
        reader: of the model.
        x: mutants, shape (n, ...).
        like: a reading of the same model, whose shapes those of a sample that crashes take.

    Returns:
        The reading, with NaN for samples that crash alone, and which these are, shape (n,), bool.
    """
    try:
        return reader(x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    except (BudgetExceeded, AccessDenied):
        raise
    except Exception:
        if len(x) > 1:
            halves = [ask(reader, part, like) for part in x.tensor_split(2)]
            joined = Reading(
                torch.cat([one.units for one, _ in halves]), like.spans, torch.cat([one.answers for one, _ in halves])
            )
            return joined, torch.cat([one for _, one in halves])
        nothing = torch.full_like(like.units[:1], math.nan), torch.full_like(like.answers[:1], math.nan)
        return Reading(nothing[0], like.spans, nothing[1]), torch.ones(1, dtype=torch.bool, device=x.device)


def kinds_of(objectives: Sequence[Objective], case: Case, crashed: Tensor) -> list[str]:
    """Return for each mutant the first objective that it fails, `crash`, or nothing."""
    kinds = ["crash" if one else "" for one in crashed.tolist()]
    alive = (~crashed).nonzero().flatten()
    if not len(alive):
        return kinds
    part = case if not bool(crashed.any()) else Case(
        case.x[alive], case.reading.rows(alive), case.y[alive], case.clean[alive], case.target
    )
    for objective in objectives:
        for row, fails in zip(alive.tolist(), objective.fails(part).tolist(), strict=True):
            if fails and not kinds[row]:
                kinds[row] = objective.name
    return kinds


def margins_of(answers: Tensor, y: Tensor) -> Tensor:
    """Return the score of the true class less that of the best other one, shape (n,); zeros for regression."""
    if y.is_floating_point() or answers.shape[1] < 2:
        return torch.zeros(len(y), device=answers.device)
    own = answers.gather(1, y[:, None]).squeeze(1)
    others = answers.scatter(1, y[:, None], -math.inf).amax(1)
    return own - others
