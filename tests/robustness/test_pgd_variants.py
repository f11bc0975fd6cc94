"""Adam-PGD, EOT-PGD and ODI-PGD: each against plain PGD where its idea matters, and by its formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Data, Linf, Target
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, isolated
from hauberk.robustness.attack import adam_pgd, eot_pgd, odi_pgd, pgd


@pytest.fixture(scope="module")
def sample(digits: Data) -> tuple[Tensor, Tensor]:
    return digits.test.first(120)


def held(model: nn.Module, z: Tensor, y: Tensor, answers: int = 1) -> float:
    """The share of right answers, over fresh draws of a model that answers at random."""
    with torch.no_grad(), isolated(77):
        return sum(float((model(z).argmax(1) == y).double().mean()) for _ in range(answers)) / answers


class Noisy(nn.Module):
    """A model that adds strong noise to its input, drawn anew at each call."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.scale * torch.randn_like(x))


def test_averaging_over_a_models_noise_beats_pgd(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    noisy = Noisy(digits_model, 0.6)
    threat = Linf(0.2)
    clean = held(noisy, x, y, 40)
    lucky = held(noisy, pgd(noisy, x, y, threat, steps=8), y, 40)
    spent = held(noisy, pgd(noisy, x, y, threat, steps=8, early_stop=False), y, 40)
    averaged = held(noisy, eot_pgd(noisy, x, y, threat, steps=8, answers=10), y, 40)
    # 4,800 answers each: three standard errors of a difference are 0.03 at most.
    assert clean > 0.5
    assert averaged <= spent - 0.03 and averaged <= lucky - 0.15


def test_with_one_answer_it_is_pgd_and_each_answer_is_a_query(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    model, x, y = copy.deepcopy(digits_model).double(), sample[0].double(), sample[1]
    target = Target(model)
    z = eot_pgd(target, x, y, Linf(0.1), steps=6, answers=3, early_stop=False, random_start=False)
    plain = pgd(model, x, y, Linf(0.1), steps=6, early_stop=False, random_start=False)
    # In float64, where rounding decides no sign of the mean of three equal gradients.
    assert float((z - plain).abs().max()) <= 1e-9
    assert (target.ledger.queries, target.ledger.gradients) == (3 * 7 * len(x), 3 * 6 * len(x))
    with pytest.raises(UsageError, match="answers is 0"):
        eot_pgd(digits_model, x, y, Linf(0.1), answers=0)


def test_a_point_is_broken_when_every_answer_says_so(sample: tuple[Tensor, Tensor]) -> None:
    class Turns(nn.Module):
        """Says 1 once in three answers, whatever the input."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Turns.calls += 1
            side = x.flatten(1).mean(1, keepdim=True) * 0 + (1.0 if Turns.calls % 3 == 0 else -1.0)
            return torch.cat([-side, side], 1)

    x = sample[0][:4]
    y = torch.zeros(4, dtype=torch.long)
    target = Target(Turns())
    eot_pgd(target, x, y, Linf(0.1), steps=5, answers=3)
    assert target.ledger.gradients == 4 * 5 * 3  # nobody left
    target = Target(Turns())
    eot_pgd(target, x, y, Linf(0.1), steps=9, answers=1)
    assert target.ledger.gradients <= 4 * 3  # a lucky answer at the third look at the latest


def test_adam_takes_the_steps_of_torch(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    asked: list[Tensor] = []
    hook = digits_model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach().clone()))
    adam_pgd(digits_model, x, y, Linf(0.1), steps=8, step_size=0.03, early_stop=False, random_start=False)
    hook.remove()
    z = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.03, maximize=True, eps=1e-30)
    # Where the gradient is tiny beside the largest entry, the floors of the two differ: those entries are left out.
    sound = torch.ones_like(x, dtype=torch.bool)
    for point in asked[:-1]:
        sound &= (point - z.detach()).abs() < 1e-4
        assert float(sound.double().mean()) > 0.98
        optimizer.zero_grad()
        functional.cross_entropy(digits_model(point.clone().requires_grad_()), y)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(digits_model(z), y, reduction="sum"), z)
        z.grad = gradient
        optimizer.step()
        with torch.no_grad():
            z.copy_(z.clamp(x - 0.1, x + 0.1).clamp(0, 1))


def test_adam_keeps_up_with_pgd(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    for eps in (0.08, 0.12):
        plain, adam = (held(digits_model, attack(digits_model, x, y, Linf(eps)), y) for attack in (pgd, adam_pgd))
        assert adam <= plain + 0.02


def test_odi_first_climbs_a_random_combination_of_the_logits(
    linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, y = linear_samples
    asked: list[Tensor] = []
    hook = linear_model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach().clone()))
    odi_pgd(linear_model, x, y, Linf(0.1), steps=3, restarts=1, diversify=2, early_stop=False, seed=4)
    hook.remove()
    assert len(asked) == 2 + 3 + 1
    noise = generator(4, "odi-pgd")
    start = Linf(0.1, bounds=(0.0, 1.0)).random_start(x, noise)
    weights = 2 * torch.rand((32, 4), generator=noise, dtype=torch.float64) - 1
    torch.testing.assert_close(asked[0], start, rtol=0, atol=1e-12)
    z = start
    for step in (1, 2):  # steps of a whole radius along the sign of the combination's gradient
        z = (z + 0.1 * (weights @ linear_model.weight.detach()).sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
        torch.testing.assert_close(asked[step], z, rtol=0, atol=1e-12)


def test_odi_starts_differ_more_in_the_outputs_than_random_ones(
    digits_model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    spread = []
    for diversify in (0, 2):
        outputs = []
        for seed in range(5):
            asked: list[Tensor] = []
            hook = digits_model.register_forward_hook(lambda _, __, out, asked=asked: asked.append(out.detach()))
            odi_pgd(digits_model, x, y, Linf(0.1), steps=0, restarts=1, diversify=diversify, early_stop=False, seed=seed)
            hook.remove()
            outputs.append(asked[-1])
        spread.append(float(torch.stack(outputs).std(0).mean()))
    assert spread[1] > 3 * spread[0]


def test_odi_is_no_weaker_than_pgd_and_restarts_only_help(
    digits_model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    one = odi_pgd(digits_model, x, y, Linf(0.08), restarts=1)
    more = odi_pgd(digits_model, x, y, Linf(0.08), restarts=4)
    with torch.no_grad():
        assert bool(((digits_model(one).argmax(1) == y) | (digits_model(more).argmax(1) != y)).all())
    assert held(digits_model, more, y) <= held(digits_model, pgd(digits_model, x, y, Linf(0.08), loss="margin"), y)
