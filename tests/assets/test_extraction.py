"""Extraction: linear models are solved exactly, others are told apart, and substitutes agree as far as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from hauberk import Data, Target
from hauberk.assets.extraction import fidelity_curve, solve_linear, substitute
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.access import Access
from hauberk.core.errors import AccessDenied, DataError
from hauberk.core.finding import Finding, Status
from hauberk.core.rng import isolated
from hauberk.methods import load_methods


def run(name: str, target: Target, data: Data) -> Finding:
    return run_check(load_methods().get(name, "check"), target, data, Settings())


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer, load_digits], ids=lambda one: one.__name__)
def test_logistic_regression_is_known_whole_from_d_plus_1_probabilities(load: object) -> None:
    x, y = load(return_X_y=True)  # type: ignore[operator]
    x = (x - x.min(0)) / np.maximum(np.ptp(x, axis=0), 1e-9)
    fitted = LogisticRegression(max_iter=2000).fit(x, y)
    target = Target(lambda z: torch.tensor(fitted.predict_proba(z.numpy()), dtype=torch.float64))
    solved = solve_linear(target, x.shape[1:], held_out=64)
    assert solved.queries == x.shape[1] + 1 + 64 == target.ledger.queries
    assert solved.is_linear and solved.residual < 1e-3
    assert (solved.labels(torch.tensor(x)).numpy() == fitted.predict(x)).mean() == 1.0
    weight = fitted.coef_ if len(fitted.coef_) > 1 else np.concatenate([0 * fitted.coef_, fitted.coef_])
    used = np.ptp(x, axis=0) > 0
    np.testing.assert_allclose(solved.weight.numpy()[:, used], (weight - weight[0])[:, used], atol=1e-3)


def test_the_weights_of_a_float64_linear_model_come_back_to_1e_minus_6(linear_model: nn.Linear) -> None:
    solved = solve_linear(linear_model, (20,), bounds=(-2.0, 3.0))
    with torch.no_grad():
        torch.testing.assert_close(solved.weight, linear_model.weight - linear_model.weight[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(solved.bias, linear_model.bias - linear_model.bias[0], rtol=0, atol=1e-5)


def test_rounded_scores_cost_more_queries(linear_model: nn.Linear) -> None:
    def rounded(x: Tensor) -> Tensor:
        p = torch.softmax(linear_model(x.double()), 1).detach()
        return (p * 100).round().clamp(min=1) / 100

    # A short range keeps all classes likely: beyond it a rounded score of 0.01 says little of the log-odds.
    truth = linear_model.weight.detach() - linear_model.weight.detach()[0]
    target = Target(rounded, outputs="probabilities")
    solved = [solve_linear(target, (20,), bounds=(-0.1, 0.1), extra=extra) for extra in (0, 4000)]
    few, many = (float((one.weight - truth).norm() / truth.norm()) for one in solved)
    assert few > 0.03 and many < few / 4


def test_features_that_cannot_vary_and_infinite_ranges() -> None:
    model = nn.Linear(3, 2)
    low, high = torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1.0, 0.5, 1.0])
    solved = solve_linear(model, (3,), bounds=(low, high))
    assert solved.is_linear and solved.weight[:, 1].tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match="infinite"):
        solve_linear(model, (3,), bounds=(-torch.inf, torch.inf))
    with pytest.raises(AccessDenied):
        solve_linear(Target(model, access=Access.LABEL), (3,))


def test_a_network_is_told_from_a_linear_model(digits_model: nn.Module, digits: Data) -> None:
    found = run("assets/extraction-linear", Target(digits_model), digits)
    assert found.status is not Status.FAIL and "not linear" in found.summary
    assert found.queries == 65 + 64 + 256
    with isolated(0):
        linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = run("assets/extraction-linear", Target(linear), digits)
    assert (found.status, found.value, found.n) == (Status.FAIL, 1.0, 256)
    labels = run("assets/extraction-linear", Target(linear, access=Access.LABEL), digits)
    assert labels.status is Status.NOT_RUN


def test_a_substitute_learns_from_scores_and_from_labels(digits_model: nn.Module, digits: Data) -> None:
    x, _ = digits.train.tensors()
    test, _ = digits.test.tensors()
    for soft, least in ((True, 0.93), (False, 0.88)):
        target = Target(digits_model, access=Access.SCORE if soft else Access.LABEL)
        curve = fidelity_curve(target, x, test, budgets=(32, 512, 5000), soft=soft, epochs=15)
        assert [one.queries for one in curve] == [32, 512]  # 5,000 are more than there are
        assert target.ledger.queries == 500 + 32 + 512
        with torch.no_grad():
            agreed = digits_model(test).argmax(1) == curve[1].student(test).argmax(1)
        assert torch.equal(agreed, curve[1].agreed)
        rates = [float(one.agreed.double().mean()) for one in curve]
        assert rates[1] > rates[0] and rates[1] > least


def test_the_same_seed_gives_the_same_substitute(linear_model: nn.Linear) -> None:
    x, state = torch.rand(64, 20, generator=torch.Generator().manual_seed(2)), torch.get_rng_state()
    students = [substitute(linear_model, x, epochs=2, seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([one.clone() for one in student.parameters()] for student in students)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(DataError, match="empty"):
        substitute(linear_model, x[:0])
    with pytest.raises(AccessDenied):
        substitute(Target(linear_model, access=Access.LABEL), x)


def test_the_fidelity_check(digits_model: nn.Module, digits: Data) -> None:
    found = run("assets/extraction-fidelity", Target(digits_model), digits)
    assert found.status in (Status.WARN, Status.FAIL) and found.n == 500
    assert found.value is not None and found.value > 0.92
    series = found.evidence[0].series[0]  # type: ignore[union-attr]
    assert list(series.x) == [32.0, 128.0, 512.0] and series.y[-1] == found.value
    assert all(low <= y <= high for low, y, high in zip(series.low, series.y, series.high, strict=True))
    alone = Data(digits.test, bounds=digits.bounds, classes=10)
    halved = run("assets/extraction-fidelity", Target(digits_model, access=Access.LABEL), alone)
    assert halved.n == 250 and "labels" in halved.threat and "other half" in halved.notes[0]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("access", [Access.SCORE, Access.LABEL])
def test_samples_of_another_precision_make_the_same_substitute(kind: torch.dtype, access: Access, digits: Data) -> None:
    # Sixteenths are the same in every precision.
    x, y = digits.test.tensors()
    with isolated(3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = [
        run("assets/extraction-fidelity", Target(model, access=access), Data((x[:200].to(one), y[:200]), classes=10))  # type: ignore[arg-type]
        for one in (torch.float32, kind)
    ]
    assert found[1].reason == "" and found[1].n == 100
    assert found[1].value == pytest.approx(found[0].value, abs=0.02)


def test_a_student_of_another_precision_is_taught_too(linear_model: nn.Linear) -> None:
    x = torch.rand(64, 20, generator=torch.Generator().manual_seed(2))
    for soft in (True, False):
        with isolated(1):
            student = nn.Linear(20, 4).double()
        before = student.weight.detach().clone()
        taught = substitute(linear_model, x, student=student, soft=soft, epochs=2)
        assert taught is student and student.weight.dtype is torch.float64 and not torch.equal(before, student.weight)


def test_scores_of_minus_infinity_are_not_solved(digits: Data) -> None:
    def masked(x: Tensor) -> Tensor:
        scores = x.flatten(1)[:, :10].clone()
        scores[:, 9] = -torch.inf
        return scores

    solved = solve_linear(masked, (64,))
    assert not solved.is_linear and solved.residual == float("inf") and bool(solved.weight.isnan().all())
    found = run("assets/extraction-linear", Target(masked), digits)
    assert found.status is Status.NOT_RUN and "not finite" in found.reason
