"""Models whose examples mix are refused, however the mixing hides; models that only look so are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from per_sample_loop import assert_equals_loop, bent
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.draws import Even
from hauberk.privacy.dp.engine import layout, record
from hauberk.privacy.dp.engine.trial import answers


class Does(nn.Module):
    """A model whose forward is a function of itself and x."""

    def __init__(self, does: Callable[..., Any]) -> None:
        super().__init__()
        self.does = does
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.gate = nn.Parameter(torch.zeros(6))
        self.drop, self.flat = nn.Dropout(0.5), nn.Flatten()

    def forward(self, *x: Tensor) -> Any:
        return self.does(self, *x)


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(does: Callable[..., Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Does(does)


def backwards(model: nn.Module, *x: Tensor, loss: Callable[[Any], Tensor] = lambda out: bent(out, "mean")) -> None:
    with record(model) as tape:
        value = loss(model(*x))
    tape.backward(value)
    tape.release()


def squares(out: Any) -> Tensor:
    return torch.stack([one.square().mean() for one in answers(out)]).sum()


def before(h: Tensor) -> Tensor:
    """Each example's forerunner in the batch, and zeros for the first."""
    return torch.cat([torch.zeros_like(h[:1]), h[:-1]])


def causal(h: Tensor) -> Tensor:
    scores = (h @ h.t()).masked_fill(torch.ones(len(h), len(h)).triu(1).bool(), -torch.inf)
    return torch.softmax(scores, 1) @ h


def sorted_inside(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x))
    order = h[:, 0].argsort()
    return m.b(h[order])[order.argsort()]


MIXING = {
    "the one before": lambda m, x: m.b(m.a(x) + 100 * before(m.a(x))),
    "the one before, after": lambda m, x: m.a(x) + before(m.a(x)),
    "causal attention": lambda m, x: m.b(causal(m.a(x))),
    "sums so far": lambda m, x: m.b(m.a(x).cumsum(0)),
    "sorted and put back": sorted_inside,
    "a little of the mean": lambda m, x: m.b(m.a(x) + 1e-4 * m.a(x).mean(0)),
    "by their number": lambda m, x: m.b(m.a(x)) / len(x),
    "behind a shut gate": lambda m, x: x + m.gate * causal(m.a(x)),
    "after a shut gate": lambda m, x: (lambda h: h - h.mean(0))(m.gate * m.a(x)),
    "in the second answer": lambda m, x: (m.a(x), m.b(x) - m.b(x).mean(0)),
    "in an answer by name": lambda m, x: {"one": m.a(x), "two": [m.b(x) - m.b(x).mean(0)]},
    "the loss for an answer": lambda m, x: m.a(x).square().mean(),
    "with drop-out": lambda m, x: m.b(m.drop(m.a(x)) + before(m.a(x))),
}


@pytest.mark.parametrize("batch", [2, 3, 4, 8, 9, 20])
@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused(name: str, batch: int) -> None:
    with pytest.raises(ModelError, match=r"examples|another path"):
        backwards(made(MIXING[name]), drawn(batch, 6), loss=squares)


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_sorting_by_length_is_refused(batch: int) -> None:
    def does(m: Any, x: Tensor, length: Tensor) -> Tensor:
        order = length.argsort(descending=True)
        return m.b(torch.tanh(m.a(x))[order])[order.argsort()]

    for longest in range(batch):  # Whichever stays in its place.
        length = torch.arange(batch)
        length[longest] = 100
        with pytest.raises(ModelError, match="with its place"):
            backwards(made(does), drawn(batch, 6), length)


def test_mixing_that_begins_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "AGAIN", 3)
    model = made(lambda m, x: m.b(m.a(x) + m.late * before(m.a(x))))
    model.late = 0.0  # type: ignore[assignment]
    backwards(model, drawn(5, 6))
    model.late = 1.0  # type: ignore[assignment]
    for _ in range(2):
        backwards(model, drawn(5, 6))
    with pytest.raises(ModelError, match="other examples"):
        backwards(model, drawn(5, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operation_without_a_rule_is_held_to_rounding(dtype: torch.dtype) -> None:
    from hauberk.privacy.dp.engine.fallback import _near

    out = drawn(6).to(dtype)
    assert _near(out * (1 + torch.finfo(dtype).eps), out)
    assert _near(torch.tensor([torch.nan, torch.inf, 1.0]), torch.tensor([torch.nan, torch.inf, 1.0]))
    assert not _near(out + 5e-4 * out.abs().max(), out) and not _near(1e-6 * out, 1.001e-6 * out)


def test_numbers_that_choose_rows_of_a_parameter() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(drawn(11, 4).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.rows[x] * self.rows.index_select(0, x[:, 0])[:, None]

    assert_equals_loop(Table(), torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(1)))


def pad_mask(m: Any, x: Tensor) -> Tensor:
    noise = torch.randn_like(x) * 0.1 + torch.rand(len(x), 1)
    keep = x.new_empty(len(x), 1).bernoulli_(0.9)
    return m.b(functional.dropout(torch.relu(m.a(x + noise)), 0.5, m.training) * keep / 0.9)


def states(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = m.a(x)
    return h, h.t(), torch.arange(3)


@pytest.mark.parametrize("batch", [2, 3, 7, 12])
def test_drawn_numbers_and_answers_in_other_layouts_are_no_mixing(batch: int) -> None:
    """They are let pass, and the gradients are the loop's; what is drawn is made the same for every example, to compare them."""

    def still(m: nn.Module, rows: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]), Even():
            return m(rows)

    assert_equals_loop(made(pad_mask), drawn(batch, 6), call=still)
    assert_equals_loop(made(states), drawn(batch, 6), call=lambda m, rows: m(rows)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True)
    assert_equals_loop(encoder, drawn(batch, 5, 6), call=still)
    backwards(made(pad_mask), drawn(batch, 6))  # drawn afresh for every example
    backwards(encoder.float(), drawn(batch, 5, 6))


def test_mixing_is_found_in_the_first_batch_of_more_than_one() -> None:
    """A batch of one has nothing to mix, and nothing is concluded from it."""
    model = made(MIXING["the one before"])
    for _ in range(2):
        backwards(model, drawn(1, 6))
    with pytest.raises(ModelError, match="other examples"):
        backwards(model, drawn(4, 6))


def test_a_module_that_comes_twice_is_left_as_it_was() -> None:
    """Parameters are put back in every place."""
    linear = nn.Linear(6, 6)
    model = nn.Sequential(linear, nn.Tanh(), linear)
    own = list(model.parameters())
    backwards(model, drawn(5, 6))
    assert all(one is other for one, other in zip(own, model.parameters(), strict=True)) and linear.weight.dtype == torch.float32
    assert_equals_loop(model, drawn(5, 6))
