"""The same inputs in other units, the same model behind a division: every attack makes of them what it made before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hauberk.core.rng import isolated
from hauberk.privacy.inversion import (
    batch_norm_matching,
    client_update,
    dlg,
    feature_inversion,
    group_consistency,
    inverting_gradients,
    see_through,
)
from hauberk.privacy.inversion.guided import Weights
from hauberk.privacy.model_inversion import GaussianPrior, decoder_inversion, deep_inversion, gmi, mi_face, train_gan

SHAPE = (1, 6, 6)


class Scale(nn.Module):
    """Divides by a power of two, which rounds nothing."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x / self.width


def model(width: float) -> nn.Module:
    with isolated(3):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 3),
        )
    return nn.Sequential(Scale(width), *net).double().eval()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def from_gradients(attack: Callable[..., object], **options: object) -> Callable[[float], Tensor]:
    def run(width: float) -> Tensor:
        net = model(width)
        sent = client_update(net, images(2) * width, torch.tensor([0, 1]), bounds=(0.0, width))
        return attack(net, sent, steps=12, **options).x  # type: ignore[attr-defined, no-any-return]

    return run


def from_features(width: float) -> Tensor:
    net = model(width)
    return feature_inversion(net, net[:2](images(2) * width).detach(), layer="1", shape=SHAPE, steps=12, bounds=(0.0, width)).x


def by_decoder(width: float) -> Tensor:
    net = model(width)
    features = net[:4](images(2) * width).detach()
    found = decoder_inversion(net, features, layer="3", auxiliary=images(40, 1) * width, epochs=4, bounds=(0.0, width))
    return found.x


def from_model(attack: Callable[..., object]) -> Callable[[float], Tensor]:
    return lambda width: attack(  # type: ignore[attr-defined, no-any-return]
        model(width), torch.arange(3), shape=SHAPE, steps=12, bounds=(0.0, width)
    ).x


def with_prior(width: float) -> Tensor:
    prior = train_gan(images(20, 1) * width, steps=3, hidden=4, bounds=(0.0, width))
    return gmi(model(width), torch.arange(3), prior=prior, steps=6, realism=0.5).x


def with_gaussian(width: float) -> Tensor:
    prior = GaussianPrior(images(20, 1) * width, width=4, bounds=(0.0, width))
    return gmi(model(width), torch.arange(3), prior=prior, steps=6).x


@pytest.mark.parametrize("run", [
    from_gradients(inverting_gradients), from_gradients(group_consistency, group=0.5), from_gradients(batch_norm_matching),
    from_gradients(see_through, weights=Weights(tv=0.1, l2=0.1, statistics=0.1, group=0.1)), from_gradients(dlg, restarts=1),
    from_features, by_decoder, from_model(mi_face), from_model(deep_inversion), with_prior, with_gaussian,
], ids=["angle", "group", "statistics", "all", "dlg", "features", "decoder", "mi-face", "deep", "gan", "gaussian"])
def test_units_do_not_matter(run: Callable[[float], Tensor]) -> None:
    torch.testing.assert_close(run(256.0) / 256, run(1.0), rtol=1e-5, atol=1e-6)
