"""Obfuscated weights: what must come back, what must not show, and attacks that must work where they should."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hauberk.assets import obfuscate
from hauberk.assets.obfuscate import add_decoys, choose, lock_weights, mix, new_key, rename, restore, unlock_weights
from hauberk.assets.obfuscate.attacks import accuracy, fresh, rank_matching, renormalise, search_branches, share
from hauberk.assets.obfuscate.channels import combinations
from hauberk.assets.obfuscate.draws import Draws
from hauberk.assets.obfuscate.fx_reader import read, traced
from hauberk.assets.obfuscate.preserve import gap
from hauberk.assets.obfuscate.report import AttackReport, Attempt, attack_report, size_ratio
from hauberk.assets.obfuscate.similarity import fx_nodes, graph_similarity, name_leakage
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.finding import Interval

KEY = bytes(range(32))


class Residual(nn.Module):
    """Convolutions with norms, a shortcut, a depthwise layer, a transposed one, and layers with nothing between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.left_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.pool = nn.MaxPool2d(4)
        self.wide, self.through, self.out = nn.Linear(6 * 16, 20), nn.Linear(20, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.left_norm(self.left(x)))
        x = self.pool(torch.relu(self.up(torch.relu(self.point(self.deep(x))))))
        return self.out(torch.tanh(self.through(self.wide(torch.flatten(x, 1)))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.norm = nn.Linear(5, 16), nn.MultiheadAttention(16, 4, batch_first=True), nn.LayerNorm(16)
        self.up, self.down, self.out = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        return self.out((h + self.down(nn.functional.gelu(self.up(h)))).mean(1))


class Tied(nn.Module):
    """One layer used twice, and a weight read by two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(torch.relu(self.a(x)))))))


def _random(module: nn.Module) -> nn.Module:
    made = torch.Generator().manual_seed(3)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=made) + 0.5 if "var" in str(tensor.shape) else _draw(tensor, made))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=made) + 0.5)
    return module.eval()


def _draw(tensor: Tensor, made: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=made) / max(tensor[0].numel(), 1) ** 0.5


CASES = {
    "residual": (Residual, (4, 3, 8, 8)), "encoder": (Encoder, (3, 7, 5)), "tied": (Tied, (5, 6)),
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 3)), (4, 3, 4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mixed_weights_are_others_and_compute_the_same(name: str) -> None:
    build, shape = CASES[name]
    module, x = _random(build()).double(), torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    made = mix(module, x, key=KEY)
    assert made.difference < 1e-12 and gap(module, made.module, x) < 1e-12
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    again = mix(module, x, key=KEY)
    assert all(torch.equal(value, made.module.state_dict()[key]) for key, value in again.module.state_dict().items())
    if name == "residual":  # all but the last bias, whose outputs callers use, and counters
        assert set(before) - set(made.changed) == {"out.bias", "norm.num_batches_tracked", "left_norm.num_batches_tracked"}
    if name == "encoder":
        assert {"attend.in_proj_weight", "attend.out_proj.weight", "up.weight", "up.bias", "down.weight"} == set(made.changed) - {
            "attend.in_proj_bias"}
    if name == "tied":  # nothing that follows two groups may move; between b and c the order of b alone cannot change
        assert made.changed == ()


def test_scales_are_powers_of_two_so_that_they_round_nothing() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    made = mix(module, torch.randn(5, 4), key=KEY).module
    ratios = (made[0].weight.abs().sort(0).values[:, :1], module[0].weight.abs())
    mantissas = [torch.frexp(one.flatten()).mantissa.sort().values for one in (made[0].weight, module[0].weight)]
    assert torch.equal(*mantissas) and not torch.equal(ratios[0], ratios[1][:, :1].sort(0).values)


def test_orders_that_a_searcher_would_have_to_try_are_counted() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    channels = read(traced(module, torch.randn(2, 4)))
    assert combinations(channels) == pytest.approx(16.398743691938193, abs=1e-9)  # log2(6! 5!)


def test_locked_weights_come_back_and_only_by_their_key() -> None:
    state = _random(Residual()).state_dict()
    locked = lock_weights(state, KEY)
    assert {key: (value.shape, value.dtype) for key, value in locked.state.items()} == {
        key: (value.shape, value.dtype) for key, value in state.items()
    }
    back = unlock_weights(locked, KEY)
    for key, value in state.items():
        assert torch.allclose(back[key], value, rtol=2.5e-7, atol=0)
        if value.numel() > 3:
            assert not torch.allclose(locked.state[key].double(), value.double(), rtol=0.1)
    with pytest.raises(UsageError, match="the key does not fit"):
        unlock_weights(locked, new_key())
    with pytest.raises(UsageError, match="32 random bytes"):
        lock_weights(state, b"short")
    assert not torch.equal(lock_weights(state, KEY).state["out.weight"], locked.state["out.weight"])  # another salt


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_locks_of_half_precision_lose_no_bit(dtype: torch.dtype) -> None:
    state = {"w": torch.randn(30, 20, generator=torch.Generator().manual_seed(1)).to(dtype), "n": torch.arange(7)}
    back = unlock_weights(lock_weights(state, KEY), KEY)
    assert torch.equal(back["w"], state["w"]) and torch.equal(back["n"], state["n"])


def test_a_lock_of_weights_that_are_no_numbers_is_refused() -> None:
    with pytest.raises(UsageError, match="finite weights"):
        lock_weights({"w": torch.tensor([1.0, float("nan")])}, KEY)


def test_draws_are_uniform_and_depend_on_key_salt_and_purpose() -> None:
    first = Draws(KEY, b"s", "p").permutation(50)
    assert torch.equal(first, Draws(KEY, b"s", "p").permutation(50)) and torch.equal(first.sort().values, torch.arange(50))
    others = [Draws(bytes(32), b"s", "p"), Draws(KEY, b"t", "p"), Draws(KEY, b"s", "q")]
    assert all(not torch.equal(first, one.permutation(50)) for one in others)
    places = torch.stack([Draws(KEY, b"s", f"{at}").permutation(4) for at in range(600)])
    counts = torch.stack([(places == value).sum(0) for value in range(4)])
    assert bool(((counts - 150).abs() < 5 * (600 * 0.25 * 0.75) ** 0.5).all())
    rotation = Draws(KEY, b"s", "r").rotation(12)
    assert torch.allclose(rotation @ rotation.T, torch.eye(12, dtype=torch.float64), atol=1e-12)


def test_renaming_is_undone_by_its_map_alone() -> None:
    state = Residual().state_dict()
    done = rename(state, shapes=True)
    assert name_leakage(state, done.state) == 0.0 and all(value.ndim == 1 for value in done.state.values())
    back = restore(done.state, done.names)
    assert all(torch.equal(back[key], value) for key, value in state.items())
    with pytest.raises(DataError, match="map of these tensors"):
        restore(dict(list(done.state.items())[1:]), done.names)
    first = next(iter(done.state))
    with pytest.raises(DataError, match="for the shape"):
        restore({**done.state, first: torch.zeros(9999)}, done.names)


def test_a_renamed_graph_answers_the_same_bit_for_bit() -> None:
    module, x = _random(Residual()), torch.randn(4, 3, 8, 8)
    made = obfuscate.rename_module(module, x)
    assert torch.equal(made(x), module(x))
    assert name_leakage(*([name for name, _ in one.named_modules()] for one in (module, made))) == 0.0
    assert not hasattr(made, "stem")


def test_a_scattered_graph_is_another_graph_with_the_same_answers() -> None:
    module, x = _random(Residual()), torch.randn(4, 3, 8, 8)
    made = obfuscate.scatter(module, x)
    assert gap(module, made, x) < 1e-5
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.modules())
    alike = graph_similarity(fx_nodes(traced(module, x)), fx_nodes(made))
    assert alike < 0.6 and graph_similarity(fx_nodes(made), fx_nodes(made)) == pytest.approx(1.0)
    assert size_ratio(module.state_dict(), made.state_dict()) <= 1.0


def test_computed_weights_and_odd_examples_keep_the_answers_or_are_named() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3)).eval()
    assert mix(computed, x).difference < 1e-5 and gap(computed, obfuscate.scatter(computed, x, smallest=1), x) < 1e-5
    for way in (mix, obfuscate.scatter, obfuscate.rename_module):
        with pytest.raises(ModelError, match="does not take the example"):
            way(computed, torch.zeros(3, 9))

    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x + 1

    with pytest.raises(ModelError, match="answers with a tuple"):
        mix(Two(), x)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.linspace(-1, 1, 32).view(4, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


def test_fresh_weights_keep_nothing_that_was_learnt() -> None:
    module = _random(Positions())
    made = fresh(module, 1)
    before, again = dict(module.named_parameters()), dict(fresh(module, 1).named_parameters())
    assert not [name for name, value in made.named_parameters() if torch.equal(value, before[name])]
    assert all(torch.equal(value, again[name]) for name, value in made.named_parameters())


def test_similarity_of_hand_counted_graphs() -> None:
    chain, other = [("a", []), ("b", [0])], [("a", []), ("a", [0])]
    # Without looking around: counts a, b against a, a: (1 x 2) / sqrt(2 x 4).
    assert graph_similarity(chain, other, rounds=0) == pytest.approx(2 / 8**0.5)


def test_decoys_answer_by_the_key_and_leave_no_mark_of_it() -> None:
    module, x = _random(Residual()), torch.randn(4, 3, 8, 8)
    made = add_decoys(module, KEY, growth=0.3)
    assert gap(module, choose(made, KEY), x) == 0.0 and gap(module, choose(made, new_key()), x) > 1e-3
    assert 1.0 < size_ratio(module.state_dict(), made.state_dict()) <= 1.3 + 0.01
    # The same key, saved and loaded elsewhere.
    fresh_one = add_decoys(_random(Residual()), bytes(32), growth=0.3)
    fresh_one.load_state_dict(made.state_dict())
    assert gap(module, choose(fresh_one, KEY), x) == 0.0
    places = [int(Draws(KEY, bytes([at]) * 16, "branch\0x").below(4)) for at in range(200)]
    assert {places.count(value) > 25 for value in range(4)} == {True}
    with pytest.raises(UsageError, match="growth"):
        add_decoys(module, KEY, growth=1e-6)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A ReLU net trained until its layers are balanced, on three blobs a line cannot part."""
    made = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 6, generator=made) * 2
    y = torch.arange(600) % 10
    x = centres[y] + 0.4 * torch.randn(600, 6, generator=made)
    from hauberk.core.rng import isolated

    with isolated(0):
        module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(module.parameters(), 0.2, weight_decay=5e-3)
        for _ in range(3000):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[:400]), y[:400]).backward()
            optimizer.step()
    return module.eval(), (x[:400], y[:400]), (x[400:], y[400:])


Trained = tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def test_scaled_layers_are_recovered_without_a_key(trained: Trained) -> None:
    module, train, test = trained
    scaled = copy.deepcopy(module)
    with torch.no_grad():
        for at, factor in ((0, 37.0), (2, 0.02), (4, 90.0)):
            scaled[at].weight.mul_(factor)
    assert accuracy(renormalise(scaled, share(train, 0.1, 0)), test) > accuracy(module, test) - 0.05


def test_units_out_of_order_are_matched_again_without_a_key(trained: Trained) -> None:
    module, train, test = trained
    turned = copy.deepcopy(module)
    with torch.no_grad():
        for at in (2, 4):
            turned[at].weight.copy_(turned[at].weight[:, Draws(KEY, b"", f"{at}").permutation(32)])
    few = share(train, 0.1, 0)
    assert accuracy(turned, test) < 0.4
    assert accuracy(rank_matching(turned, few), test) > 0.6


def test_locked_weights_give_adversaries_what_fresh_ones_give(trained: Trained) -> None:
    module, train, test = trained
    few = share(train, 0.1, 0)
    gained = []
    for seed in range(8):
        shipped = copy.deepcopy(module)
        shipped.load_state_dict(lock_weights(module.state_dict(), KEY, salt=bytes([seed]) * 16).state)
        gained.append(accuracy(rank_matching(shipped, few), test) - accuracy(rank_matching(fresh(module, seed), few), test))
    assert sum(gained) / len(gained) < 0.08


def test_the_report_sets_every_attack_beside_fresh_weights(trained: Trained) -> None:
    module, train, test = trained
    shipped = copy.deepcopy(module)
    shipped.load_state_dict(lock_weights(module.state_dict(), KEY, salt=bytes(16)).state)
    found = attack_report(module, shipped, train, test, part=0.1, seeds=1)
    rows = {one.attack: one for one in found.attempts}
    assert found.owner == accuracy(module, test) and set(rows) == {
        "as shipped", "renormalised", "rank matching", "rank matching, classes assigned", "fine-tuned",
        "fine-tuned after rank matching",
    }
    assert all(one.nothing is not None and one.interval.low <= one.accuracy <= one.interval.high for one in rows.values())
    assert rows["as shipped"].accuracy < 0.4
    with pytest.raises(DataError, match="some of both"):
        attack_report(module, shipped, (train[0][:0], train[1][:0]), test)


def test_the_branch_search_finds_few_branches(trained: Trained) -> None:
    module, train, test = trained
    made = add_decoys(module, KEY, branches=2, growth=0.3)
    found, spent = search_branches(made, train)
    assert accuracy(found, test) > accuracy(module, test) - 0.05 and 0 < spent < 100


def test_the_verdict_says_stolen_where_it_is_sure() -> None:
    def told(accuracy: float, nothing: float | None) -> str:
        span = Interval(accuracy - 0.02, accuracy + 0.02)
        return AttackReport(0.95, 1000, (Attempt("rank matching", accuracy, span, nothing, "the file"),)).verdict()

    assert told(0.6, 0.1).startswith("verdict: something is stolen: rank matching gains +50.0 points")
    assert told(0.12, 0.1).startswith("verdict: nothing is surely stolen: rank matching gains +2.0 points")
    assert told(0.9, None).startswith("verdict: something is stolen")
