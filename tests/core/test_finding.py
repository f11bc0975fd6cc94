"""Finding: what is written is what is read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hauberk.core.errors import UsageError
from hauberk.core.finding import (
    Advice,
    Curve,
    Finding,
    Gallery,
    Heatmap,
    Interval,
    Picture,
    Series,
    Status,
    Table,
)


def full():
    return Finding(
        "robustness/pgd-linf", "robustness", "Does it hold?", Status.FAIL, value=0.25, unit="rate", n=200,
        interval=Interval(0.2, 0.31, "wilson", 0.9), better="higher", threat="Linf 0.1", access="GRADIENT", queries=7,
        gradients=8, seconds=1.5, summary="25 % hold",
        evidence=[
            Table("t", ["a", "b"], [[1, "x"], [2.5, None]]),
            Curve("c", "x", "y", [Series("s", [1.0, 2.0], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0])], log_x=True, diagonal=True),
            Heatmap("h", ["r"], ["c1", "c2"], [[0.1, 0.2]], "lower"),
            Gallery("g", [Picture("aGk=", "a digit")]),
        ],
        tags=["atlas:AML.T0043"], advice=[Advice("train", "hauberk.fit(...)", "AML.M0003")], notes=["limited"], reason="",
    )


def test_round_trip_through_json_keeps_everything():
    plain = full().to_dict()
    text = json.dumps(plain, allow_nan=False)
    again = Finding.from_dict(json.loads(text))
    assert again == full()
    assert again.to_dict() == plain


@pytest.mark.parametrize("status", list(Status))
def test_status_round_trips(status):
    assert Finding.from_dict(Finding("a/b", "trust", "?", status).to_dict()).status is status


def test_order_of_statuses_puts_not_run_above_pass():
    ranked = sorted(Status, key=lambda one: one.severity)
    assert ranked == [Status.PASS, Status.NOT_RUN, Status.WARN, Status.FAIL, Status.ERROR]


def test_what_is_not_finite_becomes_none():
    made = Finding("a/b", "trust", "?", Status.WARN, value=math.nan, interval=Interval(-math.inf, 0.5),
                   evidence=[Table("t", ["v"], [[math.inf], [np.float32("nan")], [torch.tensor(1.5)]])])
    plain = made.to_dict()
    assert plain["value"] is None
    assert (plain["interval"]["low"], plain["interval"]["high"]) == (None, 0.5)
    assert plain["evidence"][0]["rows"] == [[None], [None], [1.5]]
    read = Finding.from_dict(json.loads(json.dumps(plain, allow_nan=False)))
    assert read.value is None and math.isnan(read.interval.low) and read.interval.high == 0.5


def test_arrays_and_scalars_of_numpy_and_torch_become_plain():
    made = Finding("a/b", "trust", "?", Status.PASS, n=np.int64(3), evidence=[
        Curve("c", "x", "y", [Series("s", np.array([1.0, np.nan]), torch.tensor([1, 2]))]),
    ])
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert plain["n"] == 3
    assert plain["evidence"][0]["series"][0]["x"] == [1.0, None] and plain["evidence"][0]["series"][0]["y"] == [1, 2]


def test_unknown_keys_of_a_later_version_are_left_out():
    assert Finding.from_dict({**full().to_dict(), "mood": "grim"}) == full()


@pytest.mark.parametrize("plain", [
    {}, [], None, {"id": "a"}, {**full().to_dict(), "status": "fine"}, {**full().to_dict(), "evidence": [{"kind": "film"}]},
    {**full().to_dict(), "interval": {"low": 1}}, {**full().to_dict(), "advice": [3]},
])
def test_anything_else_is_refused(plain):
    with pytest.raises(UsageError, match="a finding cannot be read"):
        Finding.from_dict(plain)
