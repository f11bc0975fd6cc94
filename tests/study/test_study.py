"""The study of robustness and leakage: what is kept, what its words rest on, and a whole run on very little."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hauberk.assets.extraction.substitute import substitute
from hauberk.core import progress
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.rng import derive_seed
from hauberk.report import lock
from hauberk.report.report import Report
from hauberk.study import effects, run_study, settings, tables, verdict
from hauberk.study.defended import ROWS, Defended, smoothed
from hauberk.study.images import Images, read_images
from hauberk.study.inverting import Search, invert
from hauberk.study.networks import build, parameters
from hauberk.study.run import network_for
from hauberk.study.settings import Scale, scale_named
from hauberk.study.shelf import Shelf
from hauberk.study.statistics import mean_interval, paired_interval, rank_interval
from hauberk.study.tables import Row, radius
from hauberk.study.training import Growing, chosen_epochs, model_of


def _row(
    eps: float, psnr: list[float], norms: list[float], clean: tuple[int, int] = (90, 100), commonest: tuple[int, int] = (12, 100)
) -> Row:
    n = len(psnr)
    figures = {"psnr": psnr, "gradient_norm": norms, "fmse": [10.0**-eps] * n, "mse": [0.1] * n, "ssim": [0.5] * n}
    figures["loss"] = [0.1] * n
    return Row(eps, clean, (50, 100), figures, [psnr, psnr], (11, 100), commonest)


def test_the_words_on_two_models_follow_the_intervals() -> None:
    low, high = _row(0.0, [5.0, 6.0, 7.0, 8.0], [0.1] * 4), _row(1.0, [15.0, 16.0, 17.0, 18.0], [5.0] * 4)
    spread = _row(1.0, [1.0, 30.0, 2.0, 9.0], [1.0] * 4)
    told = verdict.on_two(low, high, [6.0] * 4, False)
    assert told.startswith("these two models differ, and the robust one's gradients give away more")
    assert "a difference of 10.0 [10.0, 10.0] dB on the same 4 images" in told and "are 10 [10, 10] times as far off" in told
    assert "; the standard model's reconstructions do not come surely nearer than the mean training image (6.0 dB)" in told
    assert "neither model's reconstructions come surely nearer" in verdict.on_two(low, high, [16.0] * 4, False)
    assert "mean training" not in verdict.on_two(low, high, [2.0] * 4, False)
    assert verdict.on_two(high, low, [6.0] * 4, False).startswith("these two models differ, and the standard one's")
    assert verdict.on_two(low, spread, [6.0] * 4, False).startswith("the images do not decide")
    weak = dataclasses.replace(high, robust=(15, 100))
    assert "hardly stands: 0.15 [0.09, 0.23] under PGD" in verdict.on_two(low, weak, [6.0] * 4, False) and "hardly" not in told
    failed = dataclasses.replace(high, clean=(17, 100))
    told = verdict.on_two(low, failed, [6.0] * 4, False)
    assert told.startswith("nothing is decided, for a model did not learn: ε = 1.00 (clean accuracy 0.17 [0.11, 0.26], guess")
    # Neither what is undecided nor what failed is a pass.
    for left, right, status in ((low, high, "warn"), (high, low, "pass"), (low, spread, "warn"), (failed, low, "warn")):
        assert tables.against(left, right, [], "", []).status.value == status


def test_the_words_on_radii_set_aside_what_did_not_learn() -> None:
    rows = [
        _row(0.0, [5.0, 6.0, 7.0, 8.0], [0.1, 0.2, 0.3, 0.4]), _row(0.15, [10.0, 11.0, 12.5, 13.0], [1.0, 1.1, 1.2, 1.3]),
        _row(0.3, [15.0, 16.0, 17.0, 18.0], [5.0, 5.1, 5.2, 5.3]), _row(0.6, [17.0, 16.0, 15.0, 18.0], [4.0] * 4),
    ]
    guess = [7.0, 7.0, 7.0, 7.0]
    told, (floor, by_radius, by_norm) = verdict.on_radii(rows, guess, False)
    assert "from 0.00 to 0.15 it rises (5.1 [" in told and "from 0.15 to 0.30 it rises" in told
    assert "from 0.30 to 0.60 it does not surely change" in told and "together in 95 %" in told and "learn" not in told
    assert floor.startswith("not surely above 7.0 dB") and "gradient: 0.00; surely above: 0.15, 0.30, 0.60" in floor
    assert "over 4 models and 4 images" in by_radius and "(16 gradients)" in by_norm
    # At the last radius the model is idle: its row is named and counts in nothing else.
    idle = _row(0.6, [1.0] * 4, [0.0] * 4, (17, 100), (97, 100))
    (without, about), (told, rest) = verdict.on_radii(rows[:3], guess, False), verdict.on_radii([*rows[:3], idle], guess, False)
    assert told == f"{without}. Set aside, for the model did not learn: 0.60" and rest[:3] == about
    assert "97% of all answers one and the same class" in rest[3] and "gray one" in rest[3]
    assert about[1].startswith("rank correlation of PSNR with the radius, image by image, 1.00 [1.00, 1.00] over 3 models")
    assert "do not tell the two apart" in about[2]  # the norm rises with the radius
    colour = verdict.on_radii([*rows[:3], dataclasses.replace(idle, eps=32 / 255)], guess, True)[1]
    assert "ε = 32/255 (clean" in colour[3] and "gray one" not in colour[3]
    assert verdict.on_radii([idle], guess, False)[0].startswith("fewer than two models learnt")
    assert tables.by_radius([*rows[:3], dataclasses.replace(idle, starts=[[99.0] * 4])], [], "", []).value == 16.5


def test_means_have_intervals_that_hold_them() -> None:
    mean, span = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and span.low < 2.5 < span.high and span.low >= 1.0 and span.high <= 4.0
    assert paired_interval([2.0, 3.0], [1.0, 2.0])[1].low == 1.0  # the same for every image: no spread
    assert mean_interval([3.0])[0] == 3.0 and mean_interval([3.0])[1].high == math.inf  # one image tells nothing of others
    assert (radius(8 / 255, True), radius(0.3, False)) == ("8/255", "0.30")
    assert chosen_epochs(4, 2) == (1, 4) and chosen_epochs(14, 4) == (1, 5, 10, 14) and chosen_epochs(3, 1) == (3,)


def test_intervals_of_six_images_hold_the_mean_nearly_as_often_as_they_say() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 6, generator=draw, dtype=torch.float64).tolist()
    held = sum(span.low <= 0 <= span.high for _, span in map(mean_interval, rows))
    assert held >= 273  # 91 %; plain percentiles hold 86 %


def test_the_radius_grows_over_the_first_half_and_where_it_was_after_a_break() -> None:
    growing = Growing(0.3, 1, 20)
    seen = []
    growing.losses = [lambda model, x, y, level=level: seen.append(level) or torch.zeros(()) for level in range(10)]  # type: ignore[misc]
    from hauberk.core.train import State

    model = torch.nn.Linear(1, 1)
    state = State(model, torch.optim.SGD(model.parameters(), 0.1))
    for step in (0, 1, 2, 19, 20, 500):
        state.step = step
        growing.before_batch(state)
        growing.loss(model, torch.zeros(1), torch.zeros(1))
    assert seen == [0, 0, 1, 9, 9, 9]


def test_rank_correlations_are_those_of_scipy_and_their_intervals_draw_images_not_gradients() -> None:
    from scipy import stats

    draw = torch.Generator().manual_seed(1)
    x, y = torch.rand(1, 9, generator=draw, dtype=torch.float64), torch.rand(1, 9, generator=draw, dtype=torch.float64)
    value, span = rank_interval(x.tolist(), y.tolist(), over="images")
    assert value == pytest.approx(stats.spearmanr(x[0].numpy(), y[0].numpy()).statistic) and span.low < value < span.high
    # Five models that say the same of six images are no thirty images: the interval is as wide as that of one.
    one, five = (rank_interval(x[:, :6].tolist() * many, y[:, :6].tolist() * many, over="images")[1] for many in (1, 5))
    assert (one.low, one.high) == pytest.approx((five.low, five.high))
    assert math.isnan(rank_interval([[1.0] * 4], [[1.0, 2.0, 3.0, 4.0]], over="images")[0])
    assert math.isnan(rank_interval([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]], over="images")[0])  # three images tell nothing
    # Of figures that have nothing to do with one another, few intervals leave out zero.
    held = 0
    for _ in range(100):
        rows = torch.randn(2, 3, 8, generator=draw, dtype=torch.float64).tolist()
        span = rank_interval(*rows, over="models")[1]
        held += span.low <= 0 <= span.high
    assert held >= 86


@pytest.mark.parametrize(("name", "channels", "size", "weights"), [
    ("small-cnn", 1, 28, 312_202), ("resnet18", 3, 32, 11_173_962), ("preact-resnet18", 3, 32, 11_172_170),
])
def test_networks_are_those_of_the_papers(name: str, channels: int, size: int, weights: int) -> None:
    module = build(name, channels, 10, 0)
    assert parameters(module) == weights
    assert module(torch.zeros(1, channels, size, size)).shape == (1, 10)


@pytest.mark.slow  # 46 million weights take a second to draw; default cases cover its blocks in the smaller network
def test_the_wide_network_is_that_of_the_paper() -> None:
    assert parameters(build("wrn-34-10", 3, 10, 0)) == 46_160_474


@pytest.mark.parametrize(("network", "full"), [
    ("resnet18", 11_173_962), ("preact-resnet18", 11_172_170), ("wrn-34-10", 46_160_474),
])
def test_a_scale_narrows_a_network_to_what_it_may_take(network: str, full: int) -> None:
    sizes = []
    for name in ("smoke", "scaled", "full"):
        scale = scale_named(name, network)
        sizes.append(parameters(build(network, 3, 10, 0, scale.width)) if scale.width < 1 else full)
    assert sizes[0] < sizes[1] < sizes[2] and scale_named("full", network).width == 1
    # The talk's adversary of CIFAR-10: ten steps of 2/255; of MNIST: forty of .01.
    assert settings.PATH["colour"] / scale_named("full", network).attack_steps == pytest.approx(2 / 255)
    assert settings.PATH["gray"] / scale_named("full").attack_steps == pytest.approx(0.01)
    with torch.random.fork_rng(devices=[]):
        before = torch.random.get_rng_state()
        assert build(network, 3, 10, 0, 1 / 16)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_private_training_of_a_residual_network_goes_without_batch_normalisation(tmp_path: Path) -> None:
    scale = dataclasses.replace(TINY, width=1 / 16)
    chosen = settings.Settings(scale, "preact-resnet18", (0.0, 8 / 255), 8 / 255)
    pair = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
    images = Images(pair, pair, 2, "")
    for _ in range(2):  # trained, then taken up
        module, told = effects._trained(chosen, Shelf(tmp_path, {}), images, "DP-SGD", pair, "target")
        kinds = {type(part).__name__ for part in module.modules()}
        assert told.startswith("ε = ") and "GroupNorm" in kinds and "BatchNorm2d" not in kinds
    plain, _ = effects._trained(dataclasses.replace(chosen), Shelf(tmp_path, {}), images, "standard", pair, "target")
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in plain.modules())


@pytest.mark.slow  # networks of 11 and 46 million weights: what a GPU's full run is made of, once through
@pytest.mark.parametrize("network", ["resnet18", "preact-resnet18", "wrn-34-10"])
def test_the_full_scale_trains_and_inverts_every_network_at_its_full_width(network: str, tmp_path: Path) -> None:
    full = scale_named("full", network)
    scale = dataclasses.replace(full, train=2, batch=2, epochs=1, attack_steps=1, over_epochs=1)
    draw = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 3, 32, 32, generator=draw), torch.tensor([3, 9])
    images = Images(pair, pair, 10, "")
    chosen = settings.Settings(
        scale, network, settings.RADII["colour"], settings.HEADLINE["colour"], settings.PATH["colour"], settings.TV[network]
    )
    shelf = Shelf(tmp_path, {})
    module = model_of(chosen, shelf, images, chosen.headline)
    start = images.network(network, derive_seed(0, "weights"))
    assert any(not torch.equal(one, other) for one, other in zip(module.parameters(), start.parameters(), strict=True))
    figures, found = invert(shelf, "one", module, images.victims(1), Search(1, 0, chosen.tv))
    assert found.shape == (1, 3, 32, 32) and all(math.isfinite(one) for one in (figures["psnr"][0], figures["gradient_norm"][0]))


class Heard:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, label: str, done: int, total: int | None) -> None:
        """Bars are not kept."""

    def say(self, text: str) -> None:
        """Keep a remark."""
        self.lines.append(text)

    stage = say


def test_finished_parts_are_taken_up_and_others_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {"seed": 1})
    first = shelf.figures("a", lambda: {"x": [1.5]})
    assert first["x"] == [1.5] and shelf.figures("a", lambda: {"x": [9.0]}) == first
    made = shelf.tensors("t", lambda: {"x": torch.ones(2)})["x"]
    assert torch.equal(shelf.tensors("t", lambda: {"x": torch.zeros(2)})["x"], made) and bool((made == 1).all())
    heard = Heard()
    with progress.listening(heard):
        Shelf(tmp_path, {"seed": 1}).figures("b", dict)
        Shelf(tmp_path / "new", {"seed": 1})
    assert heard.lines == [f"going on: 2 finished parts in {tmp_path}", "b"]
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        Shelf(tmp_path, {"seed": 2})
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="Delete it"):
        shelf.figures("a", dict)
    (tmp_path / "t.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(DataError, match="Delete it"):
        shelf.tensors("t", dict)
    shelf.tensors("w", lambda: {"strange": torch.ones(2)})
    with pytest.raises(DataError, match="Delete it"):
        shelf.weights("w", torch.nn.Linear(1, 1), lambda: None)
    study = json.loads((tmp_path / "study.json").read_text())
    for stranger in ({**study, "made by": "Hauberk 0.0.9, parts of format 1"}, {"seed": 1}):
        (tmp_path / "study.json").write_text(json.dumps(stranger))
        with pytest.raises(UsageError, match=r"were made by (Hauberk 0.0.9|an earlier version).*Choose another --output"):
            Shelf(tmp_path, {"seed": 1})
    (tmp_path / "study.json").unlink()
    with pytest.raises(UsageError, match="not its settings"):
        Shelf(tmp_path, {"seed": 2})


def test_other_images_of_the_same_name_are_other_images() -> None:
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 0, 1])
    one, other = Images((x, y), (x, y), 2, "mnist.npz"), Images((1 - x, y), (x, y), 2, "mnist.npz")
    assert one.digest == Images((x.clone(), y), (x, y), 2, "else").digest != other.digest
    assert one.digest != Images((x, 1 - y), (x, y), 2, "mnist.npz").digest


def test_victims_are_of_every_class_in_turn() -> None:
    y = torch.tensor([3, 3, 1, 0, 1, 2])
    test = (torch.arange(6.0)[:, None, None, None].expand(6, 1, 28, 28), y)
    images = Images((torch.zeros(1, 1, 28, 28), torch.zeros(1).long()), test, 4, "")
    x, labels = images.victims(5)
    assert labels.tolist() == [0, 1, 2, 3, 1] and x[:, 0, 0, 0].tolist() == [3.0, 2.0, 5.0, 0.0, 4.0]
    with pytest.raises(UsageError, match=r"Did you mean 'resnet18'"):
        network_for("resnet81", images)


TINY = Scale("smoke", 128, 2, 2, 1, 2, 4, 2, 2, 40, False, 0, 16)


def test_a_whole_study_is_reported_and_goes_on_where_it_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.SCALES, "smoke", TINY)
    monkeypatch.setitem(settings.RADII, "gray", (0.0, 0.3))
    report = run_study("sklearn:digits", tmp_path)
    assert [one.id for one in report.findings] == ["privacy/robust-against-standard", "privacy/leakage-by-radius"]
    first, second = report.findings
    assert first.n == 2 and first.interval is not None and first.interval.low <= first.value <= first.interval.high  # type: ignore[operator]
    titles = [one.title for one in (*first.evidence, *second.evidence)]
    assert titles == [
        "Standard against robust", "The images", "What the gradients of the standard model gave away",
        "What the gradients of the robust model gave away", "Leakage over training",
        "Stability over starts: mean, least and greatest of each image", "By radius of training", "Leakage by radius",
        "Stability over starts of the search",
    ]
    assert Report.load(tmp_path).find("privacy/leakage-by-radius").n == 2 and (tmp_path / "index.html").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert not [name for name in kept if name.endswith(".checkpoint")]
    # One part is lost: it alone is made again, and the figures are the same.
    (tmp_path / "parts" / "inverted-standard-0.json").unlink()
    again = run_study("sklearn:digits", tmp_path)
    changed = {path.name for path in (tmp_path / "parts").iterdir() if kept[path.name] != path.stat().st_mtime_ns}
    assert changed == {"inverted-standard-0.json"}
    assert [one.value for one in again.findings] == [one.value for one in report.findings]
    with pytest.raises(UsageError, match="other settings"):
        run_study("sklearn:digits", tmp_path, seed=1)
    # What is finished can be looked at: the model at .3 is not, once an inversion is missing.
    (tmp_path / "parts" / "inverted-robust-0.3000-1.json").unlink()
    (only,) = run_study("sklearn:digits", tmp_path, only_finished=True).findings
    assert only.id == "privacy/leakage-by-radius" and [row[0] for row in only.evidence[0].rows][:-1] == ["0.00"]  # type: ignore[union-attr]
    assert only.notes[-1] == "left out, for they are not finished: models at ε = 0.30"
    assert not (tmp_path / "parts" / "inverted-robust-0.3000-1.json").exists()
    repeat = "hauberk study robustness-privacy --data sklearn:digits --scale smoke --network small-cnn --output"
    assert lock.command(again) == f"{repeat} {tmp_path}"
    with pytest.raises(UsageError, match="no model of the study"):
        run_study("sklearn:digits", tmp_path / "new", only_finished=True)


def test_what_was_said_of_a_training_outlives_a_break_before_its_weights_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "ROWS", [Defended("said", lambda *_: "ε = 1")])
    chosen = settings.Settings(TINY, "small-cnn", (0.0, 0.3), 0.3)
    pair = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 0, 1])
    images = Images(pair, pair, 2, "")

    def broken_off(shelf: Shelf, name: str, make: Callable[[], dict[str, torch.Tensor]]) -> None:
        make()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Shelf, "tensors", broken_off)
        with pytest.raises(KeyboardInterrupt):
            effects._trained(chosen, Shelf(tmp_path, {}), images, "said", pair, "target")
    for _ in range(2):
        assert effects._trained(chosen, Shelf(tmp_path, {}), images, "said", pair, "target")[1] == "ε = 1"


def test_defences_are_set_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("standard", "DP-SGD", "standard, gradients pruned to a tenth", "DP-SGD, gradients clipped and noised as in training")
    rows = sorted((row for row in ROWS if row.name in names), key=lambda row: names.index(row.name))
    monkeypatch.setattr(effects, "ROWS", [*rows, Defended("adversarial training", smoothed)])
    monkeypatch.setattr(effects, "substitute", functools.partial(substitute, epochs=1))
    scale = dataclasses.replace(TINY, references=2, seeds=1)
    chosen = settings.Settings(scale, "small-cnn", (0.0, 0.3), 0.3)
    images = read_images("sklearn:digits", 64, 24, 0)
    found = effects.side_effects(chosen, Shelf(tmp_path, {}), images)
    lines = found.evidence[0].rows  # type: ignore[union-attr]
    assert [line[0] for line in lines] == [*(row.name for row in rows), "adversarial training"]
    standard, private, pruned = lines[:3]
    assert standard[1:6] == pruned[1:6]  # one model; only what it sends differs
    told = [
        json.loads((tmp_path / f"inverted-effects-{name}.json").read_text())["psnr"]
        for name in ("standard", "standard-gradients-pruned-to-a-tenth-knowing")
    ]
    assert told[0] != told[1]
    assert private[-1].startswith("ε = ") and standard[-1] == "-" and private[4] == "6.25%"  # one of sixteen non-members
    assert found.n == 2 and "variance-prior" in found.threat
    sent = next(line for line in lines if line[0].startswith("DP-SGD, gradients"))
    assert sent[1:6] == private[1:6] and sent[6] != private[6]


def test_a_defence_that_refuses_the_network_costs_its_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise ModelError("the loss mixes examples")

    rows = [Defended("standard", smoothed), Defended("odd", refuse), Defended("odd, sent", refuse, None, "odd")]
    monkeypatch.setattr(effects, "ROWS", [*rows, Defended("adversarial training", smoothed)])
    monkeypatch.setattr(effects, "_figures", lambda *_: {
        "clean": [1, 2], "robust": [1, 2], "tpr": [0.1, 0.0, 0.2], "fpr": 0.1, "auc": [0.5, 0.4, 0.6], "fidelity": [1, 2],
        "ece": 0.1,
    })
    chosen = settings.Settings(dataclasses.replace(TINY, plain_epochs=1), "small-cnn", (0.0, 0.3), 0.3)
    found = effects.side_effects(chosen, Shelf(tmp_path, {}), read_images("sklearn:digits", 64, 24, 0))
    lines = found.evidence[0].rows  # type: ignore[union-attr]
    assert [line[0] for line in lines] == ["standard", "odd", "odd, sent", "adversarial training"]
    assert lines[1][1:] == lines[2][1:] == ("-",) * 9 and lines[3][1] != "-"
    assert "odd does not take this network: the loss mixes examples" in found.notes


def test_what_the_adversary_knows_is_what_is_done_to_the_gradients() -> None:
    gradients = {"a": torch.randn(100, 200, generator=torch.Generator().manual_seed(0))}  # root mean square 1, norm 141
    for row in ROWS:
        assert (row.sends is None) == (row.known is None)
        if row.sends is None or row.known is None:
            continue
        name, strength = row.known
        sent = row.sends(gradients, 0)["a"]
        if name == "prune":
            assert int((sent == 0).sum()) == strength * sent.numel()
        else:  # private: of a gradient clipped to norm 1
            clipped = gradients["a"] / (gradients["a"].norm() if name == "private" else 1.0)
            assert float((sent - clipped).std()) == pytest.approx(strength, rel=0.03)


@pytest.mark.slow  # five trainings of three models each; the row by row machinery is tried above
def test_every_defence_trains(tmp_path: Path) -> None:
    chosen = settings.Settings(dataclasses.replace(TINY, references=2), "small-cnn", (0.0, 0.3), 0.3)
    found = effects.side_effects(chosen, Shelf(tmp_path, {}), read_images("sklearn:digits", 64, 24, 0))
    assert len(found.evidence[0].rows) == len(ROWS)  # type: ignore[union-attr]


def test_what_cannot_be_studied_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images"):
        read_images("sklearn:wine", 50, 50, 0)
    with pytest.raises(UsageError, match=r"smoke \| scaled \| full"):
        run_study("sklearn:digits", tmp_path, scale="tiny")
    with pytest.raises(UsageError, match="device"):
        run_study("sklearn:digits", tmp_path, device="abacus")
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        run_study(str(tmp_path / "nowhere"), tmp_path, network="resnet81")  # before data is read
    x, y = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
    for name, images, labels, told in (
        ("flat", x[:, 0], y, "channel axis"), ("broken", x.log() * float("inf"), y, "not finite"), ("one", x, y * 0, "1 classes"),
        ("few", x, y, "3 held-out images. Expected at least the 6"),
    ):
        np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
        with pytest.raises(DataError, match=told):
            run_study(str(tmp_path / f"{name}.npz"), tmp_path / "out")
    assert not (tmp_path / "out" / "parts").exists()
    np.savez(tmp_path / "test.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"no training split.*Give the folder"):
        run_study(str(tmp_path / "test.npz"), tmp_path / "out")
    (tmp_path / "assessed").mkdir()
    (tmp_path / "assessed" / "report.json").write_text("{}")
    with pytest.raises(UsageError, match="report of something else"):
        run_study("sklearn:digits", tmp_path / "assessed")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="could not be written"):
        run_study("sklearn:digits", tmp_path / "file")
