"""What every corruption of tables promises, over the registry: a new one is tested from the moment it is registered."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from hauberk.core import rng
from hauberk.core.card import Card
from hauberk.core.errors import DataError, UsageError
from hauberk.core.structure import Structure
from hauberk.methods import load_methods
from hauberk.robustness.inputs import Columns

CARDS = list(load_methods().cards("table-corruption"))
pytestmark = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def draws(seed: int = 0) -> torch.Generator:
    return rng.generator(seed, "conformance")


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Real measurements, 300 rows of 30 columns, from thousandths to thousands, float64."""
    return torch.tensor(load_breast_cancer().data[:300])


@pytest.fixture(scope="module")
def columns(rows: Tensor) -> Columns:
    return Columns.of(rows)


@pytest.fixture(scope="module")
def mixed() -> tuple[Tensor, Columns]:
    """Two measurements, two whole numbers, a scaled count and two one-hot groups, with ends."""
    draw = torch.Generator().manual_seed(1)
    n = 200
    some = torch.rand(n, 2, generator=draw)
    whole = torch.randint(0, 20, (n, 2), generator=draw).float()
    scaled = torch.randint(0, 11, (n, 1), generator=draw) / 10
    groups = [torch.nn.functional.one_hot(torch.randint(0, k, (n,), generator=draw), k).float() for k in (3, 2)]
    x = torch.cat([some, whole, scaled, *groups], 1)
    low = torch.zeros(10)
    high = torch.tensor([1.0, 1.0, 19, 19, 1, 1, 1, 1, 1, 1])
    step = torch.tensor([0.0, 0, 1, 1, 0.1, 0, 0, 0, 0, 0], dtype=torch.float64)
    structure = Structure(step=step, one_hot=((5, 6, 7), (8, 9)))
    return x, Columns.of(x, bounds=(low, high), structure=structure)


def away(card: Card, x: Tensor, columns: Columns, severity: int) -> Tensor:
    """Mean change of the columns in their standard deviations."""
    z = card.function(x, severity, columns, generator=draws())
    return ((z - x).double() / columns.spread.clamp(min=1e-12)).abs().mean()


def test_severity_0_is_the_identity_and_no_alias(card: Card, rows: Tensor, columns: Columns) -> None:
    z = card.function(rows, 0, columns, generator=draws())
    assert torch.equal(z, rows) and z.data_ptr() != rows.data_ptr()


def test_distance_grows_with_severity(
    card: Card, rows: Tensor, columns: Columns, mixed: tuple[Tensor, Columns]
) -> None:
    found = [float(away(card, rows, columns, severity)) for severity in range(6)]
    assert found[0] == 0
    assert all(after > before * 1.01 for before, after in itertools.pairwise(found)), found
    few = [float(away(card, *mixed, severity)) for severity in range(6)]  # type: ignore[misc]
    assert all(after >= before for before, after in itertools.pairwise(few)) and few[5] > few[1] > 0, few


def test_every_row_is_corrupted_alone_as_in_a_batch(card: Card, mixed: tuple[Tensor, Columns]) -> None:
    x, columns = mixed
    together, source = card.function(x, 4, columns, generator=draws()), draws()
    alone = torch.cat([card.function(row, 4, columns, generator=source) for row in x.split(1)])
    assert torch.equal(together, alone)
    source = draws()
    halves = torch.cat([card.function(part, 4, columns, generator=source) for part in x.split(77)])
    assert torch.equal(together, halves)


def test_same_generator_same_bits_and_nothing_else_is_touched(card: Card, rows: Tensor, columns: Columns) -> None:
    state, before = torch.get_rng_state(), rows.clone()
    first, second = (card.function(rows, 3, columns, generator=draws(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(card.function(rows, 3, columns), card.function(rows, 3, columns))
    assert torch.equal(first, card.function(rows, 3, columns, generator=draws(5))) is not card.facts["seeded"]
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(rows, before)


def test_shape_dtype_bounds_whole_numbers_and_groups_are_kept(card: Card, mixed: tuple[Tensor, Columns]) -> None:
    exact, columns = mixed
    for dtype in (torch.float32, torch.float64):
        x = exact.to(dtype)
        for severity in range(1, 6):
            z = card.function(x, severity, columns, generator=draws())
            assert z.shape == x.shape and z.dtype == dtype and bool(z.isfinite().all())
            assert bool((z.double() >= columns.low).all() and (z.double() <= columns.high).all())
            columns.structure.refuse(z)  # raises where a value is between the possible ones or a group holds no category
            assert torch.equal(z[:, 2:4], z[:, 2:4].round())
            assert bool((z[:, 5:8].sum(1) == 1).all() and (z[:, 8:].sum(1) == 1).all())


def test_half_precision_rows_stay_inside(card: Card, rows: Tensor) -> None:
    x = (rows / rows.amax(0)).half()
    columns = Columns.of(x, bounds=(0.0, 1.0))
    z = card.function(x, 5, columns, generator=draws())
    assert z.dtype == torch.half and float(z.min()) >= 0 and float(z.max()) <= 1


def test_empty_batches_pass(card: Card, rows: Tensor, columns: Columns) -> None:
    assert card.function(rows[:0], 3, columns).shape == (0, 30)


def test_bad_input_is_refused(card: Card, rows: Tensor, columns: Columns) -> None:
    for severity in (-1, 6, 2.0, True):
        with pytest.raises(UsageError, match="severity"):
            card.function(rows, severity, columns)
    for wrong in (rows[:, :4], rows[0], rows.long()):
        with pytest.raises(DataError, match=r"floating rows \(n, 30\)"):
            card.function(wrong, 1, columns)
    with pytest.raises(DataError, match="NaN or infinite"):
        card.function(torch.full_like(rows, torch.nan), 1, columns)


def test_the_card_says_what_a_reader_needs(card: Card) -> None:
    assert list(card.options) == ["generator"]
    assert card.question.endswith("?") and card.paper and len(card.facts["levels"]) == 5
    assert "severity: 0" in (card.function.__doc__ or "")
