"""What every attack promises of tables and of several labels: possible inputs alone, and the right kind of success."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hauberk import Goal, Structure, Target, Threat
from hauberk.core.card import Card
from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import generator
from hauberk.methods import load_methods

ATTACKS = list(load_methods().cards("attack"))
# In every norm by `make test-all`; by `make test` in the first that an attack names.
FIRST = [
    pytest.param(card, norm, id=f"{card.name}-{norm}", marks=[pytest.mark.slow] if place else [])
    for card in ATTACKS for place, norm in enumerate(card.facts["norms"])
]
SEVERAL = [case for case in FIRST if not case.values[0].facts["classes_alone"]]
SURE = ("pgd", "auto-attack", "fast-ensemble")  # they find nearly all that an exhaustive search finds
LEAPING = ("superdeepfool", "newton-fool", "fgm", "fgsm", "r-fgm", "r-fgsm", "n-fgsm", "step-ll", "r-step-ll")
EFFORT = {"queries": 300, "rounds": 6, "steps": 20, "neighbours": 3, "copies": 3, "answers": 2}
# Two real features, two whole numbers, one number that was divided by 10, and a group of three.
TABLE = Structure(
    step=torch.tensor([0, 0, 1, 1, 0.1, 0, 0, 0]), one_hot=[(5, 6, 7)], direction=torch.tensor([0, 1, 0, 0, 0, 0, 0, 0]),
)
HIGH = torch.tensor([1.0, 1, 5, 5, 1, 1, 1, 1])
RADIUS = {"linf": 1.0, "l2": 2.0, "l1": 3.0, "l0": 3.0}


def play(card: Card, target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    effort = {name: size for name, size in EFFORT.items() if name in card.options}
    return card.function(target, x, y, threat, **effort)


def records(n: int) -> Tensor:
    draw = generator(3, "records")
    real = torch.rand(n, 2, generator=draw)
    whole = torch.randint(0, 6, (n, 2), generator=draw).float()
    tenth = torch.randint(0, 11, (n, 1), generator=draw).float() / 10
    group = nn.functional.one_hot(torch.randint(0, 3, (n,), generator=draw), 3).float()
    return torch.cat([real, whole, tenth, group], 1)


def scorer() -> nn.Linear:
    net = nn.Linear(8, 3).eval()
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, 8, generator=generator(4, "scorer")) / HIGH)
        net.bias.copy_(-(net.weight @ records(200).mean(0)))
    return net


def possible(z: Tensor) -> Tensor:
    """Which rows can be at all, by the words of the table and not by the code."""
    whole = (z[:, 2:4] == z[:, 2:4].round()).all(1)
    tenth = (z[:, 4].double() * 10 - (z[:, 4].double() * 10).round()).abs() < 1e-5
    group = ((z[:, 5:] == 0) | (z[:, 5:] == 1)).all(1) & (z[:, 5:].sum(1) == 1)
    return whole & tenth & group & (z >= 0).all(1) & (z <= HIGH).all(1)


def size(z: Tensor, x: Tensor, norm: str) -> Tensor:
    delta = (z.double() - x.double()).abs()
    return {"linf": delta.amax(1), "l2": delta.norm(dim=1), "l1": delta.sum(1), "l0": (delta > 0).sum(1).double()}[norm]


@pytest.mark.parametrize(("card", "norm"), FIRST)
def test_of_a_table_only_possible_rows_come_back(card: Card, norm: str) -> None:
    net, x = scorer(), records(24)
    y = net(x).argmax(1)
    mask = torch.ones(8, dtype=torch.bool)
    mask[3] = False
    z = card.function(net, x, y, Threat(norm, RADIUS[norm], bounds=(torch.zeros(8), HIGH), mask=mask, structure=TABLE))
    assert bool(possible(z).all())
    assert bool((size(z, x, norm) <= RADIUS[norm]).all())
    assert bool((z[:, 1] >= x[:, 1]).all()) and torch.equal(z[:, 3], x[:, 3])
    if card.facts["baseline"] or card.facts["undivided"]:
        return
    best = reachable(norm)
    won = net(z).argmax(1) != y
    assert not bool((won & ~best).any())
    # A grid has plateaus on which a method that trusts the slope stands still: only some are held to nearly all of what there is.
    assert float(won[best].double().mean()) >= (0.95 if card.name in SURE else 0.4)


@functools.cache
def reachable(norm: str) -> Tensor:
    """Which of the 24 samples have a possible row of another label in the ball, by trying all rows."""
    net, x = scorer(), records(24)
    return torch.stack([_reachable(net, one, int(label), norm) for one, label in zip(x, net(x).argmax(1), strict=True)])


def _reachable(net: nn.Linear, x: Tensor, label: int, norm: str) -> Tensor:
    """Whether any possible row in the ball of one sample has another label: all corners and grid points are tried."""
    radius = RADIUS[norm]
    real = torch.linspace(0, 1, 11).tolist()
    choices = [
        sorted({float(x[0]), *real}), sorted({float(x[1]), *(v for v in real if v >= float(x[1]))}),
        [float(v) for v in range(6)], [float(x[3])], [v / 10 for v in range(11)],
    ]
    rows = torch.tensor(list(itertools.product(*choices)))
    rows[:, 4] = torch.where((rows[:, 4] - x[4]).abs() < 0.01, x[4], rows[:, 4])
    groups = torch.eye(3).repeat_interleave(len(rows), 0)
    rows = torch.cat([rows.repeat(3, 1), groups], 1)
    inside = size(rows, x[None].expand_as(rows), norm) <= radius
    rows = rows[inside]
    if norm in ("linf", "l2", "l1"):  # real features between the points that were tried: as far as the norm still goes
        rows = torch.cat([rows, _filled(net, rows, x, label, norm, radius)])
    return (net(rows).argmax(1) != label).any()


def _filled(net: nn.Linear, rows: Tensor, x: Tensor, label: int, norm: str, radius: float) -> Tensor:
    """Rows whose real features use what the others leave of the radius, along the slope of each other class."""
    base = rows.clone()
    base[:, :2] = x[:2]
    spent = size(base, x[None].expand_as(base), norm)
    left = {"linf": torch.full_like(spent, radius), "l2": (radius**2 - spent**2).clamp(min=0).sqrt(), "l1": radius - spent}[norm]
    found = []
    for other in {0, 1, 2} - {label}:
        slope = (net.weight[other] - net.weight[label])[:2].detach().repeat(len(base), 1)
        bounds = (torch.stack([torch.tensor(0.0), x[1]]), torch.ones(2))
        part = Threat(norm, left, bounds=bounds).around(x[:2].repeat(len(base), 1)).maximise(slope)
        found.append(torch.cat([part, base[:, 2:]], 1))
    return torch.cat(found)


@pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in ATTACKS])
def test_rows_that_cannot_be_are_refused(card: Card) -> None:
    net, x = scorer(), records(6)
    y, norm = net(x).argmax(1), card.facts["norms"][0]
    target = Target(net)
    for place, value, word in ((2, 0.5, "between the possible ones"), (5, 0.5, "one-hot group")):
        wrong = x.clone()
        wrong[1, place] = value
        with pytest.raises(DataError, match=word):
            play(card, target, wrong, y, Threat(norm, 1.0, bounds=(0.0, 5.0), structure=TABLE))
    with pytest.raises(UsageError, match="one_hot names the position 8"):
        play(card, target, x, y, Threat(norm, 1.0, bounds=(0.0, 5.0), structure=Structure(one_hot=[(8, 9)])))
    assert target.ledger.queries == 0


class Tags(nn.Module):
    """Four yes-or-no labels of (n, 1, 4, 4) inputs."""

    def __init__(self) -> None:
        super().__init__()
        draw = generator(6, "tags")
        self.first, self.last = nn.Linear(16, 24), nn.Linear(24, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.6)
            self.last.bias.zero_()
            self.last.bias.copy_(-self(pictures(400)).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x.flatten(1))))


def pictures(n: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=generator(7, "pictures"))


@pytest.mark.parametrize(("card", "norm"), SEVERAL)
def test_any_label_of_several_may_turn(card: Card, norm: str) -> None:
    net, x = Tags().eval(), pictures(24)
    y = (net(x) > 0).long()
    radius = {"linf": 0.15, "l2": 0.5, "l1": 1.5, "l0": 3.0}[norm]
    z = play(card, Target(net, outputs="multilabel"), x, y, Threat(norm, radius))
    assert bool((size(z.flatten(1), x.flatten(1), norm) <= radius).all())
    won = ((net(z) > 0).long() != y).any(1)
    assert float(won.double().mean()) >= (0.1 if card.facts["baseline"] else 0.6)
    y[:, 1:] = -1  # nobody minds the other labels: the first alone counts
    z = play(card, Target(net, outputs="multilabel"), x, y, Threat(norm, math.inf if card.facts["minimum_norm"] else 2 * radius))
    turned = (net(z)[:, 0] > 0).long() != y[:, 0]
    assert float(turned.double().mean()) >= (0.05 if card.facts["baseline"] else 0.6)


@pytest.mark.parametrize(("card", "norm"), SEVERAL)
def test_a_wanted_set_of_labels_is_reached(card: Card, norm: str) -> None:
    if Goal.TARGETED not in card.facts["goals"] or card.facts["baseline"]:
        pytest.skip("untargeted alone, or by chance alone")
    net, x = Tags().eval(), pictures(24)
    wanted = (net(x) > 0).long()
    wanted[:, 0] = 1 - wanted[:, 0]
    wanted[:, 2:] = -1  # the first turned, the second kept
    threat = Threat(norm, math.inf if card.facts["minimum_norm"] or norm == "l0" else {"linf": 0.5, "l2": 1.5, "l1": 5.0}[norm])
    z = play(card, Target(net, outputs="multilabel"), x, wanted, threat.targeted())
    reached = ((net(z) > 0).long() == wanted)[:, :2].all(1)
    assert float(reached.double().mean()) >= 0.6


@pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in ATTACKS])
def test_labels_that_do_not_fit_a_model_of_several_are_refused(card: Card) -> None:
    net, x = Tags().eval(), pictures(6)
    target, norm = Target(net, outputs="multilabel"), card.facts["norms"][0]
    y = (net(x) > 0).long()
    if card.facts["classes_alone"]:
        with pytest.raises(UsageError, match="multi-label"):
            play(card, target, x, y, Threat(norm, 0.1))
    else:
        for wrong, word in ((y[:, 0], "labels"), (y[:3], "shape"), (y * 2, "0 or 1"), (y * 0 - 1, "no label that matters")):
            with pytest.raises(DataError, match=word):
                play(card, target, x, wrong, Threat(norm, 0.1))
    with pytest.raises(DataError, match="outputs='multilabel'"):
        play(card, Target(net), x, y, Threat(norm, 0.1))
    assert target.ledger.queries == 0


@functools.cache
def lattice() -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    """A net on five whole numbers from 0 to 5, points, labels, and which of them any point of the ball turns, by norm."""
    draw = generator(3, "lattice")
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    grid = torch.cartesian_prod(*[torch.arange(6.0)] * 5)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.5)
        net[2].bias.sub_(net(grid).mean(0))
        labels = net(grid).argmax(1)
    x = grid[torch.randint(len(grid), (60,), generator=draw)]
    y, turned = net(x).argmax(1), {}
    for norm, radius in WHOLE.items():
        near = torch.stack([size(grid, one[None].expand_as(grid), norm) <= radius for one in x])
        turned[norm] = (near & (labels[None] != y[:, None])).any(1)
    return net, x, y, turned


WHOLE = {"linf": 1.0, "l2": 1.5, "l1": 2.0, "l0": 1.0}


@pytest.mark.parametrize(("card", "norm"), FIRST)
def test_among_whole_numbers_it_is_no_worse_than_chance(card: Card, norm: str) -> None:
    if card.facts["fine_steps"]:
        pytest.skip("it learns from small changes, and says so")
    net, x, y, turned = lattice()
    threat = Threat(norm, WHOLE[norm], bounds=(0.0, 5.0), structure=Structure(step=1.0))
    won = net(play(card, net, x, y, threat)).argmax(1) != y
    assert not bool((won & ~turned[norm]).any())
    noise = load_methods().get("random-noise", "attack").function
    chance = net(noise(net, x, y, threat, draws=4)).argmax(1) != y
    # One step, and steps over planes, may fall short by a few samples of the sixty.
    assert int(won.sum()) >= int(chance.sum()) - (6 if card.name in LEAPING or card.facts["baseline"] else 3)
