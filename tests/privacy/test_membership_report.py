"""The report of membership: figures by hand, ties, slices, risk, the control; and the paired gain of one attack over another."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.kinds import MembershipScores
from hauberk.core.roc import auc_gain, beaten, roc
from hauberk.privacy.membership import MembershipReport
from hauberk.privacy.membership.measure import dealt_anew
from hauberk.privacy.membership.signals import Records


def drawn(shift: float, n: int = 300, seed: int = 0) -> MembershipScores:
    draw = torch.Generator().manual_seed(seed)
    return MembershipScores(torch.randn(n, generator=draw).double() + shift, torch.randn(n, generator=draw).double())


def test_figures_agree_with_a_roc_and_go_into_plain_json() -> None:
    report = MembershipReport({"one": drawn(1.0), "two": drawn(0.0, seed=1)})
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    curve = roc(drawn(1.0).members, drawn(1.0).non_members)
    one = told["attacks"]["one"]
    assert (one["auc"], one["balanced_accuracy"]) == (curve.auc, curve.balanced_accuracy)
    assert [row["fpr"] for row in one["tpr"]] == [1e-2, 1e-3, 1e-4]
    assert one["tpr"][0]["tpr"] == curve.tpr_at(0.01)
    assert one["auc_interval"]["low"] < one["auc"] < one["auc_interval"]["high"]
    low, high = told["shuffled"]["range"]["low"], told["shuffled"]["range"]["high"]
    assert low < 0.5 < high and abs(told["shuffled"]["auc"] - 0.5) < 0.02
    tables = [one.title for one in report.evidence()]
    assert len(tables) == 4 and len(report.curve().series) == 2 and report.curve().log_x and report.curve().log_y


def test_an_attack_that_peeks_at_the_sides_is_found_out() -> None:
    draw = torch.Generator().manual_seed(3)
    sides = [(torch.randn(200, 1, generator=draw), torch.zeros(200).long()) for _ in range(2)]

    def fair(left: Records, right: Records) -> MembershipScores:
        return MembershipScores(left[0][:, 0].double(), right[0][:, 0].double())

    def peeking(left: Records, right: Records) -> MembershipScores:
        return MembershipScores(left[0][:, 0].double() + 1, right[0][:, 0].double())

    for attack, broken in ((fair, False), (peeking, True)):
        report = MembershipReport({"it": attack(*sides)}, dealt=dealt_anew(attack, *sides, seed=0))
        assert report.broken is broken and len(report.control_table().rows) == 2
        dealt = report.to_dict()["dealt"]
        assert (dealt["interval"]["low"] > 0.6) is broken and dealt["interval"]["confidence"] == 0.999
    assert not MembershipReport({"it": peeking(*sides)}).broken  # scores alone cannot tell


def test_equal_scores_give_one_half_everywhere() -> None:
    same = MembershipScores(torch.zeros(50).double(), torch.zeros(60).double())
    told = MembershipReport({"same": same}, {"class": (torch.zeros(50).long(), torch.zeros(60).long())}).to_dict()
    one = told["attacks"]["same"]
    assert (one["auc"], one["balanced_accuracy"], one["chance"]) == (0.5, 0.5, 1.0)
    assert [row["tpr"] for row in one["tpr"]] == [0, 0, 0]
    assert told["shuffled"]["auc"] == 0.5
    slice_ = told["slices"]["class"][0]
    assert (slice_["auc"], slice_["tpr"]) == (0.5, 0.0)
    assert told["most_exposed"][0]["fpr"] == 1.0


def test_slices_are_judged_by_one_threshold_and_small_ones_are_left_out() -> None:
    members = torch.cat([torch.full((30,), 5.0), torch.zeros(30), torch.ones(5)]).double()
    others = torch.cat([torch.arange(100) / 100, torch.arange(100) / 100, torch.zeros(5)]).double()
    inside = torch.tensor([0] * 30 + [1] * 30 + [2] * 5)
    outside = torch.tensor([0] * 100 + [1] * 100 + [2] * 5)
    report = MembershipReport({"a": MembershipScores(members, others)}, {"class": (inside, outside)}, {"class": ["x", "y"]})
    first, second = report.sliced("class")
    assert (first.name, first.auc, first.tpr, first.members, first.others) == ("x", 1.0, 1.0, 30, 100)
    assert (second.name, second.auc, second.tpr) == ("y", pytest.approx(0.005), 0.0)
    # Two slices at once, and 1 % of 205 others is no threshold that is surely low enough.
    assert (first.tpr_interval.low, first.tpr_interval.high) == (0.0, 1.0)
    assert first.auc_interval.confidence == first.tpr_interval.confidence == 0.975
    assert report.slices_table("class").rows[0][0] == "x"


def test_the_risk_of_a_record_is_the_false_alarms_that_find_it() -> None:
    scores = MembershipScores(torch.tensor([2.5, 9.0, 0.5, 2.0]).double(), torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    report = MembershipReport({"a": scores})
    assert report.risk.tolist() == [3 / 5, 1 / 5, 1.0, 4 / 5]
    assert report.most_exposed(3) == [1, 0, 3]
    rows = report.exposed_table(torch.tensor([10, 20, 30, 40]), torch.tensor([0, 1, 2, 3]), count=2).rows
    assert [row[:2] for row in rows] == [(20, 1), (10, 0)]


def test_records_of_one_score_are_not_ranked_where_not_all_of_them_fit() -> None:
    scores = MembershipScores(torch.tensor([1.0, 0.0, 1.0, 2.0, 1.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double())
    report = MembershipReport({"a": scores})
    assert [row[:3] for row in report.exposed_table(count=2).rows] == [(3, "", "2"), ("3 records alike", "", "1")]
    assert [row[0] for row in report.exposed_table(count=4).rows] == [3, 0, 2, 4]
    told = report.to_dict()["most_exposed"]
    assert [(one["member"], one["alike"]) for one in told] == [(3, 1), (0, 3), (2, 3), (4, 3), (1, 1)]


def test_scores_of_other_records_are_refused() -> None:
    with pytest.raises(DataError, match="the same records"):
        MembershipReport({"a": drawn(0, 30), "b": drawn(0, 31)})
    spoilt = drawn(0, 30)
    spoilt.non_members[3] = torch.nan
    with pytest.raises(DataError, match="scores of 'a' are NaN"):
        MembershipReport({"a": spoilt})
    with pytest.raises(DataError, match="the slice 'sex' has 3 and 30 codes"):
        MembershipReport({"a": drawn(0, 30)}, {"sex": (torch.zeros(3), torch.zeros(30))})


def test_balanced_accuracy_lies_in_its_interval_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.5 + 0.5 * (2 * 0.6914624612740131 - 1)  # two normals one apart: the best cut is half way, P(Z < 1/2)
    held = 0
    for _ in range(200):
        span = roc(rng.normal(1, 1, 150), rng.normal(0, 1, 150)).balanced_interval()
        held += span.low <= truth <= span.high
    assert held >= 190
    assert roc(np.zeros(5), np.zeros(5)).balanced_interval().low == 0.5


def test_the_paired_gain_agrees_with_a_bootstrap_of_records() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(2, 400)) + np.array([[1.0], [0.0]])
    a, b = base + 0.3 * rng.normal(size=base.shape), base + 0.8 * rng.normal(size=base.shape)
    gain, span = auc_gain([(a[0], a[1])], [(b[0], b[1])])
    assert gain == pytest.approx(roc(a[0], a[1]).auc - roc(b[0], b[1]).auc)
    drawn_gains = []
    for _ in range(300):
        i, j = rng.integers(0, 400, 400), rng.integers(0, 400, 400)
        drawn_gains.append(roc(a[0, i], a[1, j]).auc - roc(b[0, i], b[1, j]).auc)
    assert (span.high - span.low) / (2 * 1.96) == pytest.approx(np.std(drawn_gains), rel=0.15)
    # The same records twice are no more records: as clusters the interval stays, as strangers it shrinks by the root of two.
    ids = (np.arange(400), np.arange(400, 800))
    twice = auc_gain([(a[0], a[1])] * 2, [(b[0], b[1])] * 2, [ids, ids])[1]
    assert twice.high == pytest.approx(span.high) and twice.low == pytest.approx(span.low)
    apart = auc_gain([(a[0], a[1])] * 2, [(b[0], b[1])] * 2)[1]
    assert (apart.high - apart.low) == pytest.approx((span.high - span.low) / 2**0.5)
    wins, losses = beaten(a[0], a[1])
    assert wins.mean() == pytest.approx(losses.mean()) == pytest.approx(roc(a[0], a[1]).auc)


def test_records_that_stand_out_by_chance_are_told_from_those_that_are_known() -> None:
    silent = [MembershipReport({"a": drawn(0.0, 500, seed=seed)}) for seed in range(40)]
    assert all(one.risk.min() < 0.02 for one in silent)  # some record is always the first
    assert sum(one.wrong.min() < 0.1 for one in silent) <= 9  # 4 expected at most
    scores = drawn(0.0, 1000, seed=4)
    scores.members[:50] += 10
    told = MembershipReport({"a": scores})
    assert sorted(told.most_exposed(50)) == list(range(50)) and told.wrong[:50].max() < 0.05
    assert told.to_dict()["most_exposed"][0]["fdr"] == pytest.approx(told.wrong[told.most_exposed(1)[0]])
    # Benjamini and Hochberg: risk x members / rank, here all of one risk and the last of rank 50.
    assert told.wrong[:50].max() == pytest.approx(1 / 1001 * 1000 / 50)


def test_slices_of_a_model_that_remembers_nothing_do_not_seem_exposed() -> None:
    sure = 0
    for seed in range(20):
        scores, code = drawn(0.0, 400, seed=seed), torch.arange(400) % 20
        found = MembershipReport({"a": scores}, {"class": (code, code)}).sliced("class")
        assert len(found) == 20
        sure += any(one.auc_interval.low > 0.5 for one in found)
    assert sure <= 3  # two-sided 5 % for all twenty at once; each by itself would be surely above in a third of the runs


def test_the_control_without_the_model_is_told() -> None:
    report = MembershipReport({"a": drawn(0.0, 100)}, blind=(0.7, Interval(0.6, 0.8)))
    assert report.control_table().rows[-1] == ("inputs and labels alone, without the model", "0.700", "0.600 to 0.800")
    assert report.to_dict()["blind"]["interval"]["low"] == 0.6 and MembershipReport({"a": drawn(0.0)}).to_dict()["blind"] is None
