"""BPDA: the answers stay, the gradients come back, and the model is left as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Data, Linf, Target
from hauberk.core.errors import ModelError, UsageError
from hauberk.core.taps import features
from hauberk.robustness.attack import pgd
from hauberk.robustness.attack.adaptive import bpda


class Quantise(nn.Module):
    """Rounds to a few levels: the gradient is zero almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


class BlockCodec(nn.Module):
    """Cosine coefficients of 4 x 4 blocks, rounded, in NumPy: like JPEG, it refuses inputs that want gradients."""

    def forward(self, x: Tensor) -> Tensor:
        place = np.arange(4)
        waves = np.cos(np.pi / 4 * place[:, None] * (place + 0.5)) * np.sqrt(0.5)
        waves[0] /= np.sqrt(2)
        image = x.numpy().astype(np.float64)
        blocks = image.reshape(len(image), 1, 2, 4, 2, 4).transpose(0, 1, 2, 4, 3, 5)
        coded = waves.T @ (np.round(waves @ blocks @ waves.T / 0.15) * 0.15) @ waves
        return torch.from_numpy(coded.transpose(0, 1, 2, 4, 3, 5).reshape(image.shape)).to(x.dtype)


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def defended(model: nn.Module, layer: nn.Module) -> nn.Sequential:
    made = nn.Sequential()
    made.add_module("defence", layer)
    made.add_module("net", copy.deepcopy(model))
    return made.eval()


def test_it_breaks_a_rounded_model_down_to_the_rate_without_defence(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(150)
    model, threat = defended(digits_model, Quantise()), Linf(0.25)
    assert held(model, x, y) > 0.9
    plain = held(model, pgd(model, x, y, threat), y)
    undefended = held(digits_model, pgd(digits_model, x, y, threat), y)
    with bpda(model, "defence"):
        z = pgd(model, x, y, threat)
    assert plain > 0.5 and held(model, z, y) <= undefended + 0.02 <= 0.1


def test_it_breaks_a_codec_outside_torch_that_plain_gradients_cannot_pass(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(150)
    codec = BlockCodec()
    model, threat = defended(digits_model, codec), Linf(0.25)
    with pytest.raises(RuntimeError, match="requires grad"):
        pgd(model, x, y, threat)
    detached = Target(nn.Sequential(_Detached(codec), copy.deepcopy(digits_model)))
    plain = held(model, pgd(detached, x, y, threat), y)
    undefended = held(digits_model, pgd(digits_model, x, y, threat), y)
    with bpda(model, "defence"):
        z = pgd(model, x, y, threat)
    assert plain > 0.5 and held(model, z, y) <= undefended + 0.02 <= 0.1


class _Detached(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


def test_answers_keep_every_bit_and_the_gradient_is_the_replacements(digits: Data, digits_model: nn.Module) -> None:
    x = digits.test.first(20)[0]
    model = defended(digits_model, Quantise())
    wanted = model(x)
    rounded = Quantise()(x)

    def gradient(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(digits_model(leaf).square().sum(), leaf)[0]

    for backward, factor in (("identity", 1.0), (lambda z: 3 * z, 3.0), (lambda z: z.square(), 2 * x)):
        leaf = x.clone().requires_grad_()
        with bpda(model, ["defence"], backward=backward) as same:
            answer = same(leaf)
        assert same is model and torch.equal(answer, wanted)
        (found,) = torch.autograd.grad(answer.square().sum(), leaf)
        torch.testing.assert_close(found, factor * gradient(rounded))


def test_a_layer_of_another_shape_takes_a_replacement_of_that_shape() -> None:
    class Thermometer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:, :, None] > torch.linspace(0.1, 0.9, 5)).float().flatten(1)

    model = nn.Sequential(Thermometer(), nn.Linear(20, 3)).eval()
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(ModelError, match=r"returned shape \(6, 20\) and its replacement \(6, 4\)"), bpda(model, "0"):
        model(x)

    def smooth(z: Tensor) -> Tensor:
        return torch.sigmoid(10 * (z[:, :, None] - torch.linspace(0.1, 0.9, 5))).flatten(1)

    with bpda(model, "0", backward=smooth):
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
    upstream = 2 * model(x).detach() @ model[1].weight
    (wanted,) = torch.autograd.grad(smooth(x), x, upstream)
    torch.testing.assert_close(found, wanted.detach())


def test_several_layers_shared_layers_and_hooks_of_others_work_together() -> None:
    round_ = Quantise()
    model = nn.Sequential(round_, nn.Linear(4, 4), round_, nn.Linear(4, 2)).double().eval()
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    seen: list[Tensor] = []
    handle = round_.register_forward_hook(lambda _, __, out: seen.append(out))
    with bpda(model, "0"):  # the module is used twice: both uses are covered
        (found,) = torch.autograd.grad(model(x).sum(), x)
    handle.remove()
    wanted = (torch.ones(5, 2, dtype=torch.float64) @ model[3].weight @ model[1].weight).detach()
    torch.testing.assert_close(found, wanted)
    assert len(seen) == 2 and torch.equal(seen[0], Quantise()(x.detach()))


class ByName(nn.Module):
    """Calls its parts by the names of their arguments."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.head = word, nn.Linear(4, 2).double()
        self.round = Quantise() if word == "x" else Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.round(**({"levels": 4} if self.word == "image" else {}), **{self.word: x}))


class Scaled(nn.Module):
    """Takes its tensor after a number."""

    def forward(self, levels: int, image: Tensor) -> Tensor:
        return (image * levels).round() / levels


@pytest.mark.parametrize("word", ["x", "image"])
def test_layers_called_by_keyword_are_passed_as_well(word: str) -> None:
    model = ByName(word).eval()
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    wanted = model(x)
    with bpda(model, "round"):
        answer = model(x)
        (found,) = torch.autograd.grad(answer.sum(), x)
    assert torch.equal(answer, wanted)
    torch.testing.assert_close(found, model.head.weight.sum(0).expand(5, 4).detach())
    torch.testing.assert_close(features(model, x.detach()), Quantise()(x.detach()))  # the head is called by name as well


def test_the_model_is_as_it_was_also_after_an_error(digits: Data, digits_model: nn.Module) -> None:
    class Touchy(Quantise):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 3:
                raise ValueError("three")
            x.mul_(2).mul_(0.5)  # on what it is given
            return super().forward(x)

    x, y = digits.test.first(10)
    model = defended(digits_model, Touchy())
    model.train()
    model.net.eval()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    modes, kept = [part.training for part in model.modules()], x.clone()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def untouched() -> bool:
        hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
        return (
            sum(hooks) == 0 and [part.training for part in model.modules()] == modes and torch.equal(x, kept)
            and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
            and all(torch.equal(one.grad, torch.full_like(one, 2.0)) for one in model.parameters())
        )

    with bpda(model, "defence"):
        pgd(model, x, y, Linf(0.1), steps=3)
        with pytest.raises(ValueError, match="three"):
            model(x[:3])
        leaf = x.clone().requires_grad_()  # a call that failed leaves nothing for the next
        (found,) = torch.autograd.grad(functional.cross_entropy(model(leaf), y), leaf)
        assert float(found.abs().sum()) > 0
    assert untouched()
    with pytest.raises(ValueError, match="three"), bpda(model, "defence"):
        pgd(model, x[:3], y[:3], Linf(0.1))
    assert untouched()
    with pytest.raises(ModelError, match="there is no layer"), bpda(model, ["defence", "defense"]):
        raise AssertionError("never entered")
    assert untouched()


def test_what_cannot_be_done_is_refused(digits_model: nn.Module) -> None:
    model = defended(digits_model, Quantise())
    for layer, word in (("defense", "Did you mean 'defence'"), ("", "no layer ''")):
        with pytest.raises(ModelError, match=word), bpda(model, layer):
            raise AssertionError("never entered")
    with pytest.raises(UsageError, match="backward is 'smooth'"), bpda(model, "defence", backward="smooth"):
        raise AssertionError("never entered")

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[0]

    outer = Outer()
    with pytest.raises(ModelError, match="returned tuple"), bpda(outer, "pair"):
        outer(torch.zeros(1, 2))
