"""Closeness of reconstructions against definitions written out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hauberk.core import image_quality
from hauberk.core.errors import DataError
from hauberk.core.rng import isolated
from hauberk.privacy.inversion import closeness
from hauberk.privacy.inversion.metrics import match, psnr, ssim


def windows(x: Tensor, z: Tensor, width: float) -> float:
    """Return the structural similarity of one channel, window by window."""
    found = []
    for i, j in itertools.product(range(x.shape[0] - 6), range(x.shape[1] - 6)):
        a, b = x[i : i + 7, j : j + 7].flatten(), z[i : i + 7, j : j + 7].flatten()
        small, smaller = (0.01 * width) ** 2, (0.03 * width) ** 2
        both = ((a - a.mean()) * (b - b.mean())).sum() / 48
        found.append(
            (2 * a.mean() * b.mean() + small) * (2 * both + smaller)
            / ((a.mean() ** 2 + b.mean() ** 2 + small) * (a.var() + b.var() + smaller))
        )
    return float(torch.stack(found).mean())


def test_structural_similarity_equals_its_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.rand(2, 3, 11, 9, generator=draw, dtype=torch.float64) * 5 for _ in range(2))
    wanted = [sum(windows(x[n, c], z[n, c], 5.0) for c in range(3)) / 3 for n in range(2)]
    assert ssim(x, z, 5.0).tolist() == pytest.approx(wanted, abs=1e-12)
    assert ssim(x, x, 5.0).tolist() == pytest.approx([1, 1])
    assert bool(ssim(torch.rand(2, 9), torch.rand(2, 9)).isnan().all())


def test_psnr_is_twenty_decibels_at_a_tenth_of_the_range() -> None:
    assert psnr(torch.tensor([0.01, 0.04, 0.0])).tolist() == pytest.approx([20, 10 * math.log10(25), 200])
    assert float(psnr(torch.tensor(0.04), 2.0)) == pytest.approx(20)


def test_the_order_is_the_best_of_all_orders() -> None:
    draw = torch.Generator().manual_seed(1)
    x, z = (torch.rand(5, 6, generator=draw) for _ in range(2))
    least = min(
        itertools.permutations(range(5)), key=lambda order: sum(float((x[k] - z[j]).square().sum()) for k, j in enumerate(order))
    )
    assert match(x, z).tolist() == list(least)


def test_closeness_stands_beside_loss_and_gradient_of_each_sample() -> None:
    with isolated(3):
        model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 3)).double()
    draw = torch.Generator().manual_seed(2)
    x, y = torch.rand(4, 4, generator=draw, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = closeness(model, x, x.flip(0) + 0.1, y=y, group=4)
    assert found.order.tolist() == [3, 2, 1, 0] and found.mse.tolist() == pytest.approx([0.01] * 4)
    assert model.training
    model.eval()
    told = (model(x + 0.1) - model(x)).square().mean(1)
    torch.testing.assert_close(found.fmse, told.detach())
    for k in range(4):
        loss = nn.functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        whole = torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))])
        assert (float(found.loss[k]), float(found.gradient_norm[k])) == pytest.approx((float(loss.detach()), float(whole.norm())))
    apart = closeness(model, x, x.flip(0), group=1)
    assert apart.order.tolist() == [0, 1, 2, 3] and bool(apart.loss.isnan().all())
    rate, n, ends = closeness(model, x, x).success()
    assert (rate, n) == (1.0, 4) and ends.low == pytest.approx(0.5101, abs=1e-4)
    with pytest.raises(DataError, match="as many"):
        closeness(model, x, x[:2])


def test_structural_similarity_is_the_same_in_any_units() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(3, 2, 9, 8, generator=draw, dtype=torch.float64)
    z = (x + 0.1 * torch.randn(x.shape, generator=draw, dtype=torch.float64)).clamp(0, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 2)).double()
    for low, high in ((-1.0, 1.0), (0.0, 255.0), (-0.4, 2.8)):
        a, b = (low + (high - low) * one for one in (x, z))
        torch.testing.assert_close(image_quality.ssim(a, b, bounds=(low, high)), image_quality.ssim(x, z))
        torch.testing.assert_close(closeness(model, a, b, bounds=(low, high)).ssim, image_quality.ssim(x, z))
        torch.testing.assert_close(closeness(model, a, b, bounds=(low, high)).psnr, closeness(model, x, z).psnr)
