"""Membership by the worst loss in a ball, on models whose leak is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hauberk
from hauberk import Data, Linf, Split
from hauberk.core.finding import Curve, Status, Table


class Plateau(nn.Module):
    """Tells left from right, just as sure everywhere within .3 of a point it was trained on; less so outside."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        far = torch.cdist(x, self.get_buffer("points")).min(1).values
        sure = (5 + 20 * (0.3 - far)).clamp(max=5) * self.scale
        return torch.stack([sure * (x[:, 0] < 12), sure * (x[:, 0] >= 12)], 1)


def _data(away: float, seed: int = 0) -> Data:
    draw = torch.Generator().manual_seed(seed)
    points = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)) * 2 + 1
    points = points[torch.randperm(len(points), generator=draw)]
    shift = torch.tensor([[away, 0.0], [-away, 0.0], [0.0, away], [0.0, -away]]).repeat(36, 1)
    y = (points[:, 0] > 12).long()
    return Data(Split(points + shift, y), train=Split(points, y), bounds=(0.0, 25.0), classes=2, name="grid")


def _finding(model: nn.Module, data: Data, eps: float, tmp: object) -> hauberk.Finding:
    report = hauberk.assess(model, data, Linf(eps), preset="standard", select="privacy/robustness-leakage", output=str(tmp))
    return report.findings[0]


def test_firmness_around_training_records_gives_them_away_where_the_clean_loss_does_not(tmp_path: object) -> None:
    data = _data(0.25)
    assert data.train is not None
    found = _finding(Plateau(data.train.tensors()[0]), data, 0.2, tmp_path)
    # On the plateau the slope is zero: only a random start that leaves it finds the edge, so that not every record is told.
    assert found.status in (Status.WARN, Status.FAIL) and found.value is not None and found.value > 0.65
    curve, table = found.evidence
    assert isinstance(curve, Curve) and isinstance(table, Table)
    area, members, others = curve.series
    assert area.x[0] == 0.0 and abs(area.y[0] - 0.5) < 1e-9  # every clean loss is the same: ties are worth one half
    assert members.y[-1] == 1.0 and list(area.x) == [0.0, 0.05, 0.1, 0.2] and others.name == "accuracy left, others"
    assert any("more than the clean one by +0." in note for note in found.notes) and found.n == 288


def test_the_interval_of_the_largest_area_is_corrected_for_having_been_chosen(tmp_path: object) -> None:
    data = _data(0.25)
    found = _finding(Plateau(torch.tensor([[12.5, 12.5]])), data, 0.2, tmp_path)
    assert found.interval is not None and found.interval.confidence == pytest.approx(1 - 0.05 / 3)
    assert any("largest of 3 radii" in note for note in found.notes)


def test_splits_that_differ_in_themselves_do_not_fail_the_model(tmp_path: object) -> None:
    data = _data(0.0)
    assert data.train is not None
    x, y = data.test.tensors()
    away = Split((x + torch.tensor([0.0, 40.0])).clamp(0, 60), y)
    apart = Data(away, train=data.train, bounds=(0.0, 60.0), classes=2, name="grid")
    found = _finding(Plateau(data.train.tensors()[0]), apart, 0.2, tmp_path)
    assert found.status is Status.WARN and found.value is not None and found.value > 0.95
    assert any("the inputs alone separate" in note for note in found.notes)


def test_a_model_that_knows_no_record_gives_none_away(tmp_path: object) -> None:
    data = _data(0.25)
    found = _finding(Plateau(torch.tensor([[12.5, 12.5]])), data, 0.2, tmp_path)
    assert found.status is Status.PASS and found.value is not None and abs(found.value - 0.5) < 0.07


def test_without_a_radius_or_training_records_it_is_not_run(tmp_path: object) -> None:
    data = _data(0.25)
    assert _finding(Plateau(torch.zeros(1, 2)), data, 0.0, tmp_path).status is Status.NOT_RUN
    alone = Data(data.test, bounds=(0.0, 25.0), classes=2, name="grid")
    assert _finding(Plateau(torch.zeros(1, 2)), alone, 0.1, tmp_path).status is Status.NOT_RUN
