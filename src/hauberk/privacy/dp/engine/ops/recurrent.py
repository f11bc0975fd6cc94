"""Recurrent layers and cells, taken apart into linear layers, step by step.

The projections of the inputs are one linear layer over the whole sequence; those of the states are one use a step, which the tape
joins to one longer sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.privacy.dp.engine.fallback import refuse
from hauberk.privacy.dp.engine.registry import rewrite

if TYPE_CHECKING:
    from hauberk.privacy.dp.engine.intercept import Interceptor

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]
Weights = list[Tensor | None]


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * state[0],)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.relu(x + h),)


def _walk(x: Tensor, state: State, cell: Cell, weights: Weights, backwards: bool) -> tuple[Tensor, State]:
    """One layer in one direction over x of shape (B, T, d)."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_ih is not None and w_hh is not None
    projected, outs = functional.linear(x, w_ih, b_ih), []
    for t in reversed(range(x.shape[1])) if backwards else range(x.shape[1]):
        state = cell(projected[:, t], functional.linear(state[0], w_hh, b_hh), state)
        if w_hr is not None:
            state = (functional.linear(state[0], w_hr), *state[1:])
        outs.append(state[0])
    return torch.stack(outs[::-1] if backwards else outs, 1), state


def _layers(cell: Cell, func: Any) -> Callable[..., Any]:
    def _run(
        mode: Interceptor, input: Tensor, hx: Any, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool = False,
    ) -> tuple[Tensor, ...]:
        if isinstance(params, bool) or input.dim() != 3:
            raise refuse(func, "a packed sequence has the examples in an order of its own, and one without a batch has none")
        x = input if batch_first else input.transpose(0, 1)  # (B, T, d)
        if mode.batch is None:
            mode.batch = len(x)
        given = tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        ways = 2 if bidirectional else 1
        each = len(params) // (num_layers * ways)
        last: list[State] = []
        for layer in range(num_layers):
            outs = []
            for way in range(ways):
                at = layer * ways + way
                own: list[Tensor | None] = list(params[at * each : (at + 1) * each])
                if not has_biases:
                    own[2:2] = [None, None]
                own += [None] * (5 - len(own))
                start = tuple(mode.as_data(one[at]) for one in given)
                out, state = _walk(x, start, cell, own, way == 1)
                outs.append(out)
                last.append(state)
            x = torch.cat(outs, -1) if ways == 2 else outs[0]
            if dropout and train and layer + 1 < num_layers:
                x = functional.dropout(x, dropout)
        ends = tuple(torch.stack(states) for states in zip(*last, strict=True))
        return (x if batch_first else x.transpose(0, 1), *ends)

    return _run


def _one(cell: Cell) -> Callable[..., Any]:
    def run(
        mode: Interceptor, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        given = tuple(mode.as_data(one) for one in (hx if isinstance(hx, (tuple, list)) else (hx,)))
        state = cell(functional.linear(input, w_ih, b_ih), functional.linear(given[0], w_hh, b_hh), given)
        return state if len(state) > 1 else state[0]

    return run


for _cell, _layer, _step in (
    (_lstm, torch.lstm, torch.lstm_cell), (_gru, torch.gru, torch.gru_cell), (_tanh, torch.rnn_tanh, torch.rnn_tanh_cell),
    (_relu, torch.rnn_relu, torch.rnn_relu_cell),
):
    rewrite(_layer)(_layers(_cell, _layer))
    rewrite(_step)(_one(_cell))
