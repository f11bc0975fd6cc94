"""fit: reproducible, resumable to the bit, early stopping with the best weights, and nothing left behind."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hauberk import Linf, Schedule, Split, fit
from hauberk.core.errors import DataError, UsageError
from hauberk.core.train import Callback, Gradients, cross_entropy
from hauberk.robustness.defend import adversarial, trades


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # Dropout draws from the global stream, batch norm keeps buffers: both must survive a resume.
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def split(n=90, seed=1):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 8, generator=draw)
    return Split(x, (x[:, :3] + 0.1 * torch.rand(n, 3, generator=draw)).argmax(1))


def streams():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_same_seed_same_bits_other_seed_other_weights():
    made = []
    for seed in (3, 3, 4):
        model = net()
        history = fit(model, split(), schedule=Schedule(epochs=3, batch_size=16, seed=seed))
        made.append((bits(model), history.loss))
    assert same(made[0][0], made[1][0]) and made[0][1] == made[1][1]
    assert not same(made[0][0], made[2][0])


def test_one_full_batch_of_plain_descent_is_the_closed_form():
    data, model = split(12), nn.Linear(8, 3)
    x, y = data.tensors()
    weight = model.weight.detach().clone()
    logits = functional.linear(x, weight, model.bias.detach())
    gradient = (logits.softmax(1) - functional.one_hot(y, 3)).T @ x / len(x)
    history = fit(model, data, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), schedule=Schedule(epochs=1, batch_size=12))
    assert torch.allclose(model.weight, weight - 0.5 * gradient, atol=1e-6)
    assert history.loss == [pytest.approx(float(functional.cross_entropy(logits, y)), abs=1e-6)]


def test_loss_of_an_epoch_is_the_mean_over_samples_not_over_batches():
    data = Split(torch.arange(5.0)[:, None], torch.zeros(5, dtype=torch.int64))
    model = nn.Linear(1, 1)
    history = fit(model, data, loss=lambda m, x, y: x.mean() + 0 * m(x).sum(), schedule=Schedule(epochs=1, batch_size=2))
    assert history.loss == [pytest.approx(2.0)]


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, cut):
    whole, parted = net(), net()
    validation = split(40, 2)
    plan = Schedule(epochs=5, batch_size=16, seed=9, validation=validation)
    expected = fit(whole, split(), schedule=plan)
    place = tmp_path / "run.pt"
    fit(parted, split(), schedule=Schedule(epochs=cut, batch_size=16, seed=9, validation=validation, checkpoint=place))
    fresh = net(seed=77)  # what it starts from does not matter: the checkpoint replaces it
    got = fit(fresh, split(), schedule=Schedule(epochs=5, batch_size=16, seed=9, validation=validation, checkpoint=place))
    assert same(bits(whole), bits(fresh))
    assert got == expected
    assert [one.name for one in tmp_path.iterdir()] == ["run.pt"]


def test_early_stopping_returns_the_weights_of_the_best_epoch(tmp_path):
    # The optimizer walks the one weight up by a fixed step; the validation loss has its minimum on the way.
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.cat([self.w.expand(len(x), 1), torch.zeros(len(x), 1)], 1)

    validation = Split(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]))  # best where softmax gives 3/4: w = log 3 = 1.0986
    model = Scalar()
    history = fit(
        model, Split(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)), loss=lambda m, x, y: -m.w.sum(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.4),
        schedule=Schedule(epochs=50, patience=2, validation=validation),
    )
    by_hand = [0.75 * math.log1p(math.exp(-w)) + 0.25 * math.log1p(math.exp(w)) for w in (0.4, 0.8, 1.2, 1.6, 2.0)]
    assert history.validation == pytest.approx(by_hand, abs=1e-6)
    assert model.w.item() == pytest.approx(1.2, abs=1e-6)


def test_without_patience_the_last_weights_stay():
    model, validation = net(), split(40, 2)
    fit(model, split(), schedule=Schedule(epochs=2, batch_size=16, seed=1, validation=validation))
    other = net()
    fit(other, split(), schedule=Schedule(epochs=2, batch_size=16, seed=1))
    assert same(bits(model), bits(other))


def test_a_validation_loss_that_is_not_finite_is_the_worst_and_not_the_best():
    class Broken(nn.Linear):
        calls = 0

        def forward(self, x):
            if not self.training:
                Broken.calls += 1
                if Broken.calls == 1:
                    return super().forward(x) * float("nan")
            return super().forward(x)

    model, data = Broken(8, 3), split()
    history = fit(model, data, schedule=Schedule(epochs=4, batch_size=90, patience=3, validation=data))
    assert history.validation[0] == math.inf and all(math.isfinite(one) for one in history.validation[1:])
    assert len(history.validation) == 4


class Recorder(Callback):
    def __init__(self, name, log):
        self.name, self.log = name, log

    def before_step(self, state):
        assert all(parameter.grad is not None for parameter in state.model.parameters())
        self.log.append((self.name, "before", state.epoch, state.step))

    def after_step(self, state):
        self.log.append((self.name, "after", state.epoch, state.step))

    def after_epoch(self, state):
        self.log.append((self.name, "epoch", state.epoch, state.step))
        state.stop = state.epoch == 2


def test_callbacks_are_called_in_order_and_can_stop_the_run():
    log: list[tuple[str, str, int, int]] = []
    recorders = [Recorder("a", log), Recorder("b", log)]
    history = fit(net(), split(20), schedule=Schedule(epochs=9, batch_size=10), callbacks=recorders)
    once = [("before", 0), ("after", 1), ("before", 1), ("after", 2)]
    expected = [
        (who, what, epoch, step + 2 * epoch) for epoch in (0, 1) for what, step in once for who in ("a", "b")
    ]
    expected[8:8] = [("a", "epoch", 1, 2), ("b", "epoch", 1, 2)]
    expected += [("a", "epoch", 2, 4), ("b", "epoch", 2, 4)]
    assert log == expected
    assert len(history.loss) == 2


def test_before_step_may_change_the_gradients():
    class Freeze(Callback):
        def before_step(self, state):
            for parameter in state.model.parameters():
                parameter.grad.zero_()

    model = nn.Linear(8, 3)
    before = bits(model)
    fit(model, split(), optimizer=torch.optim.SGD(model.parameters(), lr=1.0), epochs=2, callbacks=[Freeze()])
    assert same(before, bits(model))


def test_the_model_is_left_evaluating_and_the_global_streams_untouched():
    model = net()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = streams()
    fit(model, split(), schedule=Schedule(epochs=2, validation=split(20, 2), patience=1))
    assert streams() == before
    assert not model.training
    with pytest.raises(DataError):
        fit(model, split(), loss=lambda m, x, y: m(x).sum() * float("nan"), epochs=1)
    assert streams() == before


def test_the_users_seed_does_not_matter():
    made = []
    for outside in (1, 2):
        model = net()
        torch.manual_seed(outside)
        fit(model, split(), schedule=Schedule(epochs=1, batch_size=16))
        made.append(bits(model))
    assert same(*made)


def test_a_loss_that_is_not_finite_ends_with_the_last_good_epoch_kept(tmp_path):
    model, place = net(), tmp_path / "run.pt"
    good: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def after_epoch(self, state):
            good.append(copy.deepcopy(state.model.state_dict()))

    def loss(module, x, y):
        value = functional.cross_entropy(module(x), y)
        return value * float("nan") if good else value

    with pytest.raises(DataError, match=r"loss is nan at epoch 2.*finite loss.*learning rate"):
        fit(model, split(), loss=loss, schedule=Schedule(epochs=3, checkpoint=place), callbacks=[Keep()])
    assert same(torch.load(place, weights_only=True)["model"], good[0])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04cut"])
def test_a_broken_checkpoint_is_refused_and_kept(tmp_path, content):
    place = tmp_path / "run.pt"
    place.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be resumed"):
        fit(net(), split(), schedule=Schedule(epochs=1, checkpoint=place))
    assert place.read_bytes() == content


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    place = tmp_path / "run.pt"
    fit(net(), split(), schedule=Schedule(epochs=1, checkpoint=place))
    with pytest.raises(UsageError, match="of this model and optimizer"):
        fit(nn.Linear(8, 3), split(), schedule=Schedule(epochs=2, checkpoint=place))


def test_what_cannot_be_trained_is_refused_at_the_door():
    with pytest.raises(DataError, match="empty"):
        fit(net(), Split(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(UsageError, match="patience"):
        fit(net(), split(), schedule=Schedule(patience=1))


class Doubled(Gradients):
    """Takes every second sample, one at a time, with an empty batch first, and doubles the gradient; counts its batches."""

    def __init__(self):
        self.batches = 0

    def order(self, data, plan, epoch):
        return [torch.arange(0), *torch.arange(0, len(data), 2).split(1)]

    def compute(self, state, loss, x, y):
        self.batches += 1
        if not len(x):
            state.optimizer.zero_grad(set_to_none=True)
            return math.nan
        value = super().compute(state, loss, x, y)
        for parameter in state.model.parameters():
            parameter.grad.mul_(2)
        return value

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def test_a_transform_of_gradients_chooses_the_batches_and_what_the_optimizer_sees(tmp_path):
    data = Split(torch.arange(6.0)[:, None], torch.zeros(6, dtype=torch.int64))

    def run(epochs, gradients, **more):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        plan = Schedule(epochs=epochs, **more)
        history = fit(
            model, data, loss=lambda m, x, y: m(x.double()).mean() + 1, schedule=plan, gradients=gradients,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        )
        return float(model.weight.detach()), history.loss

    # Samples 0, 2, 4 have gradients 0, 2, 4; each is doubled: the weight walks to -(0 + 4 + 8) within an epoch.
    weight, losses = run(1, Doubled())
    assert weight == -12 and losses == [pytest.approx((1 + 1 + (1 - 4 * 4)) / 3)]
    place = tmp_path / "run.pt"
    run(1, Doubled(), checkpoint=place)
    resumed = Doubled()
    assert run(2, resumed, checkpoint=place)[0] == -24 and resumed.batches == 8
    with pytest.raises(UsageError, match="another transform"):
        run(3, None, checkpoint=place)


def test_a_callback_that_stops_after_a_step_ends_the_run_there():
    class Stop(Callback):
        def after_step(self, state):
            self.steps, state.stop = state.step, state.step == 3

    stop = Stop()
    fit(net(), split(), schedule=Schedule(epochs=4, batch_size=16), callbacks=[stop])
    assert stop.steps == 3

class Counter(Callback):
    """Counts steps, remembers them, and stops before or after one of them."""

    def __init__(self, before=10**9, after=10**9):
        self.steps, self.before, self.after = 0, before, after

    def before_step(self, state):
        state.stop = state.stop or self.steps >= self.before

    def after_step(self, state):
        self.steps += 1
        state.stop = state.stop or self.steps >= self.after

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_a_callback_ends_the_run_before_or_after_a_step_not_at_the_end_of_the_epoch():
    for counter in (Counter(before=4), Counter(after=4)):
        model, seen = nn.Linear(8, 3), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append(1))
        history = fit(model, split(90), optimizer=optimizer, schedule=Schedule(epochs=3, batch_size=30), callbacks=[counter])
        assert len(seen) == counter.steps == 4 and len(history.loss) == 2 and all(map(math.isfinite, history.loss))


def test_what_a_callback_remembers_is_in_the_checkpoint_and_goes_to_no_other(tmp_path):
    place, counter = tmp_path / "run.pt", Counter()
    fit(net(), split(), schedule=Schedule(epochs=2, batch_size=30, checkpoint=place), callbacks=[counter])
    again = Counter()
    fit(net(), split(), schedule=Schedule(epochs=3, batch_size=30, checkpoint=place), callbacks=[again])
    assert (counter.steps, again.steps) == (6, 9)
    with pytest.raises(UsageError, match="written with the callbacks"):
        fit(net(), split(), schedule=Schedule(epochs=4, batch_size=30, checkpoint=place), callbacks=[Callback()])


class Column(nn.Module):
    """One logit, that of class 1; the same weights as two columns are the logits 0 and that."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner, self.flat = nn.Linear(8, 1), flat

    def forward(self, x):
        return self.inner(x)[:, 0] if self.flat else self.inner(x)


class Pair(Column):
    def forward(self, x):
        logit = self.inner(x)
        return torch.cat([torch.zeros_like(logit), logit], 1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("loss", [cross_entropy, adversarial(Linf(0.1), steps=2), trades(Linf(0.1), steps=2)])
def test_one_column_is_the_logit_of_class_one(flat, loss):
    """The loss is that of two columns, whose first is zero, and so are the trained weights."""
    x = torch.rand(40, 8)
    data = Split(x, (x.sum(1) > 4).long())
    column, pair = Column(flat), Pair()
    schedule = Schedule(epochs=3, batch_size=20, validation=data)
    told = [fit(one, data, loss=loss, schedule=schedule).validation for one in (column, pair)]
    assert told[0] == pytest.approx(told[1], rel=1e-5)
    assert torch.allclose(column.inner.weight, pair.inner.weight, atol=1e-5)
    if loss is cross_entropy:
        expected = functional.binary_cross_entropy_with_logits(column.inner(x)[:, 0], data.y.float())
        assert cross_entropy(column, x, data.y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_that_the_model_has_no_place_for_are_told():
    for width, classes in ((1, 2), (3, 3)):
        with pytest.raises(DataError, match=f"labels from 0 to {classes} and the model returns {classes} classes"):
            fit(nn.Linear(8, width), Split(torch.rand(9, 8), torch.arange(9) % (classes + 1)), epochs=1)
    with pytest.raises(DataError, match="loss=lambda"):
        fit(nn.Linear(8, 1), Split(torch.rand(9, 8), torch.rand(9)), epochs=1)
