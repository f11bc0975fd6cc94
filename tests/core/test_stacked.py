"""Stacked training against a plain loop of one model after another, with torch's own Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Schedule
from hauberk.core import perceptrons, stacked
from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import generator, isolated


class Branching(nn.Module):
    """Looks at its values, which no stacked pass can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if float(x.sum()) > -1e9 else -x)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def single() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def records(classes: int = 3) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(41, 6, generator=draw), torch.randint(0, classes, (41,), generator=draw)


def one_by_one(models: list[nn.Module], x: Tensor, y: Tensor, index: list[Tensor], schedule: Schedule, lr: float) -> None:
    for number, (model, rows) in enumerate(zip(models, index, strict=True)):
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for epoch in range(schedule.epochs):
            order = rows[torch.randperm(len(rows), generator=generator(schedule.seed, "stacked order", number, epoch))]
            for part in order.split(schedule.batch_size):
                answer = model(x[part])
                loss = (
                    functional.cross_entropy(answer, y[part]) if answer.shape[1] > 1
                    else functional.binary_cross_entropy_with_logits(answer[:, 0], y[part].float())
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()


@pytest.mark.parametrize("build", [perceptron, convolution, normalised, single, Branching])
@pytest.mark.parametrize("batched", [True, False])
def test_stacked_training_equals_a_loop(build: type[nn.Module], batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = records(2 if build is single else 3)
    draw = torch.Generator().manual_seed(1)
    index = [torch.randperm(41, generator=draw)[:size] for size in (20, 20, 20, 20, 20)]
    with isolated(2):
        models = [build() for _ in range(5)]
    other = [copy.deepcopy(one) for one in models]
    schedule = Schedule(epochs=4, batch_size=8, seed=3)
    state = torch.get_rng_state()
    monkeypatch.setattr(stacked, "width", lambda models: 2)  # groups of 2, 2 and 1
    stacked.fit_stacked(models, x, y, index, schedule=schedule, lr=0.01, batched=batched)
    assert torch.equal(state, torch.get_rng_state())
    one_by_one(other, x, y, index, schedule, 0.01)
    for a, b in zip(models, other, strict=True):
        assert not a.training
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-5, atol=1e-5)
    answers = stacked.logits_of(models, x, batch_size=7)
    wide = [torch.cat([torch.zeros_like(z), z], 1) if z.shape[1] == 1 else z for z in (one(x) for one in other)]
    torch.testing.assert_close(answers, torch.stack(wide), rtol=1e-4, atol=1e-4)


def test_the_perceptron_is_the_same_as_any_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = records()
    index = [torch.arange(20), torch.arange(20, 41)]  # of two lengths: the shorter must not count a record twice
    with isolated(0):
        models = [perceptron() for _ in range(2)]
    other, third = ([copy.deepcopy(one) for one in models] for _ in range(2))
    schedule = Schedule(epochs=3, batch_size=8)
    stacked.fit_stacked(models, x, y, index, schedule=schedule, lr=0.01)
    one_by_one(third, x, y, index, schedule, 0.01)
    monkeypatch.setattr(perceptrons, "plain", lambda model: False)
    stacked.fit_stacked(other, x, y, index, schedule=schedule, lr=0.01)
    for a, b, c in zip(models, other, third, strict=True):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.state_dict(), c.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_a_model_with_fewer_steps_an_epoch_does_not_drift_on_its_momentum(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = records()
    index = [torch.arange(16), torch.arange(16, 33), torch.arange(5, 21)]  # 2, 3 and 2 batches of 8
    with isolated(0):
        models = [perceptron() for _ in range(3)]
    other = [copy.deepcopy(one) for one in models]
    schedule = Schedule(epochs=3, batch_size=8)
    if not plain:
        monkeypatch.setattr(perceptrons, "plain", lambda model: False)
    stacked.fit_stacked(models, x, y, index, schedule=schedule, lr=0.01)
    one_by_one(other, x, y, index, schedule, 0.01)
    for a, b in zip(models, other, strict=True):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-5, atol=1e-5)


def test_sums_of_rows_are_the_product_with_sparse_records() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.rand(30, 40, generator=draw) < 0.1).float(), torch.randn(3, 40, 7, generator=draw)
    x[4] = 0  # a record without a one
    rows = torch.randint(0, 30, (3, 8), generator=draw)
    rows[1, 2] = rows[2, 7] = 4
    assert perceptrons.Sparse.fits(x) and not perceptrons.Sparse.fits(x * 2) and not perceptrons.Sparse.fits(1 - x)
    picked = perceptrons.Sparse(x).pick(rows, 40)
    torch.testing.assert_close(picked.product(weight), torch.bmm(x[rows], weight))
    push = torch.randn(3, 8, 7, generator=draw)
    torch.testing.assert_close(picked.transposed(push), torch.bmm(x[rows].transpose(1, 2), push))


def test_training_on_sparse_records_equals_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.rand(41, 6, generator=draw) < 0.15).float(), torch.randint(0, 3, (41,), generator=draw)
    with isolated(0):
        models = [perceptron() for _ in range(3)]
    other = [copy.deepcopy(one) for one in models]
    index = [torch.arange(41), torch.arange(20), torch.arange(20, 41)]
    schedule = Schedule(epochs=2, batch_size=8)
    assert perceptrons.Sparse.fits(x)
    stacked.fit_stacked(models, x, y, index, schedule=schedule, lr=0.01)
    one_by_one(other[:1], x, y, index[:1], schedule, 0.01)
    torch.testing.assert_close(models[0].state_dict(), other[0].state_dict(), rtol=1e-5, atol=1e-5)


def test_what_is_more_than_a_plain_perceptron_is_not_taken_for_one() -> None:
    assert perceptrons.plain(perceptron())
    hooked = perceptron()
    hooked.register_forward_hook(lambda *_: None)
    frozen = perceptron()
    frozen[0].bias.requires_grad_(False)
    others = [
        convolution(), normalised(), single(), hooked, frozen, nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(6, 3), nn.ReLU()), nn.Sequential(nn.Linear(6, 3, bias=False)), nn.Sequential(),
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)),
    ]
    assert not [one for one in others if perceptrons.plain(one)]


def test_dropout_draws_for_each_model_by_itself() -> None:
    x, y = records()
    with isolated(0):
        first = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    models = [copy.deepcopy(first) for _ in range(2)]
    stacked.fit_stacked(models, x, y, [torch.arange(41)] * 2, schedule=Schedule(epochs=1, batch_size=41))
    assert not torch.equal(models[0][0].weight, models[1][0].weight)


def test_bad_input_is_refused() -> None:
    x, y = records()
    with pytest.raises(DataError, match="at least one each"):
        stacked.fit_stacked([perceptron()], x, y, [torch.arange(0)])
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="learning rate"):
            stacked.fit_stacked([perceptron()], x, y, [torch.arange(9)], lr=rate)
    with pytest.raises(UsageError, match="epochs, batch_size and seed alone"):
        stacked.fit_stacked([perceptron()], x, y, [torch.arange(9)], schedule=Schedule(checkpoint="a"))
    with pytest.raises(UsageError, match="one architecture"):
        stacked.fit_stacked([perceptron(), single()], x, y, [torch.arange(9)] * 2)
