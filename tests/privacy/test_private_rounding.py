"""Rounding at a kink of the loss is no mixture of examples; whatever mixes them is refused, also where it hides behind a kink."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import PrivateOptions, make_private, to_group_norm
from hauberk.privacy.dp.rounding import SLACK
from hauberk.study.networks import build

N = 7
SINGLE = (torch.float32, torch.bfloat16)


def data(dtype=torch.float32, n=N):
    """Numbers z above 0 with z · n / n > z in the type, by a last place: the kink's other side. Both sides are one in float64."""
    held = torch.linspace(1, 2, 4001).to(dtype)
    other = held[(held * n) / n > held].unique()
    draw = torch.Generator().manual_seed(0)
    picks = torch.randint(len(other), (n, 4), generator=draw)
    scale = 2.0 ** torch.randint(-2, 3, (n, 4), generator=draw)  # a power of 2 rounds nothing
    return other[picks] * scale.to(dtype), torch.arange(n) % 3


class Kink(nn.Module):
    """relu(z · n / n - z) of n examples, which is 0; alone, with n = 1, it is 0 in every precision."""

    def __init__(self, mixed=None, weight=1e-4):
        super().__init__()
        self.first, self.last, self.mixed, self.weight = nn.Linear(4, 4, bias=False), nn.Linear(8, 3), mixed, weight
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))  # z is x, to the last bit
            self.last.weight.copy_(torch.randn(3, 8, generator=draw))

    def forward(self, x):
        z = self.first(x)
        h = torch.cat([z, (z * len(z) / len(z) - x).relu()], 1)
        return self.last(h if self.mixed is None else self.mixed(h, self.weight))


def less_mean(h, weight):
    return h - weight * h.mean(0)


def batch_norm(h, weight):
    return functional.batch_norm(h, None, None, training=True)


def attention(h, weight):
    return h + weight * torch.softmax(h @ h.T / 10, 1) @ h


def in_single_alone(h, weight):
    return h if h.dtype == torch.float64 else less_mean(h, 0.5)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        if h.dtype == torch.float64:
            raise NotImplementedError("'doubled' is not written for Double")
        return 2 * h

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def without_double(h, weight):
    return Doubled.apply(h)


def made(model, reduction="mean", seed=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = PrivateOptions(seed=seed, reduction=reduction)
    return make_private(model, optimizer, 100, batch_size=N, noise_multiplier=1.0, options=options)


def slopes(model, x, y):
    found = [torch.autograd.grad(cross_entropy(model, a, b), list(model.parameters()))
             for a, b in ((x, y), *zip(x.split(1), y.split(1), strict=True))]
    together, alone = found[0], [torch.stack(each).mean(0) for each in zip(*found[1:], strict=True)]
    whole = torch.cat([one.flatten() for one in together]).double()
    return float((whole - torch.cat([one.flatten() for one in alone]).double()).norm() / whole.norm())


def look(model, x, y, loss=cross_entropy, reduction="mean"):
    private = made(model, reduction)
    private._watch.look(loss, x, y, 0, None)


@pytest.mark.parametrize("dtype", SINGLE)
def test_the_kink_is_one_in_single_precision_alone(dtype):
    x, y = data(dtype)
    model = Kink().to(dtype)
    assert slopes(model, x, y) > 0.1
    assert slopes(model.double(), x.double(), y) < 1e-14


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [*SINGLE, torch.float64])
def test_rounding_at_a_kink_is_no_mixture_and_a_look_leaves_nothing_behind(dtype, reduction):
    x, y = data(torch.float32 if dtype == torch.float64 else dtype)
    model = Kink().to(dtype)
    model.register_buffer("unused", torch.ones(3, dtype=dtype))
    own, before = [*model.parameters(), *model.buffers()], copy.deepcopy(model.state_dict())
    stream = torch.get_rng_state()

    def loss(m, x, y):
        return functional.cross_entropy(m(x), y, reduction=reduction)

    look(model, x.to(dtype), y, loss, reduction)
    assert all(a is b for a, b in zip(own, [*model.parameters(), *model.buffers()], strict=True))
    assert all(torch.equal(value, before[name]) and value.dtype == dtype for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters()) and torch.equal(stream, torch.get_rng_state())
    private = made(model, reduction)
    private.step(loss, x.to(dtype), y)
    assert private.ledger.count == 1


def test_rounding_that_begins_in_a_batch_is_looked_at_again_too():
    class Later(Kink):
        def forward(self, x):  # z · n / n is z for up to 8 examples, as many as the first look takes
            return super().forward(x) if len(x) > 8 else self.last(torch.cat([z := self.first(x), 0 * z], 1))

    x, y = data(n=11)
    look(Later(), x, y)
    mixing = Later(less_mean)
    with pytest.raises(ModelError, match=r"mixes examples.* its halves .*in float64"):
        look(mixing, x, y)


@pytest.mark.parametrize("mixed", [less_mean, batch_norm, attention])
@pytest.mark.parametrize("dtype", [*SINGLE, torch.float64])
def test_what_mixes_is_refused_though_a_kink_hides_it(mixed, dtype):
    x, y = data(torch.float32 if dtype == torch.float64 else dtype)
    model = Kink(mixed).to(dtype)
    if dtype == torch.float64:  # no rounding leads to a second look there: what is compared is as much as it was
        model.weight = 1.0
    with pytest.raises(ModelError, match=r"mixes examples.*in float64"):
        look(model, x.to(dtype), y)
    model.weight, private = 1e-4, made(model)
    with pytest.raises(ModelError):
        private.step(cross_entropy, x.to(dtype), y)
    assert private.ledger.count == 0


def test_mixing_by_little_more_than_float64_may_round_is_refused():
    """Without the kink such a loss passes in single precision; whatever is looked at twice is held to 1e-6."""
    x, y = data()

    def centred(m, x, y):
        out = m(x)
        return functional.cross_entropy(out - 1e-4 * out.mean(0), y)

    model = Kink()
    with pytest.raises(ModelError, match="in float64 by") as told:
        look(model, x, y, centred)
    away = float(str(told.value).split("in float64 by ")[1].split()[0])
    assert away > 10 * SLACK


@pytest.mark.parametrize("dtype", SINGLE)
def test_where_float64_does_not_run_it_is_said_and_refused(dtype):
    x, y = data(dtype)
    with pytest.raises(ModelError, match=r"cannot be told, since it does not run in float64 \('doubled' is not written"):
        look(Kink(without_double).to(dtype), x, y)
    plain = nn.Sequential(nn.Linear(4, 3))  # without a doubt there is no second look
    look(plain, x.float(), y)


def test_a_loss_that_is_another_in_float64_or_goes_round_the_copies_is_refused():
    x, y = data()
    with pytest.raises(ModelError, match="the loss is another one in float64"):
        look(Kink(in_single_alone), x, y)
    model = Kink()
    own = model.first.weight

    def held(m, x, y):
        return cross_entropy(m, x, y) + own.sum() * x.mean() * x.square().mean()

    with pytest.raises(ModelError, match="holds parameters of its own accord"):
        look(model, x, y, held)


def test_buffers_that_change_by_the_weights_alone_are_as_they_were():
    x, y = data()
    model = Kink()
    nn.utils.parametrizations.spectral_norm(model.last)
    before = copy.deepcopy(model.state_dict())
    look(model, x, y)
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype
               for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "preact-resnet18"])
def test_residual_networks_with_group_norm_are_trained(network):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        model = to_group_norm(build(network, 3, 10, seed, 0.125))
        before = copy.deepcopy(model.state_dict())
        look(model, torch.rand(16, 3, 32, 32, generator=draw), torch.arange(16) % 10)  # raises where it is refused
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
