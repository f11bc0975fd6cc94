"""Attacks on detectors: overlap, matching and precision worked out by hand, and what is left of a small detector's finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hauberk import Linf
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.core.threat import Patch
from hauberk.robustness.attack.detection import (
    Boxes,
    DetectorTarget,
    dag,
    damage,
    dpatch,
    found,
    genetic_detection,
    mean_average_precision,
    pso_detection,
)
from hauberk.robustness.attack.detection.boxes import matched, overlap
from tiny_detector import TinyDetector, pictures, trained


def boxes(*rows: Sequence[float], labels: Sequence[int], scores: Sequence[float] | None = None) -> Boxes:
    said = None if scores is None else torch.tensor(scores)
    return Boxes(torch.tensor(rows, dtype=torch.float32).view(-1, 4), torch.tensor(labels, dtype=torch.long), said)


@pytest.fixture(scope="module")
def net() -> TinyDetector:
    return trained()


def share(net: TinyDetector, z: Tensor, truth: Sequence[Boxes]) -> list[float]:
    """Of each image, the share of true boxes that are found."""
    return [float(found(true, said).double().mean()) for true, said in zip(truth, DetectorTarget(net).detect(z), strict=True)]


def test_overlap() -> None:
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    b = torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 4], [4, 0, 8, 4], [0, 0, 4, 2], [1, 1, 1, 1]])
    expected = torch.tensor([[4 / 28, 1, 0, 0.5, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(overlap(a, b), expected)


def test_a_true_box_is_found_once_and_by_its_own_label() -> None:
    truth = boxes([0, 0, 10, 10], [20, 0, 30, 10], labels=[0, 1])
    seen = boxes(
        [0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 30, 4], labels=[0, 0, 0, 1], scores=[0.6, 0.9, 0.99, 0.8]
    )
    # The better of two finds counts, the other is a false alarm; a wrong label and a small overlap find nothing.
    assert matched(truth, seen).tolist() == [-1, 0, -1, -1]
    assert found(truth, seen).tolist() == [True, False]
    assert found(truth, seen, iou=0.4).tolist() == [True, True]
    assert found(truth, boxes(labels=[], scores=[])).tolist() == [False, False]


def test_average_precision_worked_out_by_hand() -> None:
    truth = [boxes([0, 0, 10, 10], [20, 0, 30, 10], labels=[0, 0]), boxes([0, 0, 10, 10], labels=[1])]
    seen = [
        boxes([0, 0, 10, 10], [50, 0, 60, 10], [20, 0, 30, 10], labels=[0, 0, 0], scores=[0.9, 0.8, 0.7]),
        boxes([0, 0, 10, 10], [0, 0, 10, 10], labels=[0, 1], scores=[0.95, 0.5]),
    ]
    # Class 0 in order of confidence: wrong, right, wrong, right: precision 1/2 at recall 1/2, and 2/4 at 1. Class 1: 1.
    assert mean_average_precision(truth, seen) == pytest.approx((0.5 + 1) / 2)
    assert mean_average_precision(truth, [boxes(labels=[], scores=[])] * 2) == 0
    assert math.isnan(mean_average_precision([], []))
    # Right, wrong, wrong, right: precision 1 at 1/2, 2/4 at 1.
    late = [boxes([0, 0, 10, 10], [50, 0, 60, 10], [60, 0, 70, 10], [20, 0, 30, 10], labels=[0] * 4, scores=[0.9, 0.8, 0.7, 0.6])]
    assert mean_average_precision(truth[:1], late) == pytest.approx(0.75)


def test_damage_counts_boxes_with_their_interval() -> None:
    truth = [boxes([0, 0, 10, 10], [20, 0, 30, 10], labels=[0, 1])] * 20
    before = [boxes([0, 0, 10, 10], [20, 0, 30, 10], labels=[0, 1], scores=[1, 1])] * 20
    after = [boxes([0, 0, 10, 10], labels=[0], scores=[0.7])] * 20
    told = damage(truth, before, after)
    assert (told.boxes, told.found_before, told.found_after, told.map_before, told.map_after) == (40, 1.0, 0.5, 1.0, 0.5)
    band = told.interval_after
    assert (band.low, band.high) == (pytest.approx(0.352, abs=1e-3), pytest.approx(0.648, abs=1e-3))
    assert told.map_interval_after.low == told.map_interval_after.high == 0.5


def test_the_scores_of_every_class_are_read_at_the_label() -> None:
    scores = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    one = Boxes.read({"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 0]), "scores": scores})
    torch.testing.assert_close(one.confidence, torch.tensor([0.7, 0.9]).double())


@pytest.mark.parametrize("seed", range(2))
def test_dag_hides_every_object_or_renames_it(seed: int, net: TinyDetector) -> None:
    x, truth = pictures(24, seed + 1)
    assert sum(share(net, x, truth)) / 24 >= 0.95
    hidden = dag(net, x, truth, Linf(0.1), steps=50, seed=seed)
    assert sum(share(net, hidden, truth)) / 24 <= 0.05
    renamed = dag(net, x, truth, Linf(0.1), steps=50, towards="other", seed=seed)
    others = [Boxes(one.boxes, 1 - one.labels) for one in truth]
    assert sum(share(net, renamed, truth)) / 24 <= 0.05
    assert sum(share(net, renamed, others)) / 24 >= 0.6 > 0.1 >= sum(share(net, hidden, others)) / 24


def test_dag_leaves_an_image_as_soon_as_nothing_is_left_of_its_objects(net: TinyDetector) -> None:
    x, truth = pictures(8, 1)
    easy, hard = DetectorTarget(net), DetectorTarget(net)
    dag(easy, x, truth, Linf(0.5), steps=40)
    dag(hard, x, truth, Linf(0.001), steps=40)
    assert hard.ledger.queries == 8 * 41 and easy.ledger.queries <= 8 * 15
    elsewhere = [boxes([0, 0, 1, 1], labels=[0])] * 8
    target = DetectorTarget(net)
    assert torch.equal(dag(target, x, elsewhere, Linf(0.5)), x) and target.ledger.queries == 8


def test_a_patch_beside_the_objects_beats_gray_and_random_ones_on_images_never_seen(net: TinyDetector) -> None:
    x, truth = pictures(32, 1)
    mask = torch.zeros(3, 32, 32, dtype=torch.bool)
    mask[:, 11:21, 11:21] = True
    made = dpatch(net, x, truth, Patch(mask), steps=120)
    patch = made[0]
    assert bool((made[:, mask] == patch[mask]).all()) and torch.equal(made[:, ~mask], x[:, ~mask])
    unseen, there = pictures(40, 7)
    noise = torch.rand(3, 32, 32, generator=generator(0, "noise"))
    rates = [sum(share(net, torch.where(mask, one, unseen), there)) / 40 for one in (patch, noise, torch.full_like(noise, 0.5))]
    assert rates[0] <= min(rates[1:]) - 0.15


def test_a_patch_is_taken_for_the_label_it_is_made_for(net: TinyDetector) -> None:
    x, truth = pictures(24, 1)
    mask = torch.zeros(3, 32, 32, dtype=torch.bool)
    mask[:, 11:21, 11:21] = True
    place = boxes([11, 11, 21, 21], labels=[1])
    made = dpatch(net, x, truth, Patch(mask), label=1, steps=120)
    seen, before = (sum(share(net, one, [place] * 24)) / 24 for one in (made, x))
    assert seen >= before + 0.4
    with pytest.raises(UsageError, match="label is 2"):
        dpatch(net, x, truth, Patch(mask), label=2)


@pytest.mark.parametrize("attack", [pso_detection, genetic_detection])
def test_black_box_searches_keep_at_most_the_reserve(attack: object, net: TinyDetector) -> None:
    x, truth = pictures(10, 1)
    target = DetectorTarget(net)
    z = attack(target, x, truth, Linf(0.2), rounds=15)  # type: ignore[operator]
    left = share(net, z, truth)
    assert sum(one <= 0.3 for one in left) >= 9
    assert target.ledger.queries < 10 * (1 + 15 * 10) and target.ledger.gradients == 0
    assert float((z.double() - x.double()).abs().max()) <= 0.2  # what counts as success lies in the budget, as it is returned


@pytest.mark.parametrize("attack", [pso_detection, genetic_detection])
def test_the_reserve_is_what_ends_the_search(attack: object, net: TinyDetector) -> None:
    x, truth = pictures(40, 1)
    clean = share(net, x, truth)
    two = [at for at, one in enumerate(truth) if len(one) == 2 and clean[at] == 1][:4]
    x = x[two]
    # One of the two true boxes is made up, so that one of two is found from the start.
    half = [Boxes(torch.cat([truth[at].boxes[:1], torch.tensor([[0.0, 0, 1, 1]])]), truth[at].labels) for at in two]
    content, eager = DetectorTarget(net), DetectorTarget(net)
    assert torch.equal(attack(content, x, half, Linf(0.2), reserve=0.5), x)  # type: ignore[operator]
    assert content.ledger.queries == 4
    attack(eager, x, half, Linf(0.002), reserve=0.4, rounds=3, population=4)  # type: ignore[operator]
    assert eager.ledger.queries == 4 + 4 * 3 * 4
    with pytest.raises(UsageError, match="reserve is 1"):
        attack(eager, x, half, Linf(0.2), reserve=1.0)  # type: ignore[operator]


@pytest.mark.parametrize("attack", [pso_detection, genetic_detection])
def test_the_best_point_asked_about_is_returned(attack: object, net: TinyDetector) -> None:
    x, truth = pictures(1, 1)
    asked: list[Tensor] = []

    def watched(images: Tensor) -> object:
        asked.append(images.clone())
        return net(images)

    z = attack(DetectorTarget(watched, batch_size=1), x, truth, Linf(0.06), rounds=6, seed=2)  # type: ignore[operator]
    seen = torch.cat(asked)
    fewest = min(share(net, seen, truth * len(seen)))
    assert share(net, z, truth)[0] == fewest and any(torch.equal(z[0], one) for one in seen)
    assert 1 + 10 <= len(seen) <= 1 + 60
