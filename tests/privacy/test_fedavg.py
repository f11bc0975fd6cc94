"""DP-FedAvg: the clipped mean by hand, a fixed divisor, noise on the sum, and the release of a round."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.mechanisms import dp_fedavg
from hauberk.privacy.dp.noise import SecureSource, SeededSource

LIKE = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}


def update(*values: float) -> dict[str, Tensor]:
    return {"weight": torch.tensor(values[:4]).reshape(2, 2), "bias": torch.tensor(values[4:])}


def rounded(updates: list[dict[str, Tensor]], noise: float = 0.0, **options: float) -> dict[str, Tensor]:
    clip, source = options.get("clip", 1.0), SeededSource(0)
    return dp_fedavg(updates, LIKE, clip=clip, noise_multiplier=noise, rate=0.1, population=40, source=source).update


def test_the_mean_has_a_fixed_divisor_and_clips_updates_as_a_whole() -> None:
    short, long = update(0.3, 0, 0, 0, 0.4, 0), update(3.0, 0, 0, 0, 4.0, 0)
    found = rounded([short, long])
    # 0.1 x 40 = 4 clients were expected; two came. The long one, of norm 5, counts a fifth.
    torch.testing.assert_close(found["weight"][0, 0], torch.tensor((0.3 + 0.6) / 4))
    torch.testing.assert_close(found["bias"][0], torch.tensor((0.4 + 0.8) / 4))
    assert float(rounded([])["weight"].abs().max()) == 0.0


@pytest.mark.parametrize("odd", [update(1e30, 0, 0, 0, 0, 0), update(math.nan, 0, 0, 0, 0, 0), update(math.inf, 0, 0, 0, 1, 1),
                                 update(0.01, 0.02, 0, 0, 0, 0)])
def test_no_client_moves_the_sum_by_more_than_the_clip(odd: dict[str, Tensor]) -> None:
    others = [update(*torch.randn(6, generator=torch.Generator().manual_seed(i)).tolist()) for i in range(5)]
    without, with_it = rounded(others, clip=0.5), rounded([*others, odd], clip=0.5)
    moved = math.sqrt(sum(float((4 * (with_it[name] - without[name])).square().sum()) for name in LIKE))
    assert moved <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("source", [SecureSource(), SeededSource(3)], ids=["secure", "seeded"])
def test_noise_on_the_sum_is_the_multiplier_times_the_clip(source: SeededSource) -> None:
    like = {"w": torch.zeros(40_000)}
    made = dp_fedavg([], like, clip=2.0, noise_multiplier=1.5, rate=0.25, population=8, source=source)
    assert abs(float(made.update["w"].std()) / (1.5 * 2.0 / 2) - 1) < 5 / math.sqrt(80_000)
    assert made.releases == (Release("gaussian", 1.5, "poisson", 0.25, population=8),)
    everyone = dp_fedavg([], like, clip=2.0, noise_multiplier=1.5, rate=1.0, population=8)
    assert everyone.releases == (Release("gaussian", 1.5, population=8),)


def test_the_share_of_clipped_clients() -> None:
    both = [update(0.1, 0, 0, 0, 0, 0), update(9.0, 0, 0, 0, 0, 0)]
    made = dp_fedavg(both, LIKE, clip=1.0, noise_multiplier=1.0, rate=0.1, population=40)
    assert made.clipped == 0.5


def test_odd_updates_and_numbers_are_refused() -> None:
    options = {"clip": 1.0, "noise_multiplier": 1.0, "rate": 0.5, "population": 4}
    with pytest.raises(DataError, match="bias"):
        dp_fedavg([{"weight": torch.zeros(2, 2)}], LIKE, **options)
    with pytest.raises(DataError, match="shape"):
        dp_fedavg([{"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}], LIKE, **options)
    for name, bad in (("clip", 0.0), ("rate", 0.0), ("rate", 1.5), ("population", 0), ("noise_multiplier", -1.0)):
        with pytest.raises(UsageError):
            dp_fedavg([], LIKE, **{**options, name: bad})


def test_more_updates_than_clients_are_refused() -> None:
    like = {"w": torch.ones(2)}
    with pytest.raises(DataError, match="5 updates of 3 clients"):
        dp_fedavg([like] * 5, like, clip=1.0, noise_multiplier=1.0, rate=0.1, population=3)
