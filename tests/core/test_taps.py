"""tap: what layers put out, without a trace left on the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hauberk import tap
from hauberk.core.errors import ModelError
from hauberk.core.taps import features, penultimate


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 16, 5), nn.ReLU(), nn.Linear(5, 2)
        )


X = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_activations_are_those_of_the_layers_one_by_one(model):
    with tap(model) as seen:
        out = model(X)
    step = X
    for name, layer in model.named_children():
        step = layer(step.clone())
        assert torch.equal(seen.activations[name], step), name
    assert torch.equal(out, step)


def test_an_activation_is_kept_as_it_was_before_a_layer_in_place(model):
    with tap(model, ["0"]) as seen:
        model(X)
    assert torch.equal(seen.activations["0"], model[0](X))
    assert seen.activations["0"].min().item() < 0


def test_units_are_neurons_with_maps_averaged(model):
    with tap(model, ["0", "3"]) as seen:
        model(X)
    expected = torch.cat([model[0](X).mean((2, 3)), seen.activations["3"]], 1)
    assert torch.allclose(seen.units(), expected, atol=1e-6) and seen.units().shape == (4, 8)


def test_gradients_flow_through_what_was_tapped(model):
    x = X.clone().requires_grad_()
    with tap(model, ["3"]) as seen:
        model(x)
    seen.activations["3"].sum().backward()
    other = X.clone().requires_grad_()
    model[:4](other).sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-7)


def test_hooks_are_gone_also_after_an_error(model):
    with pytest.raises(ZeroDivisionError), tap(model):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())
    features(model, X)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_are_the_input_of_the_last_linear_layer(model):
    assert penultimate(model) == "5"
    model.train()
    assert torch.equal(features(model, X), model[:5](X)) and model.training
    assert torch.equal(features(model, X, "3"), model[:3](X))


def test_what_is_not_there_is_named_with_its_neighbour(model):
    with pytest.raises(ModelError, match=r"no layer 'convv'"):
        tap(model, ["convv"])
    with pytest.raises(ModelError, match=r"no layer '9'"):
        features(model, X, "9")
    with pytest.raises(ModelError, match=r"no nn.Linear"):
        penultimate(nn.ReLU())
    unused = nn.Sequential(nn.Linear(3, 2))
    unused.extra = nn.Linear(2, 2)
    unused.forward = lambda x: unused[0](x)
    with pytest.raises(ModelError, match="not used"):
        features(unused, torch.rand(2, 3), "extra")


def test_layers_that_return_no_tensor_are_refused():
    with pytest.raises(ModelError, match="tuple"), tap(nn.Sequential(nn.LSTM(2, 3)), ["0"]) as seen:
        seen.model(torch.rand(1, 4, 2))
