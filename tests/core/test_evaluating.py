"""A model is questioned without being changed, whatever mode its parts were left in."""

from __future__ import annotations

import torch
from torch import nn

from hauberk import Linf, Target
from hauberk.robustness.attack import pgd


def normalising() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_normalisation_left_in_training_mode_is_served_as_it_is_and_learns_nothing() -> None:
    torch_state = torch.random.get_rng_state()
    model = normalising().eval()
    torch.random.set_rng_state(torch_state)
    model[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    answer = Target(model).logits(x)
    pgd(model, x, torch.zeros(6, dtype=torch.long), Linf(0.1), steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training
    assert model[1].track_running_stats
    assert not model[0].training
    hidden = model[0](x)
    normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + model[1].eps).sqrt()
    assert torch.allclose(answer, model[3](normal.relu()), atol=1e-5)


def test_a_model_in_training_mode_is_questioned_in_evaluation_mode() -> None:
    model = normalising().train()
    model[0].eval()
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    answer = Target(model).logits(x)
    assert [part.training for part in model] == [False, True, True, True]
    assert torch.equal(answer, model.eval()(x))
