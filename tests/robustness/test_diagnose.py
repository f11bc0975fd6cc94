"""The diagnosis against models whose flaw is known, and against sound ones, where it must stay quiet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Finding, Linf, Patch, Schedule, Split, Target, Threat, fit
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.errors import UsageError
from hauberk.core.finding import Status
from hauberk.methods import load_methods
from hauberk.robustness.attack import pgd
from hauberk.robustness.diagnose import diagnose

EPS = 0.1


class Wrapped(nn.Module):
    """A model with something done before or after it."""

    def __init__(self, inner: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


FLAWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], set[str]]] = {
    "logits times 100": (same, lambda out: out * 100, {"margin loss beats cross-entropy", "gradients are exactly zero"}),
    "logits times 10": (same, lambda out: out * 10, {"gradients are exactly zero"}),
    "quantised input": (
        lambda x: (x * 4).round() / 4, same,
        {"gradients are exactly zero", "a step gains what the gradient promises", "success with an unbounded radius",
         "black box beats white box"},
    ),
    "input noise": (lambda x: x + 0.2 * torch.randn_like(x), same, {"answers differ on repetition"}),
    "softmax outputs, saturated": (
        same, lambda out: (out * 100).softmax(1), {"outputs are probabilities", "gradients are exactly zero"}
    ),
    "graph cut": (
        lambda x: x.detach(), same,
        {"gradients are exactly zero", "success with an unbounded radius", "black box beats white box"},
    ),
    "shattered by a sine": (
        lambda x: x + 0.03 * torch.sin(400 * x), same, {"a step gains what the gradient promises"},
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flawed_model_raises_the_alarm_of_its_flaw(flaw: str, digits: Data, digits_model: nn.Module) -> None:
    before, after, expected = FLAWS[flaw]
    x, y = digits.test.first(128)
    alarms = diagnose(Wrapped(digits_model, before, after).eval(), x, y, Linf(EPS), seed=0)
    loud = {alarm.name for alarm in alarms if alarm.level != "quiet"}
    assert expected <= loud, f"missing {expected - loud}; loud {loud}"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sound_model_stays_quiet(seed: int, digits: Data, fresh_cnn: Callable[..., nn.Module]) -> None:
    model = fresh_cnn(seed=seed)
    fit(model, digits.train, schedule=Schedule(epochs=8, batch_size=64, seed=seed))
    x, y = digits.test.first(128)
    alarms = diagnose(model, x, y, Linf(EPS), seed=seed)
    assert {alarm.name: alarm.value for alarm in alarms if alarm.level == "raised"} == {}


def test_a_robust_model_stays_quiet_also_under_transfer(
    digits: Data, digits_model: nn.Module, fresh_cnn: Callable[..., nn.Module]
) -> None:
    from hauberk.robustness.defend import adversarial

    model = fresh_cnn(seed=5)
    fit(model, digits.train, loss=adversarial(Linf(EPS), steps=5), schedule=Schedule(epochs=15, batch_size=64))
    x, y = digits.test.first(128)
    sister = pgd(digits_model, x, y, Linf(EPS))
    alarms = diagnose(model, x, y, Linf(EPS), sister=sister)
    assert {alarm.name: alarm.value for alarm in alarms if alarm.level == "raised"} == {}
    assert "transfer beats white box" in {alarm.name for alarm in alarms}


def test_only_samples_classified_correctly_count_and_none_gives_no_alarm(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(32)
    wrong = (digits_model(x).argmax(1) + 1) % 10
    assert diagnose(digits_model, x, wrong, Linf(EPS)) == []
    mixed = torch.where(torch.arange(32) < 16, digits_model(x).argmax(1), wrong)
    assert {alarm.n for alarm in diagnose(digits_model, x, mixed, Linf(EPS))} == {16}


@pytest.mark.parametrize("norm", ["l2", "l1", "l0"])
def test_every_norm_is_diagnosed(norm: str, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(64)
    alarms = diagnose(digits_model, x, y, Threat(norm, {"l2": 0.8, "l1": 3.0, "l0": 3.0}[norm]), steps=10, queries=100)
    assert {alarm.name: alarm.value for alarm in alarms if alarm.level == "raised"} == {}
    assert ("black box beats white box" in {alarm.name for alarm in alarms}) == (norm == "l2")


def test_a_patch_on_a_sound_model_raises_nothing(digits: Data, digits_model: nn.Module) -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3:5, 3:5] = True
    x, y = digits.test.first(96)
    for threat in (Patch(mask), Linf(EPS, mask=mask)):
        alarms = diagnose(digits_model, x, y, threat)
        assert {alarm.name: alarm.value for alarm in alarms if alarm.level == "raised"} == {}


def test_examples_from_elsewhere_that_gradients_cannot_find_raise_the_transfer_alarm(
    digits: Data, digits_model: nn.Module
) -> None:
    x, y = digits.test.first(96)
    sister = pgd(digits_model, x, y, Linf(2 * EPS))
    cut = Wrapped(digits_model, lambda x: x.detach(), same).eval()
    levels = {alarm.name: alarm.level for alarm in diagnose(cut, x, y, Linf(2 * EPS), sister=sister)}
    assert levels["transfer beats white box"] == "raised"


def test_a_radius_of_zero_is_refused(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(4)
    with pytest.raises(UsageError, match="radius above zero"):
        diagnose(digits_model, x, y, Linf(0.0))


def test_the_check_says_where_it_has_nothing_to_say(digits: Data, digits_model: nn.Module) -> None:
    def ask(model: nn.Module, threat: Threat, n: int = 128) -> Finding:
        few = Data(Split(*digits.test.first(n)), bounds=digits.bounds, classes=10)
        card = load_methods().get("robustness/gradient-masking", "check")
        return run_check(card, Target(model), few, Settings(threats=(threat,)))

    assert "radius 0" in ask(digits_model, Linf(0.0)).reason
    assert "fewer than 30" in ask(digits_model, Linf(EPS), 20).reason

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = digits_model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 0.01 + torch.eye(10)[3] * 100

    always = Data(Split(digits.test.first(128)[0], torch.full((128,), 3)), bounds=digits.bounds, classes=10)
    card = load_methods().get("robustness/gradient-masking", "check")
    assert "one label" in run_check(card, Target(One().eval()), always, Settings(threats=(Linf(EPS),))).reason
    assert ask(digits_model, Linf(EPS)).status is Status.PASS


def test_it_needs_the_gradient(digits: Data, digits_model: nn.Module) -> None:
    from hauberk import Access
    from hauberk.core.errors import AccessDenied

    x, y = digits.test.first(4)
    with pytest.raises(AccessDenied):
        diagnose(Target(digits_model).seen_at(Access.SCORE), x, y, Linf(EPS))
