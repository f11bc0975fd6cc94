"""The EOT wrapper: the average of several answers, to the bit, under every attack."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Data, Linf, Target
from hauberk.core.errors import UsageError
from hauberk.core.rng import isolated
from hauberk.robustness.attack import mi_fgsm, pgd
from hauberk.robustness.attack.adaptive import eot


class Noisy(nn.Module):
    """A model behind additive noise, drawn from the global state at each call."""

    def __init__(self, inner: nn.Module, sigma: float) -> None:
        super().__init__()
        self.inner, self.sigma = inner, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.sigma * torch.randn_like(x))


def test_on_a_linear_model_with_noise_it_is_the_mean_written_by_hand(
    linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, y = linear_samples
    noisy = Noisy(linear_model, 0.5)
    for average in ("logits", "probabilities", "loss"):
        leaf = x.clone().requires_grad_()
        answer = eot(noisy, draws=7, average=average, seed=5)(leaf)
        (found,) = torch.autograd.grad(functional.cross_entropy(answer, y, reduction="sum"), leaf)
        with isolated(5):
            noise = 0.5 * torch.stack([torch.randn_like(x) for _ in range(7)])  # (7, n, d)
        each = (x + noise) @ linear_model.weight.T + linear_model.bias  # (7, n, classes)
        weight, one_hot = linear_model.weight.detach(), functional.one_hot(y, 4).double()
        if average == "logits":
            wanted = each.mean(0)
            slope = (wanted.softmax(1) - one_hot) @ weight
        elif average == "loss":
            wanted = each.log_softmax(2).mean(0)
            centred = weight - each.softmax(2)[..., None, :] @ weight  # d log p_k / dx of each draw, (7, n, classes, d)
            mean = centred.mean(0)
            slope = ((wanted.softmax(1) - one_hot)[..., None] * mean).sum(1)
        else:
            wanted = each.softmax(2).mean(0).log()
            share = each.softmax(2)
            own = share.gather(2, y.expand(7, -1)[..., None])  # p_y of each draw
            mean = (own * (weight[y] - share @ weight)).mean(0) / own.mean(0)
            slope = -mean
        torch.testing.assert_close(answer.detach(), wanted.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(found, slope.detach(), rtol=0, atol=1e-12)


def test_the_difference_of_logits_of_a_linear_model_has_the_exact_gradient_whatever_is_drawn(
    linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, _ = linear_samples
    leaf = x.clone().requires_grad_()
    answer = eot(Noisy(linear_model, 3.0), draws=3)(leaf)
    (found,) = torch.autograd.grad((answer[:, 0] - answer[:, 1]).sum(), leaf)
    torch.testing.assert_close(found, (linear_model.weight[0] - linear_model.weight[1]).detach().expand(32, 20))


def test_every_attack_on_it_breaks_a_noisy_model_better(digits: Data, digits_model: nn.Module) -> None:
    """Success is counted over 20 fresh answers: a sample holds as often as it is answered right."""
    x, y = digits.test.first(150)
    noisy, threat = Noisy(digits_model, 0.4).eval(), Linf(0.15)

    def held(z: Tensor) -> float:
        with torch.no_grad(), isolated(123):
            return float(torch.stack([(noisy(z).argmax(1) == y).double().mean() for _ in range(20)]).mean())

    for attack in (pgd, mi_fgsm):
        plain = held(attack(noisy, x, y, threat, steps=20))  # a lucky draw is taken for a success
        averaged = held(attack(eot(noisy, draws=20), x, y, threat, steps=20, early_stop=False))
        by_hand = held(_by_hand(noisy, x, y, threat.eps)) if attack is pgd else averaged
        assert averaged <= plain - 0.15, attack.__name__
        assert abs(averaged - by_hand) <= 0.05


def _by_hand(noisy: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Sign steps along the gradient of the mean of 20 logits."""
    z = x
    with isolated(7):
        for _ in range(20):
            z = z.clone().requires_grad_()
            mean = torch.stack([noisy(z) for _ in range(20)]).mean(0)
            (slope,) = torch.autograd.grad(functional.cross_entropy(mean, y, reduction="sum"), z)
            z = (z.detach() + eps / 8 * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return z


def test_a_seed_fixes_the_draws_and_none_leaves_them_to_the_attack(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(10)
    noisy = Noisy(digits_model, 0.3).eval()
    fixed, fresh = eot(noisy, draws=4, seed=1), eot(noisy, draws=4)
    before = torch.get_rng_state()
    assert torch.equal(fixed(x), fixed(x)) and torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(fixed(x), eot(noisy, draws=4, seed=2)(x))
    with isolated(0):
        assert not torch.equal(fresh(x), fresh(x))
    runs = [pgd(fresh, x, y, Linf(0.1), steps=4, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_chance_is_answered_for_as_it_is(digits: Data, digits_model: nn.Module) -> None:
    x = digits.test.first(20)[0]
    torch.testing.assert_close(eot(digits_model, draws=3)(x), digits_model(x))
    soft = nn.Sequential(digits_model, nn.Softmax(1))
    asked = Target(soft)
    answer = eot(asked, draws=2, average="probabilities")(x)
    torch.testing.assert_close(answer, digits_model(x).log_softmax(1), rtol=1e-4, atol=1e-5)
    assert asked.ledger.queries == 40


def test_parts_left_in_training_mode_stay_so_and_nothing_else_changes(digits: Data, digits_model: nn.Module) -> None:
    """Dropout kept on at test time is a defence by chance: the wrapper must not switch it off."""
    x, y = digits.test.first(30)
    model = nn.Sequential(nn.Dropout(0.5), copy.deepcopy(digits_model)).eval()
    model[0].train()
    modes = [part.training for part in model.modules()]
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = eot(model, draws=5)
    asked: list[Tensor] = []
    handle = model[1].register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach()))
    target = Target(wrapped)
    pgd(target, x, y, Linf(0.1), steps=2, early_stop=False)
    handle.remove()
    assert len(asked) == 3 * 5 and not torch.equal(asked[0], asked[1])
    assert target.ledger.queries == 3 * 30
    assert [part.training for part in model.modules()] == modes
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(RuntimeError):  # an error inside leaves all as it was
        wrapped(x[:, :, :3])
    assert [part.training for part in model.modules()] == modes


def test_what_makes_no_sense_is_refused(digits_model: nn.Module) -> None:
    with pytest.raises(UsageError, match="draws is 0"):
        eot(digits_model, draws=0)
    with pytest.raises(UsageError, match="Did you mean 'loss'"):
        eot(digits_model, average="losses")
