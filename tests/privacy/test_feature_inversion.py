"""Feature inversion: what a layer keeps comes back, what it throws away does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hauberk import Data
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.taps import tap
from hauberk.privacy.inversion import feature_inversion


def features(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), tap(model, [layer]) as seen:
        model(x)
    return seen.activations[layer]


def test_what_a_linear_layer_sees_comes_back_and_what_it_does_not_stays_at_the_start() -> None:
    model = nn.Sequential(nn.Linear(6, 3, bias=False)).double()
    model[0].weight.data.copy_(torch.eye(3, 6).double())
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)
    found = feature_inversion(model, features(model, "0", x))
    torch.testing.assert_close(found.x[:, :3], x[:, :3], atol=1e-4, rtol=0)
    assert float(found.x[:, 3:].abs().max()) < 0.1


def test_early_features_of_a_cnn_give_digits_back_and_late_ones_less(digits_model: nn.Module, digits: Data) -> None:
    x, _ = digits.test.first(8)
    errors = {}
    for layer in ("0", "2", "5", "7"):
        found = feature_inversion(
            digits_model, features(digits_model, layer, x), layer=layer, shape=(1, 8, 8), bounds=(0, 1), steps=150,
        )
        assert float(found.x.min()) >= 0 and float(found.x.max()) <= 1
        errors[layer] = float((found.x - x).square().mean())
    guess = float((x - digits.train.tensors()[0].mean(0)).square().mean())
    assert errors["0"] < errors["2"] < 1e-3 and errors["5"] < 0.7 * guess < errors["7"], (errors, guess)


def test_total_variation_smooths() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = features(model, "1", x)
    rough, smooth = (
        feature_inversion(model, seen, layer="1", shape=(1, 8, 8), tv=tv, steps=100).x for tv in (0, 1)
    )
    assert float(smooth.diff(dim=-1).square().mean()) < 0.3 * float(rough.diff(dim=-1).square().mean())


def test_what_does_not_fit_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(UsageError, match="shape"):
        feature_inversion(model, torch.rand(1, 2, 2, 2), layer="0")
    with pytest.raises(ModelError, match="no layer '9'"):
        feature_inversion(model, torch.rand(1, 2), layer="9")
    with pytest.raises(DataError, match=r"layer '0' gives \(1, 2, 2, 2\)"):
        feature_inversion(model, torch.rand(1, 3), layer="0", shape=(1, 4, 4))
    with pytest.raises(UsageError, match="steps"):
        feature_inversion(model, torch.rand(1, 2), steps=0)


def test_bounds_and_shapes_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    features = torch.zeros(2, 8)
    for ends in ((1.0, 0.0), (0.0, math.inf)):
        with pytest.raises(UsageError, match="bounds"):
            feature_inversion(model, features, layer="1", shape=(1, 4, 4), bounds=ends)
    with pytest.raises(UsageError, match="do not fit"):
        feature_inversion(model, features, layer="1", shape=(1, 4, 5))
