"""Metrics of corruptions: tables worked by hand, and the failures kept in a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hauberk import Access, Data, Target
from hauberk.core import rng
from hauberk.core.errors import DataError, UsageError
from hauberk.core.stats import wilson
from hauberk.methods import load_methods
from hauberk.robustness.evaluate import (
    BaselineErrors,
    CorruptedRun,
    corrupted_images,
    corrupted_run,
    corruption_metrics,
    failures,
    save_failures,
)
from hauberk.robustness.evaluate.corruption_metrics import mean_band

NAMES = ("blur", "snow")


def run_of(right: Tensor) -> CorruptedRun:
    """A run of two classes, all labels 0, from what is right, (corruptions, 1 + severities, n)."""
    return CorruptedRun(NAMES[: len(right)], torch.zeros(right.shape[2], dtype=torch.long), (~right.bool()).long())


def table(clean: int, counts: list[list[int]], n: int = 10) -> CorruptedRun:
    """The first `count` samples are right."""
    rows = [[clean, *row] for row in counts]
    return run_of(torch.tensor([[[sample < count for sample in range(n)] for count in row] for row in rows]))


def test_every_figure_of_a_table_worked_by_hand() -> None:
    """10 samples, 9 right when clean; blur leaves 8 and 6, snow 5 and 1."""
    found = corruption_metrics(table(9, [[8, 6], [5, 1]]))
    assert found.clean.value == 0.9
    assert [[one.value for one in row] for row in found.cells] == [[0.8, 0.6], [0.5, 0.1]]
    assert [one.value for one in found.each] == pytest.approx([0.7, 0.3])
    assert found.mean.value == pytest.approx(0.5)
    assert not found.normalised
    assert found.mce.value == pytest.approx(0.5) and found.relative_mce.value == pytest.approx(0.4)
    # 9 -> 8 -> 6 and 9 -> 5 -> 1 of ten right: 1, 2, 4 and 4 answers flip.
    assert [[one.value for one in row] for row in found.flips] == [[0.1, 0.2], [0.4, 0.4]]
    assert found.flip_rate.value == pytest.approx(0.275)
    assert found.cells[1][1].interval == wilson(1, 10) and found.flips[0][1].interval == wilson(2, 10)
    assert "not normalised" in found.rows()[2][0]


def test_corruption_error_relative_to_a_baseline_by_hand() -> None:
    """Errors summed over severities: blur .2 + .4 against .4 + .8, snow .5 + .9 against .5 + .5: CE .5 and 1.4, mCE .95.

    Relative: blur (.6 - .2) / (1.2 - .4), snow (1.4 - .2) / (1 - .4): .5 and 2, mean 1.25.
    """
    run = table(9, [[8, 6], [5, 1]])
    published = BaselineErrors(torch.tensor([[0.4, 0.8], [0.5, 0.5]]), 0.2)
    measured = table(8, [[6, 2], [5, 5]])
    for baseline in (published, measured):
        found = corruption_metrics(run, baseline=baseline)
        assert found.normalised
        assert found.mce.value == pytest.approx(0.95) and found.relative_mce.value == pytest.approx(1.25)
        assert found.mce.interval is None  # ten samples: a ratio has no interval to be trusted
        assert "relative to the baseline" in found.rows()[2][0]
    itself = corruption_metrics(run, baseline=run)
    assert itself.mce.value == pytest.approx(1) and itself.relative_mce.value == pytest.approx(1)


def test_what_a_baseline_cannot_measure_is_not_measured() -> None:
    """A baseline without errors, or that corruption does not hurt, is no unit."""
    run = table(9, [[8, 6], [5, 1]])
    perfect = corruption_metrics(run, baseline=table(10, [[10, 10], [5, 5]]))
    assert not perfect.mce.measured and not perfect.relative_mce.measured
    unhurt = corruption_metrics(run, baseline=BaselineErrors(torch.tensor([[0.4, 0.8], [0.3, 0.3]]), 0.3))
    assert unhurt.mce.measured and not unhurt.relative_mce.measured
    assert unhurt.relative_mce.words() == "not measured"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Samples of a known difficulty: of an even draw in [0, 1), the model masters what lies above .3, the baseline above .5."""
    draw = np.random.default_rng(0)
    held, trials, n = {"mean": 0, "mce": 0}, 30, 60
    for trial in range(trials):
        hard = draw.random((1, 1, n))  # a sample that is hard is so at both severities, and for both models
        own, base = (
            run_of(torch.tensor(np.concatenate([hard > -1, hard > level, hard > level], 1))) for level in (0.3, 0.5)
        )
        found = corruption_metrics(own, baseline=base, seed=trial)
        for name, figure, truth in (("mean", found.mean, 0.7), ("mce", found.mce, 0.6)):
            assert figure.interval is not None and figure.value is not None
            held[name] += figure.interval.low <= truth <= figure.interval.high
    assert all(0.83 * trials <= count for count in held.values()), held


def test_a_paired_baseline_shares_its_luck() -> None:
    """The same samples are hard for both: the ratio varies less than against a baseline taken as exact."""
    draw = torch.Generator().manual_seed(0)
    hard = torch.rand(1, 1, 400, generator=draw).expand(1, 2, 400)
    clean = torch.ones(1, 1, 400, dtype=torch.bool)
    own, base = (run_of(torch.cat([clean, hard > level], 1)) for level in (0.45, 0.5))
    errors = 1 - base.right[:, 1:].double().mean(2)
    paired, exact = (corruption_metrics(own, baseline=one).mce for one in (base, BaselineErrors(errors, 0.0)))
    assert paired.value == pytest.approx(exact.value)
    widths = [one.interval.high - one.interval.low for one in (paired, exact) if one.interval is not None]
    assert widths[0] < 0.6 * widths[1]


def test_bands_of_few_or_equal_values_have_width() -> None:
    assert mean_band(np.ones(200), 0).low == pytest.approx(200 / (200 + 1.959964**2), rel=1e-6)
    assert mean_band(np.zeros(5), 0).high == pytest.approx(wilson(0, 5).high)


def test_a_run_is_that_of_a_plain_loop(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(40)
    target = Target(digits_model, access=Access.LABEL)
    run = corrupted_run(target, x, y, names=("rotate", "gaussian-noise"), seed=5)
    assert target.ledger.queries == 40 * (1 + 2 * 5)
    assert run.names == ("rotate", "gaussian-noise") and run.answers.shape == (2, 6, 40)
    for row, name in enumerate(run.names):
        card = load_methods().get(name, "corruption")
        for severity in range(6):
            z = card.function(x, severity, generator=rng.generator(5, "corruption", name))
            with torch.no_grad():
                assert torch.equal(run.answers[row, severity], digits_model(z).argmax(1))
            assert torch.equal(z, corrupted_images(name, severity, x, seed=5)) or severity == 0
    everything = corrupted_run(target, x[:2], y[:2])
    assert list(everything.names) == [card.name for card in load_methods().cards("corruption")]


def test_no_samples_measure_nothing() -> None:
    found = corruption_metrics(run_of(torch.ones(2, 3, 0)))
    assert not any(one.measured for one in (found.clean, found.mean, found.mce, found.relative_mce, found.flip_rate))


def test_bad_runs_and_baselines_are_refused(digits: Data, digits_model: nn.Module) -> None:
    run = table(9, [[8, 6], [5, 1]])
    with pytest.raises(DataError, match="severities, n"):
        CorruptedRun(("blur",), run.y, run.answers)
    with pytest.raises(DataError, match="other corruptions"):
        corruption_metrics(run, baseline=table(9, [[8, 6]]))
    with pytest.raises(DataError, match=r"\(2, 2\)"):
        corruption_metrics(run, baseline=BaselineErrors(torch.ones(2, 3), 0.5))
    with pytest.raises(UsageError, match="per cent"):
        corruption_metrics(run, baseline=BaselineErrors(torch.full((2, 2), 88.6), 0.5))
    x, y = digits.test.first(4)
    with pytest.raises(UsageError, match="rotate"):
        corrupted_run(digits_model, x, y, names=("rotat",))
    with pytest.raises(DataError, match="4 samples and 3 labels"):
        corrupted_run(digits_model, x, y[:3])


def test_failures_are_the_mildest_first_and_take_turns() -> None:
    """Sample 9 is wrong from the start; 8 fails blur at 1; 5 to 8 fail snow at 1; 6 and 7 fail blur at 2, 1 to 4 snow at 2."""
    found = failures(table(9, [[8, 6], [5, 1]]))
    assert found[:5] == [("blur", 1, 8), ("snow", 1, 5), ("snow", 1, 6), ("snow", 1, 7), ("snow", 1, 8)]
    assert found[5:] == [("blur", 2, 6), ("snow", 2, 1), ("blur", 2, 7), ("snow", 2, 2), ("snow", 2, 3), ("snow", 2, 4)]


@pytest.fixture(scope="module")
def shaky(digits: Data, digits_model: nn.Module) -> tuple[Tensor, CorruptedRun]:
    x, y = digits.test.first(60)
    return x, corrupted_run(digits_model, x, y, names=("contrast", "rotate"))


def test_saved_failures_can_be_seen_and_classified_again(
    tmp_path: Path, shaky: tuple[Tensor, CorruptedRun], digits_model: nn.Module
) -> None:
    x, run = shaky
    names = ["zero", "../../one", *"23456789"]
    index = save_failures(tmp_path / "new" / "folder", run, x, class_names=names, limit=12)
    content = json.loads(index.read_text(encoding="utf-8"))
    assert content["found"] == len(failures(run)) > 12 == len(content["failures"])
    assert [(one["corruption"], one["severity"], one["sample"]) for one in content["failures"]] == failures(run)[:12]
    files = sorted(path.name for path in index.parent.iterdir())
    assert files == sorted(["index.json", *(one["file"] for one in content["failures"])])
    for one in content["failures"]:
        with Image.open(index.parent / one["file"]) as drawn:
            pixels = torch.tensor(np.asarray(drawn))
        assert pixels.shape == (8, 8)
        made = corrupted_images(one["corruption"], one["severity"], x)[one["sample"]]
        torch.testing.assert_close(pixels[None].float() / 255, made, rtol=0, atol=0.5 / 255 + 1e-6)
        with torch.no_grad():
            assert int(digits_model(made[None]).argmax()) == one["answer"] != one["label"]
        assert one["label"] == int(run.y[one["sample"]]) and one["label_name"] == names[one["label"]]


def test_nothing_is_written_over_and_limits_hold(tmp_path: Path, shaky: tuple[Tensor, CorruptedRun]) -> None:
    x, run = shaky
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("keep")
    link = tmp_path / "link"
    link.symlink_to(kept / "elsewhere")
    file = tmp_path / "file"
    file.write_text("keep")
    for place in (kept, link, file):
        with pytest.raises(UsageError, match="new or empty"):
            save_failures(place, run, x)
    assert [path.name for path in kept.iterdir()] == ["mine.txt"] and file.read_text() == "keep"
    for limit in (0, 10_001):
        with pytest.raises(UsageError, match="10,000"):
            save_failures(tmp_path / "new", run, x, limit=limit)
    with pytest.raises(DataError, match="60 images of the run"):
        save_failures(tmp_path / "new", run, x[:5])
    with pytest.raises(DataError, match="4096 pixels"):
        save_failures(tmp_path / "new", run, torch.zeros(60, 1, 1, 1).expand(60, 1, 1, 5000))
    assert not (tmp_path / "new").exists()


def test_a_model_without_failures_leaves_an_empty_index(tmp_path: Path, shaky: tuple[Tensor, CorruptedRun]) -> None:
    x, run = shaky
    fine = CorruptedRun(run.names, run.y, run.y.expand_as(run.answers))
    content = json.loads(save_failures(tmp_path / "none", fine, x).read_text())
    assert content["failures"] == [] and content["found"] == 0
    assert math.isclose(corruption_metrics(fine).mean.value or 0.0, 1.0)
