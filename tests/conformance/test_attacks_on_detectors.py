"""What every attack on detectors promises, run over the registry."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hauberk import Access, Budget, Goal, Threat
from hauberk.core.card import Card
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, ModelError, UsageError
from hauberk.core.threat import Patch
from hauberk.methods import load_methods
from hauberk.robustness.attack.detection import Boxes, DetectorTarget
from tiny_detector import TinyDetector, pictures, trained

CARDS = list(load_methods().cards("detection-attack"))
CASES = [pytest.param(card, norm, id=f"{card.name}-{norm}") for card in CARDS for norm in card.facts["norms"]]
RADIUS = {"linf": 0.1, "l2": 2.0, "l1": 30.0, "l0": 100.0}
EFFORT = {"steps": 6, "rounds": 3, "population": 4}
NOTHING = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
each_case = pytest.mark.parametrize(("card", "norm"), CASES)
each = pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in CARDS])


@pytest.fixture(scope="module")
def net() -> TinyDetector:
    return trained()


def middle() -> Tensor:
    mask = torch.zeros(3, 32, 32, dtype=torch.bool)
    mask[:, 12:20, 12:20] = True
    return mask


def threat(card: Card, norm: str, eps: float | Tensor | None = None, **facts: Any) -> Threat:
    if card.facts["undivided"]:
        facts.setdefault("mask", middle())
    return Threat(norm, RADIUS[norm] if eps is None else eps, **facts)


def play(card: Card, *arguments: Any, **options: Any) -> Tensor:
    effort = {name: size for name, size in EFFORT.items() if name in card.options}
    return card.function(*arguments, **{**effort, **options})


def size(z: Tensor, x: Tensor, norm: str) -> Tensor:
    delta = (z.double() - x.double()).flatten(1).abs()
    return {"linf": delta.amax(1), "l2": delta.square().sum(1).sqrt(), "l1": delta.sum(1), "l0": (delta > 0).sum(1)}[norm]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@each_case
def test_images_are_allowed_to_the_last_bit(card: Card, norm: str, dtype: torch.dtype, net: TinyDetector) -> None:
    x, truth = pictures(6, 1)
    x = x.to(dtype)
    eps = RADIUS[norm] * torch.linspace(0, 2, 6, dtype=torch.float64)
    z = play(card, net, x, truth, threat(card, norm, eps, mask=middle(), bounds=(0.0, 1.0)))
    assert (z.shape, z.dtype, z.device) == (x.shape, dtype, x.device) and bool(z.isfinite().all()) and not z.requires_grad
    assert bool((size(z, x, norm) <= eps).all()) and torch.equal(z[0], x[0])
    assert torch.equal(z[:, ~middle()], x[:, ~middle()]) and not torch.equal(z, x)
    assert float(z.double().min()) >= 0 and float(z.double().max()) <= 1


@each_case
def test_the_detector_and_the_random_state_stay_as_they_were(card: Card, norm: str, net: TinyDetector) -> None:
    x, truth = pictures(4, 1)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    kept = x.clone()
    play(card, net, x, truth, threat(card, norm))
    assert all(part.training for part in net.modules())
    net.eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()
    assert torch.equal(x, kept) and not x.requires_grad


@each_case
def test_one_seed_gives_the_same_bits(card: Card, norm: str, net: TinyDetector) -> None:
    x, truth = pictures(4, 1)
    first, again = (play(card, net, x, truth, threat(card, norm), seed=3) for _ in range(2))
    assert torch.equal(first, again)
    if card.name != "dag":  # it draws other classes, and of two there is one
        assert not torch.equal(first, play(card, net, x, truth, threat(card, norm), seed=4))


@each_case
def test_the_ledger_is_what_hooks_count_and_a_budget_is_kept(card: Card, norm: str, net: TinyDetector) -> None:
    x, truth = pictures(10, 1)
    target = DetectorTarget(net, batch_size=4)
    net.rows, net.differentiated = 0, 0
    play(card, target, x, truth, threat(card, norm))
    assert target.ledger.queries == net.rows > 0 and target.ledger.gradients == net.differentiated
    assert (net.differentiated > 0) == (card.access is Access.GRADIENT)
    net.rows = 0
    tight = DetectorTarget(net, budget=Budget(queries=15))
    with pytest.raises(BudgetExceeded):
        play(card, tight, x, truth, threat(card, norm, 0.01 * RADIUS[norm] if norm != "l0" else 1.0))
    assert net.rows == tight.ledger.queries <= 15


@each
def test_the_declared_access_suffices_and_less_is_refused(card: Card, net: TinyDetector) -> None:
    x, truth = pictures(3, 1)
    norm = card.facts["norms"][0]
    granted = play(card, DetectorTarget(net, access=card.access), x, truth, threat(card, norm))
    with torch.no_grad():
        assert torch.equal(granted, play(card, net, x, truth, threat(card, norm)))
    if card.access is Access.GRADIENT:
        with pytest.raises(AccessDenied, match=f"{card.name} needs GRADIENT access"):
            play(card, DetectorTarget(net, access=Access.SCORE), x, truth, threat(card, norm))
        with pytest.raises(AccessDenied):
            play(card, lambda images: net(images), x, truth, threat(card, norm))
    else:  # anything that answers is a detector
        assert torch.equal(granted, play(card, lambda images: net(images), x, truth, threat(card, norm)))


@each_case
def test_no_radius_no_true_box_and_no_images(card: Card, norm: str, net: TinyDetector) -> None:
    x, truth = pictures(4, 1)
    assert torch.equal(play(card, net, x, truth, threat(card, norm, 0.0)), x)
    z = play(card, net, x, [truth[0], NOTHING, truth[2], NOTHING], threat(card, norm))
    assert torch.equal(z[[1, 3]], x[[1, 3]])
    target = DetectorTarget(net)
    assert torch.equal(play(card, target, x, [NOTHING] * 4, threat(card, norm)), x)
    assert play(card, target, x[:0], [], threat(card, norm)).shape == (0, 3, 32, 32)
    assert target.ledger.queries == 0


@each
def test_bad_input_is_refused_before_anything_is_asked(card: Card, net: TinyDetector) -> None:
    x, truth = pictures(3, 1)
    norm, target = card.facts["norms"][0], DetectorTarget(net)
    box = torch.tensor([[1.0, 2.0, 9.0, 8.0]])
    refused: list[tuple[Tensor, Any, str]] = [
        (x.masked_fill(x > 0.5, math.nan), truth, "NaN"), (x * 3, truth, "outside the bounds"),
        ((x * 255).byte(), truth, "floating point"), (x.flatten(1), truth, "mask|images"), (x, truth[:2], "truth has 2 entries"),
        (x, [box, box, box], "truth at index 0 is a Tensor"), (x, [Boxes(box, torch.tensor([-1]))] * 3, "integer labels"),
        (x, [Boxes(box, torch.tensor([0.5]))] * 3, "integer labels"),
        (x, [Boxes(box[:, :3], torch.tensor([0]))] * 3, r"\(k, 4\)"),
        (x, [Boxes(box[:, [2, 3, 0, 1]], torch.tensor([0]))] * 3, "no area"),
    ]
    for images, boxes, word in refused:
        with pytest.raises((DataError, UsageError), match=word):
            play(card, target, images, boxes, threat(card, norm))
    for wrong, word in ((Threat("linf", torch.rand(2), mask=middle()), "one per sample"), (0.1, "Threat")):
        with pytest.raises(UsageError, match=word):
            play(card, target, x, truth, wrong)
    with pytest.raises(UsageError, match="the goal"):
        play(card, target, x, truth, threat(card, norm, goal=Goal.TARGETED))
    with pytest.raises(UsageError, match="no option 'stepz'"):
        play(card, target, x, truth, threat(card, norm), stepz=1)
    if card.facts["undivided"]:
        for place in (None, torch.zeros(3, 32, 32, dtype=torch.bool)):
            with pytest.raises(UsageError, match="no place"):
                play(card, target, x, truth, Threat(norm, math.inf, mask=place))
    assert target.ledger.queries == 0


def test_answers_that_make_no_sense_are_refused() -> None:
    x, truth = pictures(2, 1)
    attack = load_methods().get("pso-detection", "detection-attack").function
    box = torch.zeros(1, 4)
    answers: list[Any] = [
        torch.zeros(2, 4), [{}], [{"boxes": box}] * 2,
        [{"boxes": box, "labels": torch.zeros(2, dtype=torch.long), "scores": torch.zeros(2)}] * 2,
    ]
    for answer in answers:
        with pytest.raises(ModelError, match="the detector answered"):
            attack(lambda images, answer=answer: answer, x, truth, Patch(middle()))
    with pytest.raises(ModelError):
        DetectorTarget(lambda images: [], access=Access.GRADIENT)
    with pytest.raises(ModelError):
        DetectorTarget(3)  # type: ignore[arg-type]
