"""Audits of trainers: honest ones stay below their claim, broken ones are caught above it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from trainers import HandWritten

from hauberk import Data, Split
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.privacy.dp import Private, PrivateOptions, make_private
from hauberk.privacy.dp.accounting import gaussian_epsilon
from hauberk.privacy.dp.audit import BlackBox, WhiteBox, audit_training
from hauberk.privacy.dp.audit.canaries import ProbeModel, rows_of
from hauberk.privacy.dp.audit.watching import Transcript, likelihood_ratios


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


def library(rate: float, noise: float, steps: int, lr: float = 0.1):
    """Return a trainer by make_private, which returns what it spent."""

    def train(model: nn.Module, data: Split, seed: int) -> Private:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        private = make_private(
            model, optimizer, data, batch_size=round(rate * len(data)), noise_multiplier=noise, options=PrivateOptions(seed=seed)
        )
        for x, y in private.batches(steps=steps):
            private.step(mean_loss, x, y)
        return private

    return train


SINGLE = WhiteBox(canaries=1, runs=60, companions=7, spare=2000)
MISSING = WhiteBox(canaries=1, runs=60, companions=7, spare=2000, remove=True)


@pytest.mark.parametrize(("flaw", "options", "design", "signal"), [
    ("no noise", {}, WhiteBox(200, 2), "gradient"),
    ("wrong clip", {}, WhiteBox(200, 2), "gradient"),
    ("groups of 8", {}, WhiteBox(100, 4, companions=7), "gradient"),
    ("quantile", {"steps": 3}, SINGLE, "scale"),
    ("divided by what came", {"steps": 3}, MISSING, "scale, turned"),
    ("fixed batches", {"noise": 0.8, "steps": 50, "rate": 0.02}, WhiteBox(500, 3), "order"),
])
def test_a_broken_trainer_shows_more_than_it_claims(flaw: str, options: dict, design: WhiteBox, signal: str) -> None:
    found = audit_training(HandWritten(flaw, **options), design=design)
    assert found.signal == signal
    assert found.violated, found.to_dict()
    assert found.audited >= (3 if flaw != "fixed batches" else found.claimed)


def test_honest_training_stays_below_its_claim_and_shows_half_of_it() -> None:
    """12 audits of the trainer by hand: three above would have a chance of 2 % at 5 % each."""
    found = [audit_training(HandWritten(), design=WhiteBox(500, 2), seed=seed) for seed in range(12)]
    assert found[0].claimed == pytest.approx(gaussian_epsilon(1e-5, 1.0), rel=1e-3)
    assert sum(one.violated for one in found) <= 2
    assert sorted(one.audited for one in found)[6] >= 0.5 * found[0].claimed


def test_make_private_is_audited_as_it_is() -> None:
    full = [audit_training(library(1.0, 2.0, 4), design=WhiteBox(500, 2), seed=seed) for seed in range(3)]
    assert sum(one.violated for one in full) <= 1
    assert max(one.audited for one in full) >= 0.5 * full[0].claimed
    sampled = audit_training(library(0.2, 1.0, 20), design=WhiteBox(500, 2))
    assert 0.1 * sampled.claimed < sampled.audited < sampled.claimed
    silent = audit_training(library(1.0, 0.0, 2), design=WhiteBox(200, 2), claimed=2.0)
    assert silent.audited >= 3 and silent.violated


def test_the_model_and_the_data_of_the_user_take_part() -> None:
    x = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    before = [one.clone() for one in model.parameters()]
    sizes = []

    def train(probed: nn.Module, data: Split, seed: int) -> float:
        sizes.append((len(data), data.shape))
        logits = probed(data.take(torch.arange(60, 64))[0])
        assert logits.shape == (4, 3)
        return HandWritten("no noise", steps=2)(probed, data, seed)

    found = audit_training(train, Split(x, torch.arange(64) % 3), model=model, design=WhiteBox(100, 2))
    assert found.violated and sizes == [(164, (18,))] * 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_black_box_sees_what_a_net_learns_by_heart(digits: Data) -> None:
    x, y = digits.train.first(200)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def by_heart(net: nn.Module, data: Split, seed: int) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        x, y = data.tensors()
        for _ in range(150):
            optimizer.zero_grad()
            mean_loss(net, x, y).backward()
            optimizer.step()

    design = BlackBox(canaries=400, kind="noise")
    with torch.random.fork_rng(devices=[]):
        found = audit_training(by_heart, Split(x, y), model=model, claimed=1.0, design=design, delta=1e-5)
    assert found.violated and found.audited >= 2 and found.signal == "loss" and found.bound == "one-run"
    private = audit_training(library(0.2, 4.0, 10), Split(x, y), model=model, design=BlackBox(canaries=150), delta=1e-5)
    assert not private.violated


def test_the_same_seed_gives_the_same_audit_and_the_global_state_stays() -> None:
    state = torch.get_rng_state()
    one, two = (audit_training(HandWritten(steps=2), design=WhiteBox(50, 2), seed=3) for _ in range(2))
    assert one.to_dict() == two.to_dict() and torch.equal(state, torch.get_rng_state())
    assert one.to_dict()["confidence"] == 0.95 and one.interval.high == math.inf


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(ModelError, match="left the model as it was"):
        audit_training(lambda model, data, seed: 1.0)
    with pytest.raises(UsageError, match="nothing is claimed"):
        audit_training(lambda model, data, seed: HandWritten(steps=1)(model, data, seed) and None, design=WhiteBox(20, 1))
    with pytest.raises(UsageError, match=r"'gpd'.*Did you mean 'gdp'"):
        audit_training(HandWritten(), bound="gpd")
    with pytest.raises(UsageError, match="4 of each"):
        audit_training(HandWritten(), design=WhiteBox(1, 6))
    with pytest.raises(DataError, match="black box"):
        audit_training(HandWritten(), design=BlackBox())


def test_the_likelihood_ratio_is_the_one_written_out() -> None:
    """Two canaries, the first of them in and taking part in one step of two: rate 1/2, size 2, spread of the rest known."""
    probed = ProbeModel(nn.Linear(1, 2), (1,), canaries=2, spare=0)
    told = Transcript(probed)
    told.gradients = [torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([-0.5, 1.0], dtype=torch.float64)]
    told.seen = [{1}, set()]
    spread = float(torch.tensor([0.5, -0.5, 1.0]).std())
    found = likelihood_ratios([told], torch.tensor([[True, False]]))
    for canary, values in enumerate(((2.0, -0.5), (0.5, 1.0))):
        expected = sum(
            math.log((stats.norm.pdf(one, 2, spread) + stats.norm.pdf(one, 0, spread)) / 2 / stats.norm.pdf(one, 0, spread))
            for one in values
        )
        assert found[0, canary] == pytest.approx(expected, rel=1e-6)


def test_a_probe_puts_out_nothing_and_has_the_gradient_it_is_asked_for() -> None:
    base = nn.Linear(3, 4)
    probed = ProbeModel(base, (3,), canaries=2, spare=1)
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    rows = rows_of(x, torch.tensor([0, 2, -1]), torch.tensor([0.0, -5.0, 0.0]))
    logits = probed(rows)
    torch.testing.assert_close(logits, torch.cat([base(x[:1]), torch.zeros(2, 4)]))
    functional.cross_entropy(logits[1:], torch.tensor([0, 0]), reduction="sum").backward()
    torch.testing.assert_close(probed.probe.weight.grad, torch.tensor([[0.0, 5.0, 0.0]]))
    assert not bool(base.weight.grad.any()) and not bool(base.bias.grad.any())


def test_a_trainer_without_an_optimizer_is_seen_by_its_weights() -> None:
    def train(model: nn.Module, data: Split, seed: int) -> float:
        x, y = data.tensors()
        slopes = torch.autograd.grad(mean_loss(model, x, y), list(model.parameters()))
        for one, slope in zip(model.parameters(), slopes, strict=True):
            one.data -= 0.1 * slope
        return 1.0

    assert audit_training(train, design=WhiteBox(100, 1)).audited >= 3
