"""Verdicts of the privacy checks: when they warn, when they fail, and what they refuse to blame on the model."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import hauberk
from hauberk import Data, Linf, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.checks.privacy import verdict
from hauberk.cli.app import app
from hauberk.core.finding import Finding, Interval, Status
from hauberk.core.kinds import MembershipScores
from hauberk.core.rng import isolated
from hauberk.core.roc import Roc, roc
from hauberk.methods import load_methods
from hauberk.privacy.membership.measure import Exposure, blind_auc, exposure

MEMBERSHIP = ("privacy/membership-loss", "privacy/membership-entropy")


def run(name: str, model: object, data: Data) -> Finding:
    return run_check(load_methods().get(name, "check"), Target(model), data, Settings())  # type: ignore[arg-type]


def noise(n: int, width: int = 20, seed: int = 0) -> Tensor:
    return torch.rand(n, width, generator=torch.Generator().manual_seed(seed))


class Remembers:
    """Scores of two classes whose margin is standard normal, and higher by `shift` for members; labels are all right."""

    def __init__(self, x: Tensor, members: int, shift: float) -> None:
        order = x[:, 0].argsort()
        draw = torch.Generator().manual_seed(5)
        margin = torch.randn(len(x), generator=draw) + shift * (torch.arange(len(x)) < members)
        self.keys, self.margin = x[order, 0].contiguous(), margin[order] + 6

    def __call__(self, x: Tensor) -> Tensor:
        margin = self.margin[torch.searchsorted(self.keys, x[:, 0].contiguous())]
        return torch.stack([torch.zeros_like(margin), torch.where(x[:, 1] > 0.5, margin, -margin)], 1)


def remembered(shift: float) -> tuple[Remembers, Data]:
    x = noise(1000)
    y = (x[:, 1] > 0.5).long()
    return Remembers(x, 500, shift), Data(Split(x[500:], y[500:]), Split(x[:500], y[:500]), classes=2)


@pytest.mark.parametrize("name", MEMBERSHIP)
@pytest.mark.parametrize(("shift", "status"), [(0.0, Status.PASS), (0.45, Status.WARN), (2.0, Status.FAIL)])
def test_the_more_a_model_remembers_the_worse_the_verdict(name: str, shift: float, status: Status) -> None:
    found = run(name, *remembered(shift))
    # Two unit normals that far apart are told apart with an area of Phi(shift / sqrt 2).
    area = float(torch.special.ndtr(torch.tensor(shift / 2**0.5)))
    assert float(found.evidence[0].rows[0][3]) == pytest.approx(area, abs=0.05)  # type: ignore[union-attr]
    assert found.status is status


def exposed(auc: float, low: float, tpr: float = 0.0, tpr_low: float = 0.0, chance: float = 1.0) -> Exposure:
    fpr = torch.tensor([0.0, 0.0, 1.0]).double().numpy()
    height = 2 * auc - 1  # a step to that height at 0, then straight to 1: its area is auc
    curve = Roc(fpr, torch.tensor([0.0, height, 1.0]).double().numpy(), fpr, 100, 100)
    assert curve.auc == pytest.approx(auc)
    return Exposure(curve, Interval(low, 2 * auc - low), 0.001, tpr, Interval(tpr_low, 1.0), chance)


@pytest.mark.parametrize(
    ("found", "blind", "status"),
    [
        (exposed(0.56, 0.54), (0.5, Interval(0.47, 0.53)), Status.PASS),
        (exposed(0.58, 0.56), (0.5, Interval(0.47, 0.53)), Status.WARN),
        (exposed(0.52, 0.50, chance=0.009), (0.5, Interval(0.47, 0.53)), Status.WARN),
        (exposed(0.75, 0.72), (0.5, Interval(0.47, 0.53)), Status.FAIL),
        (exposed(0.52, 0.50, 0.05, 0.011, 1e-4), (0.5, Interval(0.47, 0.53)), Status.FAIL),
        (exposed(0.52, 0.50, 0.05, 0.011, 2e-3), (0.5, Interval(0.47, 0.53)), Status.WARN),
        (exposed(0.75, 0.72), (0.8, Interval(0.76, 0.84)), Status.WARN),  # the inputs alone do as well
        (exposed(0.75, 0.72), (0.74, Interval(0.70, 0.78)), Status.WARN),  # not surely worse
        (exposed(0.95, 0.93), (0.74, Interval(0.70, 0.78)), Status.FAIL),  # surely worse
        (exposed(0.52, 0.50, 0.05, 0.011, 1e-4), (0.6, Interval(0.53, 0.67)), Status.WARN),
        (exposed(0.54, 0.51, 0.05, 0.011, 1e-4), (0.53, Interval(0.51, 0.55)), Status.FAIL),  # hardly a shift
        (exposed(0.45, 0.43, 0.05, 0.011, 1e-4), (0.5, Interval(0.47, 0.53)), Status.FAIL),  # none
    ],
)
def test_the_verdict_at_each_of_its_limits(found: Exposure, blind: tuple[float, Interval], status: Status) -> None:
    assert verdict(found, blind) is status


@pytest.mark.parametrize("name", MEMBERSHIP)
def test_a_model_that_never_saw_the_members_does_not_fail_for_a_shift_of_the_data(name: str) -> None:
    x = noise(1200)
    y = (x[:, 0] > 0.5).long()
    x[:600] = 0.5 + (x[:600] - 0.5) * 0.9 + 0.05
    x[600:] = 0.5 + (x[600:] - 0.5) * 0.3 - 0.05  # nearer to the boundary, and darker
    weight = torch.zeros(20)
    weight[0] = 20

    def model(z: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(z)), z @ weight - 10], 1)

    found = run(name, model, Data(Split(x[600:], y[600:]), Split(x[:600], y[:600]), classes=2))
    assert float(found.evidence[0].rows[0][3]) > 0.75  # type: ignore[union-attr]
    assert found.status is Status.WARN
    assert any("not attributable to the model" in note for note in found.notes)


@pytest.mark.parametrize("name", [*MEMBERSHIP, "privacy/generalisation-gap"])
def test_test_samples_that_were_trained_on_are_no_non_members(name: str) -> None:
    model, data = remembered(2.0)
    x, y = data.train.tensors()
    other, other_y = data.test.tensors()
    same = run(name, model, Data(Split(x, y), Split(x, y), classes=2))
    assert same.status is Status.NOT_RUN and "500 of 500 test samples are also in the training data" in same.reason
    mixed = Data(Split(torch.cat([other, x[:30]]), torch.cat([other_y, y[:30]])), data.train, classes=2)
    assert run(name, model, mixed).status is Status.NOT_RUN  # 5.7 %
    few = Data(Split(torch.cat([other, x[:20]]), torch.cat([other_y, y[:20]])), data.train, classes=2)
    clean, found = run(name, model, data), run(name, model, few)
    assert (found.value, found.n, found.status) == (clean.value, clean.n, clean.status)
    assert "20 of 520 test samples are also in the training data and were left out" in found.notes


@pytest.mark.parametrize(("first", "status"), [(32, Status.WARN), (57, Status.WARN), (63, Status.PASS)])
def test_labels_of_two_classes_can_leak(first: int, status: Status) -> None:
    with isolated(0):
        model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
    found = run("privacy/label-leakage", model, Data(Split(noise(64), (torch.arange(64) >= first).long()), classes=2))
    assert (found.value, found.status) == (1.0, status)  # Wilson: 64 of 64 are at least .943, and 63 of 64 are .984
    assert any("more samples would decide it" in note for note in found.notes) is (status is Status.PASS)


def test_the_advice_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = {
        one.command for card in load_methods().cards("check") if card.name.startswith(("privacy/", "assets/"))
        for one in card.facts["advice"] if one.command
    }
    assert commands
    for command in sorted(commands):
        if command.startswith("hauberk "):
            words = shlex.split(command)[1:]
            # What needs a file or data of the user's own cannot run here: its command and options are those there are.
            ready = words[0] == "calibrate"
            told = CliRunner().invoke(app, words if ready else [words[0], "--help"], env={"COLUMNS": "200"})
            assert told.exit_code == 0, (command, told.output)
            assert ready or not [word for word in words if word.startswith("--") and word not in told.output], command
            continue
        y = torch.arange(40) % 2
        with isolated(0):
            model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
        sex = {"sex": (torch.arange(40) % 5 == 0).long()}
        data = Data(Split(noise(40), y, sex), Split(noise(40, seed=1), y, sex))
        before = model[0].weight.detach().clone()
        made: dict[str, object] = {"hauberk": hauberk, "model": model, "data": data, "threat": Linf(0.1)}
        exec(command, made)
        if "served" in made:  # a defence of the answers leaves the model as it was
            answers = made["served"].scores(data.test.tensors()[0])  # type: ignore[attr-defined]
            assert len(answers.unique()) <= 21 < 40 and torch.equal(before, model[0].weight.detach())
            continue
        trained = made.get("narrow", model)  # a copy with a bottleneck, or the model itself
        assert isinstance(trained, nn.Sequential) and not trained.training
        assert not torch.equal(before, trained[0].weight.detach())


def test_a_shift_of_the_whole_split_does_not_excuse_members_that_stand_out() -> None:
    draw = torch.Generator().manual_seed(0)
    others = torch.randn(2000, generator=draw).double()
    members = torch.randn(2000, generator=draw).double() + 0.4
    alone = members.clone()
    members[:200] += 20  # one in ten is known by heart
    found, blind = exposure(MembershipScores(members, others)), roc(alone, others)
    assert found.ahead > 10 and found.auc_interval.low < 0.7
    shifted = (0.66, Interval(0.6, 0.7))
    assert verdict(found, shifted) is Status.WARN  # of the area alone nothing better can be said
    assert verdict(found, (*shifted, blind)) is Status.FAIL
    assert verdict(found, (*shifted, found.roc)) is Status.WARN  # the records alone stand out as much


@pytest.mark.parametrize("name", MEMBERSHIP)
def test_labels_that_are_mixed_otherwise_are_not_blamed_on_the_model(name: str) -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(2000, 5, generator=draw)
    y = (torch.rand(2000, generator=draw) > torch.where(torch.arange(2000) < 1000, 0.9, 0.3)).long()
    data = Data(Split(x[1000:], y[1000:]), Split(x[:1000], y[:1000]))

    def constant(z: Tensor) -> Tensor:  # it knows no record, and that class 0 was the commoner
        return torch.tensor([2.0, 0.0]) + 0.01 * z[:, :2]

    found = run(name, constant, data)
    assert found.status is Status.WARN and any("not attributable" in note for note in found.notes)


def test_copies_are_no_evidence_of_their_own() -> None:
    draw = torch.Generator().manual_seed(3)
    x, z = torch.rand(60, 5, generator=draw), torch.rand(300, 5, generator=draw)
    y = torch.randint(0, 2, (360,), generator=draw)
    data = Data(Split(z, y[60:]), Split(x.repeat(5, 1), y[:60].repeat(5)))
    found = run("privacy/membership-loss", lambda a: a[:, :2], data)
    assert found.n == 60 and found.status is Status.PASS


def test_the_control_without_the_model_is_not_fitted_to_copies_of_what_it_judges() -> None:
    areas = []
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        x, z = torch.randn(50, 10, generator=draw), torch.randn(150, 10, generator=draw)
        areas.append(blind_auc(x.repeat(3, 1), z, seed=seed)[0])
    assert sum(areas) / 20 < 0.53  # fitted to copies, .57
