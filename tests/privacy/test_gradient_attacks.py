"""Gradient inversion: exact methods are exact, searches find what they are known to find."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.rng import isolated
from hauberk.privacy.inversion import (
    Imprint,
    LocalSteps,
    batch_norm_matching,
    client_update,
    closeness,
    distinct_labels,
    dlg,
    group_consistency,
    imprint,
    inverting_gradients,
    label_counts,
    r_gap,
    see_through,
)
from hauberk.privacy.inversion.guided import consensus, register, statistics_gap, statistics_of
from hauberk.privacy.inversion.priors import size, total_variation
from hauberk.privacy.inversion.search import signed_adam


def pictures(n: int, side: int = 8, channels: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return smooth pictures in [0, 1]: a bright square each, at another place."""
    x = torch.zeros(n, channels, side, side, dtype=dtype)
    for k in range(n):
        x[k, :, 1 + k % 3 : 5 + k % 3, 1 + k // 3 : 4 + k // 3] = 0.4 + 0.1 * k
    return x


def network(act: type[nn.Module], channels: int = 1, bias: bool = True, seed: int = 0) -> nn.Module:
    with isolated(seed):
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, bias=bias), act(), nn.Conv2d(8, 6, 3, stride=2, bias=bias), act(), nn.Flatten(),
            nn.Linear(54, 10),
        ).double()


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return dict(client_update(model, x, y).gradients)


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_layer_by_layer_solving_is_exact(act: type[nn.Module]) -> None:
    with isolated(0):
        model = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), act(), nn.Conv2d(8, 16, 3), act(), nn.Flatten(), nn.Linear(256, 10),
        ).double()
    x = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = r_gap(model, gradients(model, x, torch.tensor([3])), shape=(2, 6, 6))
    assert float((found.x - x).square().mean()) < 1e-12 and found.loss is not None and float(found.loss) < 1e-6
    several = r_gap(model, gradients(model, torch.cat([x, 1 - x]), torch.tensor([3, 4])), shape=(2, 6, 6))
    assert several.loss is not None and float(several.loss) > 0.01


def test_layer_by_layer_solving_refuses_what_it_cannot_read() -> None:
    model = network(nn.ReLU)
    sent = gradients(model, pictures(1), torch.tensor([0]))
    with pytest.raises(UsageError, match="shape"):
        r_gap(model, sent)
    with pytest.raises(ModelError, match="MaxPool2d"):
        r_gap(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2)), sent, shape=(1, 8, 8))
    with pytest.raises(UsageError, match="do not fit"):
        r_gap(model, sent, shape=(1, 9, 9))
    rows = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3)).double()
    with pytest.raises(ModelError, match="6 rows"):
        r_gap(rows, gradients(rows, pictures(1)[:, 0, :6, :6], torch.tensor([0])), shape=(6, 6))

    class Scaled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x - 1)

    scaled = Scaled(nn.Flatten(), nn.Linear(64, 3)).double()
    with pytest.raises(ModelError, match="Scaled"):
        r_gap(scaled, gradients(scaled, pictures(1), torch.tensor([0])), shape=(1, 8, 8))


def test_an_imprint_hands_over_every_sample_alone_in_its_bin() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(16, 1, 8, 8, generator=draw, dtype=torch.float64) * torch.linspace(0.2, 1.8, 16).reshape(-1, 1, 1, 1)
    y = torch.randint(10, (16,), generator=draw)
    means = x.flatten(1).mean(1)
    trap = Imprint((1, 8, 8), bins=60, mean=float(means.mean()), deviation=float(means.std())).double()
    model = nn.Sequential(trap, network(nn.ReLU))
    assert float((trap(x) - x).detach().abs().max()) < 2e-3
    found = imprint(model, gradients(model, x, y))
    edges = -trap.measure.bias.detach()
    bins = torch.bucketize(means, edges)
    alone = [k for k in range(16) if int((bins == bins[k]).sum()) == 1 and int(bins[k]) > 0]
    assert len(alone) >= 8
    for k in alone:
        assert float((found.x - x[k]).flatten(1).square().mean(1).min()) < 1e-10
    with pytest.raises(ModelError, match="no Imprint"):
        imprint(network(nn.ReLU), {})


def test_a_blend_below_the_last_bin_is_not_taken_for_a_sample_in_it() -> None:
    trap = Imprint((4,), 4, mean=0.5, deviation=0.1).double()
    one, other = torch.full((4,), 0.9).double(), torch.full((4,), 0.95).double()  # both in the last bin, pulling apart
    weight, bias = (one - 0.9 * other).expand(4, 4), torch.full((4,), 0.1).double()
    found = imprint(trap, {"measure.weight": weight, "measure.bias": bias})
    assert found.loss is not None and float(found.x.mean()) == pytest.approx(0.45) and float(found.loss) > 1


def test_batch_labels_are_read_off_the_gradient() -> None:
    with isolated(4):
        model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 10)).double()
    draw = torch.Generator().manual_seed(2)
    for trial in range(10):
        x = torch.rand(6, 12, generator=draw, dtype=torch.float64)
        y = torch.randperm(10, generator=draw)[:6]
        sent = gradients(model, x, y)
        assert distinct_labels(model, sent, n=6).y.tolist() == y.sort().values.tolist(), trial  # type: ignore[union-attr]
        y = torch.randint(10, (6,), generator=draw)
        mean = model(x).softmax(1).mean(0)
        found = label_counts(model, gradients(model, x, y), n=6, probabilities=mean).y
        assert found is not None and found.tolist() == y.sort().values.tolist(), trial
    with pytest.raises(UsageError, match="one sample per class"):
        distinct_labels(model, sent, n=11)
    with pytest.raises(DataError, match="probabilities"):
        label_counts(model, sent, n=2, probabilities=torch.ones(10))


def test_dlg_finds_the_sample_and_its_label() -> None:
    x = pictures(1)
    for seed in range(1):
        model = network(nn.Sigmoid, seed=seed)
        found = dlg(model, client_update(model, x, torch.tensor([seed]), know_labels=False), seed=seed, steps=150)
        assert float(closeness(model, x, found).psnr) >= 30 and found.y is not None and found.y.tolist() == [seed]


@pytest.mark.parametrize("attack", [
    inverting_gradients, *(pytest.param(one, marks=pytest.mark.slow) for one in (group_consistency, see_through)),
])
def test_searches_by_angle_find_the_pictures(attack: object) -> None:
    model, x = network(nn.ReLU), pictures(2)
    sent = [client_update(model, x[k : k + 1], torch.tensor([k])) for k in range(2)]
    assert callable(attack)
    found = attack(model, sent, steps=150, **({"seeds": 2} if attack is not inverting_gradients else {}))
    assert float(closeness(model, x, found).psnr.min()) >= 18


def test_a_batch_and_an_update_of_several_steps_are_inverted() -> None:
    model, x, y = network(nn.Tanh), pictures(2), torch.tensor([3, 7])
    for local in (None, LocalSteps(2, 0.05)):
        found = inverting_gradients(model, client_update(model, x, y, local=local), steps=100)
        assert float(closeness(model, x, found, group=2).psnr.mean()) >= 16


def test_batch_statistics_pin_the_sum_of_a_batch() -> None:
    with isolated(5):
        model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 3)).double()
    x = pictures(3)
    sent = client_update(model, x, torch.tensor([0, 1, 2]), training=True)
    wanted = statistics_of(model, sent)
    assert [float(one) for one in wanted["0"]] == pytest.approx([float(x.mean()), float(x.var(correction=0))])
    value, slope = statistics_gap(model, x, 1, wanted)
    assert float(value) < 1e-25 and float(slope.abs().max()) < 1e-10
    value, _ = statistics_gap(model, x + 0.1, 1, wanted)
    assert float(value) == pytest.approx(0.01 / float(x.var(correction=0)))
    found = batch_norm_matching(model, sent, steps=150, statistics=1.0)
    assert float(found.x.mean()) == pytest.approx(float(x.mean()), abs=0.01)
    with pytest.raises(ModelError, match="no batch normalisation"):
        batch_norm_matching(network(nn.ReLU), client_update(network(nn.ReLU), x[:1], torch.tensor([0])))


def test_the_statistics_of_the_first_local_batch_are_those_of_its_samples() -> None:
    with isolated(1):
        model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    local = LocalSteps(1, 0.1, batch_size=2)
    sent = client_update(model, x, torch.tensor([0, 1, 2, 0]), local=local, training=True)
    assert sent.statistics is not None
    torch.testing.assert_close(sent.statistics["0"][0], x[:2].mean(0))
    found = batch_norm_matching(model, sent, steps=150, tv=0.0, statistics=100.0)
    torch.testing.assert_close(found.x[:2].mean(0), x[:2].mean(0), atol=5e-3, rtol=0)
    torch.testing.assert_close(found.x[:2].std(0, correction=0), x[:2].std(0, correction=0), atol=5e-3, rtol=0)


def test_iterates_before_and_after_the_seeds_heed_each_other_are_judged_alike() -> None:
    with isolated(0):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        ).double()
    sent = client_update(model, pictures(4), torch.tensor([0, 1, 2, 1]))
    alone, drawn = (group_consistency(model, sent, steps=12, group=weight).loss for weight in (0.0, 100.0))
    # Uniform starts of a quarter of the range: their variance, 1 / 48, less what the mean of four takes of it.
    assert alone is not None and drawn is not None and float(drawn[0]) > float(alone[0]) + 0.1


def test_seeds_are_moved_onto_each_other() -> None:
    x = pictures(1)
    assert torch.equal(register(x.roll((2, -1), (-2, -1)), x), x)
    both = torch.cat([x, x, x.roll(1, -1)])
    torch.testing.assert_close(consensus(both, 3), x.expand(3, -1, -1, -1))
    rows = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(consensus(rows, 2), torch.cat([(rows[:2] + rows[2:]) / 2] * 2))


def test_priors_and_their_slopes() -> None:
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for prior in (total_variation, size):
        _, slope = prior(x)
        push = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        ahead, behind = (prior(x + s * 1e-7 * push)[0].sum() for s in (1, -1))
        torch.testing.assert_close((ahead - behind) / 2e-7, (slope * push).sum(), rtol=1e-6, atol=1e-8)
    stripes = torch.zeros(1, 1, 4, 4)
    stripes[..., ::2] = 1
    assert total_variation(stripes)[0].tolist() == [1.0]


def test_the_best_iterate_of_each_candidate_is_returned() -> None:
    seen: list[Tensor] = []

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        value = (x - torch.tensor([[0.3], [0.6]])).square().sum(1)
        seen.append(value)
        return value, -2 * (x - torch.tensor([[0.3], [0.6]])) if len(seen) > 20 else 2 * (x - torch.tensor([[0.3], [0.6]]))

    x, least = signed_adam(objective, torch.full((2, 1), 0.5), candidates=2, steps=40, lr=0.05, bounds=(0.0, 1.0))
    torch.testing.assert_close(least, torch.stack(seen).amin(0))
    torch.testing.assert_close((x - torch.tensor([[0.3], [0.6]])).square().sum(1), least)


def test_a_soft_label_is_a_blend() -> None:
    model, x = network(nn.Tanh), pictures(2)
    soft = functional.one_hot(torch.tensor([1, 2]), 10).double() * 0.5 + 0.05
    sent = client_update(model, x, soft)
    own = torch.autograd.grad(-(model(x).log_softmax(1) * soft).sum(1).mean(), list(model.parameters()))
    for one, two in zip(sent.gradients.values(), own, strict=True):
        torch.testing.assert_close(one, two)
