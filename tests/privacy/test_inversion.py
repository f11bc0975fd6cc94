"""Analytic recovery from gradients: exact, or an honest refusal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import DataError, ModelError
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import isolated
from hauberk.core.target import Normalize, Target
from hauberk.privacy.inversion import distinct_labels, first_linear_layer, idlg, label_counts
from hauberk.privacy.inversion.capture import as_input, sample_gradient


def perceptron(width: int = 12, classes: int = 5, bias: bool = True) -> nn.Sequential:
    with isolated(3):
        return nn.Sequential(nn.Flatten(), nn.Linear(width, 16, bias=bias), nn.ReLU(), nn.Linear(16, classes, bias=bias))


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_one_sample_is_solved_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    for dtype, limit in ((torch.float64, 1e-28), (torch.float32, 1e-10)):
        model = perceptron().to(dtype)
        for label in range(5):
            x = torch.rand(1, 3, 4, generator=draw, dtype=dtype)
            found = first_linear_layer(model, gradients(model, x, torch.tensor([label])))
            assert found.x.shape == (1, 12)
            assert float((found.x - x.reshape(1, 12).double()).square().mean()) < limit
            assert found.loss is not None and float(found.loss) < 1e-5


def test_a_gradient_of_1e_minus_20_is_as_good_as_any() -> None:
    model, x = perceptron().double(), torch.rand(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    faint = {name: one * 1e-200 for name, one in gradients(model, x, torch.tensor([2])).items()}
    torch.testing.assert_close(first_linear_layer(model, faint).x, x)


def test_a_batch_of_two_is_not_mistaken_for_one_sample() -> None:
    model = perceptron().double()
    x = torch.rand(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = first_linear_layer(model, gradients(model, x, torch.tensor([0, 3])))
    assert found.loss is not None and float(found.loss) > 0.05


def test_a_vanished_gradient_is_not_called_a_sample() -> None:
    model = perceptron()
    nothing = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    assert not bool(first_linear_layer(model, nothing).x.isfinite().any())


@pytest.mark.parametrize("bias", [True, False])
def test_labels_are_read_off_the_sign(bias: bool) -> None:
    model = perceptron(bias=bias)
    draw = torch.Generator().manual_seed(4)
    for label in range(5):
        x = torch.rand(1, 12, generator=draw)
        assert idlg(model, gradients(model, x, torch.tensor([label]))).y == torch.tensor([label])


@pytest.mark.parametrize("act", [nn.Tanh, nn.GELU, nn.Identity])
@pytest.mark.parametrize("classes", [3, 10])
def test_labels_are_read_off_rows_whatever_the_sign_of_the_features(act: type[nn.Module], classes: int) -> None:
    draw = torch.Generator().manual_seed(classes)
    with isolated(5):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), act(), nn.Linear(16, classes, bias=False))
    for trial in range(20):
        label = torch.tensor([trial % classes])
        assert torch.equal(idlg(model, gradients(model, torch.randn(1, 12, generator=draw), label)).y, label), trial


@pytest.mark.parametrize("attack", [idlg, label_counts, distinct_labels])
def test_a_gradient_that_names_no_label_is_refused(attack: Callable[..., Reconstruction]) -> None:
    model = perceptron()
    good = gradients(model, torch.rand(1, 12), torch.tensor([1]))
    for wrong in (torch.zeros_like, lambda one: one * math.nan, lambda one: one.flatten()[:-1], lambda one: 1.0):
        with pytest.raises(DataError):
            attack(model, {name: wrong(one) for name, one in good.items()})


def test_what_cannot_be_read_is_refused() -> None:
    model = perceptron()
    with pytest.raises(DataError, match="not finite"):
        first_linear_layer(model, {name: torch.full_like(one, math.nan) for name, one in model.named_parameters()})
    with pytest.raises(ModelError, match="no bias"):
        first_linear_layer(perceptron(bias=False), {})
    with pytest.raises(ModelError, match=r"no nn\.Linear"):
        first_linear_layer(nn.Sequential(nn.Conv2d(1, 1, 1)), {})
    with pytest.raises(DataError, match=r"'1\.bias' is missing"):
        first_linear_layer(perceptron(), {})
    with pytest.raises(DataError, match="shape"):
        first_linear_layer(perceptron(), {"1.weight": torch.zeros(2, 2), "1.bias": torch.zeros(16)})


def test_capture_counts_its_cost_and_leaves_the_model_as_it_was() -> None:
    model = perceptron()
    for one in model.parameters():
        one.requires_grad_(False)
    target = Target(model)
    x = torch.rand(1, 12, generator=torch.Generator().manual_seed(5))
    found, truth = sample_gradient(target, x, torch.tensor([1]), layer="1", wanted=["1.weight", "1.bias"])
    assert (target.ledger.queries, target.ledger.gradients) == (1, 1)
    assert not any(one.requires_grad for one in model.parameters())
    assert all(one.grad is None for one in model.parameters())
    torch.testing.assert_close(truth, x)
    torch.testing.assert_close(first_linear_layer(model, found).x.float(), x)


def test_the_input_is_found_behind_a_normalisation_and_not_behind_a_convolution() -> None:
    x = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(6))
    normal = Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    model = nn.Sequential(normal, nn.Flatten(), nn.Linear(12, 2))
    back = as_input(model, normal(x).flatten(1), x)
    assert back is not None
    torch.testing.assert_close(normal(x) * back[0] + back[1], x)
    assert as_input(model, normal(x).flatten(1).flip(1), x) is None
    assert as_input(model, torch.rand(1, 5), x) is None
