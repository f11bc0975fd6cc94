"""Attention and recurrent layers against the per-sample loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from per_sample_loop import assert_equals_loop
from torch import Tensor, nn

BATCHES = (0, 1, 4, 7)  # 4: as many examples as positions.


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return make()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Attend(nn.Module):
    def __init__(self, cross: bool = False, need: bool = False, mask: Tensor | None = None, **how: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **how)
        self.before = nn.Linear(8, how.get("kdim") or 8)
        self.cross, self.need, self.mask = cross, need, mask

    def forward(self, x: Tensor) -> Tensor:
        key = self.before(x) if self.cross else x
        value = self.before(x.flip(1)) if self.cross else x
        out, weights = self.attention(x, key, value, need_weights=self.need, attn_mask=self.mask)
        return out if weights is None else torch.cat([out.flatten(1), weights.flatten(1)], 1)


CAUSAL = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "how",
    [
        {}, {"mask": CAUSAL}, {"cross": True, "mask": CAUSAL.double()}, {"cross": True, "need": True, "bias": False},
        {"need": True, "add_bias_kv": True, "add_zero_attn": True}, {"cross": True, "kdim": 6, "vdim": 6},
    ],
)
def test_attention(how: dict[str, Any], batch: int) -> None:
    model = seeded(lambda: Attend(**how))
    assert_equals_loop(model, drawn(batch, 4, 8))
    assert_equals_loop(model, drawn(batch, 4, 8), norm="l1", reduction="sum")


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer(norm_first: bool, batch: int) -> None:
    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, norm_first=norm_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    assert_equals_loop(seeded(encoder), drawn(batch, 4, 8))
    decoder = seeded(lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, dropout=0.0, norm_first=norm_first))
    assert_equals_loop(decoder, drawn(batch, 4, 8), call=lambda model, x: model(x, x.flip(1)), dtype=torch.float64)


class Recur(nn.Module):
    def __init__(self, kind: Any, **how: Any) -> None:
        super().__init__()
        self.layer = kind(3, 4, batch_first=True, **how)
        self.head = nn.Linear(how.get("proj_size", 4) * (2 if how.get("bidirectional") else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x)
        state = state[0] if isinstance(state, tuple) else state
        return torch.cat([self.head(out).flatten(1), state.transpose(0, 1).flatten(1)], 1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_recurrent(kind: Any, how: dict[str, Any], batch: int) -> None:
    model = seeded(lambda: Recur(kind, **how))
    assert_equals_loop(model, drawn(batch, 4, 3))
    assert_equals_loop(model, drawn(batch, 4, 3), norm="l1", reduction="sum")


def test_recurrent_with_a_projection_and_relu() -> None:
    assert_equals_loop(seeded(lambda: Recur(nn.LSTM, proj_size=2)), drawn(7, 4, 3))
    assert_equals_loop(seeded(lambda: Recur(nn.RNN, nonlinearity="relu")), drawn(7, 4, 3))


class Cells(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell = kind(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: Any, batch: int) -> None:
    assert_equals_loop(seeded(lambda: Cells(kind)), drawn(batch, 4, 3))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention])
def test_the_parts_give_the_same_answer_as_torch(kind: Any) -> None:
    from hauberk.privacy.dp.engine import record

    attention = kind is nn.MultiheadAttention
    how = {} if attention else {"num_layers": 2}
    model = seeded(lambda: kind(8, 4, batch_first=True, **how)).double()
    x = drawn(7, 5, 8)

    def call() -> list[Tensor]:
        out, rest = model(x, x, x) if attention else model(x)
        return [out, *(rest if isinstance(rest, tuple) else [rest])]

    truth = call()
    with record(model):
        got = call()
    assert len(got) == len(truth) and all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, truth, strict=True))
