"""Interval bounds: exact where they can be, never above the truth, honest about rounding."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from hauberk import L1, L2, Data, Linf, Threat
from hauberk.core.errors import ModelError
from hauberk.core.target import Normalize
from hauberk.robustness.attack import pgd
from hauberk.robustness.verify import certified, ibp


def random_net(*layers: nn.Module, seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(*layers).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=draw, dtype=torch.float64) / value[0].numel() ** 0.5)
        for name, value in net.named_buffers():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=draw, dtype=torch.float64) + 0.5)
            elif name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=draw, dtype=torch.float64))
    return net.eval()


def margins_at(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]) - logits


def test_one_linear_layer_is_exact_in_linf(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    weight, bias = linear_model.weight.detach(), linear_model.bias.detach()
    eps = 0.05
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    expected = torch.zeros(len(x), 4, dtype=torch.float64)
    for j in range(4):
        rows = weight[y] - weight[j]
        expected[:, j] = torch.where(rows > 0, rows * low, rows * high).sum(1) + bias[y] - bias[j]
    torch.testing.assert_close(ibp(linear_model, x, Linf(eps), labels=y), expected, rtol=0, atol=1e-12)
    # The default labels are the model's own answers, which y is here.
    assert torch.equal(ibp(linear_model, x, Linf(eps)), ibp(linear_model, x, Linf(eps), labels=y))


def test_a_hidden_layer_equals_interval_arithmetic_by_enumeration() -> None:
    """For one hidden layer the pre-activation box is the hull over the corners of the input box: enumerate all 2^4 of them."""
    net = random_net(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), seed=3)
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    corners = torch.tensor(list(itertools.product((0.4, 0.6), repeat=4)), dtype=torch.float64)
    hidden = net[0](corners).detach()
    low, high = hidden.min(0).values.relu(), hidden.max(0).values.relu()
    weight, bias = net[2].weight.detach(), net[2].bias.detach()
    row = weight[0] - weight[1]
    expected = float(torch.where(row > 0, row * low, row * high).sum() + bias[0] - bias[1])
    found = ibp(net, x, Linf(0.1), labels=torch.tensor([0]))
    assert found[0, 1] == pytest.approx(expected, abs=1e-12)
    assert found[0, 0] == 0
    # And it is below the true minimum, which for a piecewise linear net on a fine grid is found by enumeration.
    grid = torch.tensor(list(itertools.product([0.4, 0.45, 0.5, 0.55, 0.6], repeat=4)), dtype=torch.float64)
    assert float(margins_at(net(grid), torch.zeros(len(grid), dtype=torch.long))[:, 1].detach().min()) >= expected - 1e-12


NETS = {
    "conv": (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)),
    "batch-norm": (
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5), nn.Linear(5, 3),
    ),
    "pooling": (nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)),
    "adaptive": (nn.Conv2d(2, 4, 3, padding="same"), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    "squash": (Normalize([0.3, 0.5], [0.2, 0.4]), nn.Flatten(), nn.Dropout(), nn.Linear(72, 6), nn.Sigmoid(), nn.Linear(6, 3)),
    "clipped": (nn.Sequential(nn.Flatten(), nn.Linear(72, 8)), nn.ReLU6(), nn.Linear(8, 3), nn.Hardtanh()),
}


@pytest.mark.parametrize("name", NETS)
def test_no_point_of_the_ball_lies_below_the_bound(name: str) -> None:
    net = random_net(*NETS[name], seed=1)
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(4, 2, 6, 6, generator=draw, dtype=torch.float64)
    y = net(x).argmax(1)
    eps = 0.05
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    bounds = ibp(net, x, Linf(eps), labels=y)
    for trial in range(200):
        share = torch.rand(x.shape, generator=draw, dtype=torch.float64)
        share = share.round() if trial % 2 else share
        assert bool((margins_at(net(low + (high - low) * share), y) >= bounds - 1e-15).all())
    # At radius 0 the box is a point: the bound is the margin itself, up to the slack for rounding.
    torch.testing.assert_close(ibp(net, x, Linf(0.0), labels=y), margins_at(net(x), y).detach(), rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_bound_holds_for_float32_arithmetic_and_is_wider_for_it() -> None:
    """Float32 forward passes stray from exact ones; the bound at radius 0 must lie below both."""
    single = random_net(nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10), seed=5).float()
    exact_net = copy.deepcopy(single).double()
    x = torch.rand(64, 500, generator=torch.Generator().manual_seed(6))
    y = single(x).argmax(1)
    run, exact = margins_at(single(x).double(), y), margins_at(exact_net(x.double()), y)
    assert float((run - exact).abs().max()) > 1e-8  # rounding is there
    bounds = ibp(single, x, Linf(0.0), labels=y)
    assert bool((bounds <= run).all())
    assert bool((bounds <= exact).all())
    assert 1e-4 < float((exact - bounds).max()) < 0.01
    assert float((exact - ibp(exact_net, x.double(), Linf(0.0), labels=y)).max()) < 1e-10


def test_other_norms_and_masks_are_enclosed(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    linf = ibp(linear_model, x, Linf(0.05), labels=y)
    for threat in (L1(0.05), L2(0.05)):
        assert torch.equal(ibp(linear_model, x, threat, labels=y), linf)
    frozen = ibp(linear_model, x, Linf(0.3, mask=torch.zeros(20, dtype=torch.bool)), labels=y)
    torch.testing.assert_close(frozen, margins_at(linear_model(x), y).detach(), rtol=0, atol=1e-12)
    whole = ibp(linear_model, x, Linf(float("inf")), labels=y)
    assert torch.equal(ibp(linear_model, x, Threat("l0", 1), labels=y), whole)
    per_sample = ibp(linear_model, x, Linf(torch.linspace(0, 0.2, len(x))), labels=y, batch_size=5)
    one = ibp(linear_model, x[7:8], Linf(float(torch.linspace(0, 0.2, len(x))[7])), labels=y[7:8])
    torch.testing.assert_close(per_sample[7:8], one, rtol=0, atol=1e-12)


def test_pgd_never_breaks_what_is_certified(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(200)
    proven = certified(ibp(digits_model, x, Linf(0.004), labels=y), y)
    assert 20 < int(proven.sum()) < 200
    z = pgd(digits_model, x, y, Linf(0.004), loss="margin")
    with torch.no_grad():
        resisted = digits_model(z).argmax(1) == y
    assert bool(resisted[proven].all())


def test_nan_proves_nothing() -> None:
    margins = torch.tensor([[0.0, float("nan")], [0.0, 1.0], [0.0, 0.0]])
    assert certified(margins, torch.zeros(3, dtype=torch.long)).tolist() == [False, True, False]


def test_a_layer_without_a_rule_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 4), Odd()), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"layer '1\.1' of type Odd"):
        ibp(net, torch.rand(1, 4), Linf(0.1))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(ModelError, match="'Whole' of type Whole"):
        ibp(Whole(), torch.rand(1, 4), Linf(0.1))
