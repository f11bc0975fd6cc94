"""Defences on gradients: what each does is known, and a greater strength does more of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import HauberkError
from hauberk.core.rng import isolated
from hauberk.privacy.inversion.defences import (
    DEFENCES,
    Bottleneck,
    clip,
    gaussian_noise,
    information_loss,
    laplace_noise,
    mid,
    mixup,
    norm_of,
    precode,
    private,
    prune,
    quantise,
    soteria,
    top_k,
)

STRENGTHS = {"prune": (0.0, 0.3, 0.7, 1.0), "top-k": (0.0, 0.3, 0.7, 1.0), "quantise": (0.0, 0.02, 0.2, 1.0)}


def gradients(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(40, 50, generator=draw), "b": 3 * torch.randn(60, generator=draw)}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return norm_of({key: one[key] - other[key] for key in one})


@pytest.mark.parametrize("name", list(DEFENCES))
def test_a_greater_strength_changes_more_and_the_generator_decides(name: str) -> None:
    defend, given = DEFENCES[name][0], gradients()
    kept = {key: one.clone() for key, one in given.items()}
    found = [
        apart(defend(given, strength, generator=torch.Generator().manual_seed(1)), given)
        for strength in STRENGTHS.get(name, (0.0, 0.1, 1.0, 10.0))
    ]
    # The private update clips at norm 1 even without noise.
    assert found == sorted(found) and found[0] < found[-1] and (found[0] == 0 or name == "private")
    usual = DEFENCES[name][2]
    one, two = (defend(given, usual, generator=torch.Generator().manual_seed(k)) for k in (2, 2))
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == torch.float32 for key in one)
    assert all(torch.equal(given[key], kept[key]) for key in given)
    with pytest.raises(HauberkError, match="strength"):
        defend(given, -1.0)


def test_noise_has_the_stated_size() -> None:
    given = {"a": torch.full((200_000,), 2.0)}
    for noise, fourth in ((gaussian_noise, 3), (laplace_noise, 6)):
        z = (noise(given, 0.5)["a"] - 2).double()
        assert float(z.std()) == pytest.approx(1, rel=0.02) and float(z.mean()) == pytest.approx(0, abs=0.02)
        assert float((z**4).mean()) == pytest.approx(fourth, rel=0.1)


def test_pruning_keeps_the_largest() -> None:
    given = {"a": torch.tensor([1.0, -5, 2, 0.1]), "b": torch.tensor([0.01, 0.02])}
    assert {k: v.tolist() for k, v in prune(given, 0.5).items()} == {"a": [0, -5, 2, 0], "b": [0, pytest.approx(0.02)]}
    assert {k: v.tolist() for k, v in top_k(given, 0.5).items()} == {"a": [1, -5, 2, 0], "b": [0, 0]}


def test_gradients_of_channels_last_are_defended_alike() -> None:
    plain = {"weight": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))}
    turned = {"weight": plain["weight"].to(memory_format=torch.channels_last)}
    for name, (defend, _, strength) in DEFENCES.items():
        assert torch.equal(defend(turned, strength)["weight"], defend(plain, strength)["weight"]), name


def test_quantised_entries_are_levels_and_right_on_average() -> None:
    given = {"a": torch.tensor([1.0, 0.3, -0.7]).repeat(20_000, 1)}
    found = quantise(given, 0.25)["a"]
    assert set((found / 0.25).flatten().tolist()) <= {-3.0, -2.0, 1.0, 2.0, 4.0}
    assert found.mean(0).tolist() == pytest.approx([1, 0.3, -0.7], abs=0.005)


def test_the_private_update_clips_each_sample_and_adds_the_stated_noise() -> None:
    rows = [gradients(k) for k in range(4)]
    mean = private(rows, 0.0, norm=2.0)
    wanted = sum(one["b"] * min(1, 2 / norm_of(one)) for one in rows) / 4
    torch.testing.assert_close(mean["b"], wanted)
    assert norm_of(clip(rows[0], 0.5)) == pytest.approx(2.0, rel=1e-5)
    zero = [{"a": torch.zeros(100_000)} for _ in range(5)]
    assert float(private(zero, 1.5, norm=2.0)["a"].std()) == pytest.approx(1.5 * 2 / 5, rel=0.02)


def test_soteria_cuts_the_features_that_are_large_and_hard_to_move() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    model[0].weight.data = torch.diag(torch.tensor([1.0, 2.0, 4.0])).repeat(2, 1)[:4] * torch.tensor([[1.0], [1], [1], [3]])
    x = torch.tensor([[1.0, 5.0, 2.0]])
    # |r| / ||dr/dx|| is |x| of the feature that each row reads: 1, 5, 2, 1.
    given = {"0.weight": torch.ones(4, 3), "1.weight": torch.ones(2, 4)}
    found = soteria(given, 0.5, module=model, x=x, layer="1")
    assert found["1.weight"].tolist() == [[1, 0, 0, 1]] * 2 and torch.equal(found["0.weight"], given["0.weight"])
    assert model.training and all(one.grad is None for one in model.parameters())


def test_mixed_batches_blend_with_somebody_else() -> None:
    x, y = torch.eye(6), torch.arange(6)
    blend, soft = mixup(x, y, 6, strength=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend, soft) and soft.sum(1).tolist() == pytest.approx([1] * 6)
    assert bool((blend.diagonal() >= 0.5).all()) and bool(((blend > 0).sum(1) == 2).all())
    assert torch.equal(mixup(x, y, 6, strength=0)[0], x)


def test_a_bottleneck_draws_and_tells_how_much_passes() -> None:
    with isolated(1):
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    for made in (precode(model, size=4), mid(model, size=4)):
        with isolated(2):
            one, two = made(x), made(x)
        assert one.shape == (7, 3) and not torch.equal(one, two)
    still = precode(model, size=4, strength=0)
    assert torch.equal(still(x), still(x))
    part = next(part for part in made.modules() if isinstance(part, Bottleneck))
    with isolated(3):
        value = information_loss(0.1)(made, x, y)
    with isolated(3):
        plain = functional.cross_entropy(made(x), y)
    mean, spread = part.encode(model[:2](x)).chunk(2, 1)
    normal = torch.distributions.Normal
    nats = torch.distributions.kl_divergence(normal(mean, (spread / 2).exp()), normal(0.0, 1.0)).sum(1).mean()
    assert float((value - plain).detach()) == pytest.approx(0.1 * float(nats.detach()), rel=1e-4)
    assert math.isfinite(float(value.detach()))
    with pytest.raises(HauberkError, match="bottleneck"):
        information_loss()(model, x, y)
