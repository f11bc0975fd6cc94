"""What a search tries next: how likely a mutator crosses a border, and what is drawn from that."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Target
from hauberk.robustness.fuzz.corpus import Entry
from hauberk.robustness.fuzz.coverage import Reader
from hauberk.robustness.fuzz.schedule import Scheduler, Tally, chance

BLANK = torch.zeros(1)


def entry(origin: int, margin: float = 1.0, moved: bool = False) -> Entry:
    return Entry(origin, (), BLANK, BLANK, moved=moved, margin=margin)


def test_the_chance_of_crossing_is_that_of_a_normal_law() -> None:
    """Mean 2 and deviation 1 of 10,000 falls; the prior weighs next to nothing by then."""
    seen = Tally(made=1e6, valid=1e6, fall=2e6, fall_squared=5e6)
    found = chance(seen, torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64), 0.004)
    law = [0.5 * (1 + math.erf(one / math.sqrt(2))) for one in (2.0, 1.0, 0.0, -1.0)]
    assert found.tolist() == pytest.approx(law, abs=1e-4)
    # Nothing seen yet: the nearer the border, the likelier.
    fresh = chance(Tally(), torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64), 2.0)
    assert 1 > fresh[0] > fresh[1] > fresh[2] > 0


def test_seeds_near_the_border_go_to_weak_mutators_and_all_may_go_to_strong_ones() -> None:
    scheduler = Scheduler({"weak": False, "strong": False}, 1, 320, False, 1.0)
    tallies = {
        ("weak", 1): Tally(made=1000, valid=1000, fresh=100, fall=100, fall_squared=20),
        ("strong", 5): Tally(made=1000, valid=1000, fresh=100, fall=10_000, fall_squared=100_100),
    }
    queue = [entry(origin, margin=0.05 if origin < 20 else 5.0) for origin in range(400)]
    groups = scheduler.guided(queue, tallies, torch.ones(400), 320, torch.Generator().manual_seed(0))
    near: dict[str, list[bool]] = {"weak": [], "strong": []}
    for (name, _), batch in groups:
        near[name] += [one.margin < 1 for one in batch]
    assert sum(map(len, near.values())) == 320 == sum(one.picks for one in queue)
    assert sum(near["weak"]) / len(near["weak"]) > 3 * sum(near["strong"]) / len(near["strong"])


def test_what_has_moved_takes_no_affine_mutation_and_another_is_found_where_all_have() -> None:
    scheduler = Scheduler({"turn": True, "noise": False}, 1, 32, False, 1.0)
    tallies = {(name, 1): Tally() for name in ("turn", "noise")}
    mixed = [entry(0, moved=True), entry(1)]
    for seed in range(5):
        for (name, _), batch in scheduler.guided(mixed, tallies, torch.ones(2), 32, torch.Generator().manual_seed(seed)):
            assert name == "noise" or not any(one.moved for one in batch)
        groups = scheduler.guided([entry(0, moved=True)], tallies, torch.ones(1), 32, torch.Generator().manual_seed(seed))
        assert {name for (name, _), _ in groups} == {"noise"}


@pytest.mark.parametrize(("batch", "per_seed", "sizes", "seeds"), [(20, 20, {1}, 1), (256, 1, {16}, 256), (64, 16, {4}, 4)])
def test_a_round_has_sixteen_mutators_or_more_and_as_many_seeds_as_asked(
    batch: int, per_seed: int, sizes: set[int], seeds: int
) -> None:
    scheduler = Scheduler({"noise": False}, per_seed, batch, True, 1.0)
    tallies = {("noise", level): Tally() for level in (1, 2, 3, 4, 5)}
    queue = [entry(origin) for origin in range(1000)]
    groups = scheduler.guided(queue, tallies, torch.ones(1000), batch, torch.Generator().manual_seed(1))
    assert len(groups) >= 16 and {len(rows) for _, rows in groups} == sizes
    drawn = len({one.origin for _, rows in groups for one in rows})
    assert drawn == seeds if per_seed > 1 else 0.8 * seeds < drawn <= seeds  # a group of sixteen does not know the others
    even = scheduler.evenly(queue, tallies, batch, torch.Generator().manual_seed(1))
    assert [len(rows) for _, rows in even] == [len(rows) for _, rows in groups]


# ---- how the networks are read


class Pooled(nn.Module):
    """A small network that pools; it tells how its input lies in memory, and may insist on one piece."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.conv, self.pool, self.last = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Linear(36, 3)
        self.strict, self.turned = strict, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.turned.append(x.is_contiguous(memory_format=torch.channels_last))
        hidden = self.pool(functional.relu(self.conv(x)))
        return self.last(hidden.view(len(x), -1) if self.strict else hidden.flatten(1))


@pytest.mark.parametrize("strict", [False, True])
def test_a_network_that_pools_is_read_with_channels_side_by_side_where_it_takes_that(strict: bool) -> None:
    torch.manual_seed(0)
    model = Pooled(strict).eval()
    x = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    found = Reader(Target(model))(x)
    assert model.turned[-1] is not strict
    with torch.no_grad():
        torch.testing.assert_close(found.answers, model(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.units[:, :4], model.conv(x).mean((2, 3)), rtol=0, atol=1e-5)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    before = Target(plain)
    Reader(before)(x)
    assert before.ledger.queries == 7  # nothing is tried where nothing is pooled
