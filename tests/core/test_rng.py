"""Randomness: stable seeds, and a global state that nobody notices was used."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from hauberk.core import rng


def states():
    name, keys, *rest = np.random.get_state()
    return torch.random.get_rng_state().tolist(), (name, keys.tolist(), *rest), random.getstate()


def test_derived_seed_is_the_same_for_ever():
    assert rng.derive_seed(0, "pgd", 3) == 295924134320907801
    digest = hashlib.sha256(b"(0, 'pgd', '3')").digest()
    assert rng.derive_seed(0, "pgd", 3) == int.from_bytes(digest[:8], "little") >> 1
    told = subprocess.run(
        [sys.executable, "-c", "from hauberk.core.rng import derive_seed; print(derive_seed(0, 'pgd', 3))"],
        capture_output=True, text=True, check=True,
    )
    assert int(told.stdout) == 295924134320907801


def test_derived_seed_depends_on_each_part_and_not_on_the_kind_of_integer():
    seeds = {rng.derive_seed(*parts) for parts in ((0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "b", "a"))}
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
    assert rng.derive_seed(np.int64(5), "a") == rng.derive_seed(5, "a")


def test_generators_repeat_and_leave_the_global_state():
    before = states()
    draws = [torch.rand(4, generator=rng.generator(7, "x")) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=rng.generator(7, "y")))
    assert rng.numpy_generator(7, "x").random() == rng.numpy_generator(7, "x").random()
    assert states() == before


@pytest.mark.parametrize("seed", [None, 5, 2**40])
def test_isolated_leaves_every_stream_as_it_was(seed):
    before = states()
    with rng.isolated(seed):
        torch.rand(3), np.random.rand(3), random.random()
    assert states() == before


def test_isolated_restores_after_an_error():
    before = states()
    with pytest.raises(ZeroDivisionError), rng.isolated(1):
        torch.rand(3 + int(np.random.rand() > 2) + int(random.random() > 2)).tolist()[0] / 0
    assert states() == before


def test_isolated_draws_the_same_for_the_same_seed():
    def draw():
        with rng.isolated(11):
            return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    assert draw() == draw()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_noise_has_the_law_and_the_type_asked_for(dtype):
    like = torch.zeros(200, 200, dtype=dtype)
    flat, bell = rng.uniform(like, rng.generator(0)), rng.normal(like, rng.generator(0))
    assert flat.dtype == bell.dtype == dtype and flat.shape == bell.shape == like.shape
    n = like.numel()
    # Means and variances within five standard errors, and the rounding of half precision.
    assert abs(float(flat.double().mean()) - 0.5) < 5 * (1 / 12 / n) ** 0.5 + 1e-4
    assert abs(float(bell.double().mean())) < 5 / n**0.5 + 1e-4
    assert abs(float(bell.double().var()) - 1) < 5 * (2 / n) ** 0.5 + 1e-3
    assert float(flat.min()) >= 0 and float(flat.max()) <= 1
