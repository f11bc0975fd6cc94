"""What every attack promises, run over the registry: an attack joins by being registered, with every norm it names."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Budget, Goal, Target, Threat
from hauberk.core.card import Card
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, UsageError
from hauberk.core.rng import generator
from hauberk.methods import load_methods

ATTACKS = list(load_methods().cards("attack"))
CASES = [pytest.param(card, norm, id=f"{card.name}-{norm}") for card in ATTACKS for norm in card.facts["norms"]]
RADIUS = {"linf": 0.15, "l2": 0.5, "l1": 1.5, "l0": 3.0}
each_case = pytest.mark.parametrize(("card", "norm"), CASES)
# What hardly depends on the norm, or takes long: in every norm by `make test-all`, in the first an attack names by `make test`.
FIRST = [
    pytest.param(card, norm, id=f"{card.name}-{norm}", marks=[pytest.mark.slow] if place else [])
    for card in ATTACKS for place, norm in enumerate(card.facts["norms"])
]
each_first = pytest.mark.parametrize(("card", "norm"), FIRST)
each_attack = pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in ATTACKS])


# Options that bound the effort, wherever an attack has one of that name: its promises do not depend on them.
EFFORT = {"queries": 200, "rounds": 1, "steps": 20, "neighbours": 3, "copies": 3, "answers": 2}
# For promises that say nothing of success, and are asked for again and again.
LIGHT = {**EFFORT, "queries": 100, "steps": 8, "draws": 15, "epochs": 3}
ONE_STEP = ("fgm", "fgsm", "r-fgm", "r-fgsm", "n-fgsm", "step-ll", "r-step-ll")


def play(card: Card, *arguments: Any, effort: dict[str, int] = EFFORT, **options: Any) -> Tensor:
    """Run the attack with bounded effort."""
    bounded = {name: size for name, size in effort.items() if name in card.options}
    return card.function(*arguments, **{**bounded, **options})


def few(card: Card, norm: str, less: int, more: int) -> int:
    """Return for how many samples a dear promise is looked at: less in the norm that `make test` looks at, more in the others."""
    return less if norm == card.facts["norms"][0] else more


class Net(nn.Module):
    """A small smooth network on (n, 1, 4, 4) with parts that behave otherwise in training; it keeps count of its own."""

    def __init__(self, classes: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = generator(5, "net", classes)
        self.first, self.norm, self.drop = nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Dropout(0.5)
        self.last = nn.Linear(24, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (1.0 if parameter.ndim == 1 else 0.6))
            self.norm.bias.zero_()
            self.last.bias.zero_()
            self.to(dtype).eval()
            self.last.bias.copy_(-self(inputs(400, dtype)).mean(0))  # every class is somebody's answer
        self.rows, self.differentiated = 0, 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.drop(torch.tanh(self.norm(self.first(x.flatten(1))))))
        if hasattr(self, "seen"):
            self.rows += len(x)
            self.seen.append(x.detach().clone())
            if out.requires_grad and x.requires_grad:
                out.register_hook(self._count)
        return out

    def _count(self, gradient: Tensor) -> None:
        self.differentiated += len(gradient)


def inputs(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Images (n, 1, 4, 4), some of whose pixels lie exactly at an end of the range."""
    return (torch.rand(n, 1, 4, 4, generator=generator(seed, "inputs")) * 1.2 - 0.1).clamp(0, 1).to(dtype)


def labelled(net: nn.Module, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs and the labels the model gives them; every eighth label is wrong."""
    x = inputs(n, dtype)
    with torch.no_grad():
        logits = net(x)
    y = logits.argmax(1)
    y[::8] = (y[::8] + 1) % logits.shape[1]
    return x, y


def size(z: Tensor, x: Tensor, norm: str) -> Tensor:
    delta = (z.double() - x.double()).flatten(1).abs()
    sizes = {"linf": delta.amax(1), "l2": delta.square().sum(1).sqrt(), "l1": delta.sum(1), "l0": (delta > 0).sum(1).double()}
    return sizes[norm]


def labels(net: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return net(z).argmax(1)


def growing(norm: str) -> tuple[Tensor, Threat]:
    """Twelve radii, the first of them 0, and the threat of these."""
    eps = RADIUS[norm] * torch.linspace(0, 2, 12, dtype=torch.float64)
    return eps, Threat(norm, eps, bounds=(0.0, 1.0))


def assert_allowed(z: Tensor, x: Tensor, norm: str) -> None:
    """The points lie inside the growing radii and the bounds, to the last bit."""
    assert (z.shape, z.dtype, z.device) == (x.shape, x.dtype, x.device)
    assert bool(z.isfinite().all())
    assert bool((size(z, x, norm) <= growing(norm)[0]).all())
    assert float(z.double().min()) >= 0 and float(z.double().max()) <= 1
    assert torch.equal(z[0], x[0])
    assert not z.requires_grad


@pytest.mark.parametrize("dtype", [pytest.param(torch.float64, marks=pytest.mark.slow), torch.bfloat16])  # float32: below
@each_first
def test_points_are_allowed_to_the_last_bit(card: Card, norm: str, dtype: torch.dtype) -> None:
    net = Net(dtype=torch.float32 if dtype is torch.bfloat16 else dtype)
    x = inputs(12, dtype)
    y = labels(net, x.to(net.last.weight.dtype))
    assert_allowed(play(card, net, x, y, growing(norm)[1], effort=LIGHT), x, norm)


@each_first
def test_the_model_and_the_random_state_stay_as_they_were(card: Card, norm: str) -> None:
    net = Net()
    x, y = labelled(net, 10)
    net.train()
    net.last.eval()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    net.first.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    kept = x.clone(), y.clone()
    play(card, net, x, y, Threat(norm, RADIUS[norm]), effort=LIGHT)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(parameter.grad, torch.full_like(parameter, 3.0)) for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()].count(False) == 1
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1]) and x.grad is None and not x.requires_grad


@each_first
def test_the_ledger_is_right_a_seed_settles_all_and_the_declared_access_suffices(card: Card, norm: str) -> None:
    net = Net()
    x, y = labelled(net, 12)
    _, threat = growing(norm)
    target = Target(net, batch_size=8)
    net.rows = 0
    first = play(card, target, x, y, threat, effort=LIGHT)
    assert target.ledger.queries == net.rows > 0
    assert target.ledger.gradients == net.differentiated
    assert (net.differentiated > 0) == (card.access is Access.GRADIENT)
    assert_allowed(first, x, norm)
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)  # whatever the global state
        assert torch.equal(first, play(card, Target(net, access=card.access, batch_size=8), x, y, threat, effort=LIGHT))
    if card.facts["baseline"]:
        assert not torch.equal(first, play(card, Target(net, batch_size=8), x, y, threat, effort=LIGHT, seed=4))
    for access in Access:
        if access < card.access:
            with pytest.raises(AccessDenied, match=f"{card.name} needs {card.access.name} access"):
                play(card, Target(net, access=access), x, y, threat)
    if card.access is not Access.GRADIENT:  # anything that answers is a target
        def answers(inputs: Tensor) -> np.ndarray:
            with torch.no_grad():
                out = net(inputs)
            return (out.argmax(1) if card.access is Access.LABEL else out).numpy()

        outputs = "labels" if card.access is Access.LABEL else "logits"
        assert torch.equal(first, play(card, Target(answers, outputs=outputs, batch_size=8), x, y, threat, effort=LIGHT))


@each_first
def test_a_sample_does_not_feel_the_batch_it_is_in(card: Card, norm: str) -> None:
    net = Net(dtype=torch.float64)
    x, y = labelled(net, 32, torch.float64)
    threat, single = Threat(norm, RADIUS[norm]), few(card, norm, 10, 32)
    together = play(card, net, x, y, threat, effort=LIGHT)
    if card.facts["undivided"]:  # it learns from the whole batch: nothing to compare but that it is not cut
        assert torch.equal(together, play(card, Target(net, batch_size=12), x, y, threat, effort=LIGHT))
        return
    if "seed" not in card.options:
        single = few(card, norm, 5, 32)  # exact: what a sample feels of others, nearly every sample feels
        alone = torch.cat([play(card, net, x[i : i + 1], y[i : i + 1], threat, effort=LIGHT) for i in range(single)])
        torch.testing.assert_close(together[:single], alone, rtol=0, atol=1e-12)
        parted = play(card, Target(net, batch_size=12), x, y, threat, effort=LIGHT)
        torch.testing.assert_close(together, parted, rtol=0, atol=1e-12)
        return
    alone = torch.cat([play(card, net, x[i : i + 1], y[i : i + 1], threat, effort=LIGHT, seed=i) for i in range(single)])
    parted = play(card, Target(net, batch_size=12), x, y, threat, effort=LIGHT)
    whole, single_won, parts = (labels(net, z) != y[: len(z)] for z in (together, alone, parted))
    # Paired samples: 6 of 32, or 4 of 10, that turn out otherwise by chance is beyond three standard errors for these attacks.
    assert abs(int(whole.sum()) - int(parts.sum())) <= 6
    assert abs(int(whole[:single].sum()) - int(single_won.sum())) <= (6 if single == 32 else 4)


@each_first
def test_the_best_point_seen_is_the_one_returned(card: Card, norm: str) -> None:
    if card.facts["undivided"]:
        pytest.skip("it asks about other inputs than candidates")
    net = Net()
    x, y = labelled(net, 16)
    threat = Threat(norm, RADIUS[norm], bounds=(0.0, 1.0))
    for i in range(few(card, norm, 8, 16)):
        net.seen.clear()
        z = play(card, net, x[i : i + 1], y[i : i + 1], threat, effort=LIGHT)
        seen = torch.cat(net.seen)
        allowed = threat.contains(seen, x[i : i + 1].expand_as(seen))
        won = bool((labels(net, seen)[allowed] != y[i]).any())
        if card.name in ONE_STEP and not won:
            continue  # its end is not looked at
        assert bool(labels(net, z) != y[i]) == won, f"sample {i}"


@each_attack
def test_a_budget_is_never_passed(card: Card) -> None:
    net = Net()
    x, y = labelled(net, 8)
    threat = Threat(card.facts["norms"][0], RADIUS[card.facts["norms"][0]])
    net.rows = 0
    target = Target(net, budget=Budget(queries=9))
    try:
        play(card, target, x, y, threat)
    except BudgetExceeded:
        assert card.name not in ("fgm", "fgsm")
    assert net.rows == target.ledger.queries <= 9
    for queries in (7, 0):
        with pytest.raises(BudgetExceeded) as told:
            play(card, Target(net, budget=Budget(queries=queries)), x, y, threat)
        assert threat.within((0.0, 1.0)).contains(told.value.partial, x).all()


@each_first
def test_two_classes_no_radius_and_no_samples(card: Card, norm: str) -> None:
    net = Net(classes=2)
    x, y = labelled(net, 8)
    z = play(card, net, x, y, Threat(norm, 3 * RADIUS[norm]))
    if not card.facts["baseline"]:
        assert float((labels(net, z) != y).double().mean()) >= 0.5
    assert torch.equal(play(card, net, x, y, Threat(norm, 0.0), effort=LIGHT), x)
    target = Target(net)
    empty = play(card, target, x[:0], y[:0], Threat(norm, RADIUS[norm]))
    assert empty.shape == (0, 1, 4, 4) and empty.dtype is x.dtype and target.ledger.queries == 0


@each_first
def test_success_is_never_below_random_noise(card: Card, norm: str) -> None:
    net = Net()
    x, y = labelled(net, 64)
    threat = Threat(norm, RADIUS[norm])
    noise = load_methods().get("random-noise", "attack").function
    chance = (labels(net, noise(net, x, y, threat, draws=8)) != y).double().mean()
    assert (labels(net, play(card, net, x, y, threat)) != y).double().mean() >= chance - (0.05 if card.facts["baseline"] else 0)


def halfspace(norm: str) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A linear model of two classes, 24 inputs, their labels, and the least radius that turns each, by bisection."""
    net = nn.Linear(12, 2).double()
    draw = generator(11, "halfspace")
    with torch.no_grad():
        net.weight.copy_(torch.randn(2, 12, generator=draw, dtype=torch.float64))
        centre = (net.weight[1] - net.weight[0]) @ torch.full((12,), 0.5, dtype=torch.float64)
        net.bias.copy_(torch.stack([centre, centre * 0]))
    x = torch.rand(24, 12, generator=draw, dtype=torch.float64)
    y = labels(net, x)
    slope = (net.weight[1] - net.weight[0]).detach() * torch.where(y == 0, 1.0, -1.0)[:, None]
    low, high = torch.zeros(24, dtype=torch.float64), torch.full((24,), 12.0, dtype=torch.float64)
    for _ in range(60 if norm != "l0" else 12):
        middle = (low + high) / 2
        middle = middle.round() if norm == "l0" else middle
        turned = labels(net, Threat(norm, middle, bounds=(0.0, 1.0)).around(x).maximise(slope)) != y
        low, high = torch.where(turned, low, middle), torch.where(turned, middle, high)
    return net.eval(), x, y, high


@each_first
def test_on_a_linear_model_it_is_as_good_as_the_closed_form(card: Card, norm: str) -> None:
    net, x, y, least = halfspace(norm)
    short, enough = (least - 1, least) if norm == "l0" else (0.99 * least, 1.02 * least)
    if card.access is not Access.GRADIENT:
        enough = 2 * least
    free = torch.full_like(least, math.inf)
    radii = [short, free] if card.facts["minimum_norm"] else [short] if card.facts["baseline"] else [short, enough]
    # Ensembles have five members and more, any of which is enough on a linear model.
    options = {"steps": 40, "queries": 40} if card.name in ("auto-attack", "fast-ensemble") else {}
    if card.facts["undivided"]:  # it learns from all samples together: those out of reach would spoil what it learns
        points = [card.function(net, x, y, Threat(norm, eps)) for eps in radii]
    else:
        many, threat = len(radii), Threat(norm, torch.cat(radii))
        points = list(card.function(net, x.repeat(many, 1), y.repeat(many), threat, **options).split(len(x)))
    rates = [float((labels(net, z) != y).double().mean()) for z in points]
    assert rates[0] == 0  # nothing can succeed below the least radius
    if card.facts["minimum_norm"]:
        ratio = size(points[1], x, norm) / least
        assert rates[1] == 1.0
        assert float(ratio.median()) <= 1.05 and float(ratio.max()) <= 1.25
    elif card.access is Access.GRADIENT and not card.facts["baseline"]:
        assert rates[1] == 1.0
    elif not card.facts["baseline"]:
        assert rates[1] >= (0.8 if card.facts["undivided"] else 0.9)


def hostile() -> dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], type[Exception], str]]:
    """What is wrong with the input, the error it must give, and a word of its message."""
    return {
        "nan": (lambda x, y: (x.masked_fill(x > 0.5, math.nan), y), DataError, "NaN"),
        "outside": (lambda x, y: (x * 2, y), DataError, "outside the bounds"),
        "bytes": (lambda x, y: ((x * 255).byte(), y), DataError, "floating point"),
        "one sample": (lambda x, y: (x[0, 0, 0], y), DataError, "shape"),
        "no axis": (lambda x, y: (x[:, 0, 0, 0], y), DataError, "batch of samples"),
        "labels short": (lambda x, y: (x, y[:-1]), DataError, "shape"),
        "labels one-hot": (lambda x, y: (x, torch.eye(3)[y]), DataError, "shape"),
        "labels real": (lambda x, y: (x, y.float()), DataError, "integer"),
        "labels negative": (lambda x, y: (x, y - 5), DataError, "label -"),
    }


@each_attack
def test_bad_input_is_refused_before_anything_is_asked(card: Card) -> None:
    net = Net()
    target, (x, y) = Target(net), labelled(net, 6)
    for wrong, (spoil, error, word) in hostile().items():
        with pytest.raises(error, match=word):
            play(card, target, *spoil(x, y), Threat(card.facts["norms"][0], 0.1))
        assert target.ledger.queries == 0, wrong


@each_attack
def test_bad_threats_and_options_are_refused(card: Card) -> None:
    net = Net()
    x, y = labelled(net, 6)
    norm = card.facts["norms"][0]
    with pytest.raises(UsageError, match="one per sample"):
        play(card, net, x, y, Threat(norm, torch.tensor([0.1, 0.2])))
    with pytest.raises(UsageError, match="mask has shape"):
        play(card, net, x, y, Threat(norm, 0.1, mask=torch.ones(3, dtype=torch.bool)))
    with pytest.raises(UsageError, match="finite bounds"):
        play(card, net, x, y, Threat(norm, math.inf, bounds=(-math.inf, math.inf)))
    with pytest.raises(UsageError, match="no option 'stepz'"):
        play(card, net, x, y, Threat(norm, 0.1), stepz=3)
    with pytest.raises(UsageError, match="Threat"):
        play(card, net, x, y, 0.1)
    for other in {"linf", "l2", "l1", "l0"} - set(card.facts["norms"]):
        with pytest.raises(UsageError, match="was given the norm"):
            play(card, net, x, y, Threat(other, 0.1))
    for goal in set(Goal) - set(card.facts["goals"]):
        with pytest.raises(UsageError, match="was given the goal"):
            play(card, net, x, y, Threat(norm, 0.1, goal=goal))


@each_first
def test_frozen_features_stay_and_the_others_still_suffice(card: Card, norm: str) -> None:
    net = Net()
    x, y = labelled(net, 24)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 1:, :3] = True
    z = card.function(net, x, y, Threat(norm, math.inf, mask=mask))
    assert torch.equal(z[:, ~mask], x[:, ~mask])
    if not card.facts["baseline"]:
        assert float((labels(net, z) != y).double().mean()) >= 0.8
    shifted = torch.stack([mask.roll(i % 2, 2) for i in range(24)])  # one mask per sample
    own = play(card, net, x, y, Threat(norm, 2 * RADIUS[norm], mask=shifted), effort=LIGHT)
    assert torch.equal(own[~shifted], x[~shifted])


@each_case
def test_a_chosen_label_is_reached(card: Card, norm: str) -> None:
    if Goal.TARGETED not in card.facts["goals"]:
        pytest.skip("untargeted alone")
    net = Net()
    x, _ = labelled(net, 24)
    wanted = (labels(net, x) + 1) % 3
    z = play(card, net, x, wanted, Threat(norm, math.inf if card.facts["minimum_norm"] else 3 * RADIUS[norm]).targeted())
    assert float((labels(net, z) == wanted).double().mean()) >= (0.1 if card.facts["baseline"] else 0.75)


@each_case
def test_confidence_is_brought_below_the_threshold(card: Card, norm: str) -> None:
    if Goal.CONFIDENCE not in card.facts["goals"]:
        pytest.skip("labels say nothing of confidence")
    net = Net()
    x = inputs(24)
    y = labels(net, x)
    threat = Threat(norm, 3 * RADIUS[norm], goal=Goal.CONFIDENCE, confidence=0.25)
    with torch.no_grad():
        share = net(play(card, net, x, y, threat)).softmax(1).gather(1, y[:, None])[:, 0]
    assert float((share < 0.25).double().mean()) >= 0.75
