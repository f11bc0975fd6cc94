"""Every layer against the per-sample loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from per_sample_loop import assert_equals_loop
from torch import Tensor, nn

BATCHES = st.sampled_from([0, 1, 7])
TYPES = st.sampled_from([torch.float64, torch.float32])
COMMON: dict[str, Any] = {
    "reduction": st.sampled_from(["mean", "sum"]), "norm": st.sampled_from(["l2", "l1"]), "dtype": TYPES, "batch": BATCHES,
    "seed": st.integers(0, 2**16),
}
quick = settings(max_examples=25, deadline=None)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(seed: int, *layers: Any) -> nn.Module:
    """Make layers from a seed without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers))


@quick
@given(middle=st.lists(st.integers(1, 6), max_size=2), d=st.integers(1, 9), p=st.integers(1, 9), bias=st.booleans(), **COMMON)
def test_linear(middle: list[int], d: int, p: int, bias: bool, batch: int, seed: int, **how: Any) -> None:
    model = build(seed, lambda: nn.Linear(d, p, bias=bias), lambda: nn.ReLU(inplace=True), lambda: nn.Linear(p, 2))
    assert_equals_loop(model, drawn(seed, batch, *middle, d), **how)


@quick
@given(
    dims=st.integers(1, 3), groups=st.sampled_from([1, 2]), out=st.sampled_from([2, 4]), kernel=st.integers(1, 3),
    stride=st.integers(1, 2), dilation=st.integers(1, 2), padding=st.sampled_from([0, 1, 2]), bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "circular"]), **COMMON,
)
def test_convolution(
    dims: int, groups: int, out: int, kernel: int, stride: int, dilation: int, padding: int, bias: bool, mode: str, batch: int,
    seed: int, **how: Any,
) -> None:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = build(
        seed, lambda: kind(2, out, 3, padding=1),
        lambda: kind(
            out, 4, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias, padding_mode=mode
        ),
    )
    if mode != "zeros" and batch == 0:
        return  # torch itself refuses to reflect an empty batch.
    assert_equals_loop(model, drawn(seed, batch, 2, *(6, 7, 5)[:dims]), **how)


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("stride", [(1, 2), (2, 1)])
def test_convolution_with_sides_of_their_own(stride: tuple[int, int]) -> None:
    model = build(3, lambda: nn.Conv2d(3, 6, (2, 3), stride=stride, padding=(1, 0), dilation=(2, 1), groups=3))
    assert_equals_loop(model, drawn(1, 5, 3, 8, 9))
    assert_equals_loop(build(3, lambda: nn.Conv2d(2, 3, (2, 4), padding="same")), drawn(1, 5, 2, 8, 9))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_convolution_of_many_channels_at_few_positions(norm: Any) -> None:
    model = build(4, lambda: nn.Conv2d(16, 24, 3, padding=1))
    assert_equals_loop(model, drawn(4, 7, 16, 2, 2), norm=norm)


def test_convolution_too_large_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    from hauberk.privacy.dp.engine.ops import taps

    monkeypatch.setattr(taps, "KEEP", 0)
    model = build(5, lambda: nn.Conv2d(2, 4, 3, padding=1), lambda: nn.Conv2d(4, 4, 2, groups=2))
    assert_equals_loop(model, drawn(5, 7, 2, 6, 5))
    assert_equals_loop(build(5, lambda: nn.Conv1d(2, 4, 3, dilation=2)), drawn(5, 7, 2, 9))


@quick
@given(kind=st.sampled_from(["layer", "rms", "group", "instance"]), affine=st.booleans(), **COMMON)
def test_normalisations(kind: str, affine: bool, batch: int, seed: int, **how: Any) -> None:
    if kind == "instance" and batch == 0:
        return  # torch itself refuses an empty batch here.
    made: dict[str, Any] = {
        "layer": lambda: nn.LayerNorm((3, 5), elementwise_affine=affine), "rms": lambda: nn.RMSNorm((3, 5)),
        "group": lambda: nn.GroupNorm(2, 4, affine=affine), "instance": lambda: nn.InstanceNorm2d(4, affine=affine),
    }
    model = build(seed, lambda: nn.Conv2d(4, 4, 1), lambda: nn.Tanh(), made[kind], lambda: nn.Linear(5, 2))
    assert_equals_loop(model, drawn(seed, batch, 4, 3, 5), **how)


@quick
@given(length=st.integers(1, 9), padding=st.sampled_from([None, 0, -1]), **COMMON)
def test_embedding(length: int, padding: int | None, batch: int, seed: int, **how: Any) -> None:
    model = build(seed, lambda: nn.Embedding(5, 6, padding_idx=padding), lambda: nn.Linear(6, 3))
    tokens = torch.randint(0, 5, (batch, length), generator=torch.Generator().manual_seed(seed))
    assert_equals_loop(model, tokens, **how)
