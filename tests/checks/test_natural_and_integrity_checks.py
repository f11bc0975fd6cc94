"""The checks of natural corruptions, certificates, detection, labels, weights and faults: figures against a plain count."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hauberk import Access, Data, Finding, Linf, Split, Target, fit
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core import rng
from hauberk.core.finding import Status
from hauberk.core.train import Schedule
from hauberk.integrity.poison import label_flip
from hauberk.methods import load_methods
from hauberk.robustness.attack import pgd
from hauberk.robustness.verify import certified, ibp


def run(name: str, model: Any, data: Data, memos: dict[Any, Any] | None = None, **settings: Any) -> Finding:
    return run_check(load_methods().get(name, "check"), Target(model), data, Settings(**settings), memos)


def sample(data: Data, n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(len(data.test), generator=rng.generator(0, "evaluation sample"))
    return data.test.take(order[:n])


def evidence(finding: Finding, kind: str) -> Any:
    return next(one for one in finding.evidence if one.kind == kind)


def test_corruption_figures_are_those_of_a_plain_loop(digits: Data, digits_model: nn.Module) -> None:
    memos: dict[Any, Any] = {}
    mean = run("robustness/corruptions", digits_model, digits, memos)
    worst = run("robustness/worst-corruption", digits_model, digits, memos)
    x, y = sample(digits)
    cards = [card for card in load_methods().cards("corruption") if card.runs_at("quick")]
    assert len(cards) >= 8
    table = np.zeros((len(cards), 5))
    for row, card in enumerate(cards):
        for severity in range(1, 6):
            z = card.function(x, severity, generator=rng.generator(0, "corruption", card.name))
            with torch.no_grad():
                table[row, severity - 1] = float((digits_model(z).argmax(1) == y).double().mean())
    heat = evidence(mean, "heatmap")
    assert list(heat.rows) == [card.name for card in cards]
    np.testing.assert_allclose(np.array(heat.values)[:, 1:], table, atol=1e-12)
    assert mean.value == pytest.approx(table.mean(), abs=1e-12)
    assert mean.n == worst.n == 256
    assert mean.interval is not None and mean.interval.low < mean.value < mean.interval.high
    assert worst.value == pytest.approx(table.min(), abs=1e-12)
    row, column = np.unravel_index(table.argmin(), table.shape)
    assert worst.summary.startswith(f"{cards[row].name} at severity {column + 1} ")
    assert worst.interval is not None and "at once" in worst.interval.method
    # Both findings state the whole price: clean samples once, and every corruption at every severity.
    assert mean.queries == worst.queries == 256 * (1 + 5 * len(cards))
    captions = [picture.caption for picture in evidence(mean, "gallery").pictures]
    assert len(captions) <= len(cards)
    assert all("read as" in caption for caption in captions)


def test_corruptions_need_images_and_classes(linear_model: nn.Linear, linear_samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    finding = run("robustness/corruptions", linear_model, Data(Split(*linear_samples)))
    assert finding.status is Status.NOT_RUN
    assert "tabular" in finding.reason


def test_the_certified_figure_is_below_pgd_and_equals_the_bound(digits: Data, digits_model: nn.Module) -> None:
    finding = run("robustness/certified-ibp", digits_model, digits, threats=(Linf(0.005),))
    x, y = sample(digits)
    proven = certified(ibp(digits_model, x, Linf(0.005), labels=y), y)
    assert finding.value == pytest.approx(float(proven.double().mean()), abs=1e-12)
    assert 0.1 < finding.value < 0.95
    z = pgd(digits_model, x, y, Linf(0.005), steps=20)
    with torch.no_grad():
        resisted = float((digits_model(z).argmax(1) == y).double().mean())
    assert finding.value <= resisted
    proven_line = evidence(finding, "curve").series[0].y
    assert all(b <= a for a, b in itertools.pairwise(proven_line))


def test_certificates_of_an_unknown_layer_are_not_run(digits: Data) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())
    finding = run("robustness/certified-ibp", model, digits)
    assert finding.status is Status.NOT_RUN
    assert "'2' of type Softplus" in finding.reason


def test_detection_counts_examples_that_do_harm(digits: Data, digits_model: nn.Module) -> None:
    finding = run("robustness/detection-feature-squeezing", digits_model, digits)
    assert finding.value is not None and finding.value > 0.6
    assert finding.n is not None and 10 <= finding.n < 128
    easy = run("robustness/detection-feature-squeezing", digits_model, digits, threats=(Linf(0.0),))
    assert easy.status is Status.NOT_RUN
    assert "at least 10 are needed" in easy.reason


def test_bit_flips_leave_the_model_as_it_was_and_the_curve_falls(digits: Data, digits_model: nn.Module) -> None:
    model = copy.deepcopy(digits_model)
    finding = run("integrity/bit-flips", model, digits)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), digits_model.state_dict().values(), strict=True))
    assert finding.n == 20
    mean, worst, clean = evidence(finding, "curve").series
    assert finding.value == pytest.approx(mean.y[list(mean.x).index(10)])
    assert all(low <= centre for low, centre in zip(worst.y, mean.y, strict=True))
    assert mean.y[-1] < mean.y[0] <= clean.y[0]
    rows = {row[0]: float(row[1].rstrip("%")) for row in evidence(finding, "table").rows}
    # A mantissa bit changes a weight by at most its own size; a high exponent bit by 2^128.
    assert rows["mantissa"] > rows["exponent"] + 5
    again = run("integrity/bit-flips", model, digits)
    assert again.value == finding.value


def test_a_model_that_answers_nan_is_wrong(digits: Data) -> None:
    """All labels are 0, the class that the arg max of a row of NaN may name; no flip that ends in NaN may count as right."""
    x, _ = digits.test.first(50)
    data = Data(Split(x, torch.zeros(50, dtype=torch.long)), classes=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    finding = run("integrity/bit-flips", model, data)
    assert finding.value == 0


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_label_noise_is_measured(digits: Data, digits_model: nn.Module, rate: float) -> None:
    poisoned = label_flip(digits, rate=rate, seed=3)
    finding = run("integrity/label-noise", digits_model, poisoned.data)
    assert finding.n == 1297
    assert finding.value == pytest.approx(rate + 0.015, abs=0.012)  # digits have some 1.5 % of their own
    assert finding.status is (Status.FAIL if rate else Status.PASS)
    if rate:
        listed = [row[0] for row in evidence(finding, "table").rows]
        assert len(listed) == 12
        assert sum(bool(poisoned.mask[i]) for i in listed) >= 10
        truth = [row for row in evidence(finding, "table").rows if poisoned.mask[row[0]]]
        assert sum(int(row[2]) == int(digits.train.y[row[0]]) for row in truth) >= 10
    without = run("integrity/label-noise", digits_model, dataclasses.replace(digits, train=None))
    assert without.status is Status.NOT_RUN


def test_weights_are_looked_at(digits: Data, digits_model: nn.Module) -> None:
    sane = run("integrity/weights-sane", digits_model, digits)
    assert sane.status in (Status.PASS, Status.WARN)
    assert sane.n == 16 + 32 + 64
    assert sane.queries == 0
    broken = copy.deepcopy(digits_model)
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = torch.inf
    assert run("integrity/weights-sane", broken, digits).status is Status.FAIL
    planted = copy.deepcopy(digits_model)
    with torch.no_grad():
        planted[5].weight[7] *= 30
    finding = run("integrity/weights-sane", planted, digits)
    assert finding.status is Status.WARN
    assert any("out of line" in note for note in finding.notes)


def test_checks_that_open_the_model_are_not_run_without_access(digits: Data, digits_model: nn.Module) -> None:
    for name in ("integrity/bit-flips", "integrity/weights-sane", "robustness/certified-ibp"):
        card = load_methods().get(name, "check")
        finding = run_check(card, Target(digits_model, access=Access.SCORE), digits, Settings())
        assert finding.status is Status.NOT_RUN


def test_certified_accuracy_of_a_linear_model_meets_the_attack(digits: Data) -> None:
    """A linear model has exact bounds: certified accuracy equals accuracy under the exact attack."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(model, digits.train, schedule=Schedule(epochs=3))
    finding = run("robustness/certified-ibp", model, digits, threats=(Linf(0.05),))
    x, y = sample(digits)
    z = pgd(model, x, y, Linf(0.05), loss="margin", steps=100)
    with torch.no_grad():
        resisted = float((model(z).argmax(1) == y).double().mean())
    assert finding.value == pytest.approx(resisted, abs=0.02)
