"""Shared fixtures: real data that ships with scikit-learn, and small models trained on it in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hauberk import Data, Schedule, Split, fit
from hauberk.methods import load_methods

load_methods()


def small_cnn(classes: int = 10, seed: int = 0) -> nn.Sequential:
    """A CNN for 8x8 digits, with seeded weights and the global random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, classes),
        )


@pytest.fixture(scope="session")
def digits() -> Data:
    """Handwritten digits: 1,297 training and 500 test images, (n, 1, 8, 8) float32 in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = torch.tensor(x[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(y[order])
    return Data(
        Split(images[1297:], labels[1297:]), Split(images[:1297], labels[:1297]), bounds=(0.0, 1.0), classes=10, name="digits"
    )


@pytest.fixture(scope="session")
def digits_model(digits: Data) -> nn.Module:
    """A CNN trained on the digits; do not change it."""
    model = small_cnn()
    fit(model, digits.train, schedule=Schedule(epochs=12, batch_size=64))
    return model


@pytest.fixture
def fresh_cnn() -> Callable[..., nn.Module]:
    """Makes untrained CNNs for the digits: `fresh_cnn(classes=10, seed=0)`."""
    return small_cnn


@pytest.fixture(scope="session")
def linear_model() -> nn.Linear:
    """A linear classifier of 20 features and 4 classes in float64, whose attacks have closed forms."""
    model = nn.Linear(20, 4).double()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 20, generator=draw, dtype=torch.float64))
        model.bias.copy_(torch.randn(4, generator=draw, dtype=torch.float64) * 0.1)
    return model.eval()


@pytest.fixture(scope="session")
def linear_samples(linear_model: nn.Linear) -> tuple[Tensor, Tensor]:
    """32 inputs in [0, 1] and the labels that the linear model gives them."""
    x = torch.rand(32, 20, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return x, linear_model(x).argmax(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test skips where there is none."""
    given = os.environ.get("HAUBERK_DATA")
    place = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not place.is_dir():
        pytest.skip("no folder of real data: set HAUBERK_DATA to one")
    return place
