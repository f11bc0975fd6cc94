"""Networks whose layers are not what their type says: the quick way has to notice, or be right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm as parametrised

from hauberk.core.rng import isolated
from hauberk.privacy.inversion import client_update
from hauberk.privacy.inversion.matching import Matcher, angles, squared


class Standardised(nn.Conv2d):
    """A convolution with centred weights (weight standardisation)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Net(nn.Module):
    """Two linear layers on images of 1 x 6 x 6, joined by `how`."""

    def __init__(self, how: Callable[[Net, Tensor], Tensor], wide: int, between: int) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(wide, 5), nn.Linear(between, 3)
        self.register_buffer("grid", torch.linspace(-1, 1, 36)[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def cosine_head(net: Net, x: Tensor) -> Tensor:
    code = functional.normalize(net.first(x.flatten(1)).tanh())
    return functional.linear(code, functional.normalize(net.last.weight), net.last.bias)


def used_twice(net: Net, x: Tensor) -> Tensor:
    return net.last(functional.linear(net.first(x.flatten(1)).tanh(), net.first.weight.T))


def sequence_first(net: Net, x: Tensor) -> Tensor:
    return net.last(net.first(x.flatten(1).reshape(len(x), 6, 6).transpose(0, 1)).tanh().mean(0))


def rows_as_samples(net: Net, x: Tensor) -> Tensor:
    return net.last(net.first(x.reshape(-1, 6)).tanh().reshape(len(x), -1))


def by_keyword(net: Net, x: Tensor) -> Tensor:
    return net.last(input=net.first(input=x.flatten(1)).tanh())


def of_a_constant(net: Net, x: Tensor) -> Tensor:
    return net.last(x.flatten(1)[:, :5].tanh() * net.first(net.get_buffer("grid")))


def made_kernel(net: Net, x: Tensor) -> Tensor:
    kernel = net.first(x.flatten(1)).mean(0).tanh()[:4].reshape(1, 1, 2, 2)
    return net.last(torch.conv2d(x, kernel, None, (1, 1), (0, 0), (1, 1), 1).flatten(1)[:, :5])


def networks() -> dict[str, nn.Module]:
    head: Callable[[], list[nn.Module]] = lambda: [nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)]  # noqa: E731
    dense: Callable[[], list[nn.Module]] = lambda: [nn.Tanh(), nn.Linear(8, 3)]  # noqa: E731
    with isolated(3):
        return {
            "standardised": nn.Sequential(Standardised(1, 4, 3), *head()),
            "cosine head": Net(cosine_head, 36, 5), "used twice": Net(used_twice, 36, 36),
            "sequence first": Net(sequence_first, 6, 5), "rows as samples": Net(rows_as_samples, 6, 30),
            "by keyword": Net(by_keyword, 36, 5), "of a constant": Net(of_a_constant, 36, 5),
            "made kernel": Net(made_kernel, 36, 5),
            "spectral norm": nn.Sequential(nn.Flatten(), torch.nn.utils.spectral_norm(nn.Linear(36, 8)), *dense()),
            "parametrised": nn.Sequential(nn.Flatten(), parametrised(nn.Linear(36, 8)), *dense()),
            "batch": nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), *head()),
            "batch without memory": nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False, track_running_stats=False), *head()
            ),
        }


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", list(networks()))
def test_two_victims_get_the_slopes_that_each_has_alone(kind: str, n: int) -> None:
    model, draw = networks()[kind].double(), torch.Generator().manual_seed(n)
    x, z = (torch.rand(2 * n, 1, 6, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    y = torch.randint(3, (2 * n,), generator=draw)
    parts = [slice(k * n, k * n + n) for k in range(2)]
    training = kind == "batch"
    if kind == "made kernel":  # a filter of the whole batch: one victim
        parts = parts[:1]
        z, y = z[:n], y[:n]
    sent = [client_update(model, x[part], y[part], training=training) for part in parts]
    for distance in (angles, squared):
        matcher = Matcher(model, sent, distance)
        with matcher.ready():
            value, slope, _ = matcher(z, y)
        with matcher.ready():
            alone = [matcher._alone(k, z, y) for k in range(len(parts))]
        for k, part in enumerate(parts):
            torch.testing.assert_close(value[k], alone[k][0], rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(slope[part], alone[k][1], rtol=1e-6, atol=1e-10)


def test_plain_layers_still_go_together() -> None:
    with isolated(3):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    matcher = Matcher(model, [client_update(model, x[k : k + 1], torch.tensor([k % 3])) for k in range(4)], angles)
    with matcher.ready():
        matcher(x.flip(0), torch.tensor([0, 1, 2, 0]))
        assert matcher._quick is not None


@pytest.mark.parametrize("training", [False, True])
def test_a_bias_that_normalisation_takes_away_does_not_steer_the_search(training: bool) -> None:
    with isolated(3):
        norm = nn.BatchNorm2d(4) if training else nn.InstanceNorm2d(4)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.rand(2, 1, 6, 6, generator=draw) for _ in range(2))
    sent = client_update(model, x, torch.tensor([0, 1]), training=training)
    assert 0 < float(sent.gradients["0.bias"].norm()) < 1e-5 * float(sent.gradients["0.weight"].norm())  # rounding alone
    without = dataclasses.replace(sent, gradients={k: one for k, one in sent.gradients.items() if k != "0.bias"})
    found = []
    for one in (sent, without):
        matcher = Matcher(model, [one], angles)
        with matcher.ready():
            found.append(matcher(z, torch.tensor([0, 1])))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
