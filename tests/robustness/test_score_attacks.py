"""Attacks by scores and labels: exact budgets, closed forms on linear models, and what peers get wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_form import least_distance
from scipy.fft import dctn
from torch import Tensor, nn

from hauberk import L2, Data, Goal, Linf, Target, Threat
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.methods import load_methods
from hauberk.robustness.attack import bandits, nes, nes_label, nes_partial, pgd, sign_hunter, simba, spsa
from hauberk.robustness.attack.bandits import _coarse, _fine, _mended
from hauberk.robustness.attack.searching import Search, shown
from hauberk.robustness.attack.simba import _Waves

NAMES = ("nes", "nes-partial", "nes-label", "spsa", "bandits", "simba", "sign-hunter", "gen-attack", "pso", "one-pixel", "zoo")
CARDS = {name: load_methods().get(name, "attack") for name in NAMES}
CASES = [(name, norm) for name, card in CARDS.items() for norm in card.facts["norms"]]
RADIUS = {"linf": 0.1, "l2": 0.4, "l0": 2.0}
each_case = pytest.mark.parametrize(("name", "norm"), CASES, ids=[f"{name}-{norm}" for name, norm in CASES])


def attacked(name: str, *arguments: Any, **options: Any) -> Tensor:
    return CARDS[name].function(*arguments, **options)


class Counted(nn.Module):
    """A linear model of all features but the last, which names the sample: how often each was asked about is counted."""

    def __init__(self, width: int, tilt: float = 1.0, n: int = 16) -> None:
        super().__init__()
        draw = generator(3, "counted")
        self.weight = nn.Parameter(tilt * torch.randn(3, width, generator=draw, dtype=torch.float64))
        self.asked = torch.zeros(n, dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        self.asked += torch.bincount((x[:, -1] * 64).round().long(), minlength=len(self.asked))
        return (x[:, :-1] - 0.5) @ self.weight.T + torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)


def counted(tilt: float, n: int = 16) -> tuple[Counted, Tensor, Tensor]:
    model = Counted(10, tilt, n)
    x = torch.rand(n, 11, generator=generator(1, "x"), dtype=torch.float64)
    x[:, -1] = torch.arange(n) / 64
    y = model(x).argmax(1)
    model.asked.zero_()
    return model, x, y


@each_case
@pytest.mark.parametrize("queries", [1, 2, 3, 28, 61])
def test_no_sample_asks_more_than_its_budget(name: str, norm: str, queries: int) -> None:
    # The last feature names the sample, and the mask keeps it: a peer that does not count its own checks, or counts by batch,
    # asks more for one of them.
    mask = torch.arange(11) < 10
    for tilt in (0.0, 1.0):  # a model that nothing turns, and one that turns
        model, x, y = counted(tilt)
        target = Target(model, outputs="logits")
        attacked(name, target, x, y, Threat(norm, RADIUS[norm], mask=mask), queries=queries)
        assert int(model.asked.max()) <= queries and int(model.asked.min()) >= 1
        assert target.ledger.queries == int(model.asked.sum())
        if not tilt and queries > 3 and name not in ("zoo", "nes-label", "sign-hunter"):  # these three see that it is no use
            assert int(model.asked.min()) >= queries - 2


@each_case
def test_a_sample_that_is_wrong_already_costs_one_query_and_stays(name: str, norm: str) -> None:
    model, x, y = counted(1.0)
    z = attacked(name, Target(model, outputs="logits"), x, (y + 1) % 3, Threat(norm, RADIUS[norm]))
    assert torch.equal(z, x) and model.asked.tolist() == [1] * 16


@each_case
def test_bounds_without_end_and_a_mask_of_nothing(name: str, norm: str) -> None:
    model, x, y = counted(1.0)
    if norm != "l0":  # L0 alone holds nothing, and is refused by the contract of attacks
        threat = Threat(norm, 20 * RADIUS[norm], bounds=(-math.inf, math.inf), mask=torch.arange(11) < 10)
        z = attacked(name, Target(model, outputs="logits"), x, y, threat, queries=600)
        assert float((model(z).argmax(1) != y).double().mean()) >= 0.9
        model.asked.zero_()
    z = attacked(name, Target(model, outputs="logits"), x, y, Threat(norm, RADIUS[norm], mask=torch.zeros(11, dtype=torch.bool)))
    assert torch.equal(z, x)
    if name != "zoo":
        assert model.asked.tolist() == [1] * 16


@each_case
def test_answers_that_are_no_numbers_break_nothing(name: str, norm: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([3 - x.sum(1), x.sum(1), 0 * x[:, 0]], 1)
            return torch.where(x[:, :1] > 0.55, torch.nan, logits)

    x = 0.2 + 0.3 * torch.rand(12, 6, generator=generator(2, "x"), dtype=torch.float64)
    y = Broken()(x).argmax(1)
    threat = Threat(norm, 3 * RADIUS[norm])
    z = attacked(name, Broken(), x, y, threat, queries=400)  # a model that answers NaN is wrong
    assert bool(z.isfinite().all()) and bool((Broken()(z).argmax(1) != y).any())
    wanted = attacked(name, Broken(), x, torch.full_like(y, 2), threat.targeted(), queries=200)
    answer = Broken()(wanted)
    assert bool(wanted.isfinite().all()) and not bool((answer.isnan().any(1) & (wanted != x).any(1)).all())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("nes-label", "one-pixel", "zoo")])
def test_units_do_not_matter(name: str) -> None:
    # The same images in bytes and in [0, 1], the same logits in other units: the same search, draw by draw.
    class Scaled(nn.Module):
        def __init__(self, unit: float, gain: float) -> None:
            super().__init__()
            self.unit, self.gain = unit, gain
            self.weight = torch.randn(3, 9, generator=generator(4, "w"), dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return (x / self.unit - 0.5).tanh() @ self.weight.T * self.gain

    x = torch.rand(24, 9, generator=generator(5, "x"), dtype=torch.float64)
    y = Scaled(1, 1)(x).argmax(1)
    norm = CARDS[name].facts["norms"][0]
    small = attacked(name, Scaled(1, 1), x, y, Threat(norm, 0.15, bounds=(0, 1)), queries=120)
    gain = 1.0 if name == "nes-partial" else 64.0  # probabilities are not logits: they know their unit
    large = attacked(name, Scaled(256, gain), 256 * x, y, Threat(norm, 256 * 0.15, bounds=(0, 256)), queries=120)
    torch.testing.assert_close(large / 256, small, rtol=0, atol=1e-9)


def test_estimated_slope_is_the_gradient_of_a_linear_model(linear_model: nn.Linear) -> None:
    x = torch.full((2, 20), 0.5, dtype=torch.float64)
    x[:, :5] = 0  # at an end of the range half of every pair is cut: a feature moves half as far, and counts by the square
    y = linear_model(x).argmax(1)
    slope = (linear_model.weight[1] - linear_model.weight[0]).detach()

    def one_class(run: Search, logits: Tensor, rows: Tensor) -> Tensor:
        return logits[:, 1] - logits[:, 0]

    for signs in (False, True):
        run = Search(Target(linear_model), x, y, Linf(1e-3).within((0, 1)), 20_002, score=one_class)
        found = run.slope(run.ball.x, run.spread(0.1), 20_000, generator(0), signs=signs)
        truth = torch.where(torch.arange(20) < 5, slope / 4, slope).repeat(2, 1)
        assert run.left.tolist() == [1, 1]
        assert float(torch.cosine_similarity(found, truth, dim=1).min()) > 0.99
        assert float(torch.cosine_similarity(found[:, :5], truth[:, :5], dim=1).min()) > 0.97


def test_nes_targeted_needs_no_image_of_the_label(digits: Data, digits_model: nn.Module) -> None:
    # Without target images a peer's query-limited NES ends in an error, and knows targeted attacks alone.
    x, y = digits.test.first(60)
    wanted = (y + 1) % 10
    z = nes(digits_model, x, wanted, Linf(0.3).targeted())
    assert float((digits_model(z).argmax(1) == wanted).double().mean()) >= 0.9
    white, black = (attack(digits_model, x, y, Linf(0.15)) for attack in (pgd, nes))
    held = [float((digits_model(z).argmax(1) == y).double().mean()) for z in (white, black)]
    assert held[1] <= held[0] + 0.1


def test_partial_information_reads_the_top_scores_alone(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(24)

    class Top(nn.Module):  # all but the two highest scores are made equal
        def forward(self, z: Tensor) -> Tensor:
            return shown(digits_model(z).double(), 2)

    for threat in (Linf(0.1), Linf(0.3).targeted()):
        wanted = (y + 1) % 10 if threat.goal is Goal.TARGETED else y
        one = nes_partial(Target(digits_model), x, wanted, threat, top=2, queries=300)
        other = nes_partial(Target(Top(), outputs="logits"), x, wanted, threat, top=2, queries=300)
        reached = [threat.success(digits_model(z), wanted).double().mean() for z in (one, other)]
        assert abs(float(reached[0] - reached[1])) <= 1 / 24 and float(reached[0]) >= (0.6 if wanted is not y else 0.2)
    with pytest.raises(UsageError, match="top is 0"):
        nes_partial(digits_model, x, y, Linf(0.1), top=0)


def test_hidden_classes_share_what_is_left() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64).log()
    wanted = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(shown(logits, 2).exp(), wanted)
    torch.testing.assert_close(shown(logits, 9).exp(), logits.exp())


def test_labels_alone_lead_near_the_boundary(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    least = least_distance(linear_model, x, y, "linf")
    z = nes_label(linear_model, x, y, Linf(1.8 * least))
    assert float((linear_model(z).argmax(1) != y).double().mean()) >= 0.85
    # An input of the label to reach is a start that costs one query; one of another label costs one as well.
    pool = torch.rand(400, 20, generator=generator(1), dtype=torch.float64)
    known = linear_model(pool).argmax(1)
    own = torch.stack([pool[(known == label).nonzero()[0, 0]] for label in (0, 1)])
    z = nes_label(linear_model, x, torch.ones_like(y), Linf(0.999).targeted(), start=own, queries=5)
    assert linear_model(z).argmax(1).tolist() == [1] * len(x)


def test_spsa_moves_every_feature_by_the_same_size(digits: Data, digits_model: nn.Module) -> None:
    seen: list[Tensor] = []

    class Listening(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z.clone())
            return digits_model(z)

    x = torch.full((1, 1, 8, 8), 0.5)
    y = digits_model(x).argmax(1)
    spsa(Listening(), x, y, Linf(0.01), queries=9, pairs=3, probe=0.5)
    probes = torch.cat(seen[1:3])  # z + u of three pairs, then z - u
    torch.testing.assert_close((probes - x).abs(), torch.full_like(probes, 0.005), rtol=1e-4, atol=0)
    torch.testing.assert_close(probes[:3] - x, x - probes[3:])


def test_bandit_updates_are_those_of_the_paper() -> None:
    prior = torch.rand(5, 3, 4, 4, generator=generator(0), dtype=torch.float64) * 1.8 - 0.9
    gain = torch.randn(5, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    chance = (prior + 1) / 2
    up, down = chance * gain.exp(), (1 - chance) * (-gain).exp()
    torch.testing.assert_close(_mended(prior, gain, "linf"), 2 * up / (up + down) - 1)
    inner = _mended(0.01 * prior, 0.001 * gain, "l2")
    torch.testing.assert_close(inner, 0.01 * prior + 0.001 * gain)
    assert torch.allclose(_mended(prior, gain, "l2").flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
    x = torch.rand(2, 1, 5, 7)
    wide = _fine(_coarse(x, 3), x, 3)
    assert _coarse(x, 3).shape == (2, 1, 2, 3) and wide.shape == x.shape
    assert torch.equal(wide[:, :, :3, :3], x[:, :, :1, :1].expand(-1, -1, 3, 3)) and torch.equal(wide[..., 4, 6], x[..., 3, 6])


def test_bandit_prior_of_tiles_pays_where_gradients_are_smooth() -> None:
    class Smooth(nn.Module):  # the sum over 4 x 4 tiles of a 16 x 16 image counts, with a random sign for each tile
        def __init__(self) -> None:
            super().__init__()
            self.sign = torch.randn(4, 4, generator=generator(6, "tiles")).sign().repeat_interleave(4, 0).repeat_interleave(4, 1)

        def forward(self, z: Tensor) -> Tensor:
            height = ((z - 0.5) * self.sign).sum((1, 2, 3))
            return torch.stack([height, torch.full_like(height, 9.0)], 1)

    x = torch.full((40, 1, 16, 16), 0.5)
    y = torch.ones(40, dtype=torch.long)
    spent = {}
    for tile in (1, 4):
        target = Target(Smooth(), outputs="logits")
        z = bandits(target, x, y, Linf(0.05), tile=tile, queries=600)
        spent[tile] = target.ledger.queries
        assert float(Smooth()(z).argmax(1).double().mean()) == 0.0 or tile == 1
    assert spent[4] < 0.6 * spent[1]


def test_simba_waves_are_an_orthonormal_cosine_basis() -> None:
    x = torch.zeros(1, 2, 4, 6, dtype=torch.float64)
    waves = _Waves(x, 1.0)
    number = torch.arange(48)
    basis = waves.at(number)
    torch.testing.assert_close(basis.flatten(1) @ basis.flatten(1).T, torch.eye(48, dtype=torch.float64))
    for k in (0, 7, 23, 24, 47):  # channel k // 24, frequency (k // 6 % 4, k % 6)
        spectrum = torch.tensor(dctn(basis[k].numpy(), axes=(1, 2), norm="ortho"))
        wanted = torch.zeros(2, 4, 6, dtype=torch.float64)
        wanted[k // 24, k // 6 % 4, k % 6] = 1
        torch.testing.assert_close(spectrum, wanted)
    low = _Waves(x, 0.5)
    order = low.orders(torch.ones(3, 2, 4, 6, dtype=torch.bool), generator(0))
    assert order.shape == (3, 12) and all(sorted(row) == list(range(12)) for row in order.tolist())
    spectrum = dctn(low.at(torch.arange(12)).numpy(), axes=(2, 3), norm="ortho")
    assert abs(spectrum[:, :, 2:]).max() < 1e-12 and abs(spectrum[..., 3:]).max() < 1e-12


def test_simba_tries_each_direction_once_and_keeps_what_helps() -> None:
    model, x, y = counted(1.0)
    x[:, :10] = 0.6
    y = model(x).argmax(1)
    model.asked.zero_()
    # One pass over ten features, two queries each at most, finds the sign of every slope.
    threat = Linf(1e-3, mask=torch.arange(11) < 10)
    z = simba(Target(model, outputs="logits"), x, y, threat, queries=100)
    assert int(model.asked.max()) == 100
    model.asked.zero_()
    assert torch.equal(z, simba(Target(model, outputs="logits"), x, y, threat, queries=21))
    assert int(model.asked.max()) <= 21
    weight = model.weight.detach()
    rival = (model(x).scatter(1, y[:, None], -torch.inf)).argmax(1)
    slope = weight[rival] - weight[y]
    torch.testing.assert_close(z[:, :10] - 0.6, 1e-3 * slope.sign(), rtol=1e-6, atol=0)
    with pytest.raises(UsageError, match="basis is 'wave'"):
        simba(model, x, y, threat, basis="wave")


def test_sign_hunter_finds_all_signs_of_a_linear_model_within_two_queries_a_feature() -> None:
    # Corollary 1 of the paper: 2n queries bring every sign; with the clean input and the start, 2n + 1.
    model = nn.Linear(32, 2, bias=False).double()
    draw = generator(9, "signs")
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 32, generator=draw, dtype=torch.float64))
    slope = (model.weight[1] - model.weight[0]).detach()
    x = torch.full((8, 32), 0.5, dtype=torch.float64)
    shift = torch.zeros(2, dtype=torch.float64)
    shift[0] = 100.0

    class Held(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return model(z) + shift

    y = torch.zeros(8, dtype=torch.long)
    target = Target(Held(), outputs="logits")
    z = sign_hunter(target, x, y, Linf(0.1), queries=65)
    assert torch.equal((z - x).sign(), slope.sign().expand(8, -1))
    assert target.ledger.queries == 8 * 65
    z = sign_hunter(Held(), x, y, L2(0.3), queries=65)
    torch.testing.assert_close(z - x, (0.3 / 32**0.5 * slope.sign()).expand(8, -1))
    target = Target(Held(), outputs="logits")
    sign_hunter(target, x, y, Linf(0.1), queries=10_000)  # it ends when nothing is left to flip
    assert target.ledger.queries <= 8 * 200


@pytest.mark.parametrize("name", ["gen-attack", "pso"])
def test_populations_keep_to_ball_bounds_and_label(name: str, digits: Data, digits_model: nn.Module) -> None:
    # A peer shrinks each success by moving the whole image and asks no more: values up to 2.19, labels lost.
    x, y = digits.test.first(60)
    right = digits_model(x).argmax(1) == y
    x, y = x[right], y[right]
    seen: list[Tensor] = []

    class Listening(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z.clone())
            return digits_model(z)

    threat = Linf(0.15, bounds=(0.0, 1.0))
    z = attacked(name, Listening(), x, y, threat)
    asked = torch.cat(seen)
    assert float(asked.min()) >= 0 and float(asked.max()) <= 1
    assert bool(threat.contains(z, x).all())
    reached = digits_model(z).argmax(1) != y
    white = digits_model(pgd(digits_model, x, y, threat)).argmax(1) != y
    assert float(reached.double().mean()) >= float(white.double().mean()) - 0.1
    rows = {tuple(row.tolist()) for row in asked.flatten(1)}
    assert all(tuple(one.flatten().tolist()) in rows for one in z)  # what comes back was asked about


def test_populations_begin_anew_for_every_sample(digits: Data, digits_model: nn.Module) -> None:
    # A peer carries its best fitness from one image to the next: the same image twice then ends otherwise.
    x, y = digits.test.first(1)
    for name in ("gen-attack", "pso"):
        rates = []
        for copies in (1, 24):
            many, labels = x.expand(copies, -1, -1, -1), y.expand(copies)
            found = [attacked(name, digits_model, many, labels, Linf(0.12), queries=150, seed=s) for s in range(24 // copies)]
            rates.append(float((digits_model(torch.cat(found)).argmax(1) != y).double().mean()))
        assert abs(rates[0] - rates[1]) <= 0.35


@pytest.mark.parametrize("name", NAMES)
def test_candidates_of_large_inputs_are_held_in_parts(name: str) -> None:
    sizes: list[int] = []

    class Listening(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            sizes.append(z.numel())
            height = z.flatten(1)[:, :50].mean(1)
            return torch.stack([height, 0.9 - height], 1)

    x = torch.rand(4, 3, 128, 128, generator=generator(0))
    y = Listening()(x).argmax(1)
    norm = CARDS[name].facts["norms"][0]
    sizes.clear()
    target = Target(Listening(), outputs="logits", batch_size=1024)
    attacked(name, target, x, y, Threat(norm, 1e-3 if norm != "l0" else 3), queries=150)
    assert max(sizes) <= 2 * 2**22
