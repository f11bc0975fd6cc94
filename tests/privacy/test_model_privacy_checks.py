"""The checks of attributes and of inversion: what is planted is found, what is not is not, and the groups are read rightly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Split, Target
from hauberk.checks.attributes import sensitive_columns
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Status
from hauberk.core.target import Normalize
from hauberk.methods import load_methods

REGISTRY = load_methods()


def census(seed: int, n: int = 400) -> Split:
    """Records of two numbers, a one-hot coin and the same coin as a group; labels are the coin crossed with the first number."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 4, generator=draw)
    coin = torch.randint(0, 2, (n,), generator=draw)
    x[:, 2], x[:, 3] = 1.0 - coin, coin.float()
    return Split(x, (x[:, 0] > 0.5).long() ^ coin, {"sex": coin, "elsewhere": coin})


def data() -> Data:
    names = ("age", "hours", "sex=Female", "sex=Male")
    return Data(census(0), census(1), bounds=(0.0, 1.0), classes=2, modality="tabular", feature_names=names)


class Crossed(nn.Module):
    """Labels as they are made, whatever the strength; without any it ignores the record."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        side = (x[:, 0] - 0.5).sign() * (x[:, 2] - x[:, 3]) * self.strength
        return torch.stack([-side, side], 1)


def run(name: str, model: nn.Module, given: Data, **settings: object) -> object:
    return run_check(REGISTRY.get(name, "check"), Target(model), given, Settings(**settings))  # type: ignore[arg-type]


def test_groups_are_found_among_the_features() -> None:
    found = sensitive_columns(data())
    assert list(found) == ["sex"] and found["sex"].columns == (2, 3) and len(found["sex"]) == 2


def test_a_forest_can_tell_the_cross_itself_so_that_the_model_adds_nothing() -> None:
    """The label and the other columns give the attribute away to anybody: the baseline keeps that from counting as a leak."""
    finding = run("privacy/attribute-inference", Crossed(3.0), data())
    assert finding.status is Status.PASS and finding.n == 200  # type: ignore[attr-defined]
    assert abs(finding.value) < 0.1  # type: ignore[attr-defined]


def test_what_only_the_model_knows_shows() -> None:
    """Labels at random, learnt by heart: no other record tells of them, and the model does."""
    given = data()
    assert given.train is not None
    draw = torch.Generator().manual_seed(5)
    for split in (given.test, given.train):
        split.y = torch.randint(0, 2, (len(split),), generator=draw)
    members, y = given.train.tensors()

    class Heart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            apart = torch.cdist(x, members)
            near, place = apart.min(1)
            right = (near < 1e-6).float() * 5
            side = right * (2 * y[place] - 1)
            return torch.stack([-side, side], 1)

    finding = run("privacy/attribute-inference", Heart(), given)
    assert finding.status is Status.FAIL and finding.value > 0.3  # type: ignore[attr-defined]
    rows = finding.evidence[0].rows  # type: ignore[attr-defined]
    assert {row[0] for row in rows} == {"sex"} and len(rows) == 3


def test_without_named_columns_or_a_table_it_says_why_not(digits: Data, digits_model: nn.Module) -> None:
    bare = Data(Split(census(0).x, census(0).y), Split(census(1).x, census(1).y), modality="tabular")
    for name, model, given, reason in (
        ("privacy/attribute-inference", Crossed(1.0), bare, "data.groups"),
        ("privacy/attribute-inference", digits_model, digits, "not a table"),
        ("privacy/model-inversion", Crossed(1.0), data(), "not images"),
    ):
        finding = run(name, model, given)
        assert finding.status is Status.NOT_RUN and reason in finding.reason  # type: ignore[attr-defined]


def test_inversions_of_digits_are_recognised_and_those_of_noise_are_not(digits: Data, digits_model: nn.Module) -> None:
    finding = run("privacy/model-inversion", digits_model, digits)
    assert finding.status is Status.WARN and finding.n == 10 and finding.value >= 0.5  # type: ignore[attr-defined]
    assert finding.gradients >= 600 and finding.queries > finding.gradients  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        noise = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    other = run("privacy/model-inversion", noise, digits)
    assert other.value <= 0.5 and other.value < finding.value  # type: ignore[attr-defined]


def test_pixels_of_another_range_and_precision_are_judged_alike(digits: Data, digits_model: nn.Module) -> None:
    assert digits.train is not None
    model = nn.Sequential(Normalize(0.0, 255.0), copy.deepcopy(digits_model)).double()
    splits = [Split(255 * x.double(), y) for x, y in (one.tensors() for one in (digits.test, digits.train))]
    wide = Data(*splits, bounds=(0.0, 255.0), classes=10, modality="image")
    found = run("privacy/model-inversion", model, wide)
    assert found.status is Status.WARN and found.value >= 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["privacy/attribute-inference", "privacy/model-inversion"])
def test_presets(name: str) -> None:
    card = REGISTRY.get(name, "check")
    assert not card.runs_at("quick") and card.runs_at("thorough")
