"""Interval bounds: exact where they can be, never above the truth, honest about rounding."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from hauberk import L1, L2, Data, Linf, Threat
from hauberk.core.errors import DataError, ModelError
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


class Scaled(nn.Linear):
    """A linear layer in name only."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def changed(kind: str) -> nn.Sequential:
    """A network that does something else than its layers say, in the layer '0' or as a whole."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    if kind == "hook":
        net[0].register_forward_hook(lambda _layer, _inputs, output: -10 * output)
    elif kind == "pre-hook":
        net[0].register_forward_pre_hook(lambda _layer, inputs: (1 - inputs[0],))
    elif kind == "hook of the whole":
        net.register_forward_hook(lambda _layer, _inputs, output: output.flip(1))
    elif kind == "spectral norm":
        net[0] = nn.utils.parametrizations.spectral_norm(net[0])
    elif kind == "pruning":
        prune.random_unstructured(net[0], "weight", 0.5)
    elif kind == "own forward":
        net[0].forward = lambda x: -10 * x  # type: ignore[method-assign]
    elif kind == "training mode":
        net[1].train()
    elif kind == "subclass":
        net[2] = Scaled(4, 2)
    return net


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("hook", "'0' of type Linear has forward hooks"), ("pre-hook", "'0' of type Linear has forward hooks"),
        ("hook of the whole", "'Sequential' of type Sequential has forward hooks"),
        ("spectral norm", "'0' of type ParametrizedLinear computes its weights"), ("pruning", "'0' of type Linear has forward"),
        ("own forward", "'0' of type Linear has a forward of its own"), ("training mode", "'1' of type BatchNorm1d was left in"),
        ("subclass", "layer '2' of type Scaled"),
    ],
)
def test_nothing_is_proven_of_a_layer_that_does_something_else(kind: str, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        ibp(changed(kind), torch.rand(3, 4), Linf(0.0), labels=torch.zeros(3, dtype=torch.long))


def test_a_layer_that_stands_twice_counts_twice() -> None:
    shared, relu = nn.Linear(4, 4).double(), nn.ReLU()
    net = nn.Sequential(shared, relu, shared, relu, nn.Linear(4, 3).double())
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        y = net(x).argmax(1)
        torch.testing.assert_close(ibp(net, x, Linf(0.0), labels=y), margins_at(net(x), y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tail", [[], [nn.Identity()]], ids=["linear last", "other last"])
def test_one_output_is_read_as_two_logits(tail: list[nn.Module]) -> None:
    """logit_1 - logit_0 = z, whose least value in the ball of a linear model is z - eps |w|_1."""
    head = nn.Linear(16, 1).double()
    x = 0.3 + 0.4 * torch.rand(9, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        z = head(x)[:, 0]
        loss = 0.1 * head.weight.abs().sum()
        y = torch.arange(9) % 2
        expected = torch.zeros(9, 2, dtype=torch.float64)
        expected[y == 1, 0], expected[y == 0, 1] = (z - loss)[y == 1], (-z - loss)[y == 0]
        net = nn.Sequential(head, *tail)
        torch.testing.assert_close(ibp(net, x, Linf(0.1), labels=y), expected, rtol=0, atol=1e-12)
        free = ibp(net, x, Linf(0.0))
        assert bool((free[torch.arange(9), (z <= 0).long()] > 0).all())  # the other column: the favoured label wins
    with pytest.raises(ModelError, match="Sigmoid"):
        ibp(nn.Sequential(head, nn.Sigmoid()), x, Linf(0.1), labels=y)


@pytest.mark.parametrize("wrong", [3, -1])
def test_labels_without_an_output_are_refused(wrong: int) -> None:
    for net in (nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3), nn.ReLU())):
        with pytest.raises(DataError, match="0 to 2"):
            ibp(net, torch.rand(2, 4), Linf(0.1), labels=torch.tensor([0, wrong]))
    with pytest.raises(DataError, match="whole numbers"):
        ibp(nn.Linear(4, 3), torch.rand(2, 4), Linf(0.1), labels=torch.zeros(2))


def logit_gap(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The margin as the network itself computes it, subtracted without further rounding."""
    return margins_at(net(x).double(), y)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear last", "linear inside", "conv", "average", "adaptive average", "batch norm"])
def test_float32_nets_never_fall_below_the_bound_at_any_input_searched(kind: str) -> None:
    """At radius 0 the whole width of the bound is its allowance for rounding: without it, half of all random cases fall below.

    Weights of both signs and of very different sizes are searched, whose sums cancel: that is where float32 loses most.
    """
    closest = math.inf
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        layers: dict[str, list[nn.Module]] = {
            "linear last": [nn.Flatten(), nn.Linear(64, 4)], "linear inside": [nn.Flatten(), nn.Linear(64, 4), nn.Identity()],
            "conv": [nn.Conv2d(1, 4, 8), nn.Flatten()], "average": [nn.AvgPool2d(4), nn.Flatten()],
            "adaptive average": [nn.AdaptiveAvgPool2d(2), nn.Flatten()],
            "batch norm": [nn.Flatten(), nn.BatchNorm1d(64)],
        }
        net = nn.Sequential(*layers[kind]).eval()
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=draw)
                spread = 1000 ** torch.rand(value.shape, generator=draw)
                value.copy_(noise.abs() + 0.1 if kind == "batch norm" else noise * spread)
        x = torch.rand(64, 1, 8, 8, generator=draw)
        y = torch.zeros(64, dtype=torch.long)
        own, bounds = logit_gap(net, x, y), ibp(net, x, Linf(0.0), labels=y)
        room = (own - bounds)[:, 1:]
        assert bool((room >= 0).all())
        exact = logit_gap(copy.deepcopy(net).double(), x.double(), y)
        # Rounding went the bad way somewhere: a bound of exact arithmetic is above what the network answers.
        closest = min(closest, float((own - exact)[:, 1:].min()))
    assert closest < 0
