"""One assessment of a fixed seed: the same twice, and the one that is written down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from torch import nn

import hauberk
from hauberk import Data, Linf
from hauberk.core.finding import Status
from hauberk.report.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "report.json"


@pytest.fixture(scope="module")
def report(digits: Data, digits_model: nn.Module) -> Report:
    return hauberk.assess(digits_model, digits, Linf(0.1), seed=0)


def figures(report: Report) -> dict[str, dict[str, object]]:
    """What is written down of every finding. Versions differ between machines, so the inventory's count is left out."""
    return {
        one.id: {
            "status": one.status.value, "value": None if one.value is None else round(one.value, 4), "n": one.n, "unit": one.unit,
        }
        for one in report.findings
        if one.id != "assets/inventory"
    }


def test_it_is_the_report_written_down(report: Report) -> None:
    found = figures(report)
    if os.environ.get("HAUBERK_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    written = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(found) == list(written)
    for name, one in written.items():
        assert found[name]["n"] == one["n"], name
        assert found[name]["unit"] == one["unit"], name
        if one["value"] is None:
            assert found[name]["value"] is None, name
        else:
            # Another processor rounds otherwise, and a few samples on the edge may fall to the other side.
            assert found[name]["value"] == pytest.approx(one["value"], rel=0.15, abs=0.05), name


def test_it_covers_all_pillars_with_nothing_in_error(report: Report) -> None:
    assert set(report.verdicts()) == {"robustness", "integrity", "privacy", "assets", "trust"}
    assert [(one.id, one.reason) for one in report.findings if one.status is Status.ERROR] == []
    assert len(report.findings) >= 25


def test_every_figure_has_what_makes_it_honest(report: Report) -> None:
    for one in report.findings:
        if one.value is not None:
            assert one.n, one.id
        if one.status is Status.NOT_RUN:
            assert one.reason, one.id
        if one.unit in ("accuracy", "rate") and one.value is not None:
            assert one.interval is not None, one.id
            assert one.interval.low <= one.value <= one.interval.high, one.id
        natural = ("robustness/clean-accuracy", "robustness/corruptions", "robustness/worst-corruption")
        if one.pillar == "robustness" and one.id not in natural:
            assert one.threat or one.status is Status.NOT_RUN, one.id


def test_the_same_seed_gives_the_same_figures_in_any_selection(report: Report, digits: Data, digits_model: nn.Module) -> None:
    names = ["robustness/pgd-linf", "robustness/worst-case", "privacy/membership-loss", "integrity/bit-flips"]
    again = hauberk.assess(digits_model, digits, Linf(0.1), seed=0, select=names)
    for one in again.findings:
        first = report.find(one.id)
        assert (one.value, one.n, one.queries, one.gradients) == (first.value, first.n, first.queries, first.gradients), one.id


def test_it_survives_its_json(report: Report) -> None:
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
