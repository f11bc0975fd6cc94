"""Clipping: no example adds more than the bound, also one that is huge or broken, and the adaptive clip pays for its count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.clipping import L1, Automatic, Flat, PerLayer, Quantile

SHAPES = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3)}


def gradients(seed, scales):
    draw = torch.Generator().manual_seed(seed)
    parameters = {name: Parameter(torch.zeros(shape, dtype=torch.float64)) for name, shape in SHAPES.items()}
    size = torch.tensor(scales, dtype=torch.float64)
    rows = {
        one: torch.randn(len(scales), *one.shape, generator=draw, dtype=torch.float64) * size.reshape(-1, *[1] * one.ndim)
        for one in parameters.values()
    }
    return parameters, rows


def norms(rows, order):
    return {one: torch.linalg.vector_norm(row.flatten(1), ord=order, dim=1) for one, row in rows.items()}


def contributions(clipping, rows):
    """Each example's clipped gradient as one vector, (batch, all)."""
    weights = clipping.weights(norms(rows, 1 if clipping.norm == "l1" else 2))
    parts = []
    for one, row in rows.items():
        weight = weights[one] if isinstance(weights, dict) else weights
        parts.append(torch.where(weight[:, None] != 0, weight[:, None] * row.flatten(1), 0.0))
    return torch.cat(parts, 1)


STRATEGIES = {
    "flat": lambda: Flat(0.7), "l1": lambda: L1(0.7), "automatic": lambda: Automatic(0.7), "layers": lambda: PerLayer(0.7),
    "given": lambda: PerLayer({"a": 0.2, "b.weight": 0.5}), "quantile": lambda: Quantile(0.7),
}


@pytest.mark.parametrize("name", STRATEGIES)
@given(seed=st.integers(0, 10**6), scales=st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 1e6, math.nan, math.inf]), max_size=7))
@settings(max_examples=25, deadline=None)
def test_no_example_adds_more_than_the_bound_and_a_broken_one_nothing(name, seed, scales):
    clipping = STRATEGIES[name]()
    parameters, rows = gradients(seed, scales)
    clipping.bind(parameters, 8.0)
    bound = clipping.bound
    order = 1 if clipping.norm == "l1" else 2
    added = contributions(clipping, rows)
    lengths = torch.linalg.vector_norm(added, ord=order, dim=1)
    assert bool((lengths <= bound * (1 + 1e-12)).all())
    for scale, length in zip(scales, lengths.tolist(), strict=True):
        if not math.isfinite(scale):
            assert length == 0
        elif scale == 1e6 and name in ("flat", "l1", "layers", "given", "quantile"):
            assert length == pytest.approx(bound, rel=1e-9)
        elif scale == 1e6:
            assert length == pytest.approx(bound, rel=1e-6)


def test_small_gradients_stay_as_they_are():
    parameters, rows = gradients(1, [1e-3, 1e-3])
    plain = torch.cat([row.flatten(1) for row in rows.values()], 1)
    for clipping in (Flat(1.0), L1(1.0), PerLayer(1.0)):
        clipping.bind(parameters, 2.0)
        assert torch.equal(contributions(clipping, rows), plain)


def test_automatic_clipping_is_the_closed_form():
    norm = {Parameter(torch.zeros(1)): torch.tensor([0.0, 0.01, 3.0], dtype=torch.float64)}
    assert Automatic(2.0, gamma=0.01).weights(norm).tolist() == pytest.approx([200.0, 100.0, 2 / 3.01], rel=1e-12)


def test_layers_share_the_clip_and_given_clips_follow_names():
    parameters, rows = gradients(2, [100.0])
    shared, given_ = PerLayer(1.0), PerLayer({"a": 0.3, "b": 0.4})
    for clipping, expected in ((shared, [0.5**0.5, 0.5**0.5]), (given_, [0.3, 0.4])):
        clipping.bind(parameters, 1.0)
        added = contributions(clipping, rows)[0]
        assert [float(added[:15].norm()), float(added[15:].norm())] == pytest.approx(expected, rel=1e-12)
    assert given_.bound == pytest.approx(0.5)
    with pytest.raises(UsageError, match=r"'b\.weight' has no clip"):
        PerLayer({"a": 1.0}).bind(parameters, 1.0)
    with pytest.raises(UsageError, match="no trained parameter belongs"):
        PerLayer({"a": 1.0, "b": 1.0, "head": 1.0}).bind(parameters, 1.0)


@pytest.mark.parametrize(
    ("update", "moved"), [("geometric", 0.5 * math.exp(-0.2 * (0.75 - 0.9))), ("linear", 0.5 - 0.2 * (0.75 - 0.9))]
)
def test_the_quantile_clip_moves_by_the_published_step(update, moved):
    clipping = Quantile(0.5, quantile=0.9, update=update, count_noise=1e-9)
    clipping.bind({}, 4.0)
    one = Parameter(torch.zeros(1))
    clipping.weights({one: torch.tensor([0.1, 0.5])})  # a batch in two parts: three of four at or below the clip
    clipping.weights({one: torch.tensor([0.2, 7.0])})
    clipping.finish(lambda counted, deviation: counted + deviation)
    assert clipping.bound == pytest.approx(moved, rel=1e-6)


def test_the_quantile_clip_finds_the_quantile():
    draw = torch.Generator().manual_seed(0)
    clipping = Quantile(0.01, quantile=0.8, count_noise=2.0)
    clipping.bind({}, 200.0)
    one = Parameter(torch.zeros(1))
    for _ in range(200):
        clipping.weights({one: torch.rand(200, generator=draw) * 3})
        clipping.finish(lambda counted, deviation: counted + deviation * torch.randn(1, generator=draw))
    assert clipping.bound == pytest.approx(2.4, abs=0.25)


def test_the_count_is_paid_for_by_more_noise_on_the_gradient():
    clipping = Quantile()
    clipping.bind({}, 256.0)
    assert clipping.gradient_multiplier(1.0) == pytest.approx(1.0007638, abs=1e-7)  # Andrew et al. at z 1, B 256, σ_b B/20
    # Both releases together: the sensitivities, each over its deviation, add up in squares to that of one of multiplier z.
    z = clipping.gradient_multiplier(1.1)
    assert z**-2 + (0.5 / clipping.count_noise) ** 2 == pytest.approx(1.1**-2, rel=1e-12)
    with pytest.raises(UsageError, match="costs more than the noise multiplier"):
        clipping.gradient_multiplier(26.0)


@pytest.mark.parametrize(
    "make", [lambda: Flat(0.0), lambda: Flat(math.nan), lambda: Automatic(1.0, gamma=0.0), lambda: PerLayer({}),
             lambda: PerLayer({"a": -1.0}), lambda: Quantile(quantile=1.5), lambda: Quantile(count_noise=0.0),
             lambda: Quantile(update="other")],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UsageError):
        make()
