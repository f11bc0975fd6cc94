"""validate: each kind of bad input is refused with its place, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Budget, Data, Split, Target
from hauberk.core.errors import BudgetExceeded, DataError, ModelError
from hauberk.core.validate import unnarrowed, validate

GENERATOR = torch.Generator().manual_seed(3)
X = torch.rand(40, 6, generator=GENERATOR)
Y = torch.arange(40) % 4
WEIGHT = torch.randn(6, 4, generator=GENERATOR)


def logits(x: Tensor) -> Tensor:
    return x @ WEIGHT - 1


def data(x: Tensor = X, y: Tensor = Y, **given: object) -> Data:
    return Data(Split(x, y), **{"bounds": (0.0, 1.0), "classes": 4, **given})  # type: ignore[arg-type]


def broken(at: int, value: float) -> Tensor:
    x = X.clone()
    x[at, 2] = value
    return x


def labelled(at: int, value: int) -> Tensor:
    y = Y.clone()
    y[at] = value
    return y


def test_good_input_passes_without_a_word() -> None:
    target = Target(logits)
    assert validate(target, data(train=Split(1 - X, Y), trusted=Split(X[:3], Y[:3]))) == []
    assert target.ledger.queries <= 16


@pytest.mark.parametrize("role", ["test", "train", "trusted"])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], "the {role} split is empty. Expected samples with labels"),
        (broken(17, float("nan")), Y, "the {role} sample at index 17 holds nan"),
        (broken(39, float("inf")), Y, "the {role} sample at index 39 holds inf"),
        (broken(5, 1.5), Y, r"the {role} sample at index 5 holds 1.5, outside the bounds. Expected all inputs in \[0, 1\]"),
        (broken(6, -0.25), Y, "the {role} sample at index 6 holds -0.25, outside the bounds"),
        (X, labelled(9, 4), "the {role} label at index 9 is 4 .1 labels are out of range.. Expected 0 to 3, as"),
        (X, labelled(8, -1), "the {role} label at index 8 is -1"),
        (X, Y.double(), "labels have dtype"),
    ],
)
def test_each_fault_is_named_with_its_split_and_place(role: str, x: Tensor, y: Tensor, message: str) -> None:
    splits = {"test": Split(X, Y), role: Split(x, y)}
    if role == "test" and y.is_floating_point():
        splits["train"] = Split(X, Y)
    with pytest.raises(DataError, match=message.format(role=role)):
        validate(Target(logits), Data(**splits, bounds=(0.0, 1.0), classes=4))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["test", "train"])
def test_one_class_alone_is_refused(role: str) -> None:
    splits = {"test": Split(X, Y), role: Split(X, torch.full((40,), 2))}
    with pytest.raises(DataError, match=f"all 40 {role} labels are 2. Expected samples of two classes"):
        validate(Target(logits), Data(**splits, classes=4))  # type: ignore[arg-type]


def test_splits_of_different_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"a train sample has shape \(5,\), a test sample \(6,\)"):
        validate(Target(logits), data(train=Split(X[:, :5], Y)))


def test_a_rounding_error_outside_the_bounds_is_allowed_and_more_is_not() -> None:
    validate(Target(logits), data(broken(0, 1 + 1e-6)))
    with pytest.raises(DataError):
        validate(Target(logits), data(broken(0, 1 + 1e-4)))


def test_bounds_per_feature_are_kept_per_feature() -> None:
    high = torch.ones(6)
    high[2] = 3
    validate(Target(logits), data(broken(0, 2.5), bounds=(torch.zeros(6), high)))
    x = X.clone()
    x[4, 3] = 2.5
    with pytest.raises(DataError, match=r"index 4 holds 2\.5"):
        validate(Target(logits), data(x, bounds=(torch.zeros(6), high)))
    with pytest.raises(DataError, match=r"the bounds have shape \(5,\)"):
        validate(Target(logits), data(bounds=(torch.zeros(5), torch.ones(5))))


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (float("nan"), 1.0)])
def test_bounds_that_hold_nothing_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="the lowest input below the highest"):
        validate(Target(logits), data(bounds=bounds))


def test_the_width_of_the_output_must_be_the_classes() -> None:
    with pytest.raises(ModelError, match=r"returns 4 scores per sample and the data has 7 classes.*classes=4"):
        validate(Target(logits), data(classes=7))
    with pytest.raises(ModelError, match="label 2 at index 2 of test, but the model has 2 scores"):
        validate(Target(lambda x: logits(x)[:, :1]), data())


def test_a_label_without_a_score_is_named() -> None:
    given = data()
    y = given.test.y.clone()
    y[5] = 7
    with pytest.raises(ModelError, match=r"^label 7 at index 5 of test, but the model has 4 scores \(labels 0 to 3\)\. "):
        validate(Target(logits), Data(Split(given.test.x, y), classes=8))


def test_the_models_own_words_come_through() -> None:
    net = nn.Linear(5, 4)
    with pytest.raises(ModelError, match=r"refused samples of shape \(6,\) \(RuntimeError: mat1 and mat2 shapes"):
        validate(Target(net), data())


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="answered nan to a test sample"):
        validate(Target(lambda x: logits(x) * float("nan")), data())
    masked = Target(lambda x: torch.cat([logits(x)[:, :3], torch.full((len(x), 1), -torch.inf)], 1))
    assert validate(masked, data()) == []  # a class that is ruled out


def test_a_model_with_scores_is_accepted_where_labels_alone_are_granted() -> None:
    target = Target(logits, access=Access.LABEL)
    assert validate(target, data()) == [] and target.access is Access.LABEL
    with pytest.raises(ModelError, match="answered nan to a test sample"):
        validate(Target(lambda x: logits(x) * float("nan"), access=Access.LABEL), data())
    with pytest.raises(ModelError, match="returns 5 scores"):
        validate(Target(lambda x: x[:, :5], access=Access.LABEL), data())


def binary(x: Tensor) -> Data:
    return data(x, (torch.arange(len(x)) % 2), classes=2)


@pytest.mark.parametrize("n", [2, 5, 8, 9, 40])
def test_one_column_is_told_apart_before_any_check_depends_on_it(n: int) -> None:
    x = X[:n]
    target = Target(lambda x: (x @ WEIGHT[:, :1] - 1).sigmoid())
    (notice,) = validate(target, binary(x))
    assert "returns probabilities" in notice and target.outputs == "probabilities" and target.ledger.queries <= 72
    # Logits within [0, 1] at every sample: corners of the bounds tell.
    target = Target(lambda x: 0.5 + 6 * (x[:, 0] == 1).float())
    assert bool((target.predictor(X) == 0.5).all())
    told = validate(target, binary(x))
    assert target.outputs == "logits" and any("read as logits" in one for one in told)
    assert target.labels(x).tolist() == [1] * n


def test_plain_logits_of_one_column_cost_no_further_queries() -> None:
    target = Target(lambda x: x @ WEIGHT[:, :1] * 9)
    assert validate(target, binary(X)) == [] and target.outputs == "logits" and target.ledger.queries <= 16


def test_one_column_of_a_model_that_takes_samples_alone_is_told() -> None:
    def model(x: Tensor) -> Tensor:
        assert bool((x[:, None] == X[None]).all(2).any(1).all())
        return x[:, 0]

    target = Target(model)
    assert validate(target, binary(X)) == [
        "the model answers one column, so far within [0, 1], that reads as probabilities: state outputs= to be sure"
    ]
    wide = Target(lambda x: x[:, 0].sigmoid())
    infinite = Data(Split(X, torch.arange(40) % 2), bounds=(-float("inf"), float("inf")), classes=2)
    validate(wide, infinite)
    assert wide.outputs == "probabilities"


def test_labels_out_of_range_from_the_model_are_refused() -> None:
    with pytest.raises(ModelError, match=r"answered the label 9\. Expected 0 to 3"):
        validate(Target(lambda x: torch.full((len(x),), 9)), data())
    target = Target(lambda x: logits(x).argmax(1))
    assert validate(target, data()) == ["the model answers labels alone: it is assessed at LABEL access"]
    assert target.access is Access.LABEL


def test_probabilities_training_mode_and_missing_classes_are_told() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Softmax(1))
    told = validate(Target(net), data(X[:20], Y[:20] % 3))
    assert [word in " ".join(told) for word in ("probabilities", "training mode", "3 of 4 classes")] == [True] * 3
    assert len(told) == 3


def test_a_model_that_ignores_its_input_is_told() -> None:
    told = validate(Target(lambda x: torch.tensor([[0.3, 2.0, -1.0, 0.0]]).expand(len(x), 4)), data())
    assert told == ["the model gave exactly the same scores to different samples: it may ignore its input"]


def test_a_module_without_gradient_is_narrowed_to_scores() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return logits(x.detach())

    target = Target(Cut().eval())
    assert validate(target, data()) == [
        "no gradient flows from the model's answers to its input: it is assessed at SCORE access"
    ]
    assert target.access is Access.SCORE
    whole = Target(nn.Linear(6, 4).eval())
    assert validate(whole, data()) == [] and whole.access is Access.GRADIENT
    assert all(one.grad is None for one in whole.module.parameters())


def test_an_answer_that_bypasses_the_input_has_no_gradient_to_it_whatever_else_it_depends_on() -> None:
    class Bypass(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    target = Target(Bypass(6, 4).eval())
    assert validate(target, data()) == [
        "no gradient flows from the model's answers to its input: it is assessed at SCORE access"
    ]
    assert target.ledger.gradients == 0


def test_a_model_that_fails_where_gradients_are_asked_for_is_reported_with_its_own_words() -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise RuntimeError("the derivative for 'oddity' is not implemented")
            return super().forward(x)

    target = Target(Fails(6, 4).eval())
    (told,) = validate(target, data())
    assert "RuntimeError: the derivative for 'oddity' is not implemented" in told and "no gradient flows" not in told
    assert target.access is Access.SCORE


def test_a_narrowed_model_is_seen_whole_by_who_asks_why_and_no_more_than_was_granted() -> None:
    class Cut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    target = Target(Cut(6, 4).eval())
    validate(target, data())
    view = unnarrowed(target.fresh())
    before = target.ledger.queries
    assert view.access is Access.GRADIENT and target.access is Access.SCORE
    view.labels(X[:5])
    assert target.ledger.queries == before + 5
    granted = Target(Cut(6, 4).eval(), access=Access.SCORE)
    validate(granted, data())
    assert unnarrowed(granted).access is Access.SCORE
    assert unnarrowed(Target(Cut(6, 4).eval()).seen_at(Access.LABEL)).access is Access.LABEL


def test_test_samples_that_are_also_in_the_training_data_are_counted() -> None:
    other = 1 - X
    copied = torch.cat([other, X[[3, 3, 17]]])  # one of them twice
    labels = torch.arange(43) % 4
    told = validate(Target(logits), data(train=Split(copied, labels)))
    assert told == ["2 of 40 test samples are also in the training data: on those the model is not tested on anything new"]
    (told,) = validate(Target(logits), data(train=Split(X.flip(0), Y)))
    assert told.startswith("40 of 40 test samples")


@pytest.mark.parametrize("n", [2, 3, 8, 9, 40])
def test_at_most_sixteen_questions_are_asked(n: int) -> None:
    target = Target(nn.Linear(6, 4).eval(), budget=Budget(queries=16))
    validate(target, data(X[:n], torch.arange(n) % 4))
    assert 0 < target.ledger.queries <= 16 and target.ledger.gradients == 0


def test_the_budget_is_respected() -> None:
    target = Target(logits, budget=Budget(queries=7))
    with pytest.raises(BudgetExceeded):
        validate(target, data())
    assert target.ledger.queries == 0


def test_regression_passes_and_its_values_are_looked_at() -> None:
    values = X.sum(1)
    good = Data(Split(X, values))
    assert good.classes is None and validate(Target(lambda x: x.sum(1, keepdim=True) - 2), good) == []
    values = values.clone()
    values[11] = float("nan")
    with pytest.raises(DataError, match="test value at index 11 is nan"):
        validate(Target(lambda x: x.sum(1, keepdim=True)), Data(Split(X, values)))


def test_bounds_of_target_and_data_that_differ_are_told() -> None:
    (told,) = validate(Target(logits, bounds=(-1.0, 1.0)), data())
    assert "bounds differ" in told
    assert validate(Target(logits, bounds=(0, 1)), data()) == []


class Endless:
    """Rows that are made when they are asked for, and remember the most asked for at once."""

    def __init__(self, n: int, width: int, bad: int = -1) -> None:
        self.shape, self.bad, self.most = (n, width), bad, 0

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: Tensor) -> Tensor:
        self.most = max(self.most, len(index))
        made = (index[:, None] % 7 / 7).float().expand(-1, self.shape[1]).clone()
        made[index == self.bad, 0] = float("nan")
        return made


def test_large_data_is_read_to_its_end_and_never_held() -> None:
    rows = Endless(30_000, 4096, bad=29_999)  # 490 MB
    split = Split(rows, torch.arange(30_000) % 4)
    with pytest.raises(DataError, match="index 29999 holds nan"):
        validate(Target(lambda x: logits(x[:, :6])), Data(split, classes=4))
    assert rows.most <= 1024


def test_nothing_is_asked_of_the_model_before_the_data_is_sound() -> None:
    target = Target(logits)
    with pytest.raises(DataError):
        validate(target, data(broken(1, float("nan"))))
    assert target.ledger.queries == 0
