"""Clean accuracy: the figure, and a model that only names the commonest class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hauberk import Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Finding, Status
from hauberk.methods import load_methods


def ask(model: nn.Module, data: Data) -> Finding:
    return run_check(load_methods().get("robustness/clean-accuracy", "check"), Target(model), data, Settings())


def test_it_is_the_share_of_right_answers_on_the_whole_test_split(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.tensors()
    found = ask(digits_model, digits)
    assert found.value == float((digits_model(x).argmax(1) == y).double().mean())
    assert (found.n, found.status) == (500, Status.PASS)


def test_weights_that_were_never_loaded_are_suspected(digits: Data, fresh_cnn: Callable[..., nn.Module]) -> None:
    found = ask(fresh_cnn(seed=3), digits)
    assert found.status is Status.FAIL
    assert "commonest class" in found.summary
    assert "weights were loaded" in found.advice[0].text


def test_naming_the_commonest_class_is_no_pass_however_common_it_is() -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    y = torch.cat([torch.zeros(95), torch.ones(5)]).long()
    found = ask(Always(), Data(Split(torch.rand(100, 3, generator=torch.Generator().manual_seed(0)), y), classes=2))
    assert (found.value, found.status) == (0.95, Status.FAIL)
