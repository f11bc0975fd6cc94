"""Sources of randomness: the right laws, no draw twice, and sums whose lowest bits tell nothing."""

from __future__ import annotations

import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.noise import SecureSource, SeededSource, Source, grid, secure

N = 100_000
TAIL = 1e-6  # probability of a false alarm of a test on secure draws, which cannot be seeded
SOURCES: list[Source] = [SecureSource(), SeededSource(0, "test")]
LAWS = {"normal": stats.norm(), "uniform": stats.uniform(), "laplace": stats.laplace()}


def draw(source: Source, law: str, like: Tensor) -> Tensor:
    return getattr(source, law)(like)


@pytest.mark.parametrize("source", SOURCES, ids=["secure", "seeded"])
@pytest.mark.parametrize("law", LAWS)
def test_draws_follow_the_law(source: Source, law: str) -> None:
    values = draw(source, law, torch.empty(N, dtype=torch.float64)).numpy()
    assert stats.kstest(values, LAWS[law].cdf).pvalue > TAIL
    mean, variance, kurtosis = map(float, LAWS[law].stats("mvk"))
    assert abs(values.mean() - mean) < 5 * math.sqrt(variance / N)
    assert abs(values.var() - variance) < 5 * variance * math.sqrt((kurtosis + 2) / N)
    # Neighbours do not depend on each other, nor do the two halves of a portion, which share a radius.
    for shift in (1, secure.CHUNK // 2, secure.CHUNK):
        assert abs(np.corrcoef(values[shift:], values[:-shift])[0, 1]) < 5 / math.sqrt(N - shift)
        assert abs(np.corrcoef(np.abs(values[shift:]), np.abs(values[:-shift]))[0, 1]) < 5 / math.sqrt(N - shift)


def test_box_and_muller_is_the_formula_to_the_last_bits() -> None:
    raw = SeededSource(1).bits(64)
    found = secure._normals(raw.clone()).tolist()
    for i in range(32):
        u, angle = ((int(raw[i]) & (2**63 - 1)) + 1) / 2**63, math.pi * int(raw[32 + i]) / 2**63
        radius = math.sqrt(-2 * math.log(u))
        assert found[i] == pytest.approx(radius * math.sin(angle), abs=1e-14 + 1e-15 * radius)
        assert found[32 + i] == pytest.approx(radius * math.cos(angle), abs=1e-14 + 1e-15 * radius)


def test_the_extremes_are_finite() -> None:
    worst = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    assert bool(secure._normals(worst.clone()).isfinite().all())
    assert secure._normals(torch.tensor([0, 0])).tolist() == pytest.approx([0, math.sqrt(126 * math.log(2))])
    sizes = secure._laplaces(torch.tensor([0, -(2**63), -1, 2**63 - 1])).abs().tolist()
    assert sizes == pytest.approx([63 * math.log(2)] * 2 + [0, 0])


@pytest.mark.parametrize("source", SOURCES, ids=["secure", "seeded"])
def test_bits_are_even_in_every_place(source: Source) -> None:
    bits = source.bits(20_000)
    ones = np.array([int((bits >> place & 1).sum()) for place in range(64)])
    assert float(stats.chi2.sf((((ones - 10_000) / math.sqrt(5_000)) ** 2).sum(), 64)) > TAIL


@pytest.mark.parametrize("source", SOURCES, ids=["secure", "seeded"])
@pytest.mark.parametrize("law", LAWS)
def test_shape_and_dtype_are_those_asked_for(source: Source, law: str) -> None:
    for shape in ((), (0,), (1,), (3, 5), (secure.CHUNK + 1,)):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            found = draw(source, law, torch.empty(shape, dtype=dtype))
            assert found.shape == shape and found.dtype == dtype and bool(found.isfinite().all())
    assert len(source.bits(0)) == 0


def test_noise_for_whole_numbers_is_refused() -> None:
    with pytest.raises(UsageError, match="int64"):
        SecureSource().normal(torch.zeros(3, dtype=torch.int64))


def test_the_secure_source_takes_a_new_key_for_every_call_and_never_repeats() -> None:
    source = SecureSource()
    words = torch.cat([source.bits(1) for _ in range(2_000)] + [source.bits(secure.CHUNK * 3)])
    assert len(words.unique()) == len(words)  # two of 100,000 words agree by chance once in 3 * 10^9 runs
    assert not vars(source)  # nothing to steal, to share, or to save


def test_threads_never_share_a_draw() -> None:
    source = SecureSource()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda _: source.bits(2_000), range(64)))
    words = torch.cat(parts)
    assert len(words.unique()) == len(words)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_draws_other_noise() -> None:
    source = SecureSource()
    source.bits(5)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, struct.pack("8q", *source.bits(8).tolist()))
        os._exit(0)
    mine = source.bits(8).tolist()
    theirs = list(struct.unpack("8q", os.read(read, 64)))
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert not set(mine) & set(theirs)


def test_the_seeded_source_goes_on_where_it_was_saved() -> None:
    first, like = SeededSource(3, "noise"), torch.empty(7)
    assert torch.equal(SeededSource(3, "noise").normal(like), first.normal(like))
    assert not torch.equal(SeededSource(3, "batches").normal(like), SeededSource(3, "noise").normal(like))
    saved = first.state_dict()
    later = first.normal(like)
    resumed = SeededSource(99)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.normal(like), later)
    with pytest.raises(DataError, match="saved state"):
        resumed.load_state_dict({"cpu": torch.zeros(3, dtype=torch.uint8)})


def test_a_secure_source_has_no_state_and_refuses_a_seeded_one() -> None:
    source = SecureSource()
    source.load_state_dict(source.state_dict())
    seeded = SeededSource(0)
    seeded.bits(1)
    with pytest.raises(UsageError, match="seeded"):
        source.load_state_dict(seeded.state_dict())


def test_the_global_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    for source in SOURCES:
        source.normal(torch.empty(9))
        source.laplace(torch.empty(9))
        source.bits(9)
    assert torch.equal(before, torch.random.get_rng_state())


def test_adding_on_a_grid_is_exact_there() -> None:
    noise = torch.tensor([1.25, -0.3, 2.0**-40, 7.7], dtype=torch.float64)
    total = torch.tensor([0.1, 1e5, -3.0, 1e-9], dtype=torch.float64)
    step = 2.0 ** (1 - grid.BITS)  # the scale 3 lies between 2 and 4
    expected = [(round(a / step) + round(3 * b / step)) * step for a, b in zip(total.tolist(), noise.tolist(), strict=True)]
    found = grid.add_on_grid_(total.clone(), 3.0, lambda like: noise.to(like))
    assert found.tolist() == expected
    assert bool(((found / step).remainder(1) == 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_grid_noise_has_the_scale_and_leaves_no_mark_of_the_value(dtype: torch.dtype) -> None:
    source, ends = SecureSource(), []
    for value in (0.0, 0.3):
        total = torch.full((3, 20_000), value, dtype=dtype)[:, ::2]  # not contiguous
        found = grid.add_on_grid_(total, 1.5, source.normal)
        assert found.data_ptr() == total.data_ptr()
        assert abs(float(found.double().mean()) - value) < 5 * 1.5 / math.sqrt(30_000)
        assert abs(float(found.double().std()) / 1.5 - 1) < 5 / math.sqrt(60_000)
        # Mironov's attack: the last bits of small sums differ for different values where noise is added plainly.
        small = found.double().flatten()
        small = small[small.abs() < 0.05]
        ends.append(((small / 2.0**-29) % 16).numpy())
    assert stats.ks_2samp(*ends).pvalue > TAIL


def test_plain_addition_does_leave_a_mark() -> None:
    """The same measure sees the fault that the grid closes."""
    source, ends = SecureSource(), []
    for value in (0.0, 0.3):
        small = (torch.full((60_000,), value) + source.normal(torch.empty(60_000)) * 1.5).double()
        small = small[small.abs() < 0.05]
        ends.append(((small / 2.0**-29) % 16).numpy())
    assert stats.ks_2samp(*ends).pvalue < 1e-30
