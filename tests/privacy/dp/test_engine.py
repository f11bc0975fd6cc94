"""What the tape promises for whole models: one pass, nothing left behind, nothing given to the wrong example, nothing skipped."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from per_sample_loop import assert_equals_loop, bent, looped
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hauberk.core.errors import ModelError, UsageError
from hauberk.privacy.dp.engine import check_model, record, to_group_norm


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return make().double()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


class Does(nn.Module):
    """A model whose forward is a function of itself and x."""

    def __init__(self, does: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.does = does
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x: Tensor) -> Tensor:
        return self.does(self, *x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


@pytest.mark.parametrize("batch", [0, 1, 5, 7])  # 5: as many examples as positions.
def test_raw_parameters_tied_weights_and_positions(batch: int) -> None:
    def does(m: Any, tokens: Tensor) -> Tensor:
        h = m.embed(tokens) + m.place + m.position(torch.arange(tokens.shape[1]))
        h = torch.cat([m.first.expand(tokens.shape[0], -1, -1), h], 1) * m.scale
        h = torch.einsum("btd,de->bte", h @ m.mix, m.mix.t())
        return functional.linear(h, m.embed.weight)

    def make() -> nn.Module:
        return Does(
            does, embed=nn.Embedding(11, 6), place=parameter(1, 5, 6), position=nn.Embedding(5, 6), first=parameter(1, 1, 6),
            scale=parameter(6), mix=parameter(6, 6),
        )

    tokens = torch.randint(0, 11, (batch, 5), generator=torch.Generator().manual_seed(1))
    assert_equals_loop(seeded(make), tokens)
    assert_equals_loop(seeded(make), tokens, norm="l1", reduction="sum")


@pytest.mark.parametrize("batch", [1, 2, 4, 7])  # 4: as many examples as positions.
@pytest.mark.parametrize("flat", [False, True])
def test_examples_along_another_dimension_inside_the_model(flat: bool, batch: int) -> None:
    """Inside, positions come first, or are merged with the examples: shapes alone would not tell."""

    def does(m: Any, x: Tensor) -> Tensor:
        h = x.flatten(0, 1) if flat else x.transpose(0, 1)
        h = m.norm(functional.relu(m.first(h)))
        h = m.second(h)
        return h.unflatten(0, x.shape[:2]) if flat else h.transpose(0, 1)

    model = seeded(lambda: Does(does, first=nn.Linear(3, 5), norm=nn.LayerNorm(5), second=nn.Linear(5, 2)))
    assert_equals_loop(model, drawn(batch, 4, 3))
    assert_equals_loop(model, drawn(batch, 4, 3), norm="l1")


@pytest.mark.parametrize("batch", [1, 4])
def test_frames_of_a_film_merged_with_the_examples(batch: int) -> None:
    model = seeded(lambda: Does(lambda m, x: m.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]), conv=nn.Conv2d(2, 3, 2)))
    assert_equals_loop(model, drawn(batch, 4, 2, 5, 5))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_uses_that_share_a_module_residuals_and_operations_without_a_rule(batch: int) -> None:
    linear, conv = nn.Linear(6, 6), nn.Conv2d(2, 2, 3, padding=1)
    thrice = seeded(lambda: nn.Sequential(linear, nn.ReLU(inplace=True), linear, nn.Tanh(), linear))
    assert_equals_loop(thrice, drawn(batch, 3, 6))
    assert_equals_loop(seeded(lambda: Does(lambda m, x: x + m.conv(torch.tanh(m.conv(x))), conv=conv)), drawn(batch, 2, 4, 5))
    assert_equals_loop(seeded(lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2), nn.PReLU(3))), drawn(batch, 2, 4, 4))
    assert_equals_loop(seeded(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), drawn(batch, 4))
    bilinear = seeded(lambda: Does(lambda m, x: m.product(x, x.tanh()), product=nn.Bilinear(4, 4, 3)))
    assert_equals_loop(bilinear, drawn(batch, 4))


def test_frozen_parameters_and_a_choice_of_parameters() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)))
    model[0].weight.requires_grad_(False)
    model[2].requires_grad_(False)
    assert_equals_loop(model, drawn(7, 4))
    chosen = [model[4].bias]
    with record(model, chosen) as tape:
        loss = bent(model(drawn(7, 4)), "mean")
    tape.backward(loss)
    assert list(tape.norms()) == chosen
    truth = looped(model, drawn(7, 4), chosen, lambda model, x: model(x))[chosen[0]]
    assert torch.allclose(tape.norms()[chosen[0]], truth.norm(dim=1), atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_that_is_not_used_has_zeros() -> None:
    model = seeded(lambda: Does(lambda m, x: m.used(x), used=nn.Linear(3, 2), spare=nn.Linear(3, 2)))
    assert_equals_loop(model, drawn(5, 3))


def test_one_broken_example_leaves_the_others_alone() -> None:
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 2)]
    model = seeded(lambda: nn.Sequential(*layers))
    x = drawn(6, 1, 4, 4)
    parameters = list(model.parameters())
    truth = looped(model, x, parameters, lambda model, x: model(x))
    for value in (float("nan"), float("inf")):
        spoilt = x.clone()
        spoilt[2] = value
        with record(model) as tape:
            loss = bent(model(spoilt), "mean")
        tape.backward(loss)
        weights = torch.ones(6, dtype=torch.float64)
        weights[2] = 0
        others = torch.tensor([0, 1, 3, 4, 5])
        sums = tape.weighted(weights)
        for p in parameters:
            assert bool(tape.norms()[p][others].isfinite().all())
            assert torch.allclose(sums[p], truth[p][others].sum(0), atol=1e-10)
        assert not bool(tape.norms()[parameters[0]][2].isfinite())


def test_clipping_bounds_what_a_huge_example_moves() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)))
    x = drawn(6, 4)

    def clipped(x: Tensor) -> Tensor:
        with record(model) as tape:
            loss = functional.mse_loss(model(x), torch.zeros(len(x), 2, dtype=x.dtype), reduction="sum")
        tape.backward(loss, "sum")
        total = torch.stack(list(tape.norms().values())).norm(dim=0)
        sums = tape.weighted((0.5 / total).clamp(max=1))
        return torch.cat([one.flatten() for one in sums.values()])

    spoilt = x.clone()
    spoilt[3] *= 1e6
    without = torch.cat([x[:3], x[4:]])
    assert float((clipped(spoilt) - clipped(without)).norm()) <= 0.5 * (1 + 1e-9)


def test_scale_weights_by_parameter_and_release() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    x, parameters = drawn(7, 4), list(model.parameters())
    truth = looped(model, x, parameters, lambda model, x: model(x))
    with record(model) as tape:
        loss = bent(model(x), "mean") * 1024.0
    tape.backward(loss, scale=1024.0)
    weights = {p: torch.rand(7, dtype=torch.float64) for p in parameters}
    sums = tape.weighted(weights)
    for p in parameters:
        assert torch.allclose(tape.norms()[p], truth[p].flatten(1).norm(dim=1), atol=1e-12)
        assert torch.allclose(sums[p], torch.einsum("b,b...->...", weights[p], truth[p]), atol=1e-12)
    part = weakref.ref(tape._sums[parameters[0]])
    tape.release()
    gc.collect()
    assert part() is None
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert all(set(vars(p)) == set() for p in parameters)


def test_the_model_and_the_random_state_are_as_before() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2)))
    before, keys = copy.deepcopy(model.state_dict()), set(vars(model))
    x = drawn(7, 4)
    torch.manual_seed(0)
    truth = bent(model(x), "mean")
    after = torch.get_rng_state()
    torch.manual_seed(0)
    with record(model) as tape:
        loss = bent(model(x), "mean")
    tape.backward(loss)
    assert torch.equal(torch.get_rng_state(), after) and torch.equal(loss, truth)
    assert set(vars(model)) == keys and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_types_under_autocast() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 5)]
    model = seeded(lambda: nn.Sequential(*layers)).float()
    x = drawn(7, 1, 8, 8).float()
    parameters = list(model.parameters())
    truth = looped(model, x, parameters, lambda model, x: model(x))
    with record(model) as tape, torch.autocast("cpu", torch.bfloat16):
        out = model(x)
        loss = bent(out.float(), "mean")
    tape.backward(loss)
    for p, value in tape.weighted(torch.ones(7)).items():
        assert value.dtype == torch.float32 and tape.norms()[p].dtype == torch.float32
        wanted = truth[p].flatten(1).norm(dim=1)
        assert float((tape.norms()[p] - wanted).abs().max()) < 0.05 * float(wanted.max())
        assert float((value - truth[p].sum(0)).norm()) < 0.05 * float(truth[p].norm())


def backwards(model: nn.Module, *x: Tensor) -> None:
    with record(model) as tape:
        loss = bent(model(*x), "mean")
    tape.backward(loss)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda m, x: m.linear(x - x.mean(0)), "an example's part changes"),
        (lambda m, x: m.linear(x).flip(0), "an example's part changes"),
        (lambda m, x: m.linear(x)[torch.tensor([1, 0, 2, 3, 4])[: len(x)]], "told apart"),
        (lambda m, x: m.linear(x) if len(x) > 3 else m.linear(torch.relu(m.linear(x))), "another path"),
        (lambda m, x: torch.cat([x, m.linear.weight]), "mixes|first dimension|alone"),
        (lambda m, x: x * torch.softmax(x @ m.linear.weight, 0), "an example's part changes"),
    ],
)
def test_what_mixes_examples_is_refused(does: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        backwards(seeded(lambda: Does(does, linear=nn.Linear(3, 3))), drawn(5, 3))


def test_a_penalty_on_weights_is_refused() -> None:
    model = seeded(lambda: nn.Linear(3, 2))
    with pytest.raises(ModelError, match="penalties on weights"), record(model):
        bent(model(drawn(5, 3)), "mean") + model.weight.square().sum()
    with record(model) as tape:
        loss = bent(model(drawn(5, 3)), "mean")
    loss = loss + model.weight.square().sum()
    with pytest.raises(ModelError, match="weight past every layer"):
        tape.backward(loss)


def test_a_use_outside_the_model_is_refused() -> None:
    model, x = seeded(lambda: nn.Linear(3, 2)), drawn(5, 3)
    with record(model) as tape:
        loss = bent(model(x), "mean") + functional.linear(x * 2, model.weight).mean()
    with pytest.raises(ModelError, match="outside a call"):
        tape.backward(loss)


def test_changes_in_place_are_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.linear.weight.mul_(0.5)
        return m.linear(x)

    with pytest.raises(ModelError, match="changed in place"):
        backwards(seeded(lambda: Does(forward, linear=nn.Linear(3, 2))), drawn(5, 3))

    def overwrite(m: Any, x: Tensor) -> Tensor:
        h = x * 1
        out = m.linear(h)
        h.zero_()
        return out

    with pytest.raises(ModelError, match="changed in place after it was used"):
        backwards(seeded(lambda: Does(overwrite, linear=nn.Linear(3, 2))), drawn(5, 3))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_refused(reentrant: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return checkpoint(m.inner, torch.tanh(m.outer(x)), use_reentrant=reentrant)

    inner = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model = seeded(lambda: Does(forward, outer=nn.Linear(3, 3), inner=inner))
    for batch in (1, 5):
        with pytest.raises(ModelError, match="micro_batch"):
            backwards(model, drawn(batch, 3))


def test_offloaded_activations_are_as_good() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))

    def offloaded(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return model(x)

    assert_equals_loop(model, drawn(5, 3), call=offloaded)


def test_gradients_of_gradients_are_refused() -> None:
    model, x = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))), drawn(5, 3).requires_grad_()
    with record(model) as tape:
        out = model(x)
        with pytest.raises(ModelError, match="gradient penalty"):
            torch.autograd.grad(out.sum(), x, create_graph=True)
    for batch in (1, 5):
        with pytest.raises(ModelError, match="gradient penalty"):
            backwards(Does(lambda m, x: torch.autograd.grad(m.net(x).sum(), x, create_graph=True)[0], net=model), x[:batch])
    with record(model) as tape:
        out = model(x)
        torch.autograd.grad(out.sum(), x, retain_graph=True)
        loss = bent(out, "mean")
    with pytest.raises(ModelError, match="gradient penalty"):
        tape.backward(loss)


def test_a_scripted_module_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(3, 2))
    for model in (scripted, nn.Sequential(nn.Linear(3, 3), scripted)):
        with pytest.raises(ModelError, match="TorchScript"), record(model):
            pass


def test_the_examples_of_each_call() -> None:
    model, x = seeded(lambda: nn.Linear(3, 2)), drawn(8, 3)
    with record(model) as tape:
        bent(model(x[:4]), "sum") + bent(model(x[4:]), "sum")
        with torch.no_grad():
            model(x[:1])
    assert tape.batch_size == 4
    with pytest.raises(ModelError, match="with 3 examples, and was called with 5"), record(model):
        bent(model(x[:5]), "sum") + bent(model(x[5:]), "sum")


def test_a_packed_sequence_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 3, 4]), batch_first=True, enforce_sorted=False)
        return m.layer(packed)[1][0]

    with pytest.raises(ModelError, match="packed sequence"):
        backwards(seeded(lambda: Does(forward, layer=nn.GRU(3, 2, batch_first=True))), drawn(3, 4, 3))


def test_bad_arguments() -> None:
    model = seeded(lambda: nn.Linear(3, 2))
    with record(model) as tape:
        loss = bent(model(drawn(5, 3)), "mean")
    with pytest.raises(UsageError, match="reduction is 'none'"):
        tape.backward(loss, "none")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="scalar"):
        tape.backward(loss.expand(2))
    tape.backward(loss)
    with pytest.raises(UsageError, match="weights have shape"):
        tape.weighted(torch.ones(4))
    with record(model) as empty:
        pass
    with pytest.raises(UsageError, match="number of examples"):
        _ = empty.batch_size


def test_a_rule_of_ones_own() -> None:
    """A rule registered from outside is asked once, and is right."""
    from hauberk.privacy.dp.engine.per_example import Dense
    from hauberk.privacy.dp.engine.registry import RULES, Gradients, treat

    asked = []

    @treat(torch.ldexp, parameters=("other",))
    def ldexp(g: Tensor, input: Tensor, other: Tensor) -> Gradients:
        """y = x 2ˢ, one exponent a feature."""
        asked.append(g.shape)
        return {"other": lambda: Dense((g * input * other.exp2() * 0.6931471805599453).flatten(1, -2).sum(1))}

    try:
        model = seeded(lambda: Does(lambda m, x: torch.ldexp(m.linear(x), m.power), linear=nn.Linear(3, 4), power=parameter(4)))
        assert_equals_loop(model, drawn(7, 5, 3))
        assert asked == [(7, 5, 4)]
    finally:
        del RULES[torch.ldexp]


def test_check_model_names_every_layer_and_the_rewriter_mends_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), nn.Sequential(nn.InstanceNorm2d(48, affine=True, track_running_stats=True)),
        nn.BatchNorm2d(48, affine=False),
    )
    with pytest.raises(ModelError, match=r"1 \(BatchNorm2d\).*GroupNorm.*2\.0 \(InstanceNorm2d\).*3 \(BatchNorm2d\)"):
        check_model(model)
    mended = to_group_norm(model)
    check_model(mended)
    assert isinstance(model[1], nn.BatchNorm2d) and isinstance(mended[1], nn.GroupNorm)
    assert mended[1].num_groups == 24 and mended[1].num_channels == 48 and not mended[3].affine
    assert_equals_loop(mended, drawn(3, 3, 6, 6))
    with pytest.raises(ModelError, match="max_norm"):
        check_model(nn.Embedding(3, 2, max_norm=1.0))
    check_model(nn.TransformerEncoderLayer(8, 2, 16))
