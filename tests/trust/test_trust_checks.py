"""The trust checks find the faults they are there for, and are quiet where there are none."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hauberk import Access, Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Status
from hauberk.methods import load_methods
from hauberk.trust import calibration


def run(name, model, data, settings=None, **options):
    target = model if isinstance(model, Target) else Target(model, **options)
    return run_check(load_methods().get(name, "check"), target, data, settings or Settings())


class Scaled(nn.Module):
    """A model whose logits are multiplied: surer, and no more often right."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.model(x) * self.factor


def batch_norm_model():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10))
        model(torch.rand(64, 1, 8, 8))
    return model.eval()


def test_overconfidence_is_found_and_the_temperature_named(digits, digits_model):
    calm, wild = (run("trust/calibration-ece", Scaled(digits_model, factor), digits) for factor in (1.0, 40.0))
    assert calm.status is Status.PASS
    # At forty times the logits every answer is sure, so the error is the share of wrong answers.
    wrong = float((digits_model(digits.test.x.values).argmax(1) != digits.test.y).double().mean())
    assert wild.value == pytest.approx(wrong, abs=0.004)
    assert wild.interval.low > 0
    assert "overconfident" in wild.summary
    after = {row[0]: row[2] for row in wild.evidence[1].rows}
    assert after["temperature"] > 20
    assert after["calibration error"] < wild.value


def test_the_ece_of_the_check_is_that_of_the_function(digits, digits_model):
    with torch.no_grad():
        p = digits_model(digits.test.x.values).double().softmax(1)
    for name, mass in (("trust/calibration-ece", False), ("trust/calibration-adaptive-ece", True)):
        expected = calibration.reliability(*calibration.top_label(p, digits.test.y), equal_mass=mass).ece
        finding = run(name, digits_model, digits)
        assert finding.value == pytest.approx(expected, abs=1e-9)
        assert finding.n == 500
        assert finding.interval.low <= expected <= finding.interval.high


def test_scores_no_better_than_a_guess_fail(digits, digits_model):
    constant = Target(lambda x: torch.zeros(len(x), 10), bounds=(0, 1))
    for name, good in (("trust/brier", 0.2), ("trust/nll", 0.5)):
        assert run(name, digits_model, digits).value < good
        assert run(name, digits_model, digits).status is Status.PASS
        assert run(name, constant, digits).status is Status.FAIL
    assert run("trust/brier", constant, digits).value == pytest.approx(0.9)
    assert run("trust/nll", constant, digits).value == pytest.approx(np.log(10))


def test_selective_accuracy_is_that_of_a_sort(digits, digits_model):
    with torch.no_grad():
        sure, labels = digits_model(digits.test.x.values).double().softmax(1).max(1)
    kept = sure.argsort(descending=True)[:450]
    finding = run("trust/risk-coverage", digits_model, digits)
    assert finding.value == pytest.approx(float((labels == digits.test.y)[kept].double().mean()))
    assert finding.n == 450


def test_drift_is_found_where_it_is_and_not_where_it_is_not(digits, digits_model):
    test = digits.test.x.values
    dimmed = Data(Split(test * 0.8, digits.test.y), digits.train, bounds=(0.0, 1.0))
    for name in ("trust/drift-features", "trust/drift-mmd"):
        assert run(name, digits_model, digits).status is Status.PASS
        assert run(name, digits_model, dimmed).status is not Status.PASS
    rows = run("trust/drift-features", digits_model, dimmed).evidence[0].rows
    assert {row[0] for row in rows if row[-1]} >= {"brightness", "contrast", "sharpness"}
    finding = run("trust/drift-mmd", digits_model, dimmed)
    assert finding.value == 1 / 501
    table = Data(Split(test.flatten(1), digits.test.y), Split(digits.train.x.values.flatten(1), digits.train.y))
    assert run("trust/drift-features", digits_model, table).status is Status.PASS
    classifier = run("trust/drift-classifier", digits_model, dimmed)
    assert classifier.interval.low > 0.6


def test_a_group_served_worse_is_found(digits):
    # The answer is right for group 0 and, in group 1, wrong for each third sample.
    index = torch.arange(500)
    groups = (index % 2).long()
    wrong = (groups == 1) & (index // 2 % 3 == 0)
    answers = torch.where(wrong, (digits.test.y + 1) % 10, digits.test.y)
    x = index.float()[:, None]
    data = Data(Split(x, digits.test.y, {"sex": groups}), bounds=(0.0, 500.0), classes=10)
    target = Target(lambda part: answers[part[:, 0].long()], outputs="labels", bounds=(0, 500))
    finding = run("trust/group-disparity", target, data)
    assert finding.value == pytest.approx(84 / 250)
    assert finding.status is Status.FAIL
    assert finding.interval.low > 0.2
    assert finding.evidence[0].rows[0][:3] == [1, 250, pytest.approx(166 / 250)]
    unnamed = dataclasses.replace(data, test=Split(x, digits.test.y))
    refused = run("trust/group-disparity", target, unnamed)
    assert (refused.status, "groups" in refused.reason) == (Status.NOT_RUN, True)
    one = dataclasses.replace(data, test=Split(x, digits.test.y, {"all": torch.zeros(500, dtype=torch.long)}))
    assert "1 of 1 groups" in run("trust/equalised-odds", target, one).reason


def test_odd_group_numbers_are_reported_as_given(digits, digits_model):
    groups = torch.where(torch.arange(500) % 2 == 0, -1, 1_000_000_007)
    data = dataclasses.replace(digits, test=Split(digits.test.x, digits.test.y, {"region": groups}))
    finding = run("trust/group-disparity", digits_model, data)
    assert {row[0] for row in finding.evidence[0].rows} == {-1, 1_000_000_007}


def test_the_worst_class_and_the_pair_it_is_taken_for(digits, digits_model):
    class Blind(nn.Module):
        def forward(self, x):
            logits = digits_model(x)
            lost = logits.argmax(1) == 3
            return torch.where(lost[:, None], nn.functional.one_hot(torch.tensor(5), 10) * 9.0, logits)

    finding = run("trust/class-accuracy", Blind().eval(), digits)
    assert (finding.value, finding.status) == (0.0, Status.FAIL)
    assert finding.n == int((digits.test.y == 3).sum())
    assert finding.evidence[1].rows[0][:2] == ("3", "5")
    assert finding.interval.confidence == pytest.approx(0.995)


def test_confident_errors_are_counted_and_shown(digits, digits_model):
    finding = run("trust/confidence-errors", Scaled(digits_model, 40.0), digits)
    with torch.no_grad():
        p = (digits_model(digits.test.x.values) * 40).double().softmax(1)
    sure = p.amax(1) >= 0.9
    wrong = (p.argmax(1) != digits.test.y) & sure
    assert (finding.n, finding.value) == (int(sure.sum()), pytest.approx(float(wrong.sum() / sure.sum())))
    assert len(finding.evidence[1].pictures) == 8
    unsure = run("trust/confidence-errors", Scaled(digits_model, 0.0), digits)
    assert unsure.status is Status.NOT_RUN


class Noisy(nn.Module):
    """Functional dropout, which evaluation mode does not switch off."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(nn.functional.dropout(x, 0.2))


def test_noise_in_the_answers_is_found(digits, digits_model):
    assert run("trust/determinism", digits_model, digits).value == 0.0
    noisy = run("trust/determinism", Noisy(digits_model), digits)
    assert noisy.value > 0.05
    assert noisy.status is Status.FAIL
    labels = run("trust/determinism", Noisy(digits_model), digits, access=Access.LABEL)
    assert labels.status is Status.FAIL
    assert labels.interval.low <= labels.value <= labels.interval.high
    assert labels.value * labels.n == pytest.approx(round(labels.value * labels.n))
    assert labels.value > 0


def test_a_batch_norm_left_in_training_mode_is_found(digits):
    model = batch_norm_model()
    assert run("trust/batch-invariance", model, digits).value < 1e-5
    assert run("trust/eval-mode", model, digits).status is Status.PASS
    model[1].training = True
    leaky = run("trust/batch-invariance", model, digits)
    assert leaky.value > 0.01
    assert leaky.status is Status.FAIL
    found = run("trust/eval-mode", model, digits)
    assert (found.status, found.value) == (Status.FAIL, 1)
    assert found.evidence[0].rows == [("1", "BatchNorm2d", "is in training mode")]


def test_eval_mode_tells_the_faults_apart(digits):
    whole = batch_norm_model().train()
    finding = run("trust/eval-mode", whole, digits)
    assert (finding.status, finding.value) == (Status.WARN, 2)  # batch norm and dropout; it is questioned in evaluation mode
    unseen = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    assert "never seen a batch" in run("trust/eval-mode", unseen, digits).summary
    without = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert "depends on its batch" in run("trust/eval-mode", without, digits).summary
    broken = batch_norm_model()
    broken[1].running_var[0] = float("nan")
    assert "not finite" in run("trust/eval-mode", broken, digits).summary
    dropout = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0), nn.Dropout(0.1)).eval()
    dropout[1].training = dropout[2].training = True
    assert run("trust/eval-mode", dropout, digits).evidence[0].rows == [("2", "Dropout", "is in training mode")]


def test_a_model_that_cannot_answer_one_sample_fails(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    model[2].training = True
    finding = run("trust/batch-invariance", model, digits)
    assert finding.status is Status.FAIL
    assert "more than 1 value per channel" in finding.summary


def test_answers_that_are_not_finite_fail(digits):
    def broken(x):
        return torch.full((len(x), 10), float("nan"))

    assert run("trust/determinism", Target(broken, outputs="logits"), digits).status is Status.FAIL
    assert run("trust/calibration-ece", Target(broken, outputs="logits"), digits).status is Status.NOT_RUN


def test_a_model_of_probabilities_is_read_as_such(digits, digits_model):
    target = Target(nn.Sequential(digits_model, nn.Softmax(1)).eval())
    plain = run("trust/calibration-ece", digits_model, digits)
    assert run("trust/calibration-ece", target, digits).value == pytest.approx(plain.value, abs=1e-5)
    assert run("trust/batch-invariance", target, digits).value < 1e-4
