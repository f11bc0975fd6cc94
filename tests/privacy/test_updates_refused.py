"""What a client's update may not be, and models of other precision, shared weights and normalisation over the batch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import isolated
from hauberk.privacy.inversion import (
    ClientUpdate,
    LocalSteps,
    batch_norm_matching,
    client_update,
    dlg,
    group_consistency,
    inverting_gradients,
)
from hauberk.privacy.inversion.priors import total_variation


def dense(*middle: nn.Module) -> nn.Sequential:
    with isolated(2):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *middle, nn.Tanh(), nn.Linear(8, 3))


def samples(n: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 3


@pytest.mark.parametrize("change", [
    {"labels": torch.tensor([0, 3])}, {"labels": torch.tensor([0, -100])}, {"labels": torch.tensor([[0, 1], [1, 0]])},
    {"labels": torch.tensor([0.0, 1.0])}, {"shape": (1, 5, 6)}, {"gradients": {"1.bias": 1.0}},
    {"statistics": {"9": (torch.zeros(8), torch.ones(8))}}, {"statistics": {"2": (torch.zeros(5), torch.ones(5))}},
    {"statistics": {"2": (torch.full((8,), math.nan), torch.ones(8))}},
], ids=str)
@pytest.mark.parametrize("attack", [inverting_gradients, dlg, batch_norm_matching])
def test_an_update_that_is_not_of_the_model_is_refused(attack: Any, change: dict[str, Any]) -> None:
    model = dense(nn.BatchNorm1d(8))
    with pytest.raises(DataError):
        attack(model, dataclasses.replace(client_update(model, *samples()), **change), steps=2)


@pytest.mark.parametrize("local", [LocalSteps(0, 0.1), LocalSteps(1, 0.0), LocalSteps(1, math.inf), LocalSteps(1, 0.1, 0)])
def test_training_that_cannot_be_is_refused_on_both_sides(local: LocalSteps) -> None:
    model, (x, y) = dense(), samples()
    with pytest.raises(UsageError, match="local steps"):
        client_update(model, x, y, local=local)
    with pytest.raises(UsageError, match="local steps"):
        inverting_gradients(model, dataclasses.replace(client_update(model, x, y), local=local), steps=2)


@pytest.mark.parametrize("ends", [(0.0, math.inf), (1.0, 0.0), (math.nan, 1.0)])
def test_bounds_that_enclose_nothing_are_refused(ends: tuple[float, float]) -> None:
    model, (x, y) = dense(), samples()
    for attack in (inverting_gradients, dlg):
        with pytest.raises(UsageError, match="bounds"):
            attack(model, client_update(model, x, y, bounds=ends), steps=2)


@pytest.mark.parametrize(("n", "local"), [(1, None), (3, LocalSteps(2, 0.1, 2))])
def test_a_batch_of_one_has_no_batch_statistics(n: int, local: LocalSteps | None) -> None:
    model = dense(nn.BatchNorm1d(8))
    with pytest.raises(DataError, match="1 samples"):
        client_update(model, *samples(n), local=local, training=True)


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x.flatten(1)).tanh()).tanh())


def test_a_shared_weight_is_known_by_one_name() -> None:
    with isolated(2):
        model = Shared()
    sent = client_update(model, *samples())
    assert inverting_gradients(model, sent, steps=2).x.shape == (2, 1, 6, 6)
    twice = {**sent.gradients, "b.weight": sent.gradients["a.weight"]}
    with pytest.raises(DataError, match="names a shared parameter once"):
        inverting_gradients(model, dataclasses.replace(sent, gradients=twice), steps=2)


@pytest.mark.parametrize("attack", [inverting_gradients, group_consistency])
def test_a_model_of_half_precision_is_searched_in_single(attack: Any) -> None:
    half, (x, y) = dense().half(), samples(1)
    exact = client_update(dense().half().float(), x, y)
    rounded = ClientUpdate({name: one.half() for name, one in exact.gradients.items()}, (1, 6, 6), labels=y)
    found = attack(half, rounded, steps=200)
    assert found.x.dtype == torch.float16 and next(half.parameters()).dtype == torch.float16
    assert float(found.loss) < 2e-4 + 1e-3 * float(total_variation(x)[0])  # the angle of rounded gradients and the prior
