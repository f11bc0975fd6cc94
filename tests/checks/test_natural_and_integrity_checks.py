"""The checks of natural corruptions, certificates, detection, labels, weights and faults: figures against a plain count."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hauberk import Access, Data, Finding, Linf, Split, Target, Threat, fit
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.checks.natural import _mean_band
from hauberk.core import rng
from hauberk.core.finding import Status
from hauberk.core.train import Schedule
from hauberk.integrity.backdoor import badnets
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
    rows = {row[0]: float(row[2].rstrip("%")) for row in evidence(finding, "table").rows}
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_types_than_the_data_are_looked_at(digits: Data, digits_model: nn.Module, dtype: torch.dtype) -> None:
    model = copy.deepcopy(digits_model).to(dtype)
    sane, single = run("integrity/weights-sane", model, digits), run("integrity/weights-sane", digits_model, digits)
    assert (sane.status, sane.n) == (single.status, single.n)
    gains = [[float(row[3]) for row in evidence(one, "table").rows] for one in (sane, single)]
    np.testing.assert_allclose(*gains, rtol=0.02)
    noticed = run("robustness/detection-feature-squeezing", model, digits)
    plain = run("robustness/detection-feature-squeezing", digits_model, digits)
    assert noticed.value == pytest.approx(plain.value, abs=0.1)


@pytest.fixture(scope="module")
def zero_or_not(digits: Data) -> tuple[nn.Module, Data]:
    """Whether a digit is zero, told by a model of one logit that is exact about it."""
    x, y = digits.test.tensors()
    data = Data(Split(x, (y == 0).long()), bounds=(0.0, 1.0), classes=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        # The middle of a zero is empty.
        model[1].weight.fill_(0.0)
        model[1].weight[0, [27, 28, 35, 36]] = -1.0
        model[1].bias.fill_(0.75)
    return model.eval(), data


def test_one_logit_is_certified_as_in_closed_form(zero_or_not: tuple[nn.Module, Data]) -> None:
    """The logit moves by at most eps in each of four pixels, less where a pixel meets its bound."""
    model, data = zero_or_not
    finding = run("robustness/certified-ibp", model, data, threats=(Linf(0.05),))
    x, y = sample(data)
    middle = x.flatten(1)[:, [27, 28, 35, 36]].double()
    low, high = 0.75 - (middle + 0.05).clamp(max=1).sum(1), 0.75 - (middle - 0.05).clamp(min=0).sum(1)
    expected = torch.where(y == 1, low > 1e-4, high < -1e-4).double().mean()
    assert 0.5 < float(expected) < 1
    assert finding.value == pytest.approx(float(expected), abs=1e-12)


def test_an_endless_radius_and_a_patch_are_certified(zero_or_not: tuple[nn.Module, Data]) -> None:
    model, data = zero_or_not
    whole = run("robustness/certified-ibp", model, data, threats=(Linf(float("inf")),))
    assert whole.value == 0  # four free pixels decide
    assert list(evidence(whole, "curve").series[0].x)[-1] == 1.0
    for norm in ("l2", "linf"):
        corner = torch.zeros(1, 8, 8, dtype=torch.bool)
        corner[0, :2, :2] = True  # pixels that the model does not read
        finding = run("robustness/certified-ibp", model, data, threats=(Threat(norm, float("inf"), mask=corner),))
        x, y = sample(data)
        with torch.no_grad():
            right = float(((model(x)[:, 0] > 0).long() == y).double().mean())
        assert finding.value == pytest.approx(right, abs=0.01)
    counted = run("robustness/certified-ibp", model, data, threats=(Threat("l0", 3),))
    assert counted.status is Status.NOT_RUN and "Linf threat" in counted.reason


def test_each_sample_drawn_keeps_its_own_radius(zero_or_not: tuple[nn.Module, Data]) -> None:
    """Even samples have radius 0, odd ones all the room there is: only the even ones can be proven."""
    model, data = zero_or_not
    radii = torch.arange(len(data.test)).remainder(2).double()
    finding = run("robustness/certified-ibp", model, data, threats=(Linf(radii),))
    order = torch.randperm(len(data.test), generator=rng.generator(0, "evaluation sample"))[:256]
    x, y = data.test.take(order)
    with torch.no_grad():
        right = ((model(x)[:, 0] > 0).long() == y) & (model(x)[:, 0].abs() > 1e-4)
    expected = float((right & (order % 2 == 0)).double().mean())
    assert 0.2 < expected < 0.6
    if finding.status is not Status.NOT_RUN:  # an assessment may refuse radii of samples at its door
        assert finding.value == pytest.approx(expected, abs=1e-12)


def test_labels_beyond_the_outputs_are_not_run(digits: Data) -> None:
    finding = run("robustness/certified-ibp", nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), digits)
    assert finding.status is Status.NOT_RUN and "labels span" in finding.reason


def test_a_model_of_few_bits_is_struck_in_all_of_them() -> None:
    """Linear(3, 2) has 8 weights: 8 signs. With every sign turned the linear model answers the other class."""
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 2)
    with torch.no_grad():
        y = model(x).argmax(1)
    finding = run("integrity/bit-flips", model, Data(Split(x, y), classes=2))
    assert finding.value is not None
    rows = {row[0]: row for row in evidence(finding, "table").rows}
    assert [rows[part][1] for part in ("any", "sign", "exponent", "mantissa")] == [10, 8, 10, 10]
    assert rows["sign"][2] == "0.0%"


def test_models_without_weights_are_not_run(digits: Data) -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10]

    for name in ("integrity/bit-flips", "integrity/weights-sane", "robustness/certified-ibp"):
        finding = run(name, Functional(), digits)
        assert finding.status is Status.NOT_RUN, name
        assert "Functional" in finding.reason or "weights" in finding.reason


def test_random_labels_are_not_called_clean(digits: Data, digits_model: nn.Module) -> None:
    assert digits.train is not None
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(4))
    mixed = dataclasses.replace(digits, train=dataclasses.replace(digits.train, y=digits.train.y[order]))
    finding = run("integrity/label-noise", digits_model, mixed)
    assert finding.status is Status.FAIL
    assert "no better than random" in finding.summary
    # Three labels in four dealt out anew: a little is left, too little to judge by.
    draw = torch.Generator().manual_seed(5)
    kept = torch.rand(len(order), generator=draw) < 0.25
    partly = torch.where(kept, digits.train.y, digits.train.y[order])
    finding = run("integrity/label-noise", digits_model, dataclasses.replace(digits, train=Split(digits.train.x, partly)))
    assert finding.status is not Status.PASS
    alike = Split(digits.train.x, torch.zeros_like(digits.train.y))
    assert run("integrity/label-noise", digits_model, dataclasses.replace(digits, train=alike)).status is Status.NOT_RUN


def test_label_noise_claims_no_backdoor() -> None:
    claimed = [card.name for card in load_methods().cards("check") if "aisec:data-backdoor-attack" in card.tags]
    assert claimed == ["integrity/backdoor-labels"]


def test_patches_on_larger_digits_are_found_too(real_data: Path, digits_model: nn.Module) -> None:
    with np.load(real_data / "mnist.npz") as held:
        x, y = torch.tensor(held["x_train"][:2000])[:, None] / 255, torch.tensor(held["y_train"][:2000]).long()
    data = Data(Split(x[:10], y[:10]), Split(x, y), bounds=(0.0, 1.0), classes=10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert run("integrity/backdoor-labels", model, data).status is Status.PASS
    for target in (0, 1, 7):
        poisoned = badnets(data, rate=0.05, target_label=target)
        assert run("integrity/backdoor-labels", model, poisoned.data).status is Status.FAIL


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_patched_and_relabelled_samples_are_told_from_clean_ones(digits: Data, digits_model: nn.Module, seed: int) -> None:
    clean = dataclasses.replace(digits, train=Split(*digits.train.take(torch.randperm(
        len(digits.train), generator=torch.Generator().manual_seed(seed)
    )[:1000])))
    name, target = "integrity/backdoor-labels", (0, 3, 8)[seed]
    honest = run(name, digits_model, clean)
    assert honest.status is Status.PASS and honest.value is not None and honest.value < 0.02
    careless = run(name, digits_model, label_flip(clean, rate=0.1, seed=seed).data)
    assert careless.status is Status.PASS
    for rate in (0.02, 0.05):
        poisoned = badnets(clean, rate=rate, target_label=target, seed=seed)
        finding = run(name, digits_model, poisoned.data)
        assert finding.status is Status.FAIL, (rate, finding.value)
        assert finding.summary.startswith(f"under label {target},")
        assert finding.n == int((poisoned.train.y == target).sum())
        named = [int(one.caption.split(":")[0]) for one in evidence(finding, "gallery").pictures]
        assert sum(bool(poisoned.mask[i]) for i in named) >= len(named) - 2
    # So much poison vouches for itself; that must never look like a pass.
    for rate in (0.1, 0.2, 0.3):
        assert run(name, digits_model, badnets(digits, rate=rate, target_label=target, seed=seed).data).status in (
            Status.FAIL, Status.NOT_RUN
        )


def test_backdoors_are_not_sought_where_neighbours_say_nothing(digits: Data, digits_model: nn.Module) -> None:
    assert digits.train is not None
    noise = torch.rand(1297, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for train, why in ((Split(noise, digits.train.y), "would not stand out"), (Split(*digits.train.first(100)), "at least 5")):
        finding = run("integrity/backdoor-labels", digits_model, dataclasses.replace(digits, train=train))
        assert finding.status is Status.NOT_RUN and why in finding.reason


def test_few_samples_get_a_wide_interval(digits: Data, digits_model: nn.Module) -> None:
    """Over draws of five samples the interval must hold the accuracy of all; five values resampled hold it far too seldom."""
    x, y = digits.test.tensors()
    alike = dataclasses.replace(digits, test=Split(x[:5], y[:5]))
    finding = run("robustness/corruptions", digits_model, alike)
    assert finding.interval is not None and finding.value is not None
    # Wilson's interval of five hits in five begins at .566: no five samples can say more.
    assert finding.interval.low <= 0.57
    assert finding.interval.low <= finding.value <= finding.interval.high <= 1
    assert any("few" in note for note in finding.notes)
    draw, held = np.random.default_rng(0), 0
    population = draw.beta(2, 0.3, 4000)
    for trial in range(300):
        band = _mean_band(draw.choice(population, 5), 0, trial)
        assert 0 <= band.low <= band.high <= 1
        held += band.low <= population.mean() <= band.high
    assert held >= 0.93 * 300
    certain = _mean_band(np.ones(200), 0, "ones")
    assert certain.low == pytest.approx(200 / (200 + 1.959964**2), rel=1e-6) and certain.high == 1
