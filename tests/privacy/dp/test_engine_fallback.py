"""Operations without a rule, and gradients that come some examples at a time: equal to the per-sample loop, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from per_sample_loop import assert_equals_loop, bent, looped
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.engine import chunked, fallback, per_example, record


class Does(nn.Module):
    """A model whose forward is a function of itself and x."""

    def __init__(self, does: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.does = does
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return make().double()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def long_way() -> nn.Module:
    """A bilinear form, a slope of PReLU, a transposed convolution: none has a rule."""

    def does(m: Any, x: Tensor) -> Tensor:
        h = m.slope(m.form(x, torch.tanh(x)))
        return m.up(h.unsqueeze(2)).flatten(1)

    return Does(does, form=nn.Bilinear(4, 4, 3), slope=nn.PReLU(3), up=nn.ConvTranspose1d(3, 2, 3))


def frames() -> nn.Module:
    """Convolutions over frames merged with the examples."""
    def does(m: Any, x: Tensor) -> Tensor:
        h = m.one(x.flatten(0, 1).unsqueeze(1)).flatten(1)
        return m.two(h).unflatten(0, x.shape[:2]).sum(1)

    return Does(does, one=nn.Conv1d(1, 2, 3), two=nn.Linear(8, 2))


def used_in_two_ways() -> nn.Module:
    """A weight of a linear layer and of a convolution: gradients of two kinds."""
    def does(m: Any, x: Tensor) -> Tensor:
        h = functional.conv1d(functional.linear(x, m.weight).unsqueeze(1), m.weight.unsqueeze(1))
        return h.flatten(1) * m.weight.sum()

    return Does(does, weight=nn.Parameter(torch.randn(6, 6)))


MADE = {
    "the long way": (long_way, (6, 4)), "frames": (frames, (5, 3, 6)), "two kinds": (used_in_two_ways, (5, 6)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (7, 4)),
}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_equal_to_the_loop_whether_kept_or_not(name: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MADE[name]
    if small:
        bounded(monkeypatch)
    for norm in ("l2", "l1"):
        assert_equals_loop(seeded(make), drawn(*shape), norm=norm)  # type: ignore[arg-type]
    assert_equals_loop(seeded(make), drawn(1, *shape[1:]), reduction="sum")
    assert_equals_loop(seeded(make), drawn(0, *shape[1:])) if name != "frames" else None


@pytest.mark.parametrize("name", MADE)
def test_no_more_examples_than_fit_are_worked_out_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MADE[name]
    bounded(monkeypatch)
    model, seen = seeded(make), []
    size = per_example.size
    monkeypatch.setattr(chunked, "size", lambda flat, norm: seen.append(flat.nbytes) or size(flat, norm))
    with record(model) as tape:
        loss = bent(model(drawn(9, *shape[1:])), "mean")
    tape.backward(loss)
    tape.weighted(torch.ones(9, dtype=torch.float64))
    largest = max(p.nbytes for p in model.parameters())
    assert seen and max(seen) <= max(per_example.SCRATCH, largest)


def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two examples of a few dozen entries, and nothing kept."""
    for module in (chunked, fallback):
        monkeypatch.setattr(module, "KEEP", 0)
    for module in (chunked, fallback, per_example):
        monkeypatch.setattr(module, "SCRATCH", 800)


def test_a_private_step_through_operations_without_a_rule() -> None:
    """From the front door: the noiseless step is the clipped sum of the loop's gradients."""
    model, x = seeded(long_way), drawn(6, 4)
    own = list(model.parameters())
    each = looped(model, x, own, lambda m, rows: m(rows))
    norms = torch.stack([one.flatten(1).norm(dim=1) for one in each.values()]).norm(dim=0)
    clip = float(norms.median())
    optimizer = torch.optim.SGD(own, lr=1.0)
    private = make_private(model, optimizer, 6, batch_size=6, noise_multiplier=0.0, clip=clip, options=PrivateOptions(seed=0))
    before = [p.detach().clone() for p in own]
    private.step(lambda m, rows, _: bent(m(rows), "mean"), x, torch.zeros(6))
    for p, old in zip(own, before, strict=True):
        wanted = torch.einsum("b,b...->...", (clip / norms).clamp(max=1), each[p]) / 6
        assert torch.allclose(old - p.detach(), wanted, rtol=1e-9, atol=1e-12)


def test_what_cancels_on_the_way_to_a_parameter_stays_inside_its_clip() -> None:
    """Weight norm takes the part of a gradient along the weight away: what rounding leaves of a huge one is measured too."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(64, 1, bias=False))
    direction = next(p for name, p in model.named_parameters() if name.endswith("original1"))
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    x[2] = 1e7 * direction.detach()[0] / direction.detach().norm()
    with record(model, [direction]) as tape:
        loss = model(x).sum(1).mean()
    tape.backward(loss)
    norms = tape.norms()[direction]
    weights = (1 / norms).clamp(max=1)
    whole = tape.weighted(weights)[direction]
    claimed = float(norms[2] * weights[2])
    weights[2] = 0
    moved = float((whole - tape.weighted(weights)[direction]).norm())
    assert moved <= claimed * (1 + 1e-3)  # summed before it is brought to the parameter, rounding makes it a quarter more


def writes(h: Tensor, p: Tensor) -> Tensor:
    h[:, 0] = p[0]
    return h


def adds(h: Tensor, p: Tensor) -> Tensor:
    h += p
    return h


@pytest.mark.parametrize("does", [writes, adds, lambda h, p: h.mul_(p), lambda h, p: torch.add(h.detach(), p, out=h.detach())])
def test_a_parameter_that_is_written_into_a_tensor_is_refused_at_once(does: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Does(lambda m, x: does(m.a(x), m.p), a=nn.Linear(4, 4), p=nn.Parameter(torch.randn(4)))
    with pytest.raises(ModelError, match=r"writes into a tensor.*h = h \+ p"), record(model):
        model(torch.randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_inputs_of_another_type_than_the_parameters_are_named(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(ModelError, match=f"numbers of type {dtype} for parameters of torch.float32"), record(model):
        model(torch.zeros(3, 4, dtype=dtype))


def test_a_model_of_several_types_is_no_mistake() -> None:
    model = Does(lambda m, x: m.b(m.a(x.half()).float()), a=nn.Linear(4, 4).half(), b=nn.Linear(4, 2))
    with record(model) as tape:
        loss = bent(model(torch.randn(5, 4, generator=torch.Generator().manual_seed(1))), "mean")
    tape.backward(loss)
    assert all(bool(one.isfinite().all()) and bool((one > 0).all()) for one in tape.norms().values())
