"""Gradient checks on models whose first or last registered linear layer is not the one that is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hauberk import Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.errors import ModelError
from hauberk.core.finding import Finding, Status
from hauberk.core.rng import isolated
from hauberk.methods import load_methods
from hauberk.privacy.inversion.capture import called_linear, sample_gradient


def run(name: str, model: nn.Module, data: Data) -> Finding:
    return run_check(load_methods().get(name, "check"), Target(model.eval()), data, Settings())


class Attends(nn.Module):
    """Patches, an encoder layer, a class score: the layout of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, stride=2)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x).flatten(2).transpose(1, 2)).mean(1))
        return out


class Aside(nn.Module):
    """A linear layer that is never called, one whose output is not used, and the two that answer."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)
        self.last, self.first = nn.Linear(12, 10), nn.Linear(64, 12)
        self.aux = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(input=x.flatten(1)).relu()
        out: Tensor = self.last(hidden)
        self.aux(hidden)
        return out


class OnlyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.out = nn.Conv1d(8, 10, 8)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x[:, 0])
        return self.out(self.attention(rows, rows, rows, need_weights=False)[0].transpose(1, 2))[:, :, 0]


def made(kind: type[nn.Module]) -> nn.Module:
    with isolated(4):
        return kind().eval()


def test_the_layers_are_those_that_are_called_and_used(digits: Data) -> None:
    x, y = digits.test.first(1)
    assert called_linear(Target(made(Attends)), x, y) == ["encoder.linear1", "encoder.linear2", "head"]
    target = Target(made(Aside))
    assert called_linear(target, x, y) == ["first", "last"]
    assert (target.ledger.queries, target.ledger.gradients) == (1, 1)
    assert all(not part._forward_pre_hooks for part in target.module.modules())
    assert called_linear(Target(made(OnlyAttention)), x, y) == []


def test_a_transformer_is_attacked_at_the_layers_it_calls(digits: Data) -> None:
    model = made(Attends)
    found = run("privacy/gradient-leakage", model, digits)
    # Its first linear layer is called for 16 patches at once: their gradients are one sum, which is not solved.
    assert (found.status, found.value, found.reason) == (Status.PASS, 0.0, "")
    labels = run("privacy/label-leakage", model, digits)
    assert (labels.status, labels.value) == (Status.WARN, 1.0)


def test_layers_aside_do_not_hide_the_ones_that_leak(digits: Data) -> None:
    model = made(Aside)
    found = run("privacy/gradient-leakage", model, digits)
    assert (found.status, found.value) == (Status.WARN, 1.0)
    assert dict(found.evidence[0].rows)["layer"] == "first"  # type: ignore[union-attr]
    assert (run("privacy/label-leakage", model, digits).value) == 1.0


def test_where_no_linear_layer_answers_nothing_is_claimed(digits: Data) -> None:
    for name in ("privacy/gradient-leakage", "privacy/label-leakage"):
        found = run(name, made(OnlyAttention), digits)
        assert found.status is Status.NOT_RUN and "takes part in its answer" in found.reason
    with isolated(1):
        ends = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 36), nn.ReLU(), nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 10, 6), nn.Flatten()
        )
    found = run("privacy/label-leakage", ends, digits)
    assert found.status is Status.NOT_RUN and "one score per class" in found.reason
    assert run("privacy/gradient-leakage", ends, digits).status is Status.WARN  # its input is the image all the same


def test_tied_and_computed_weights_and_a_first_layer_without_bias_are_legal(digits: Data) -> None:
    with isolated(2):
        tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
        bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.ReLU(), nn.Linear(16, 10))
        normed = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 10))
    tied[5].weight = tied[3].weight  # type: ignore[union-attr, assignment]
    assert run("privacy/gradient-leakage", tied, digits).value == 1.0
    assert run("privacy/label-leakage", tied, digits).value == 1.0
    found = run("privacy/gradient-leakage", bare, digits)
    assert found.status is Status.NOT_RUN and "no bias" in found.reason
    assert run("privacy/label-leakage", bare, digits).value == 1.0
    assert dict(run("privacy/gradient-leakage", normed, digits).evidence[0].rows)["layer"] == "3"  # type: ignore[union-attr]


def test_a_layer_that_is_not_called_is_refused_and_one_not_used_shares_zeros(digits: Data) -> None:
    x, y = digits.test.first(1)
    target = Target(made(Aside))
    with pytest.raises(ModelError, match="'spare' was not called"):
        sample_gradient(target, x, y, layer="spare", wanted=["first.bias"])
    found, _ = sample_gradient(target, x, y, layer="aux", wanted=["aux.bias", "last.bias"])
    assert torch.equal(found["aux.bias"], torch.zeros(10)) and float(found["last.bias"].abs().sum()) > 0


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_samples_of_another_precision_are_attacked_all_the_same(kind: torch.dtype, digits: Data) -> None:
    x, y = digits.test.tensors()
    data = Data(Split(x.to(kind), y), classes=10)
    for name in ("privacy/gradient-leakage", "privacy/label-leakage"):
        assert (run(name, made(Aside), data).status, run(name, made(Aside), data).value) == (Status.WARN, 1.0)
