"""Faults of every kind and place: what they make of a number, whom they strike, what they cost, and what helps."""

from __future__ import annotations

import copy
import math
import struct
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Target
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.integrity.faults import (
    KINDS,
    activation_ranges,
    applied,
    bit_count,
    changed_layers,
    clipped_ranges,
    fault_campaign,
    faults_by_layer,
    faulty_activations,
    faulty_inputs,
    faulty_weights,
    fewest_flips,
    flipped_bits,
    layer_checksums,
    time_to_failure,
)
from hauberk.integrity.faults.values import strike, struck

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(dtype: torch.dtype, n: int = 500) -> Tensor:
    drawn = torch.randn(n, generator=draws(9), dtype=torch.float64)
    return (drawn * 40).round().clamp(-128, 127).to(dtype) if dtype is torch.int8 else drawn.to(dtype)


def test_a_fault_makes_of_a_float_what_its_bits_say() -> None:
    values = numbers(torch.float32)
    for kind, change in (
        ("exponent-flip", lambda word: word ^ (1 << 30)), ("imprecise", lambda word: word & ~((1 << 21) - 1)),
        ("negated", lambda word: word ^ (1 << 31)),
    ):
        made = struck(values, kind, draws())
        for before, after in zip(values.tolist(), made.tolist(), strict=True):
            (word,) = struct.unpack("<I", struct.pack("<f", before))
            (wanted,) = struct.unpack("<f", struct.pack("<I", change(word)))
            assert after == wanted or (math.isnan(after) and math.isnan(wanted))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flipped_value_differs_in_one_bit_and_every_bit_is_as_likely(dtype: torch.dtype) -> None:
    values = numbers(dtype, 4000)
    width = torch.iinfo(dtype).bits if dtype is torch.int8 else torch.finfo(dtype).bits
    words = {64: torch.int64, 32: torch.int32, 16: torch.int16, 8: torch.int8}[width]
    changed = (struck(values, "bit-flip", draws()).view(words) ^ values.view(words)).tolist()
    bits = np.array([(one & ((1 << width) - 1)).bit_length() - 1 for one in changed])
    assert all(bin(one & ((1 << width) - 1)).count("1") == 1 for one in changed)
    share = np.bincount(bits, minlength=width) / len(bits)
    assert np.abs(share - 1 / width).max() < 5 * math.sqrt(1 / width / len(bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_as_many_values_are_struck_as_asked(kind: str, dtype: torch.dtype) -> None:
    values = numbers(dtype)
    kept = values.clone()
    made = strike(values, kind, 50, draws())
    assert (made.shape, made.dtype) == (values.shape, dtype) and torch.equal(values, kept)
    same = (made == values) | (made.double().isnan() & values.double().isnan())
    assert 50 - int((~same).sum()) in range(12 if dtype in (torch.int8, torch.bfloat16) else 3)  # a zero can be struck to zero
    if kind == "random":
        assert made.double().min() >= values.double().min() and made.double().max() <= values.double().max()
    if kind == "imprecise" and dtype.is_floating_point:  # two bits of mantissa: at most a quarter away, never larger
        ratio = made[~same].double() / values[~same].double()
        assert float(ratio.max()) < 1 and float(ratio.min()) > 0.75


def net() -> nn.Sequential:
    draw = draws(3)
    made = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape, generator=draw))
    return made.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_struck_in_every_layer_and_put_back(kind: str) -> None:
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def block() -> None:
        with faulty_weights(module, kind, 0.25, generator=draws()) as count:
            assert count == 48 + 3 + 12 + 1
            touched = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
            assert {"1.weight", "3.weight"} <= touched  # the last layer as well
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        block()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with faulty_weights(module, "zero", 1.0, generator=draws(), layers=["3"]):
        assert not bool(module[3].weight.any()) and bool(module[1].weight.all())
    with pytest.raises(ModelError, match="no layer '2'"), faulty_weights(module, "zero", 1.0, generator=draws(), layers=["2"]):
        pass


def test_the_same_units_fail_for_every_sample_or_each_has_its_own() -> None:
    module, x = net(), torch.rand(40, 1, 4, 4, generator=draws(1))
    hidden: list[Tensor] = []
    keep = module[3].register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0].clone()))
    for lasting in (True, False):
        with torch.no_grad(), faulty_activations(module, "inf", 0.25, seed=0, layers=["2"], lasting=lasting):
            module(x), module(x[:7])
        whole, part = (one.isinf() for one in hidden[-2:])
        assert bool((whole.sum(1) == 3).all())
        assert bool((whole == whole[0]).all()) == lasting
        assert torch.equal(whole[:7], part) == lasting
    keep.remove()
    assert torch.equal(module(x), module(x)) and not any(part._forward_hooks for part in module.modules())


def test_inputs_are_struck_sample_by_sample() -> None:
    x = 1 + torch.rand(30, 1, 4, 4, generator=draws(1))
    z = faulty_inputs(x, "zero", 0.2, generator=draws())
    assert torch.equal((z == 0).flatten(1).sum(1), torch.full((30,), 4)) and torch.equal(z[z != 0], x[z != 0])
    assert len({tuple(row.tolist()) for row in (z == 0).flatten(1)}) > 20


def test_a_campaign_tells_silent_faults_from_those_that_show() -> None:
    module, x = net(), torch.rand(200, 1, 4, 4, generator=draws(2))
    y = module(x).argmax(1)
    found = {(one.kind, one.place): one for one in fault_campaign(module, x, y, share=1.0, trials=2)}
    assert found["nan", "weights"].accuracy.max() == 0 and found["nan", "weights"].noticed.min() == 1
    assert found["nan", "weights"].silent.max() == 0
    zero = found["zero", "weights"]  # all logits are zero: the first class is named, and nobody notices
    assert zero.accuracy[0] == pytest.approx(float((y == 0).double().mean())) and zero.noticed.max() == 0
    assert zero.silent[0] == pytest.approx(1 - zero.accuracy[0])
    # Both layers negated: the biases and the hidden units are no longer what they were, yet every answer is finite.
    assert found["negated", "weights"].noticed.max() == 0 and found["negated", "weights"].silent.min() > 0
    by_layer = faults_by_layer(module, x, y, kind="zero", share=1.0, trials=1)
    assert [one.layer for one in by_layer] == ["1", "3"] and by_layer[1].accuracy[0] == zero.accuracy[0]
    again = {(one.kind, one.place): one for one in fault_campaign(module, x, y, share=0.1, trials=2)}
    more = {(one.kind, one.place): one for one in fault_campaign(module, x, y, share=0.1, trials=2)}
    assert all(np.array_equal(again[key].accuracy, more[key].accuracy) for key in again)


def test_the_first_worst_bit_is_the_one_brute_force_finds() -> None:
    module = nn.Sequential(nn.Linear(4, 3, bias=False)).to(torch.float16).eval()
    x = torch.rand(60, 4, generator=draws(4)).half()
    y = module(x).argmax(1)
    search = fewest_flips(module, x, y, until=0.0, flips=1, candidates=12, exponent=False)
    best = -math.inf
    for position in range(12):
        for bit in (*range(10), 15):
            with torch.no_grad():
                words = module[0].weight.data.view(torch.int16).view(-1)
                mask = -(1 << 15) if bit == 15 else 1 << bit
                words[position] ^= mask
                best = max(best, float(nn.functional.cross_entropy(module(x).double(), y)))
                words[position] ^= mask
    with applied(module, search):
        assert float(nn.functional.cross_entropy(module(x).double(), y)) == pytest.approx(best)


@pytest.mark.parametrize("stored", ["own", "int8"])
def test_the_worst_bits_are_far_fewer_than_random_ones(stored: str, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(200)
    digits_model = copy.deepcopy(digits_model)
    digits_model.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in digits_model.state_dict().items()}
    search = fewest_flips(digits_model, x, y, until=0.2, stored=stored, flips=40)
    assert search.reached and search.accuracy[0] > 0.9 and len(search.accuracy) == len(search.flips) + 1
    assert all(torch.equal(value, before[name]) for name, value in digits_model.state_dict().items())
    assert all(value.grad is None for value in digits_model.parameters())
    assert len(search.flips) <= (3 if stored == "own" else 40)
    if stored == "int8":  # every value is a whole number of steps of its tensor's scale
        for flip in search.flips:
            scale = float(before[flip.parameter].abs().max()) / 127
            assert abs(flip.after / scale - round(flip.after / scale)) < 1e-3
        return
    held, wanted = digits.test.take(torch.arange(200, 400))
    with applied(digits_model, search), torch.no_grad():
        logits = digits_model(held)
        left = float(((logits.argmax(1) == wanted) & logits.isfinite().all(1)).double().mean())
    assert left <= 0.3  # and also on samples that the search did not see
    with flipped_bits(digits_model, len(search.flips), generator=draws()), torch.no_grad():
        assert float((digits_model(held).argmax(1) == wanted).double().mean()) > 0.8


def test_time_to_failure_is_where_the_accuracy_falls() -> None:
    module, x = net(), torch.rand(100, 1, 4, 4, generator=draws(2))
    y = module(x).argmax(1)
    counts = time_to_failure(module, x, y, until=0.5, trials=8, seed=1)
    assert np.array_equal(counts, time_to_failure(module, x, y, until=0.5, trials=8, seed=1))
    assert bool((counts >= 1).all()) and len(set(counts.tolist())) > 1
    assert bool(np.isinf(time_to_failure(module, x, y, until=0.5, trials=3, part="mantissa", most=1)).all())
    assert time_to_failure(module, x, y, until=1.0, trials=1)[0] == 0  # failed before any flip


def test_a_range_guard_brings_answers_back_and_leaves_clean_ones(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(200)
    ranges = activation_ranges(digits_model, x)
    clean = Target(digits_model).logits(x)
    with clipped_ranges(digits_model, ranges):
        assert torch.equal(Target(digits_model).logits(x), clean)
    bare, guarded = [], []
    for trial in range(20):
        with flipped_bits(digits_model, 5, generator=draws(trial), part="exponent"):
            bare.append(_accuracy(digits_model, x, y))
            with clipped_ranges(digits_model, ranges):
                guarded.append(_accuracy(digits_model, x, y))
    assert np.mean(guarded) > np.mean(bare) + 0.2
    assert not any(part._forward_hooks for part in digits_model.modules())


def _accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    logits = Target(module).logits(x)
    return float(((logits.argmax(1) == y) & logits.isfinite().all(1)).double().mean())


def test_checksums_name_the_changed_layer() -> None:
    module = net()
    module.register_buffer("codes", torch.arange(6, dtype=torch.int8))
    known = layer_checksums(module)
    assert changed_layers(module, known) == []
    with flipped_bits(module, 1, generator=draws()) as (flip,):
        assert changed_layers(module, known) == [flip.parameter]
    module.codes[2] += 1
    assert changed_layers(module, known) == ["codes"]
    assert changed_layers(module, {**layer_checksums(module), "gone": "0"}) == ["gone"]


def test_int8_memory_is_struck_as_well() -> None:
    module = nn.Module()
    module.register_buffer("codes", torch.arange(-8, 8, dtype=torch.int8))
    with flipped_bits(module, 16 * 8, generator=draws()) as flips:
        assert len(flips) == 128 and torch.equal(module.codes, ~torch.arange(-8, 8, dtype=torch.int8))
    assert torch.equal(module.codes, torch.arange(-8, 8, dtype=torch.int8))
    with faulty_weights(module, "zero", 0.5, generator=draws()):
        assert int((module.codes == 0).sum()) in (8, 9)


def test_what_cannot_be_meant_is_refused() -> None:
    module, x = net(), torch.rand(4, 1, 4, 4)
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(UsageError, match="kind is 'zeros'"):
        strike(x, "zeros", 1, draws())
    with pytest.raises(UsageError, match="share is 2"), faulty_weights(module, "zero", 2, generator=draws()):
        pass
    with pytest.raises(UsageError, match="place is 'weight'"):
        fault_campaign(module, x, y, places=["weight"])
    with pytest.raises(UsageError, match="stored is 'int4'"):
        fewest_flips(module, x, y, until=0.1, stored="int4")
    with pytest.raises(ModelError, match="no weights"), faulty_weights(nn.ReLU(), "zero", 1, generator=draws()):
        pass
    with pytest.raises(UsageError, match="trials is 0"):
        fault_campaign(module, x, y, trials=0)
    for wrong in (x[:0], x[:3]):
        with pytest.raises(DataError, match="samples and"):
            time_to_failure(module, wrong, y[: 4 if len(wrong) else 0], until=0.1)
        with pytest.raises(DataError, match="one label for each"):
            fewest_flips(module, wrong, y[: 4 if len(wrong) else 0], until=0.1)


def wide_net(seed: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    draw = draws(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.copy_((2 * torch.rand(value.shape, generator=draw) - 1) / 192**0.5)
    x = torch.rand(60, 3, 8, 8, generator=draw)
    y = module(x).argmax(1)
    return module.to(dtype), x.to(dtype), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_search_goes_on_after_a_flip_made_a_weight_huge(dtype: torch.dtype) -> None:
    longest = 0
    for seed in range(4):
        module, x, y = wide_net(seed, dtype)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        search = fewest_flips(module, x, y, until=0.0, flips=5)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert len({(flip.parameter, flip.position, flip.bit) for flip in search.flips}) == len(search.flips)
        longest = max(longest, len(search.flips))
    assert longest >= 2  # one flip to a huge weight, and others after it


def test_several_bits_of_one_weight_may_be_chosen() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.9375]]))

        def forward(self, x: Tensor) -> Tensor:
            own = x @ self.weight
            return torch.cat([own, torch.full_like(own, -8.0)], 1)  # never wrong: every flip that lowers the weight helps

    search = fewest_flips(Alone().double(), torch.ones(4, 1).double(), torch.zeros(4).long(), until=0.0, flips=3, exponent=False)
    assert len({flip.bit for flip in search.flips}) == len(search.flips) >= 1
    after = [flip.after for flip in search.flips]
    assert after == sorted(after, reverse=True) and after[0] == -1.9375
    assert len(after) == 3 and after[1] == -(1.9375 + 2**-5) and after[2] == -(1.9375 + 2**-5 + 2**-6)


def test_found_bits_are_applied_to_weights_of_any_layout() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    draw = draws(5)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=draw))
    x = torch.rand(40, 2, 4, 4, generator=draw)
    y = module(x).argmax(1)
    plain = fewest_flips(module, x, y, until=0.2, flips=6, exponent=False)
    with applied(module, plain), torch.no_grad():
        wanted = module(x)
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    module[3].weight.data = module[3].weight.data.t().contiguous().t()
    before = [value.detach().clone() for value in module.parameters()]
    search = fewest_flips(module, x, y, until=0.2, flips=6, exponent=False)
    assert [(one.parameter, one.position, one.bit) for one in search.flips] == [
        (one.parameter, one.position, one.bit) for one in plain.flips
    ]
    with applied(module, search), torch.no_grad():
        assert torch.allclose(module(x), wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, one) for value, one in zip(module.parameters(), before, strict=True))


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def codes(module: nn.Module) -> list[Tensor]:
    return [module[place]._weight_bias()[0].int_repr() for place in (1, 3)]


def test_packed_weights_are_struck_guarded_and_put_back() -> None:
    module, x = quantised(), torch.rand(50, 1, 4, 4, generator=draws(2))
    known, before = layer_checksums(module), codes(module)
    wanted = module(x)
    with flipped_bits(module, 40, generator=draws(1)) as flips:
        now = codes(module)
        changed = torch.cat([(a ^ b).flatten() for a, b in zip(before, now, strict=True)]).tolist()
        assert sum(bin(one & 255).count("1") for one in changed) == len(flips) == 40
        assert changed_layers(module, known) == [f"{place}._packed_params._packed_params" for place in (1, 3)]
        assert not torch.equal(module(x), wanted)
    assert changed_layers(module, known) == [] and torch.equal(module(x), wanted)
    with faulty_weights(module, "zero", 1.0, generator=draws()) as count:
        assert count == 12 * 16 + 4 * 12 and not any(bool(one.any()) for one in codes(module))
    assert changed_layers(module, known) == [] and torch.equal(module(x), wanted)
    with pytest.raises(ModelError, match=r"'1\.weight' packed"):
        fewest_flips(module, x, wanted.argmax(1), until=0.1)


def test_checksums_cover_buffers_that_the_state_leaves_out_and_packed_cells() -> None:
    module = net()
    module.register_buffer("mask", torch.ones(4), persistent=False)
    known = layer_checksums(module)
    module.mask[1] = 0
    assert changed_layers(module, known) == ["mask"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.Sequential(nn.LSTM(4, 4))
        cells = [
            torch.ao.quantization.quantize_dynamic(copy.deepcopy(one), {nn.LSTM}, dtype=torch.qint8)
            for one in (first, first, nn.Sequential(nn.LSTM(4, 4)))
        ]
    known = layer_checksums(cells[0])
    assert changed_layers(cells[1], known) == [] and changed_layers(cells[2], known) != []
    with pytest.raises(ModelError, match="no parameter"):
        layer_checksums(nn.ReLU())


def test_tied_weights_are_struck_once() -> None:
    module = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    module[1].weight = module[0].weight
    module[2].weight = nn.Parameter(module[0].weight.data)  # another parameter in the same memory
    before = module[0].weight.detach().clone()
    with faulty_weights(module, "negated", 1.0, generator=draws()) as count:
        assert count == 36 and torch.equal(module[0].weight, -before)
    assert torch.equal(module[0].weight, before)
    assert bit_count(module) == 36 * 32
    with flipped_bits(module, 36, generator=draws(), part="sign"):
        assert torch.equal(module[2].weight, -before)
    assert torch.equal(module[2].weight, before)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


@pytest.mark.parametrize("module", [nn.Linear(4, 4).requires_grad_(False), Functional().requires_grad_(False)])
def test_a_model_that_is_one_layer_or_all_functions_is_struck_and_guarded(module: nn.Module) -> None:
    x = torch.rand(30, 4, generator=draws(3))
    y = module(x).argmax(1)
    (found,) = fault_campaign(module, x, y, kinds=("nan",), places=("activations",), trials=1)
    assert found.accuracy.max() == 0 and found.noticed.min() == 1
    ranges = activation_ranges(module, x)
    assert (ranges[""].low, ranges[""].high) == (float(module(x).min()), float(module(x).max()))
    with faulty_activations(module, "inf", 1.0, seed=0), clipped_ranges(module, ranges):
        assert bool(module(x).isfinite().all())


def test_what_cannot_be_struck_or_guarded_is_said() -> None:
    x = torch.rand(30, 4, generator=draws(3))
    module = Numbers()
    with pytest.raises(ModelError, match="no activation"), faulty_activations(module, "nan", 1.0, seed=0):
        module(x)
    with pytest.raises(ModelError, match="could be guarded"):
        activation_ranges(Numbers(), x)
    with pytest.raises(ModelError, match="gives NaN"):
        activation_ranges(nn.Linear(4, 2), x * torch.nan)
    with pytest.raises(ModelError, match="no bits to flip"):
        time_to_failure(nn.ReLU(), x, x.argmax(1), until=0.1)


def test_random_values_stay_in_the_range_of_wide_halves() -> None:
    values = torch.tensor([-60000.0, 60000.0, 1.0]).half().repeat(50)
    made = struck(values, "random", draws())
    assert bool(made.isfinite().all()) and float(made.double().std()) > 1e4
    broken = torch.tensor([1.0, 2.0, torch.nan, torch.inf]).repeat(50)
    made = struck(broken, "random", draws())
    assert float(made.min()) >= 1 and float(made.max()) <= 2
    wide = torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64).repeat(50)
    assert bool(struck(wide, "random", draws()).isfinite().all())
