"""Target: access is granted and narrowed, spending is counted to the sample, and outputs are read as what they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hauberk import Access, Budget, Linf, Target
from hauberk.core.errors import AccessDenied, BudgetExceeded, DataError, ModelError, UsageError
from hauberk.core.target import ModulePredictor, Normalize
from hauberk.robustness.attack import hop_skip_jump, pgd, square


class Seen:
    """Counts what a forward hook sees of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.samples, self.batches = 0, []
        module.register_forward_hook(self._hook)

    def _hook(self, _module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self.samples += len(inputs[0])
        self.batches.append(len(inputs[0]))


@pytest.fixture
def net(fresh_cnn: Callable[..., nn.Module]) -> nn.Module:
    return fresh_cnn().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def column(values: list[float]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.tensor(values)[: len(x)]


# Access


@pytest.mark.parametrize(("access", "allowed"), [(Access.LABEL, 1), (Access.SCORE, 3), (Access.GRADIENT, 4)])
def test_each_access_opens_its_own_doors_and_no_other(net: nn.Module, x: Tensor, access: Access, allowed: int) -> None:
    target = Target(net, access=access)
    doors = [lambda: target.labels(x), lambda: target.scores(x), lambda: target.logits(x), lambda: target.module]
    for number, door in enumerate(doors):
        if number < allowed:
            door()
        else:
            with pytest.raises(AccessDenied, match=rf"this target grants {access.name}"):
                door()


def test_a_refusal_spends_nothing(net: nn.Module, x: Tensor) -> None:
    target = Target(net, access=Access.LABEL)
    with pytest.raises(AccessDenied):
        target.scores(x)
    assert (target.ledger.queries, target.ledger.calls) == (0, 0)


def test_nothing_widens_a_view(net: nn.Module, x: Tensor) -> None:
    narrow = Target(net).seen_at(Access.SCORE).seen_at(Access.LABEL)
    for wider in (Access.SCORE, Access.GRADIENT):
        with pytest.raises(AccessDenied):
            narrow.seen_at(wider)
    assert narrow.fresh().access is Access.LABEL
    with pytest.raises(AttributeError):
        narrow.access = Access.GRADIENT  # type: ignore[misc]


def test_score_access_gives_no_gradient(net: nn.Module, x: Tensor) -> None:
    asked = x.clone().requires_grad_()
    assert not Target(net, access="score").logits(asked).requires_grad
    assert Target(net).logits(asked).requires_grad
    assert not Target(net).labels(asked).requires_grad


def test_more_access_than_the_model_can_give_is_refused() -> None:
    with pytest.raises(ModelError, match=r"GRADIENT access was asked of a model that grants SCORE"):
        Target(lambda x: x, access=Access.GRADIENT)
    with pytest.raises(ModelError, match="at most LABEL"):
        Target(nn.Flatten(), outputs="labels", access=Access.SCORE)
    assert Target(nn.Flatten(), outputs="labels").access is Access.LABEL


def test_a_model_that_answers_labels_alone_is_narrowed_when_that_shows(x: Tensor) -> None:
    target = Target(lambda x: torch.arange(len(x)))
    view = target.seen_at(Access.SCORE)
    assert target.labels(x).tolist() == list(range(10))
    assert target.access is Access.LABEL and view.access is Access.LABEL
    assert target.notices == ("the model answers labels alone: it is assessed at LABEL access",)
    with pytest.raises(AccessDenied):
        view.scores(x)


def test_labels_in_a_column_are_read_and_a_table_of_them_is_refused(x: Tensor) -> None:
    assert Target(lambda x: torch.full((len(x), 1), 3)).labels(x).tolist() == [3] * 10
    with pytest.raises(ModelError, match=r"labels of shape \(10, 4\)"):
        Target(lambda x: torch.ones(len(x), 4, dtype=torch.long)).labels(x)


@pytest.mark.parametrize("model", [3, "resnet", None])
def test_what_cannot_be_called_is_no_model(model: object) -> None:
    with pytest.raises(ModelError, match="was given as the model"):
        Target(model)  # type: ignore[arg-type]


def test_a_class_in_place_of_an_instance_is_named() -> None:
    with pytest.raises(ModelError, match="the class Flatten was given"):
        Target(nn.Flatten)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(net: nn.Module, size: int) -> None:
    with pytest.raises(UsageError, match=f"batch_size is {size}"):
        Target(net, batch_size=size)


# Spending


@pytest.mark.parametrize("size", [1, 3, 10, 256])
def test_the_ledger_is_what_a_hook_sees(net: nn.Module, x: Tensor, size: int) -> None:
    seen, target = Seen(net), Target(net, batch_size=size)
    target.labels(x)
    target.scores(x[:7])
    target.logits(x[:4].clone().requires_grad_())
    assert (target.ledger.queries, target.ledger.calls) == (seen.samples, len(seen.batches)) == (21, len(seen.batches))
    assert max(seen.batches[:-1]) <= size


def test_chunks_give_the_answer_of_the_whole(net: nn.Module, x: Tensor) -> None:
    whole, parts = Target(net), Target(net, batch_size=3)
    assert torch.allclose(whole.logits(x), parts.logits(x), atol=1e-6)
    assert torch.equal(whole.labels(x), parts.labels(x))
    assert parts.ledger.calls == 2 * math.ceil(10 / 3)


def test_gradients_are_counted_when_they_are_made(net: nn.Module, x: Tensor) -> None:
    target = Target(net)
    asked = x.clone().requires_grad_()
    answer = target.logits(asked)
    assert target.ledger.gradients == 0
    (found,) = torch.autograd.grad(answer.sum(), asked, retain_graph=True)
    assert target.ledger.gradients == 10
    torch.autograd.grad(answer.sum(), asked)
    assert target.ledger.gradients == 20
    by_hand = x.clone().requires_grad_()
    net(by_hand).sum().backward()
    assert torch.equal(found, by_hand.grad)


def test_a_view_spends_from_all_above_it(net: nn.Module, x: Tensor) -> None:
    target = Target(net)
    target.labels(x[:2])
    view = target.fresh()
    inner = view.seen_at(Access.LABEL)
    inner.labels(x[:5])
    view.scores(x[:1])
    assert (target.ledger.queries, view.ledger.queries, inner.ledger.queries) == (8, 6, 5)


def test_a_budget_is_kept_to_the_query_and_refused_whole(net: nn.Module, x: Tensor) -> None:
    seen, target = Seen(net), Target(net, budget=Budget(queries=12), batch_size=2)
    target.labels(x)
    with pytest.raises(BudgetExceeded, match="10 queries are spent and 3 more were asked for"):
        target.labels(x[:3])
    assert seen.samples == target.ledger.queries == 10  # not even the first part of what cannot be paid for in full
    target.labels(x[:2])
    assert target.ledger.queries == 12


def test_the_budget_of_a_view_binds_it_alone(net: nn.Module, x: Tensor) -> None:
    target = Target(net)
    view = target.seen_at(Access.LABEL, budget=Budget(queries=4))
    with pytest.raises(BudgetExceeded):
        view.labels(x)
    assert len(target.labels(x)) == 10
    with pytest.raises(BudgetExceeded):
        Target(net, budget=Budget(queries=4)).fresh().labels(x)


def test_a_gradient_budget_stops_the_backward_pass(net: nn.Module, x: Tensor) -> None:
    target = Target(net, budget=Budget(gradients=10))
    asked = x.clone().requires_grad_()
    target.logits(asked).sum().backward()
    with pytest.raises(BudgetExceeded, match="10 gradients are spent"):
        target.logits(asked[:1]).sum().backward()
    assert target.ledger.gradients == 10


# The model is left as it was


def test_mode_and_statistics_are_given_back(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)).train()
    net[2].eval()
    modes = [part.training for part in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    target = Target(net)
    first, again = target.logits(x), target.logits(x)
    assert torch.equal(first, again)  # dropout is off
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert target.notices == ("the model was given in training mode; it is questioned in evaluation mode",)
    assert torch.equal(first, net.eval()(x))


def test_the_mode_comes_back_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError):
        Target(net).labels(torch.ones(2, 4))
    assert all(part.training for part in net.modules())


def test_parts_left_in_training_mode_are_told() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()
    net[1].train()
    (notice,) = Target(net).notices
    assert "left in training mode" in notice and "1" in notice
    assert Target(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()).notices == ()


# How outputs read


def test_probabilities_are_noticed_and_read_as_such(net: nn.Module, x: Tensor) -> None:
    soft = nn.Sequential(net, nn.Softmax(1)).eval()
    target, plain = Target(soft), Target(net)
    assert torch.allclose(target.scores(x), plain.scores(x), atol=1e-6)
    assert target.outputs == "probabilities" and plain.outputs == "logits"
    assert len(target.notices) == 1 and "probabilities where logits are expected" in target.notices[0]
    assert plain.notices == ()


def test_half_precision_probabilities_are_noticed(x: Tensor) -> None:
    rows = torch.randn(10, 100, generator=torch.Generator().manual_seed(0)).softmax(1)
    for dtype in (torch.float16, torch.bfloat16):
        target = Target(lambda x, dtype=dtype: rows.to(dtype))
        target.scores(x)
        assert target.outputs == "probabilities"


def test_stated_outputs_are_believed(x: Tensor) -> None:
    rows = torch.tensor([[0.2, 0.8]]).expand(10, 2)
    target = Target(lambda x: rows, outputs="logits")
    assert torch.allclose(target.logits(x), rows) and target.notices == ()
    predictor = ModulePredictor(nn.Softmax(1))
    assert Target(predictor, outputs="probabilities").outputs == "probabilities"


def test_probabilities_that_turn_out_to_be_none_are_refused(x: Tensor) -> None:
    target = Target(lambda x: torch.where(x[:, :1, 0, 0] > 1, 3.0, 0.5).expand(-1, 2))
    target.scores(x)
    with pytest.raises(ModelError, match="outputs='logits'"):
        target.scores(x + 2)


def test_one_column_of_logits_is_cut_at_zero(x: Tensor) -> None:
    target = Target(column([-3.0, -0.1, 0.1, 0.7, 2.0]))
    assert target.labels(x[:5]).tolist() == [0, 0, 1, 1, 1]
    expected = torch.tensor([-3.0, -0.1, 0.1, 0.7, 2.0]).sigmoid()
    assert torch.allclose(target.scores(x[:5])[:, 1], expected)
    assert target.probe(x[:5]) == 2


def test_one_column_of_probabilities_is_cut_at_a_half(x: Tensor) -> None:
    target = Target(column([0.1, 0.4, 0.6, 0.9]))
    assert target.labels(x[:4]).tolist() == [0, 0, 1, 1]
    assert torch.allclose(target.scores(x[:4]), torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.1, 0.9]]))


def test_too_few_answers_of_one_column_settle_nothing(x: Tensor) -> None:
    answers = iter([torch.tensor([0.4]), torch.tensor([0.2, 5.0])])
    target = Target(lambda x: next(answers))
    target.labels(x[:1])
    assert target.outputs == "auto"
    assert target.labels(x[:2]).tolist() == [1, 1] and target.outputs == "logits"


def test_one_column_is_read_alike_within_a_call_and_mended_with_a_notice(x: Tensor) -> None:
    answers = iter([0.4] * 10 + [0.6] * 40 + [3.0])
    target = Target(lambda x: torch.tensor([next(answers) for _ in range(len(x))]), batch_size=10)
    assert target.labels(x).tolist() == [0] * 10 and target.notices == ()  # so far they look like probabilities
    x = torch.cat([x] * 4 + [x[:1]])
    assert target.labels(x).tolist() == [1] * 41 and target.outputs == "logits"  # its last part settles how all are read
    (notice,) = target.notices
    assert "first 50 answers" in notice and "read as logits" in notice


@pytest.mark.parametrize("n", [63, 64])
def test_sixty_four_answers_settle_one_column(n: int) -> None:
    answers = iter([torch.full((n,), 0.4), torch.tensor([0.4, 5.0])])
    target = Target(lambda x: next(answers))
    assert target.scores(torch.zeros(n, 2))[:, 1].tolist() == pytest.approx([0.4] * n)
    assert target.outputs == ("auto" if n < 64 else "probabilities")
    if n < 64:
        assert target.labels(torch.zeros(2, 2)).tolist() == [1, 1] and target.outputs == "logits"
    else:
        with pytest.raises(ModelError, match="outputs='logits'"):
            target.labels(torch.zeros(2, 2))


@pytest.mark.parametrize("outputs", ["auto", "logits", "probabilities"])
def test_an_answer_of_nan_has_no_label(x: Tensor, outputs: str) -> None:
    nan = math.nan
    rows = torch.tensor([[0.9, 0.1], [nan, nan], [nan, 0.7], [0.8, nan], [0.2, 0.8]]).repeat(2, 1)
    target = Target(lambda x: rows[: len(x)], outputs=outputs)
    assert target.labels(x).tolist() == [0, -1, -1, -1, 1] * 2
    target.labels(x[:2])
    assert target.outputs == ("probabilities" if outputs == "auto" else outputs)
    assert [one for one in target.notices if "NaN" in one] == [
        "the model answered NaN 7 times when a label was asked for: that counts as wrong for every class"
    ]
    assert Target(column([0.2, nan, 3.0])).labels(x[:3]).tolist() == [1, -1, 1]
    assert Target(column([0.0, nan, 3.0]), outputs="labels").labels(x[:3]).tolist() == [0, -1, 3]


def test_labels_that_the_model_does_not_know_are_refused_at_its_first_answer(net: nn.Module, x: Tensor) -> None:
    for method, access in ((pgd, Access.GRADIENT), (square, Access.SCORE), (hop_skip_jump, Access.LABEL)):
        target, y = Target(net, access=access), torch.full((10,), 10)
        with pytest.raises(DataError, match=r"a label 10 and the model returns 10 scores .*labels from 0 to 9"):
            method(target, x, y, Linf(0.1))
        assert target.ledger.queries == 10
        assert method(target, x, y - 1, Linf(0.0)).shape == x.shape
    with pytest.raises(DataError, match="a label 2 and the model returns 2 scores"):
        pgd(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), x, torch.arange(10) % 3, Linf(0.1))


def test_an_empty_batch_is_answered_and_settles_nothing(net: nn.Module) -> None:
    target = Target(nn.Sequential(net, nn.Softmax(1)).eval())
    none = torch.zeros(0, 1, 8, 8)
    assert target.labels(none).shape == (0,) and target.labels(none).dtype is torch.int64
    assert target.logits(none).shape == target.scores(none).shape == (0, 10)
    assert target.outputs == "auto" and target.ledger.queries == 0
    target.scores(torch.rand(4, 1, 8, 8))
    assert target.outputs == "probabilities"


@pytest.mark.parametrize("answer", [torch.ones(10, 3, 8, 8), torch.ones(9, 3), torch.tensor(1.0), torch.ones(10, 0)])
def test_an_answer_that_is_no_row_per_sample_is_refused(x: Tensor, answer: Tensor) -> None:
    with pytest.raises(ModelError, match=r"classes\)"):
        Target(lambda x: answer).logits(x)


def test_a_module_that_returns_a_tuple_is_refused(x: Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ModelError, match="the model returned tuple"):
        Target(Pair()).labels(x)


# Types and places


def test_float64_samples_meet_a_float32_model(net: nn.Module, x: Tensor) -> None:
    asked = x.double().requires_grad_()
    answer = Target(net).logits(asked)
    assert torch.equal(answer, net(x))
    answer.sum().backward()
    assert asked.grad is not None and asked.grad.dtype is torch.float64 and float(asked.grad.abs().sum()) > 0


def test_float32_samples_meet_a_float64_model(linear_model: nn.Linear) -> None:
    x = torch.rand(5, 20)
    assert torch.equal(Target(linear_model).logits(x), linear_model(x.double()))


def test_a_model_without_parameters_is_met_at_its_buffers() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.eye(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.table

    assert torch.equal(Target(Table()).logits(2 * torch.eye(3)), 2 * torch.eye(3, dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
def test_a_model_on_another_device_is_asked_there_and_answers_here(net: nn.Module, x: Tensor) -> None:
    here = Target(net).logits(x)
    asked = x.clone().requires_grad_()
    answer = Target(net.to("cuda")).logits(asked)
    assert answer.device.type == "cpu" and torch.allclose(answer, here, atol=1e-4)
    answer.sum().backward()
    assert asked.grad is not None and asked.grad.device.type == "cpu"


def test_normalize_is_the_formula() -> None:
    x = torch.rand(4, 3, 5, 5)
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    by_hand = torch.stack([(x[:, channel] - mean[channel]) / std[channel] for channel in range(3)], 1)
    assert torch.allclose(Normalize(mean, std)(x), by_hand)
    assert torch.allclose(Normalize(0.5, 0.25)(x), (x - 0.5) / 0.25)
    assert torch.allclose(Normalize([1.0, 2.0], [2.0, 4.0])(torch.ones(1, 2)), torch.tensor([[0.0, -0.25]]))
