"""Suppression training: the schedule in closed form, zeros that stay zero, resumed runs that are the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hauberk import Data, Schedule, fit
from hauberk.core.errors import UsageError
from hauberk.core.rng import isolated
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.suppress import Suppression, SuppressTraining

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01), "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def net(seed: int = 0) -> nn.Sequential:
    with isolated(seed):
        return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(64, 20, generator=draw), torch.randint(3, (64,), generator=draw)


def test_the_schedule_is_cubic() -> None:
    plan = Suppression(start=0.1, end=0.9, begin=10, steps=100)
    assert [plan.sparsity(step) for step in (0, 10, 60, 110, 500)] == pytest.approx([0.1, 0.1, 0.9 - 0.8 / 8, 0.9, 0.9])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_suppressed_weights_stay_zero_and_are_as_many_as_planned(name: str) -> None:
    model, (x, y) = net(), batch()
    optimizer = OPTIMIZERS[name](model.parameters())
    plan = Suppression(end=0.8, steps=40, every=5, begin=10)
    suppress, zeros = SuppressTraining(model, optimizer, plan), {}
    for step in range(1, 71):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        suppress.mask_gradients()
        optimizer.step()
        suppress.step()
        for layer in ("0", "2"):
            weight = model.get_submodule(layer).weight
            now = weight == 0
            assert bool((now | ~zeros.get(layer, torch.zeros_like(now))).all()), (layer, step)
            zeros[layer] = now.clone()
            assert torch.equal(now, ~suppress.masks[layer])
            if step >= 10 and step % 5 == 0:
                assert int(now.sum()) == round(plan.sparsity(step) * weight.numel())
    assert suppress.sparsity == pytest.approx({"0": 0.8, "2": 0.8}, abs=1e-3)
    assert not bool((model[4].weight == 0).any())


def test_the_smallest_weights_go_first() -> None:
    model = net()
    sizes = model[0].weight.detach().abs().clone()
    suppress = SuppressTraining(model, torch.optim.SGD(model.parameters(), lr=0.0), Suppression(end=0.5, steps=1, every=1))
    suppress.step()
    kept = suppress.masks["0"]
    assert float(sizes[kept].min()) >= float(sizes[~kept].max())


def test_clips_and_noise_touch_the_weights_they_are_for() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    start = torch.tensor([[0.004, 0.3, 0.6, -2.0], [-0.004, -0.3, -0.6, 0.05]])
    model[0].weight.data.copy_(start)
    plan = Suppression(end=0.0, steps=1, every=1, lower=0.005, upper=1.0, noise=0.1, large=0.5)
    SuppressTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, layers=["0"]).step()
    now = model[0].weight.detach()
    assert now[:, 0].tolist() == [0.0, 0.0] and torch.equal(now[:, 1], start[:, 1])
    moved = (now - start)[:, 2]
    assert bool((moved.abs() > 0).all() & (moved.abs() <= 0.1).all())
    assert float(now[0, 3]) == -1.0 and float(now[1, 3]) == pytest.approx(0.05)


def test_a_resumed_run_is_the_uninterrupted_one(digits: Data, tmp_path: Path) -> None:
    def train(epochs: int, file: Path) -> nn.Module:
        with isolated(1):
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        suppress = SuppressTraining(model, optimizer, Suppression(end=0.7, steps=20, every=4, noise=0.01, large=0.1))
        plan = Schedule(epochs=epochs, batch_size=128, checkpoint=file)
        fit(model, digits.train, optimizer=optimizer, schedule=plan, callbacks=[suppress])
        return model

    whole = train(4, tmp_path / "a")
    train(2, tmp_path / "b")
    resumed = train(4, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert float((whole[1].weight == 0).double().mean()) == pytest.approx(0.7, abs=1e-3)


def test_it_goes_with_private_training() -> None:
    model, (x, y) = net(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    private = make_private(model, optimizer, (x, y), batch_size=32, noise_multiplier=1.0, options=PrivateOptions(seed=0))
    suppress = SuppressTraining(model, optimizer, Suppression(end=0.6, steps=10, every=2))
    for rows, labels in private.batches(steps=15):
        private.step(lambda net, a, b: nn.functional.cross_entropy(net(a), b), rows, labels)
        suppress.step()
    assert float((model[0].weight == 0).double().mean()) == pytest.approx(0.6, abs=1e-3)


def test_its_state_is_kept_and_what_cannot_be_is_refused() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one = SuppressTraining(model, optimizer, Suppression(end=0.5, steps=2, every=1))
    one.step()
    two = SuppressTraining(model, optimizer, one.plan)
    two.load_state_dict(one.state_dict())
    assert two.steps == 1 and torch.equal(one.masks["0"], two.masks["0"])
    with pytest.raises(UsageError, match=r"no layer '9'"):
        SuppressTraining(model, optimizer, layers=["9"])
    with pytest.raises(UsageError, match="start ≤ end"):
        Suppression(start=0.5, end=0.2)
    with pytest.raises(UsageError, match="lower < upper"):
        Suppression(lower=1.0, upper=0.5)
    with pytest.raises(UsageError, match="no weight to suppress"):
        SuppressTraining(nn.Sequential(nn.LayerNorm(3)), optimizer)
    other = SuppressTraining(net(1), optimizer, layers=["0"])
    with pytest.raises(UsageError, match="of the layers"):
        other.load_state_dict(one.state_dict())


def test_a_plan_of_no_numbers_is_refused():
    for name in ("noise", "large", "steps"):
        with pytest.raises(UsageError, match=f"{name} is nan"):
            Suppression(**{name: float("nan")})
