"""What the clip does not hold is refused: losses that mix examples, state learnt without noise, rows that are no examples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from hauberk import Linf
from hauberk.core.errors import ModelError, UsageError
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.apart import EVERY
from hauberk.privacy.dp.clipping import L1, Flat, PerLayer, Quantile
from hauberk.robustness.defend import trades

N = 16


def data(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(N, 6, generator=draw), torch.arange(N) % 3


def made(model, reduction="mean", seed=0):
    torch.default_generator.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = PrivateOptions(seed=seed, reduction=reduction)
    return make_private(model, optimizer, 100, batch_size=N, noise_multiplier=1.0, options=options)


def tokens(m, x, y):
    """A language model's loss: the mean over the tokens that are no padding."""
    labels = torch.where(torch.arange(6) <= y[:, None], 1, -100)
    return functional.cross_entropy(m(x.unsqueeze(-1)).flatten(0, 1), labels.flatten(), ignore_index=-100)


def tokens_apart(m, x, y):
    labels = torch.where(torch.arange(6) <= y[:, None], 1, -100)
    each = functional.cross_entropy(m(x.unsqueeze(-1)).transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)
    return (each / (labels >= 0).sum(1)).mean()


def weighted(m, x, y):
    return functional.cross_entropy(m(x), y, weight=torch.tensor([1.0, 1.0, 9.0]))


def weighted_apart(m, x, y):
    return (functional.cross_entropy(m(x), y, reduction="none") * torch.tensor([1.0, 1.0, 9.0])[y]).mean()


def contrastive(m, x, y):
    z = functional.normalize(m(x), dim=1)
    return functional.cross_entropy(z @ z.T / 0.1 - 1e4 * torch.eye(len(z)), (torch.arange(len(z)) + 1) % len(z))


def centred(m, x, y):
    out = m(x)
    return functional.cross_entropy(out - out.mean(0), y)


def mixup(m, x, y):
    order = torch.randperm(len(x))
    out = m(0.5 * x + 0.5 * x[order])
    return 0.5 * functional.cross_entropy(out, y) + 0.5 * functional.cross_entropy(out, y[order])


def normalised(m, x, y):
    each = functional.cross_entropy(m(x), y, reduction="none")
    return (each / each.detach().sum()).sum()


def summed(m, x, y):
    return functional.cross_entropy(m(x), y, reduction="sum")


def only_some(m, x, y):
    return functional.cross_entropy(m(x), torch.where(y == 2, -100, y), ignore_index=-100)


def noisy(m, x, y):
    return functional.cross_entropy(m(functional.dropout(x + 0.1 * torch.randn_like(x), 0.3)), y)


MIXING = [weighted, contrastive, centred, mixup, normalised, summed, only_some]


@pytest.mark.parametrize("loss", [tokens, *MIXING], ids=lambda loss: loss.__name__)
def test_a_loss_that_mixes_examples_is_refused_before_anything_is_let_out(loss):
    model = nn.Linear(1 if loss is tokens else 6, 3)
    private, before, stream = made(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ModelError, match="mixes examples"):
        private.step(loss, *data())
    assert private.ledger.count == 0 and torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def hardest(m, x, y):
    return functional.cross_entropy(m(x), y, reduction="none").topk(min(12, len(x))).values.mean()


class Many(nn.Module):
    """Keeps its examples apart up to ten of them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h - h.mean(0) if len(h) > 10 else h)


def test_what_mixes_from_some_number_of_examples_on_is_refused():
    for model, loss in ((nn.Linear(6, 3), hardest), (Many(), cross_entropy)):
        private = made(model)
        with pytest.raises(ModelError, match="mixes examples"):
            private.step(loss, *data())
        assert private.ledger.count == 0
    model = Many()
    private, (x, y) = made(model), data()
    with pytest.raises(ModelError, match="mixes them, from some number on"), private.recording():
        cross_entropy(model, x, y)
    made(model).step(cross_entropy, x[:9], y[:9])


def test_a_mask_as_large_as_the_batch_is_no_batch():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x, mask):
            return self.last(self.attention(x, x, x, attn_mask=mask)[0].mean(1))

    model, draw = Masked(), torch.Generator().manual_seed(0)
    private, x = made(model), torch.randn(N, N, 6, generator=draw)
    with private.recording():
        loss = functional.cross_entropy(model(x, torch.zeros(N, N)), torch.arange(N) % 3)
    private.backward(loss)
    assert private.ledger.count == 1


def test_a_batch_that_no_step_is_made_on_is_not_passed_over():
    x, y = data()
    model = nn.Linear(6, 3)
    private = make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), (x, y), batch_size=2, noise_multiplier=1.0,
                           options=PrivateOptions(seed=0))
    seen = []

    def train():
        for xs, ys in private.batches(steps=60):
            seen.append(len(xs))
            if len(xs):
                private.step(cross_entropy, xs, ys)

    with pytest.raises(UsageError, match="no step was made on a batch of 0"):
        train()
    assert private.ledger.count == len(seen) - 1
    next(iter(private.batches(steps=1)))  # to look at one is no step left out


def loop_of_calls(private, seen, skip):
    """As many calls of one batch each, as a loop of one's own makes them."""
    for _ in range(60):
        for xs, ys in private.batches(steps=1):
            seen.append(xs)
            if not skip(xs):
                private.step(cross_entropy, xs, ys)


def test_calls_of_one_batch_each_are_successive_draws_and_every_one_is_counted():
    x, y = data()
    model = nn.Linear(6, 3)
    options = PrivateOptions(seed=0)
    private = make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), (x, y), batch_size=2, noise_multiplier=1.0,
                           options=options)
    seen = []
    loop_of_calls(private, seen, skip=lambda batch: False)
    other = make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), (x, y), batch_size=2, noise_multiplier=1.0,
                         options=options)
    whole = []
    for xs, ys in other.batches(steps=60):
        whole.append(xs)
        other.step(cross_entropy, xs, ys)
    assert all(torch.equal(one, two) for one, two in zip(seen, whole, strict=True))
    assert min(map(len, seen)) == 0 and len({one.numpy().tobytes() for one in seen}) > 20
    assert [(one.sampling, one.count) for one in private.ledger] == [("poisson", 60)] and private.steps == 60


@pytest.mark.parametrize("first", [False, True])
def test_a_batch_is_not_passed_over_between_calls_of_one_each(first):
    x, y = data()
    model = nn.Linear(6, 3)

    def fresh():
        return make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), (x, y), batch_size=2, noise_multiplier=1.0,
                            options=PrivateOptions(seed=0))

    private, seen = fresh(), []
    skip = (lambda batch: len(seen) == 1) if first else (lambda batch: not len(batch))
    with pytest.raises(UsageError, match="no step was made on a batch of"):
        loop_of_calls(private, seen, skip)
    assert private.ledger.count == (0 if first else len(seen) - 1) and len(seen) < 60
    before = private.ledger.count
    for batch in private.batches(steps=2):  # it was said; the run may go on
        private.step(cross_entropy, *batch)
    assert private.ledger.count == before + 2
    # Whoever looks at batches alone leaves out nothing, and a run that is taken up again still knows.
    private = fresh()
    loop_of_calls(private, [], skip=lambda batch: True)
    resumed = fresh()
    resumed.load_state_dict(private.state_dict())
    with pytest.raises(UsageError, match="no step was made on a batch of"):
        loop_of_calls(resumed, [], skip=lambda batch: False)


def test_a_step_that_is_interrupted_in_its_noise_is_counted_and_the_run_goes_on(monkeypatch):
    model = nn.Linear(6, 3)
    private, (x, y) = made(model), data()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hauberk.privacy.dp.private.distributed.add_up", interrupted)
        with pytest.raises(KeyboardInterrupt):
            private.step(cross_entropy, x, y)
    assert private.ledger.count == 1 and private.spent().epsilon > 0
    private.step(cross_entropy, x, y)
    assert private.ledger.count == 2


@pytest.mark.parametrize("loss", [tokens_apart, weighted_apart, noisy, cross_entropy, trades(Linf(0.1))],
                         ids=["tokens", "weighted", "noisy", "plain", "trades"])
def test_a_loss_that_keeps_examples_apart_is_trained_also_where_it_draws_at_random(loss):
    deep = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    private = made(nn.Linear(1, 3) if loss is tokens_apart else deep)
    private.step(loss, *data())
    assert private.steps == 1
    other = made(nn.Linear(6, 3), reduction="sum")
    other.step(summed, *data())
    with pytest.raises(ModelError, match="mixes examples"):
        other.step(cross_entropy, *data())


def test_a_look_leaves_the_step_as_it_would_have_been():
    first, second = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 3)), None
    second = copy.deepcopy(first)
    stream = torch.get_rng_state()
    for model, looked in ((first, True), (second, False)):
        torch.set_rng_state(stream)
        private = made(model)
        torch.set_rng_state(stream)
        if not looked:
            private._watch.look = lambda *_: None
        private.step(cross_entropy, *data())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_loss_that_begins_to_mix_is_seen_within_some_steps():
    private, begun = made(nn.Linear(6, 3)), []

    def later(m, x, y):
        return weighted(m, x, y) if begun else cross_entropy(m, x, y)

    private.step(later, *data())
    begun.append(True)

    def train():
        for _ in range(EVERY):
            private.step(later, *data())

    with pytest.raises(ModelError, match="mixes examples"):
        train()


class Learning(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(6, 3), how
        self.register_buffer("mean", torch.zeros(6))
        self.frozen = nn.Parameter(torch.zeros(6), requires_grad=False)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        out = self.layer(x - self.mean)
        with torch.no_grad():
            if self.how == "in place":
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            elif self.how == "assigned":
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            elif self.how == "data":
                self.mean.data.copy_(x.mean(0))
            elif self.how == "frozen":
                self.frozen.copy_(x.mean(0))
            elif self.how == "trained":
                self.layer.bias.data.copy_(-out.mean(0))
            elif self.how == "seen":
                self.steps += len(x)
            else:
                self.steps += 1
        return out


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("how", ["in place", "assigned", "data", "frozen", "seen"])
def test_state_learnt_from_the_data_is_refused(how, by_hand):
    private = made(Learning(how))
    x, y = data()

    def hand():
        with private.recording():
            private.model(x)

    with pytest.raises(ModelError, match=r"changes (mean|frozen|steps) by what the data is"):
        hand() if by_hand else private.step(cross_entropy, x, y)
    assert private.ledger.count == 0


def test_weights_that_a_forward_pass_sets_are_refused():
    with pytest.raises(ModelError, match=r"changes layer\.bias"):
        made(Learning("trained")).step(cross_entropy, *data())


def test_state_that_begins_to_be_learnt_is_refused_at_once():
    private = made(Learning("steps"))
    for _ in range(3):
        private.step(cross_entropy, *data())
    assert float(private.model.steps) == 3  # a look counts no step
    private.model.how = "in place"
    with pytest.raises(ModelError, match="changes mean"):
        private.step(cross_entropy, *data())


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("size", [1, N])
def test_state_that_depends_on_the_weights_alone_may_change(size, by_hand):
    model = parametrizations.spectral_norm(nn.Linear(6, 3))
    private = made(model)
    x, y = data()
    for _ in range(2):
        if by_hand:
            with private.recording():
                loss = cross_entropy(model, x[:size], y[:size])
            private.backward(loss)
        else:
            private.step(cross_entropy, x[:size], y[:size])
    assert private.steps == 2
    assert any("by hand" in said for said in private.statement().warnings) == by_hand


def test_rows_that_are_no_examples_are_refused():
    x, y = data()

    def views(m, x, y):
        return functional.cross_entropy(m(torch.cat([x, x + 0.01])), torch.cat([y, y]))

    def halves(m, x, y):
        half = len(x) // 2 or 1
        return (functional.cross_entropy(m(x[:half]), y[:half]) * half
                + functional.cross_entropy(m(x[half:]), y[half:], reduction="sum")) / len(x)

    def twice(m, x, y):
        return cross_entropy(m, x, y) + cross_entropy(m, x + 0.01, y)

    for loss in (views, halves):
        with pytest.raises(UsageError, match="the model was called on"):
            made(nn.Linear(6, 3)).step(loss, x, y)
    made(nn.Linear(6, 3)).step(twice, x, y)
    with pytest.raises(UsageError, match="16 examples and y 15"):
        made(nn.Linear(6, 3)).step(cross_entropy, x, y[:15])


def test_a_scale_or_clip_at_which_squares_vanish_is_refused():
    for scale in (1e-25, 0.0, float("nan")):
        with pytest.raises(UsageError, match="loss_scale"):
            PrivateOptions(loss_scale=scale)
    whole = (lambda: Flat(1e-25), lambda: L1(1e-25), lambda: PerLayer({"a": 1e-25, "b": 1.0}), lambda: Quantile(0.1, least=1e-25))
    for make in whole:
        with pytest.raises(UsageError, match=r"1e-0?9"):
            make()
    # At the least of both an example is still held to its clip.
    model, (x, y) = nn.Linear(6, 3), data()
    private = make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), 100, batch_size=N, noise_multiplier=0.0, clip=1e-9,
                           options=PrivateOptions(seed=0, loss_scale=1e-6))
    private.step(cross_entropy, x, y)
    assert float(torch.stack([one.grad.double().square().sum() for one in model.parameters()]).sum().sqrt()) <= 1e-9 * 1.001
