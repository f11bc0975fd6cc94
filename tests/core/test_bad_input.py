"""What a first user gives by mistake is answered by one of the six errors, with what to do instead."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hauberk import L0, Linf
from hauberk.core.errors import DataError, HauberkError, ModelError, UsageError
from hauberk.robustness.attack import pgd, square
from hauberk.robustness.inputs import Columns, missing_values, neighbour_keys
from hauberk.robustness.natural import gaussian_noise, jpeg

X, Y = torch.full((2, 8), 0.5), torch.tensor([0, 1])
IMAGES = torch.full((2, 3, 16, 16), 0.5)
NET = nn.Linear(8, 3)


@pytest.mark.parametrize(("call", "kind", "words"), [
    (lambda: pgd(nn.Linear(7, 3), X, Y, Linf(0.1)), ModelError, "refused samples of shape (8,) (RuntimeError: mat1 and mat2"),
    (lambda: square(nn.Linear(7, 3), X, Y, Linf(0.1)), ModelError, "refused samples of shape (8,)"),
    (lambda: pgd(NET, X.numpy(), Y, Linf(0.1)), DataError, "x is a ndarray. Expected a tensor. Convert it: torch.from_numpy(x)"),
    (lambda: pgd(NET, X, Y.numpy(), Linf(0.1)), DataError, "y is a ndarray. Expected a tensor. Convert it: torch.from_numpy(y)"),
    (lambda: pgd(NET, X, [0, 1], Linf(0.1)), DataError, "y is a list. Expected a tensor. Convert it: torch.tensor(y)"),
    (lambda: jpeg(IMAGES.numpy(), 2), DataError, "Convert it: torch.from_numpy(x)"),
    (lambda: Linf("8/255"), UsageError, "eps is '8/255'. Expected a number, or a tensor of one per sample. Write the number "
     "without quotes, e.g. 8/255, or Threat.parse('linf:8/255')"),
    (lambda: Linf(None), UsageError, "eps is a NoneType"),
    (lambda: gaussian_noise(IMAGES, 2, generator=3), UsageError, "generator is 3. Expected a torch.Generator or None. Make one: "
     "generator=torch.Generator().manual_seed(3)"),
    (lambda: missing_values(X, 2, Columns.of(X + torch.eye(2, 8)), generator=3), UsageError, "manual_seed(3)"),
    (lambda: neighbour_keys(["a text"], 2, generator=np.random.default_rng(0)), UsageError, "generator is Generator(PCG64)"),
    (lambda: square(NET, X, Y, L0(2)), UsageError, "square was given the norm 'l0'"),
    (lambda: square(NET, X, Y, L0(2)), UsageError, "or choose an attack for l0, such as pgd"),
    (lambda: pgd(NET, X.masked_fill(X == 0.5, torch.nan), Y, Linf(0.1)), DataError, "Fill in or drop what is missing"),
    (lambda: jpeg(torch.rand(2, 32, 32, 3), 2), DataError, "reads as 32 channels on images 3 pixels wide. Expected images (n, "
     "channels, height, width). Channels come last here: x.permute(0, 3, 1, 2)"),
])
def test_a_mistake_is_answered_in_plain_words(call: Callable[[], object], kind: type[HauberkError], words: str) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        call()


def test_an_error_of_the_model_later_on_is_the_models_own() -> None:
    class Tired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.asked += 1
            if self.asked > 1:
                raise RuntimeError("tired of this shape")
            return torch.stack([x.sum(1) - 3, 3 - x.sum(1)], 1)  # far from turning

    with pytest.raises(RuntimeError, match="tired of"):
        pgd(Tired(), X, torch.zeros(2, dtype=torch.int64), Linf(0.001))
