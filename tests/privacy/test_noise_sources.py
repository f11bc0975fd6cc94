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
from hauberk.privacy.dp.noise import SecureSource, SeededSource, Source, grid, secure, ziggurat

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
    # Neighbours do not depend on each other, nor do portions.
    for shift in (1, secure.CHUNK // 2, secure.CHUNK):
        assert abs(np.corrcoef(values[shift:], values[:-shift])[0, 1]) < 5 / math.sqrt(N - shift)
        assert abs(np.corrcoef(np.abs(values[shift:]), np.abs(values[:-shift]))[0, 1]) < 5 / math.sqrt(N - shift)


def test_the_layers_of_the_ziggurat_have_one_area_and_cover_the_density() -> None:
    widths, inner, heights = ziggurat.layers()
    x = widths * 2.0**53
    assert len(x) == ziggurat.LAYERS and float(inner[-1]) == 0 and float(heights[-1]) == 1
    assert np.all(np.diff(x) < 0) and np.allclose(heights[:-1], np.exp(-x * x / 2), rtol=1e-14)
    assert np.allclose(inner[:-1] * widths[:-1], x[1:], rtol=1e-14)
    areas = x[1:] * np.diff(heights[1:])  # of the layers above the base, whose corners are x_1 ... and 0
    base = x[1] * heights[1] + math.sqrt(2 * math.pi) * stats.norm.sf(x[1])
    assert np.allclose(areas, base, rtol=1e-10) and base == pytest.approx(x[0] * heights[1], rel=1e-14)
    assert ziggurat.LAYERS * base == pytest.approx(math.sqrt(math.pi / 2), rel=3e-3)  # the half density, and what is rejected


def test_the_ziggurat_decides_by_the_density() -> None:
    """Candidates that may lie above it are kept exactly where their height is below it; those of the base go to the tail."""
    widths, _, heights = ziggurat.layers()
    x, layer = np.append(widths * 2.0**53, 0), np.array([1, 40, 1000])
    values = (x[layer] + x[layer + 1]) / 2 * [1, -1, 1]
    edge = (np.exp(-(values**2) / 2) - heights[layer]) / (heights[layer + 1] - heights[layer])
    assert bool(((edge > 0.3) & (edge < 0.7)).all())
    for share, kept in ((1 - 1e-9, True), (1 + 1e-9, False)):
        chances, found = np.append((edge * share * 2.0**63).astype(np.int64), 1), np.append(values, -4.05)
        drawn = ziggurat._decided(found, np.arange(4), np.append(layer, 0), chances, secure._fill)
        assert drawn.tolist() == [kept] * 3 + [True]
        assert found[3] < -x[1] and found[:3].tolist() == values.tolist()


def test_small_batches_and_tails_of_normals_follow_the_law() -> None:
    """The places where candidates are put in, and values beyond the corner."""
    few = np.concatenate([ziggurat.normals(7, secure._fill).copy() for _ in range(3_000)])
    assert stats.kstest(few, "norm").pvalue > TAIL
    corner = float(ziggurat.layers()[0][1] * 2.0**53)
    tail = ziggurat._tail(20_000, np.empty(0, np.int64), secure._fill)
    assert len(tail) == 20_000
    assert stats.kstest(tail, lambda z: 1 - stats.norm.sf(z) / stats.norm.sf(corner)).pvalue > TAIL


def test_the_extremes_are_finite() -> None:
    ends = np.array([0, -1, 2**63 - 1, -(2**63)])
    assert bool(((ziggurat._uniform(ends) > 0) & (ziggurat._uniform(ends) <= 1)).all())
    assert 0 < float(ziggurat._tail(1, np.array([0, 0]), secure._fill)[0]) < 15
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


def test_the_work_of_large_tensors_is_shared_between_threads_and_comes_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "CHUNK", 1 << 10)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    n, source = 30_001, SecureSource()
    assert len(source.bits(n).unique()) == n
    assert stats.kstest(source.normal(torch.empty(n, dtype=torch.float64)).numpy(), stats.norm().cdf).pvalue > TAIL
    total, seen = torch.linspace(-3, 3, n, dtype=torch.float64).requires_grad_(), []
    with torch.no_grad():
        grid.add_on_grid_(total, 1.0, lambda like, _: seen.append(len(like)) or torch.ones_like(like))
    assert len(seen) == 59 and sum(seen) == n
    assert float((total.detach() - torch.linspace(-2, 4, n, dtype=torch.float64)).abs().max()) < 2.0**-35


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
    expected = [(round(a / step) + math.floor(3 * b / step)) * step for a, b in zip(total.tolist(), noise.tolist(), strict=True)]
    found = grid.add_on_grid_(total.clone(), 3.0, lambda like, _: noise.to(like))
    assert found.tolist() == expected
    assert bool(((found / step).remainder(1) == 0).all())


def test_the_noise_on_the_grid_is_the_same_whatever_it_is_added_to() -> None:
    noise = SeededSource(2).normal(torch.empty(500, dtype=torch.float64))
    alone = grid.add_on_grid_(torch.zeros(500, dtype=torch.float64), 3.0, lambda like, _: noise.clone())
    for value in (0.1, -77.7, 3.0 * 2**16 + 0.3):  # up to 2^17 times the noise
        start = torch.full((500,), value, dtype=torch.float64)
        plain = grid.add_on_grid_(start.clone(), 3.0, lambda like, _: torch.zeros_like(like))
        assert float((plain - start).abs().max()) <= 2.0**-35  # half a step at most
        assert torch.equal(grid.add_on_grid_(start, 3.0, lambda like, _: noise.clone()) - plain, alone)


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
