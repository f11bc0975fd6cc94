"""Bit flips: the right bits, each as likely as the next, and every one put back."""

from __future__ import annotations

import copy
import math
import struct

import pytest
import torch
from scipy import stats
from torch import nn

from hauberk.core.errors import ModelError, UsageError
from hauberk.integrity.faults import flipped_bits


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def patterns(module: nn.Module) -> dict[str, torch.Tensor]:
    whole = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
    return {name: value.detach().clone().view(whole[value.dtype]) for name, value in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_exactly_the_bits_named_are_flipped_and_put_back(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(5, 3)).to(dtype)
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    before = patterns(module)
    with flipped_bits(module, 50, generator=draws()) as flips:
        assert len({(flip.parameter, flip.position, flip.bit) for flip in flips}) == 50
        after = patterns(module)
        expected = {name: value.clone() for name, value in before.items()}
        for flip in flips:
            width = torch.iinfo(expected[flip.parameter].dtype).bits
            sign = -1 if flip.bit == width - 1 else 1
            flat = expected[flip.parameter].contiguous().flatten()
            flat[flip.position] ^= sign * (1 << flip.bit)
            expected[flip.parameter] = flat.view(expected[flip.parameter].shape)
        assert all(torch.equal(after[name], expected[name]) for name in before)
    assert all(torch.equal(value, before[name]) for name, value in patterns(module).items())


def test_a_flip_is_what_ieee_754_says() -> None:
    module = nn.Linear(50, 20)
    with flipped_bits(module, 200, generator=draws(1)) as flips:
        for flip in flips:
            (word,) = struct.unpack("<I", struct.pack("<f", flip.before))
            (value,) = struct.unpack("<f", struct.pack("<I", word ^ (1 << flip.bit)))
            assert value == flip.after or (math.isnan(value) and math.isnan(flip.after))


def test_parts_strike_where_they_should() -> None:
    module = nn.Linear(20, 20)
    ranges = {"sign": {31}, "exponent": set(range(23, 31)), "mantissa": set(range(23)), "any": set(range(32))}
    for part, allowed in ranges.items():
        with flipped_bits(module, 400, generator=draws(), part=part) as flips:
            struck = {flip.bit for flip in flips}
            assert struck == allowed
            if part == "sign":
                assert all(flip.after == -flip.before for flip in flips)


def test_every_bit_is_as_likely() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(3, 1))  # 1 + 1 + 3 + 1 weights of 32 bits
    counts = {}
    for seed in range(600):
        with flipped_bits(module, 4, generator=draws(seed)) as flips:
            for flip in flips:
                key = (flip.parameter, flip.position, flip.bit // 8)
                counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    with flipped_bits(module, 6 * 32, generator=draws()) as flips:  # all there are
        assert len({(flip.parameter, flip.position, flip.bit) for flip in flips}) == 192


def test_weights_are_put_back_after_an_error() -> None:
    module = nn.Linear(10, 10)
    before = patterns(module)
    with pytest.raises(RuntimeError, match="inside"), flipped_bits(module, 64, generator=draws()):
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in patterns(module).items())


def test_same_generator_same_flips_and_the_global_stream_is_left_alone() -> None:
    module = copy.deepcopy(nn.Linear(10, 10))
    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        with flipped_bits(module, 8, generator=draws(5)) as flips:
            found.append([(flip.parameter, flip.position, flip.bit) for flip in flips])
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), state)
    with flipped_bits(module, 0, generator=draws()) as flips:
        assert flips == []


def test_what_cannot_be_flipped_is_refused() -> None:
    with pytest.raises(ModelError, match="no floating-point weights"), flipped_bits(nn.ReLU(), 1, generator=draws()):
        pass
    with pytest.raises(UsageError, match="0 to 64"), flipped_bits(nn.Linear(1, 1), 65, generator=draws()):
        pass
    with pytest.raises(UsageError, match="exponent"), flipped_bits(nn.Linear(1, 1), 1, generator=draws(), part="exponents"):
        pass
