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
    pgd(model, x, torch.zeros(6, dtype=torch.long), Linf(0.1), steps=3, early_stop=False)
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


class Writes(nn.Module):
    """Centres its input in place, as hurried code does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.sub_(0.5))


class Centres(Writes):
    """The same without writing on its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x - 0.5)


def test_a_model_that_writes_on_its_input_writes_on_a_copy() -> None:
    hurried, careful = Writes(), Centres()
    careful.load_state_dict(hurried.state_dict())
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    target = Target(hurried)
    assert torch.equal(target.logits(x), careful(x))
    assert torch.equal(x, before)
    y = target.labels(x)
    assert torch.equal(pgd(hurried, x, y, Linf(0.3), steps=5), pgd(careful, x, y, Linf(0.3), steps=5))
    assert torch.equal(x, before)


def test_a_gradient_that_is_one_number_for_all_features_is_no_error() -> None:
    class Sums(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x.sum(1, keepdim=True)
            return torch.cat([total, -total], 1)

    x = torch.full((2, 4), 0.5)
    z = pgd(Sums(), x, torch.tensor([0, 1]), Linf(0.1), steps=3)
    assert torch.allclose(z[0], torch.full((4,), 0.4))
