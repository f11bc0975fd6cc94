"""Corruptions of tables: closed forms and shares counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.errors import DataError, UsageError
from hauberk.core.structure import Structure
from hauberk.robustness import inputs
from hauberk.robustness.inputs import Columns

N = 4000


@pytest.fixture(scope="module")
def normal() -> Tensor:
    """4,000 rows of 10 columns, each normal about its own place with its own width, all far from 0."""
    draw = torch.Generator().manual_seed(0)
    widths = torch.logspace(-2, 2, 10, dtype=torch.float64)
    return (torch.randn(N, 10, generator=draw, dtype=torch.float64) + 20) * widths


@pytest.fixture(scope="module")
def columns(normal: Tensor) -> Columns:
    return Columns.of(normal)


def changed(z: Tensor, x: Tensor) -> float:
    return float((z != x).double().mean())


def draws() -> torch.Generator:
    return rng.generator(0, "inputs")


@pytest.mark.parametrize(("severity", "share"), [(1, 0.05), (3, 0.2), (5, 0.5)])
def test_the_share_of_cells_struck_is_the_level(normal: Tensor, columns: Columns, severity: int, share: float) -> None:
    """40,000 cells: the share is within four standard errors of the level."""
    slack = 4 * math.sqrt(share * (1 - share) / normal.numel())
    for corrupt in (inputs.missing_values, inputs.unit_slip, inputs.stale_values):
        z = corrupt(normal, severity, columns, generator=draws())
        assert changed(z, normal) == pytest.approx(share, abs=slack + 1e-3)  # a stale value may be the row's own


def test_missing_values_become_the_median(normal: Tensor, columns: Columns) -> None:
    z = inputs.missing_values(normal, 5, columns, generator=draws())
    hit = z != normal
    assert torch.equal(z[hit], normal.median(0).values.expand_as(z)[hit])


def test_units_slip_by_one_of_six_factors(normal: Tensor, columns: Columns) -> None:
    z = inputs.unit_slip(normal, 5, columns, generator=draws())
    ratio = (z / normal)[z != normal]
    factors = torch.tensor([10, 0.1, 1000, 0.001, 2.54, 1 / 2.54], dtype=torch.float64)
    nearest = (ratio[:, None] / factors - 1).abs().min(1)
    assert float(nearest.values.max()) < 1e-9
    counts = nearest.indices.bincount(minlength=6) / len(ratio)
    assert float((counts - 1 / 6).abs().max()) < 0.02


def test_swapped_columns_keep_the_values_of_a_row(normal: Tensor, columns: Columns) -> None:
    for severity, share in ((1, 0.1), (2, 0.2), (4, 0.6), (5, 0.8)):
        z = inputs.swapped_columns(normal, severity, columns, generator=draws())
        assert torch.equal(z.sort(1).values, normal.sort(1).values)
        assert changed(z, normal) == pytest.approx(share, abs=0.02)
    # Each exchange is one of two columns: where a went, the value of b came from.
    source = (z[0][:, None] == normal[0]).int().argmax(1)
    assert torch.equal(source[source], torch.arange(10))


def test_a_table_of_three_columns_meets_the_share_on_average(normal: Tensor) -> None:
    """Severity 3 exchanges a share of .4: .6 pairs of three columns, so one pair in 60 % of the rows."""
    x = normal[:, :3]
    z = inputs.swapped_columns(x, 3, Columns.of(x), generator=draws())
    assert float((z != x).any(1).double().mean()) == pytest.approx(0.6, abs=0.03)


def test_rounding_of_a_wide_column_has_the_error_of_quantisation(normal: Tensor, columns: Columns) -> None:
    """A grid of spacing q leaves a mean square error of q² / 12 while q is below the standard deviation (Widrow 1956)."""
    for severity, steps in ((1, 0.125), (3, 0.5), (4, 1.0)):
        z = inputs.rounding(normal, severity, columns)
        error = ((z - normal) / columns.spread).square().mean()
        assert float(error) == pytest.approx(steps**2 / 12, rel=0.04)
    # No cell is nearer on a coarser grid.
    errors = torch.stack([(inputs.rounding(normal, severity, columns) - normal).abs() for severity in range(6)])
    assert bool((errors[1:] >= errors[:-1] - 1e-9).all())


def test_noise_has_the_size_of_its_level_in_every_column(normal: Tensor, columns: Columns) -> None:
    """The peers' noise is of one size for all columns: it drowns the narrow ones and spares the wide."""
    for severity, sigma in ((1, 0.1), (4, 0.7)):
        z = inputs.column_noise(normal, severity, columns, generator=draws())
        found = (z - normal).std(0) / columns.spread
        torch.testing.assert_close(found, torch.full_like(found, sigma), rtol=0.05, atol=0)


def test_outliers_lie_three_to_ten_deviations_away(normal: Tensor, columns: Columns) -> None:
    z = inputs.outliers(normal, 5, columns, generator=draws())
    leap = ((z - normal) / columns.spread)[z != normal]
    assert changed(z, normal) == pytest.approx(0.3, abs=0.01)
    assert float(leap.abs().min()) >= 3 - 1e-9 and float(leap.abs().max()) <= 10 + 1e-9
    assert float(leap.abs().mean()) == pytest.approx(6.5, abs=0.06)
    assert float((leap > 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_stale_values_are_those_of_a_clean_row(normal: Tensor, columns: Columns) -> None:
    z = inputs.stale_values(normal[:50], 5, columns, generator=draws())
    for row, clean in zip(z, normal[:50], strict=True):
        hit = row != clean
        # One remembered row explains all that is stale in this one.
        assert bool((columns.rows[:, hit] == row[hit]).all(1).any())


def test_stuck_columns_are_the_same_in_every_row(normal: Tensor, columns: Columns) -> None:
    for severity, count in ((1, 1), (3, 2), (5, 5)):
        z = inputs.stuck_columns(normal, severity, columns)
        constant = (z == z[0]).all(0)
        assert int(constant.sum()) == count
        assert torch.equal(constant.nonzero()[:, 0], columns.order[:count].sort().values)
        assert torch.equal(z[0][constant], columns.rows[0][constant])
    other = Columns.of(normal, seed=1)
    assert not torch.equal(inputs.stuck_columns(normal, 5, other) != normal, z != normal)


def test_bounds_hold_and_what_was_outside_stays_as_it_came(normal: Tensor) -> None:
    low, high = normal.quantile(0.1, 0), normal.quantile(0.9, 0)
    bounded = Columns.of(normal, bounds=(low, high))
    z = inputs.outliers(normal, 5, bounded, generator=draws())
    hit = z != normal
    assert bool(((z >= low) & (z <= high))[hit].all())
    assert bool(((z == low) | (z == high) | ~hit).double().mean() > 0.99)


def test_whole_numbers_stay_whole_at_ends_that_are_none() -> None:
    """The ends 0.5 and 3.5 leave 1, 2 and 3: rounding to the nearest whole number alone would give 0 and 4."""
    x = torch.tensor([[1.0], [2.0], [3.0], [2.0]]).repeat(50, 1)
    columns = Columns.of(x, bounds=(0.5, 3.5), structure=Structure(step=1.0))
    for severity in range(1, 6):
        for corrupt in (inputs.outliers, inputs.unit_slip, inputs.column_noise):
            z = corrupt(x, severity, columns, generator=draws())
            assert set(z.flatten().tolist()) <= {1.0, 2.0, 3.0}


def test_columns_are_learned_as_by_hand() -> None:
    x = torch.tensor([[0.0, 1, 0, 0], [2.0, 0, 1, 0], [4.0, 0, 1, 0], [10.0, 0, 0, 1], [4.0, 0, 0, 1]])
    columns = Columns.of(x, structure=Structure(one_hot=((1, 2, 3),)))
    assert columns.centre.tolist() == [4, 0, 1, 0]  # the median of a group would be no category at all
    assert float(columns.spread[0]) == pytest.approx(math.sqrt((16 + 4 + 0 + 36 + 0) / 5))
    assert columns.units.tolist() == [0, 1, 1, 1] and columns.measured.tolist() == [True, False, False, False]
    assert len(columns.rows) == 5 and sorted(columns.order.tolist()) == [0, 1, 2, 3]


def test_bad_columns_are_refused(normal: Tensor) -> None:
    for wrong in (normal[:0], normal[0], torch.full((2, 2), torch.nan), torch.ones(2, 2, dtype=torch.long)):
        with pytest.raises(DataError, match="clean rows"):
            Columns.of(wrong)
    with pytest.raises(UsageError, match="Swap"):
        Columns.of(normal, bounds=(1.0, 0.0))
    with pytest.raises(DataError, match="between the possible ones"):
        Columns.of(normal, structure=Structure(step=1.0))
