"""Accidents of tables: gaps, wrong units, columns out of place, coarse, noisy and frozen values."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.robustness.inputs.columns import Columns
from hauberk.robustness.inputs.contract import tabular
from hauberk.robustness.natural.draws import Draws

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)
FACTORS = (10.0, 0.1, 1000.0, 0.001, 2.54, 1 / 2.54)
SCHELTER = "Schelter et al. 2021 (Jenga, EDBT 2021); the levels are ours"
BRECK = "Breck et al. 2019 (Data Validation for Machine Learning, MLSys 2019); the levels are ours"
OURS = "levels of our own"


@tabular(question="Do gaps that were filled in change the answer?", levels=SHARES, paper=SCHELTER)
def missing_values(x: Tensor, share: float, columns: Columns, draws: Draws) -> Tensor:
    """Replace a share of the values by the usual value of their column, as an imputer does; the levels are that share."""
    return torch.where(_struck(columns, draws, share), columns.centre, x)


@tabular(question="Does a value in the wrong unit change the answer?", levels=SHARES, paper=BRECK)
def unit_slip(x: Tensor, share: float, columns: Columns, draws: Draws) -> Tensor:
    """Multiply a share of the values by 10, 1000, 2.54 (centimetres for inches) or their inverses; the levels are that share.

    The factors act on values as the model sees them. Where those are scaled, 0 has to stand for nothing for the slip to be that
    of the unit; beyond the bounds a value ends at the bound.
    """
    hit, pick = _struck(columns, draws, share), draws.uniform(x.shape[1])
    factors = torch.tensor(FACTORS, dtype=x.dtype, device=x.device)[(pick * len(FACTORS)).long()]
    return torch.where(hit & columns.measured, x * factors, x)


@tabular(question="Do values in each other's column change the answer?", levels=(0.1, 0.2, 0.4, 0.6, 0.8), paper=SCHELTER)
def swapped_columns(x: Tensor, share: float, columns: Columns, draws: Draws) -> Tensor:
    """Exchange the values of pairs of columns, drawn for each row; the levels are the share of columns that trade places."""
    open_ = columns.measured.nonzero()[:, 0]
    order, luck = open_[draws.uniform(len(open_)).argsort(1)], draws.uniform(1)  # (n, measured), (n, 1)
    pairs = len(open_) // 2
    # Half a pair more or less is a matter of luck, so that a table of few columns meets the share on average.
    count = (share * len(open_) / 2 + luck).floor().clamp(max=pairs)
    trade = torch.arange(pairs, device=x.device) < count  # (n, pairs)
    left, right = order[:, : 2 * pairs : 2], order[:, 1 : 2 * pairs : 2]
    a, b = x.gather(1, left), x.gather(1, right)
    z = x.scatter(1, left, torch.where(trade, b, a))
    return z.scatter(1, right, torch.where(trade, a, b))


@tabular(
    question="Do values rounded to a coarse grid change the answer?", levels=(0.125, 0.25, 0.5, 1.0, 2.0), paper=OURS,
    seeded=False,
)
def rounding(x: Tensor, steps: float, columns: Columns, draws: Draws) -> Tensor:
    """Round every value to a grid through 0; the levels are its spacing in standard deviations of the column."""
    grid = torch.where(columns.measured & (columns.spread > 0), steps * columns.spread, torch.inf)
    # Each grid is part of the one before, so that no value is nearer to a coarser one.
    return torch.where(grid.isfinite(), (x / grid).round() * grid.nan_to_num(posinf=0.0), x)


@tabular(question="Does noise in the measurements change the answer?", levels=(0.1, 0.2, 0.4, 0.7, 1.0), paper=SCHELTER)
def column_noise(x: Tensor, sigma: float, columns: Columns, draws: Draws) -> Tensor:
    """Add normal noise to every value; the levels are its size in standard deviations of the column."""
    return x + draws.normal(x.shape[1]) * sigma * torch.where(columns.measured, columns.spread, 0.0)


@tabular(question="Do a few values far out change the answer?", levels=(0.02, 0.05, 0.1, 0.2, 0.3), paper=SCHELTER)
def outliers(x: Tensor, share: float, columns: Columns, draws: Draws) -> Tensor:
    """Move a share of the values 3 to 10 standard deviations of their column up or down; the levels are that share."""
    hit, way, far = _struck(columns, draws, share), draws.uniform(x.shape[1]), draws.uniform(x.shape[1])
    leap = torch.where(way < 0.5, -1.0, 1.0) * (3 + 7 * far) * columns.spread
    return torch.where(hit & columns.measured, x + leap, x)


@tabular(question="Do values left over from an earlier row change the answer?", levels=SHARES, paper=BRECK)
def stale_values(x: Tensor, share: float, columns: Columns, draws: Draws) -> Tensor:
    """Replace a share of the values by those of another clean row, drawn for each row; the levels are that share."""
    hit, pick = _struck(columns, draws, share), draws.uniform()
    return torch.where(hit, columns.rows[(pick * len(columns.rows)).long()], x)


@tabular(question="Do columns that always show the same change the answer?", levels=SHARES, paper=BRECK, seeded=False)
def stuck_columns(x: Tensor, share: float, columns: Columns, draws: Draws) -> Tensor:
    """Hold whole columns at the values of one clean row, the same columns in every row; the levels are their share.

    At least one is held. Which columns and which row is up to the seed of `Columns.of`.
    """
    units = columns.units
    named = list(dict.fromkeys(units[columns.order].tolist()))  # one-hot groups get stuck as a whole
    stuck = torch.tensor(named[: max(1, round(share * len(named)))], device=x.device)
    return torch.where(torch.isin(units, stuck), columns.rows[0], x)


def _struck(columns: Columns, draws: Draws, share: float) -> Tensor:
    """Return where a share of the cells is struck, shape (n, features); the columns of a one-hot group together."""
    return draws.uniform(len(columns.centre))[:, columns.units] < share
