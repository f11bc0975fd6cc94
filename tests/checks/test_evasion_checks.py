"""The evasion checks: figures that can be computed again by hand, prices paid once, and clear words where a check cannot run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from hauberk import L0, L2, Access, Data, Linf, Patch, Schedule, Split, Target, fit
from hauberk.checks.context import Memo, Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Curve, Finding, Gallery, Status, Table
from hauberk.core.stats import wilson
from hauberk.core.threat import Threat
from hauberk.core.validate import validate
from hauberk.methods import load_methods

NAMES = (
    "random-noise", "fgsm", "pgd-linf", "pgd-l2", "pgd-targeted", "square", "transfer", "hop-skip-jump", "worst-case",
    "accuracy-vs-eps",
)


def run(
    name: str, target: Target, data: Data, threat: Threat | None = None, memos: dict[Any, Memo] | None = None, **settings: Any
) -> Finding:
    chosen = Settings(threats=(threat or Linf(0.1),), **settings)
    return run_check(load_methods().get(f"robustness/{name}", "check"), target, data, chosen, memos)


@pytest.fixture(scope="module")
def findings(digits: Data, digits_model: nn.Module) -> dict[str, Finding]:
    """Every evasion check on the digits, in one assessment."""
    target, memos = Target(digits_model), {}
    found = {name: run(name, target, digits, memos=memos) for name in NAMES}
    found["ledger"] = dataclasses.replace(found["fgsm"], queries=target.ledger.queries, gradients=target.ledger.gradients)
    return found


def test_every_figure_has_its_interval_and_its_threat(findings: dict[str, Finding]) -> None:
    for name in NAMES:
        finding = findings[name]
        assert finding.status in (Status.PASS, Status.WARN, Status.FAIL), (name, finding.reason)
        assert finding.n and finding.value is not None and finding.interval is not None
        assert finding.interval == wilson(round(finding.value * finding.n), finding.n)
        assert "ε = " in finding.threat and finding.queries > 0
        assert any(isinstance(one, Table) for one in finding.evidence)
    assert {name: findings[name].n for name in ("pgd-linf", "hop-skip-jump", "accuracy-vs-eps")} == {
        "pgd-linf": 256, "hop-skip-jump": 64, "accuracy-vs-eps": 128,
    }
    assert "1000 label queries" in findings["hop-skip-jump"].summary


def test_accuracy_left_is_what_a_look_at_the_examples_says(
    digits: Data, digits_model: nn.Module, findings: dict[str, Finding]
) -> None:
    gallery = next(one for one in findings["pgd-linf"].evidence if isinstance(one, Gallery))
    assert len(gallery.pictures) == 8
    assert gallery.pictures[0].caption.startswith("clean: ") and "moved 0.1" in gallery.pictures[1].caption
    from hauberk.core.rng import derive_seed, generator
    from hauberk.robustness.attack import pgd

    order = torch.randperm(len(digits.test), generator=generator(0, "evaluation sample"))[:256]
    x, y = digits.test.take(order)
    z = pgd(digits_model, x, y, Linf(0.1), seed=derive_seed(0, "evasion", "pgd"))
    with torch.no_grad():
        held = (digits_model(z).argmax(1) == y) & (digits_model(x).argmax(1) == y)
    assert findings["pgd-linf"].value == float(held.double().mean())


def test_the_worst_case_is_below_every_attack_in_it(findings: dict[str, Finding]) -> None:
    worst = findings["worst-case"]
    table = worst.evidence[0]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["pgd", "fgm", "pgd (margin loss)", "square", "transfer", "random-noise"]
    left = [float(str(row[1]).rstrip("%")) / 100 for row in table.rows]
    assert worst.value is not None and worst.value <= min(left) + 5e-4
    # What one attack alone breaks is what the union gains by it.
    assert worst.value >= min(left) - sum(int(row[-1]) for row in table.rows) / 256 - 0.05
    for name, at in (("pgd-linf", 0), ("square", 3), ("transfer", 4), ("random-noise", 5)):
        assert findings[name].value == pytest.approx(left[at], abs=5e-4)
    # Stronger adversaries leave less; noise is the weakest.
    assert findings["worst-case"].value <= findings["pgd-linf"].value <= findings["fgsm"].value < findings["random-noise"].value


def test_an_attack_is_paid_once_and_stated_by_all_who_use_it(findings: dict[str, Finding]) -> None:
    spent, stated = findings["ledger"].gradients, sum(findings[name].gradients for name in NAMES)
    shared = findings["pgd-linf"].gradients + findings["fgsm"].gradients  # in the worst case again
    assert spent == stated - shared
    assert findings["worst-case"].queries > findings["square"].queries + findings["pgd-linf"].queries - 512


def test_the_curve_falls_from_the_clean_accuracy(digits: Data, digits_model: nn.Module, findings: dict[str, Finding]) -> None:
    curve = findings["accuracy-vs-eps"].evidence[0]
    assert isinstance(curve, Curve)
    series = curve.series[0]
    assert series.x == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3])
    assert list(series.y) == sorted(series.y, reverse=True) and series.y[0] > 0.9 and series.y[-1] < 0.05
    assert findings["accuracy-vs-eps"].value == series.y[4]
    for share, low, high in zip(series.y, series.low, series.high, strict=True):
        band = wilson(round(share * 128), 128)
        assert (band.low, band.high) == (low, high)
    named = run("accuracy-vs-eps", Target(digits_model), digits, Linf(0.1), radii=(0.2,)).evidence[0]
    assert isinstance(named, Curve) and list(named.series[0].x) == [0, 0.1, 0.2]


def test_the_distance_curve_of_labels_alone_rises_to_all(findings: dict[str, Finding]) -> None:
    curve = next(one for one in findings["hop-skip-jump"].evidence if isinstance(one, Curve))
    shares = curve.series[0].y
    assert shares[0] == 0 and shares[-1] == 1 and list(shares) == sorted(shares)


def test_targeted_counts_correct_samples_alone(findings: dict[str, Finding]) -> None:
    targeted, untargeted = findings["pgd-targeted"], findings["pgd-linf"]
    assert targeted.n is not None and 230 < targeted.n < 256
    assert targeted.better == "lower" and 0 < targeted.value < 1 - untargeted.value


def test_the_same_seed_gives_the_same_finding_in_any_order(
    digits: Data, digits_model: nn.Module, findings: dict[str, Finding]
) -> None:
    for name in ("worst-case", "hop-skip-jump"):
        again = run(name, Target(digits_model), digits)
        assert dataclasses.replace(again, seconds=0) == dataclasses.replace(findings[name], seconds=0)
    assert run("pgd-linf", Target(digits_model), digits, seed=1).value != findings["pgd-linf"].value


def test_with_less_access_what_needs_gradients_says_so(digits: Data, digits_model: nn.Module) -> None:
    for access, runs in ((Access.SCORE, 6), (Access.LABEL, 4)):
        found = [run(name, Target(digits_model, access=access), digits) for name in NAMES]
        assert sum(one.status is not Status.NOT_RUN for one in found) == runs
        assert all("needs" in one.reason for one in found if one.status is Status.NOT_RUN)
        worst = found[NAMES.index("worst-case")]
        assert worst.gradients == 0 and f"with {access.name} access" in " ".join(worst.notes)


def test_tables_of_numbers_and_other_norms_are_assessed_as_well() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    low, high = torch.tensor(x.min(0)).float(), torch.tensor(x.max(0)).float()
    rows, labels = torch.tensor(x).float(), torch.tensor(y)
    data = Data(Split(rows[::2], labels[::2]), Split(rows[1::2], labels[1::2]), bounds=(low, high), name="cancer")
    from hauberk.core.target import Normalize

    model = nn.Sequential(Normalize(rows.mean(0).tolist(), rows.std(0).tolist()), nn.Linear(30, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model[1].reset_parameters()
    fit(model, data.train, schedule=Schedule(epochs=60, batch_size=32))
    for threat in (Linf(2.0), L2(40.0), L0(2)):
        for name in NAMES:
            finding = run(name, Target(model), data, threat)
            assert finding.status is not Status.ERROR, (name, finding.reason, finding.notes)
            assert not any(isinstance(one, Gallery) for one in finding.evidence)
            if name == "worst-case":
                assert finding.value is not None and finding.value < 0.9


def test_what_cannot_be_asked_is_not_run(digits: Data, digits_model: nn.Module) -> None:
    target = Target(digits_model)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 2:6] = True
    patch = Patch(mask)
    assert run("accuracy-vs-eps", target, digits, patch).status is Status.NOT_RUN
    assert run("pgd-linf", target, digits, patch).value < 0.2
    real = Data(Split(torch.rand(20, 4), torch.rand(20)))
    assert {run(name, target, real).status for name in NAMES} == {Status.NOT_RUN}


def test_masking_is_looked_for_also_where_validation_found_no_gradient(digits: Data, digits_model: nn.Module) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = digits_model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.detach())

    target = Target(Cut().eval())
    validate(target, digits)
    assert target.access is Access.SCORE
    assert run("pgd-linf", target, digits).status is Status.NOT_RUN
    found = run("gradient-masking", target, digits)
    assert found.status is Status.FAIL and "gradients are exactly zero" in found.summary
    assert any("no gradient gets through the model" in note for note in found.notes)
    refused = run("gradient-masking", Target(Cut().eval(), access="score"), digits)
    assert refused.status is Status.NOT_RUN and "it needs GRADIENT access, SCORE is granted" in refused.reason


def test_masking_says_in_the_models_own_words_why_it_could_not_look(digits: Data, digits_model: nn.Module) -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                raise RuntimeError("the derivative for 'oddity' is not implemented")
            return digits_model(x)

    target = Target(Fails().eval())
    validate(target, digits)
    found = run("gradient-masking", target, digits)
    assert found.status is Status.NOT_RUN and "the derivative for 'oddity' is not implemented" in found.reason
