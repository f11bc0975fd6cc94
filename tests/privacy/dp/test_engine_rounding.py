"""Where the terms of a gradient cancel, what an example adds to a float32 sum still has the norm that was said, or less."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk.privacy.dp.engine import record

Loss = Callable[[Tensor], Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalised(model: nn.Module, x: Tensor, loss: Loss, norm: Any = "l2") -> Tensor:
    """The sum of the gradients, each over its norm: one example can move it by 1."""
    with record(model, norm=norm) as tape:
        value = loss(model(x))
    tape.backward(value)
    sizes = torch.stack(list(tape.norms().values()))
    total = sizes.norm(dim=0) if norm == "l2" else sizes.sum(0)
    sums = tape.weighted(1 / total.clamp(min=1e-30))
    tape.release()
    return torch.cat([one.double().flatten() for one in sums.values()])


def opposite(out: Tensor) -> Tensor:
    """Opposite gradients at the first two positions."""
    return (out[:, 0] - out[:, 1])[:, 0].mean()


def moved(model: nn.Module, bad: Tensor, others: Tensor, loss: Loss, norm: Any = "l2") -> float:
    full, less = (normalised(model, x, loss, norm) for x in (torch.cat([others, bad]), others))
    return float(torch.linalg.vector_norm(full - less, 2 if norm == "l2" else 1))


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(64, 64), (3, 2)])  # By Gram matrices, and by the products themselves.
def test_nearly_equal_positions_with_opposite_gradients(shape: tuple[int, int], norm: str) -> None:
    model = nn.Linear(*shape, bias=False)
    for scale in (1e3, 1e5, 1e7):
        for apart in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 0):
            same = drawn(1, 1, shape[0])
            bad = scale * torch.cat([same, same + apart * drawn(1, 1, shape[0], seed=1)], 1)
            assert moved(model, bad, drawn(3, 2, shape[0], seed=2), opposite, norm) < 1.01


def test_norms_of_cancelling_gradients_are_those_of_float64() -> None:
    model = nn.Linear(64, 64, bias=False)
    same, other = drawn(5, 1, 64), drawn(5, 1, 64, seed=1)
    x = 1e4 * torch.cat([same, same + torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 1e-4]).view(5, 1, 1) * other], 1)
    with record(model) as tape:
        loss = opposite(model(x))
    tape.backward(loss)
    truth = (x[:, 0].double() - x[:, 1].double()).norm(dim=1)  # The gradient is this, times a unit vector.
    assert torch.allclose(tape.norms()[model.weight].double(), truth, rtol=5e-3)


def test_the_others_are_not_drowned_by_an_example_whose_terms_cancel() -> None:
    for layer in (nn.Linear(64, 64, bias=False), nn.Embedding(9, 64)):
        weight = next(layer.parameters())
        for scale in (1e6, 1e8, 1e12):

            def loss(out: Tensor, scale: float = scale) -> Tensor:
                sizes = torch.cat([torch.ones(len(out) - 1), torch.tensor([scale])])
                return (sizes * (out[:, 0] - out[:, 1])[:, 0]).mean()

            if isinstance(layer, nn.Embedding):
                others, bad = torch.tensor([[1, 2]]).repeat(20, 1), torch.tensor([[3, 3]])
            else:
                others, bad = torch.zeros(20, 2, 64), drawn(1, 1, 64).repeat(1, 2, 1)
                others[:, 0] = drawn(64)
            found = normalised(layer, torch.cat([others, bad]), loss)
            assert found.shape == (weight.numel(),)
            assert float(found.norm()) == pytest.approx(20, abs=1.01)


def test_tokens_that_come_again_with_opposite_gradients() -> None:
    model = nn.Embedding(10, 4)
    tokens = torch.tensor([[1, 1, 2], [3, 5, 3]])
    for scale in (1e2, 1e4, 1e6):
        with record(model) as tape:
            out = model(tokens)
            loss = (out[:, 0, 0] * (scale + 0.75) - out[:, 1, 0] * scale).mean()
        tape.backward(loss)
        assert tape.norms()[model.weight].tolist() == pytest.approx([0.75, math.hypot(scale + 0.75, scale)], rel=0.05)
        sums = tape.weighted(torch.tensor([1.0, 0.0]))[model.weight]
        assert float(sums.norm()) <= float(tape.norms()[model.weight][0]) * (1 + 1e-6)


def test_a_tied_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 40)

        def forward(self, tokens: Tensor) -> Tensor:
            given = nn.functional.linear(1e5 * self.table(tokens).detach(), self.table.weight)
            return torch.cat([given, self.table(tokens)], 1)

    bad = torch.tensor([[3, 3]])
    assert moved(Tied(), bad, torch.tensor([[1, 2], [4, 5]]), opposite) < 1.01


@pytest.mark.parametrize(("channels", "positions"), [(96, 3), (2, 3)])
def test_convolutions(channels: int, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Gram matrices, and by the products themselves, kept or not."""
    from hauberk.privacy.dp.engine.ops import taps

    def loss(out: Tensor) -> Tensor:
        return (out[:, :, 0, 0] - out[:, :, 0, positions])[:, 0].mean()

    model = nn.Conv2d(channels, channels, 3, bias=False)
    for keep in (taps.KEEP, 0):
        monkeypatch.setattr(taps, "KEEP", keep)
        for apart in (1e-1, 1e-3, 1e-5, 0):
            same = drawn(channels, 3, positions)
            bad = 1e5 * torch.cat([same, same + apart * drawn(channels, 3, positions, seed=1)], 2)[None]
            assert moved(model, bad, drawn(3, channels, 3, 2 * positions, seed=2), loss) < 1.01
