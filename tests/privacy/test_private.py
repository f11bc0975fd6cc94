"""make_private: every optimizer sees what a loop over single examples would have made; the account says what was done."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from hauberk import Linf, Schedule, Split, fit
from hauberk.core.errors import UsageError
from hauberk.core.train import Callback, cross_entropy
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.accounting import PrivacyMonitor, PrivacyStatement, epsilon, gaussian_epsilon
from hauberk.privacy.dp.clipping import L1, Automatic, Flat, PerLayer, Quantile
from hauberk.privacy.dp.noise import DiscreteGaussian, Gaussian, Laplace, SeededSource, StepDecay, TimeDecay
from hauberk.robustness.defend import trades

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.3),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1),
}


def net(seed=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 3)
        ).to(dtype)


def split(n=40, seed=1, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return Split(torch.rand(n, 1, 4, 4, generator=draw).to(dtype), torch.randint(3, (n,), generator=draw))


def examples(model, x, y, reduction="mean"):
    """The gradient of each example by a backward pass of its own: a list of lists, one entry per parameter."""
    return [
        torch.autograd.grad(functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        for i in range(len(x))
    ]


def summed(model, x, y, clip, order=2):
    """The noiseless sum that flat clipping makes."""
    total = [torch.zeros_like(one) for one in model.parameters()]
    for parts in examples(model, x, y):
        size = float(sum(part.abs().pow(order).sum() for part in parts)) ** (1 / order)
        total = [a + part * min(1.0, clip / size) for a, part in zip(total, parts, strict=True)]
    return total


def reference(model, optimizer, batches, clip, scale, expected, seed, kind="normal", order=2):
    """Private descent one example at a time; `scale(step)` is the deviation of the noise."""
    for step, (x, y) in enumerate(batches):
        source = SeededSource(seed, "noise", step)
        for one, total in zip(model.parameters(), summed(model, x, y, clip, order), strict=True):
            one.grad = (total + scale(step) * getattr(source, kind)(total)) / expected
        optimizer.step()


def far(model, other):
    """The greatest relative distance between the weights of two models."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in pairs)


def drawn(n, batch, steps, data, seed):
    private = make_private(*pair(net()), data, batch_size=batch, noise_multiplier=1.0, options=PrivateOptions(seed=seed))
    return list(private.batches(steps=steps))


def pair(model, lr=0.1):
    return model, torch.optim.SGD(model.parameters(), lr=lr)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_makes_the_steps_of_a_loop_over_examples(name):
    data = split(20)
    model = net()
    slow = copy.deepcopy(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    private = make_private(
        model, optimizer, data, batch_size=2, noise_multiplier=0.7, clip=0.4, options=PrivateOptions(seed=5)
    )
    for x, y in private.batches(steps=12):
        private.step(cross_entropy, x, y)
    batches = drawn(20, 2, 12, data, 5)
    sizes = [len(x) for x, _ in batches]
    assert 0 in sizes and max(sizes) > 2  # an empty batch, and one above the expected size, which stays the divisor
    reference(slow, OPTIMIZERS[name](slow.parameters()), batches, 0.4, lambda step: 0.7 * 0.4, 2, 5)
    assert far(model, slow) < 1e-10
    assert private.steps == 12 and private.empty_batches == sizes.count(0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("micro", [None, 1, 3, 100])
def test_parts_of_a_batch_make_the_same_gradient_as_the_whole(micro, reduction):
    data, model = split(), net()
    x, y = data.first(7)
    expected = summed(model, x, y, 0.3)
    private = make_private(
        *pair(model), data, batch_size=8, noise_multiplier=0.0, clip=0.3,
        options=PrivateOptions(micro_batch=micro, reduction=reduction, seed=0),
    )
    held = []

    def mean_or_sum(m, x, y):
        if private._tape is not None:  # not while it looks at the loss
            held.append(len(x))
        return functional.cross_entropy(m(x), y, reduction=reduction)

    loss = private.step(mean_or_sum, x, y)
    assert sum(held) == 7 and max(held) <= (micro or 7)
    for one, total in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(one.grad * 8, total, rtol=1e-10, atol=1e-14)
    assert loss == pytest.approx(functional.cross_entropy(net()(x), y).item(), rel=1e-12)


def test_a_loss_computed_by_hand_makes_the_same_step():
    data, model, other = split(), net(), net()
    x, y = data.first(6)
    for one, steps in ((model, False), (other, True)):
        private = make_private(*pair(one), data, batch_size=6, noise_multiplier=1.0, options=PrivateOptions(seed=2))
        if steps:
            private.step(cross_entropy, x, y)
            continue
        for part, last in ((slice(0, 4), False), (slice(4, 6), True)):
            with private.recording():
                loss = functional.cross_entropy(one(x[part]), y[part])
            private.backward(loss, last=last)
        private.optimizer.step()
    assert far(model, other) < 1e-12
    with pytest.raises(UsageError, match="without a recorded forward"):
        private.backward(torch.tensor(0.0))


@pytest.mark.parametrize("bad", [1e6, 1e30, math.nan, math.inf])
@pytest.mark.parametrize(
    "clip", [Flat(0.5), Automatic(0.5), PerLayer(0.5), Quantile(0.5), L1(0.5)], ids=lambda clip: type(clip).__name__
)
@pytest.mark.filterwarnings("ignore:the gradients of:RuntimeWarning")
def test_one_extreme_example_moves_the_noiseless_sum_by_at_most_the_clip(clip, bad):
    data, sums = split(dtype=torch.float32), []
    x, y = data.first(6)
    options = PrivateOptions(seed=0, mechanism=Laplace) if clip.norm == "l1" else PrivateOptions(seed=0)
    x[2] *= bad
    for keep in ([0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 5]):
        model = net(dtype=torch.float32)
        private = make_private(
            *pair(model), data, batch_size=6, noise_multiplier=0.0, clip=copy.deepcopy(clip), options=options
        )
        private.step(cross_entropy, x[keep], y[keep])
        sums.append(torch.cat([one.grad.flatten() for one in model.parameters()]).double() * 6)
        assert private.dropped == (2 in keep and not math.isfinite(bad))
    moved = float(torch.linalg.vector_norm(sums[0] - sums[1], ord=1 if clip.norm == "l1" else 2))
    assert moved <= 0.5 * (1 + 1e-5)
    assert all(bool(one.isfinite().all()) for one in sums)


def test_an_empty_batch_is_noise_alone_over_the_expected_batch():
    data, model = split(), net()
    private = make_private(*pair(model), data, batch_size=4, noise_multiplier=2.0, clip=3.0, options=PrivateOptions(seed=9))
    assert math.isnan(private.step(cross_entropy, *data.take(torch.arange(0))))
    source = SeededSource(9, "noise", 0)
    for one in model.parameters():
        assert torch.allclose(one.grad, 6.0 * source.normal(one.detach()) / 4, rtol=1e-12)
    assert private.empty_batches == private.steps == 1


def test_adaptive_noise_follows_its_schedule_and_so_does_the_account():
    data, model = split(), net()
    slow = copy.deepcopy(model)
    schedule = TimeDecay(1.5, 0.2)
    private = make_private(*pair(model), data, batch_size=4, noise_multiplier=schedule, options=PrivateOptions(seed=3))
    for x, y in private.batches(steps=5):
        private.step(cross_entropy, x, y)
    reference(slow, pair(slow)[1], drawn(40, 4, 5, data, 3), 1.0, schedule, 4, 3)
    assert far(model, slow) < 1e-10
    assert releases(private) == [("gaussian", schedule(step), "poisson", 0.1, 1) for step in range(5)]


def releases(private):
    return [(one.mechanism, one.noise, one.sampling, one.rate, one.count) for one in private.ledger.releases]


def test_laplace_noise_comes_with_an_l1_clip():
    data, model = split(), net()
    slow = copy.deepcopy(model)
    private = make_private(
        *pair(model), data, batch_size=4, noise_multiplier=0.5, clip=2.0, options=PrivateOptions(seed=3, mechanism=Laplace)
    )
    assert isinstance(private.clipping, L1)
    for x, y in private.batches(steps=3):
        private.step(cross_entropy, x, y)
    reference(slow, pair(slow)[1], drawn(40, 4, 3, data, 3), 2.0, lambda step: 1.0, 4, 3, kind="laplace", order=1)
    assert far(model, slow) < 1e-10
    assert {one[0] for one in releases(private)} == {"laplace"}
    with pytest.raises(UsageError, match="laplace noise with a clip in the L2 norm"):
        make_private(*pair(model), data, batch_size=4, noise_multiplier=1.0, clip=Flat(1.0),
                     options=PrivateOptions(mechanism=Laplace))


def test_discrete_noise_pays_for_its_rounding_and_is_accounted_without_amplification():
    data, model = split(), net()
    entries = sum(one.numel() for one in model.parameters())
    options = PrivateOptions(seed=3, mechanism=partial(DiscreteGaussian, dimensions=entries, resolution=64))
    private = make_private(*pair(model), data, batch_size=4, noise_multiplier=1.5, clip=0.5, options=options)
    sizes = []
    for _ in range(8):
        private.step(cross_entropy, *data.take(torch.arange(0)))
        sizes += [one.grad.flatten() * 4 for one in model.parameters()]
    drawn = torch.cat(sizes)
    steps = drawn / (0.5 / 64)
    assert torch.allclose(steps, steps.round(), atol=1e-6)  # whole grid steps
    wanted = 1.5 * 0.5 * (1 + entries**0.5 / 64)  # more than z C: one example's rounding is covered
    assert float(drawn.std()) == pytest.approx(wanted, rel=5 / (2 * len(drawn)) ** 0.5)
    assert releases(private) == [("discrete-gaussian", 1.5, "any", 1.0, 8)]
    short = PrivateOptions(mechanism=partial(DiscreteGaussian, dimensions=entries - 1))
    with pytest.raises(UsageError, match=f"made for {entries - 1} dimensions"):
        make_private(*pair(model), data, batch_size=4, noise_multiplier=1.5, options=short)


def test_noise_is_scaled_by_the_clip_of_its_own_step():
    # Empty batches alone: what moves the clip is the noise of the count, and the gradient is the noise of the step.
    data, model = split(), net()
    clip = Quantile(1.0, rate=1.0, count_noise=2.0)
    private = make_private(*pair(model), data, batch_size=4, noise_multiplier=1.0, clip=clip, options=PrivateOptions(seed=4))
    bounds = []
    for step in range(4):
        bounds.append(clip.bound)
        private.step(cross_entropy, *data.take(torch.arange(0)))
        source, z = SeededSource(4, "noise", step), (1 - (2 * 2.0) ** -2) ** -0.5
        for one in model.parameters():
            assert torch.allclose(one.grad, z * bounds[-1] * source.normal(one.detach()) / 4, rtol=1e-12)
        moved = bounds[-1] * math.exp(-(2.0 * float(source.normal(torch.zeros(1, dtype=torch.float64))) / 4 + 0.5 - 0.5))
        assert clip.bound == pytest.approx(moved, rel=1e-12)
    assert len(set(bounds)) == 4


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_step_that_failed_leaves_nothing_for_the_next_try(by_hand):
    data, clip, counted = split(), Quantile(0.5, count_noise=2.0), []
    x, y = data.first(6)
    private = make_private(*pair(net()), data, batch_size=6, noise_multiplier=1.0, clip=clip,
                           options=PrivateOptions(micro_batch=2, seed=0))
    finish = clip.finish
    clip.finish = lambda noised: (counted.append(clip.centred), finish(noised))

    def failing(m, x, y):
        if not failed and private._seen == 4:
            failed.append(True)
            raise RuntimeError("out of memory")
        return cross_entropy(m, x, y)

    def step():
        if not by_hand:
            private.step(failing, x, y)
            return
        for k in range(3):
            with private.recording():
                loss = failing(private.model, x[2 * k : 2 * k + 2], y[2 * k : 2 * k + 2])
            private.backward(loss, last=k == 2)

    failed = []
    with pytest.raises(RuntimeError, match="out of memory"):
        step()
    step()
    assert len(counted) == 1 and abs(counted[0]) <= 6 / 2  # each of six examples moves the count by one half, once


@pytest.mark.parametrize("clip", [lambda: Flat(0.5), lambda: Quantile(0.5, count_noise=2.0)], ids=["flat", "quantile"])
def test_fit_makes_the_same_run_and_resumes_with_account_clip_and_draws(tmp_path, clip):
    data, place = split(), tmp_path / "run.pt"

    def run(epochs, checkpoint=None, seed=0):
        model = net(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        private = make_private(
            model, optimizer, data, batch_size=5, noise_multiplier=1.2, clip=clip(), options=PrivateOptions(seed=8)
        )
        history = fit(model, data, optimizer=optimizer, gradients=private, schedule=Schedule(epochs, checkpoint=checkpoint))
        return model, private, history

    whole, account, history = run(3)
    run(2, place)
    resumed, again, told = run(3, place, seed=9)
    assert far(resumed, whole) == 0 and told == history
    assert releases(again) == releases(account) and account.ledger.count == 24
    assert again.state_dict() == account.state_dict()
    loop = net()
    private = make_private(
        loop, torch.optim.Adam(loop.parameters(), lr=0.01), data, batch_size=5, noise_multiplier=1.2, clip=clip(),
        options=PrivateOptions(seed=8),
    )
    for x, y in private.batches(epochs=3):
        private.step(cross_entropy, x, y)
    assert far(loop, whole) == 0


def test_a_budget_ends_fit_before_the_step_that_would_pass_it_also_after_a_resume(tmp_path):
    data, place = split(), tmp_path / "run.pt"

    def run(epochs):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        private = make_private(model, optimizer, data, batch_size=8, noise_multiplier=2.0, options=PrivateOptions(seed=8))
        monitor = PrivacyMonitor(ledger=private.ledger, delta=1e-5, budget=4.0, accountants=("rdp",))
        plan = Schedule(epochs, checkpoint=place)
        fit(model, data, optimizer=optimizer, gradients=private, schedule=plan, callbacks=[monitor])
        return private

    run(1)
    private = run(100)
    (one,) = private.ledger.releases
    assert one.count == private.steps > 5
    more = replace(one, count=one.count + 1)
    assert epsilon([one], 1e-5, accountant="rdp").epsilon <= 4.0 < epsilon([more], 1e-5, accountant="rdp").epsilon
    statement = private.statement()
    assert statement.holds() and statement.epsilon == private.spent().epsilon
    assert statement.steps == private.steps and statement.relation == "add-remove"
    assert any("seeded" in said for said in statement.warnings) and any("expected batch 8" in said for said in statement.warnings)


@pytest.mark.parametrize("noise", [0.3, StepDecay(8.0, 0.3), 2.0], ids=["first", "decaying", "plain"])
def test_no_step_passes_the_budget_whatever_the_next_one_is(noise):
    data, model = split(), net()
    model, optimizer = pair(model)
    private = make_private(model, optimizer, data, batch_size=8, noise_multiplier=noise, delta=1e-4)
    monitor = PrivacyMonitor(ledger=private.ledger, delta=1e-4, budget=2.0)
    made = []
    for _ in range(2):  # again after the budget ended: nothing
        fit(model, data, optimizer=optimizer, gradients=private, epochs=30, callbacks=[monitor])
        made.append(private.steps)
        assert private.spent().epsilon <= 2.0
    assert made[0] == made[1] and (made[0] == 0) == (noise == 0.3)
    copy.deepcopy(private.ledger)


def test_seeded_noise_is_said_also_by_a_run_that_goes_on_without_a_seed():
    data, states = split(), []
    for seed in (3, None, None):
        private = make_private(*pair(net()), data, batch_size=5, noise_multiplier=1.0, options=PrivateOptions(seed=seed))
        if states:
            private.load_state_dict(states[-1])
        for x, y in private.batches(steps=1):
            private.step(cross_entropy, x, y)
        states.append(private.state_dict())
        assert any("seeded" in said for said in private.statement().warnings)


def test_a_run_that_was_not_private_cannot_go_on_as_private(tmp_path):
    data, place, model = split(), tmp_path / "run.pt", net()
    fit(model, data, optimizer=pair(model)[1], schedule=Schedule(1, checkpoint=place))
    _, optimizer = pair(model)
    private = make_private(model, optimizer, data, batch_size=5, noise_multiplier=1.0)
    with pytest.raises(UsageError, match="was not private"):
        fit(model, data, optimizer=optimizer, gradients=private, schedule=Schedule(2, checkpoint=place))


@pytest.mark.filterwarnings("ignore:the gradients of:RuntimeWarning")
def test_fit_goes_on_over_an_empty_batch_and_a_broken_example():
    data = split(30)
    data.x.values[3] = math.nan
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    private = make_private(model, optimizer, data, batch_size=1, noise_multiplier=1.0, options=PrivateOptions(seed=1))
    history = fit(model, data, optimizer=optimizer, gradients=private, epochs=3)
    assert private.empty_batches > 5 and private.dropped > 0
    assert all(math.isfinite(one) for one in history.loss)
    assert all(bool(one.isfinite().all()) for one in model.parameters())


def test_the_account_is_for_the_batches_that_were_used():
    data = split(40)
    private = make_private(*pair(net()), data, batch_size=4, noise_multiplier=1.0, options=PrivateOptions(seed=1))
    for x, y in private.batches(epochs=1):
        private.step(cross_entropy, x, y)
    assert private.spent().relation == "add-remove" and releases(private) == [("gaussian", 1.0, "poisson", 0.1, 10)]
    # Nothing is known of batches from elsewhere: one example may be in all of them, and the number of examples is fixed.
    for x, y in [data.take(batch) for _ in range(2) for batch in torch.randperm(40).split(4)]:
        private.step(cross_entropy, x, y)
    assert releases(private)[1:] == [("gaussian", 1.0, "any", 1.0, 20)]
    assert private.spent().relation == "replace-one"
    for declared, times in ((None, 20), ("each-once-per-pass", 2)):
        options = PrivateOptions(loader=declared)
        loader = make_private(*pair(net()), data, batch_size=4, noise_multiplier=8.0, delta=1e-5, options=options)
        for x, y in [data.take(batch) for _ in range(2) for batch in torch.randperm(40).split(4)]:
            loader.step(cross_entropy, x, y)
        exact = gaussian_epsilon(1e-5, 2 * times**0.5 / 8.0)  # Gaussian releases, each moved by twice the clip
        assert exact <= loader.spent().epsilon <= exact * 1.01
        statement = loader.statement()
        for told in (loader.spent().notes, statement.warnings):
            assert any("declared by the trainer" in one for one in told) == (declared is not None)
        assert PrivacyStatement.model_validate_json(statement.model_dump_json()).holds()

    fixed = make_private(
        *pair(net()), data, batch_size=4, noise_multiplier=1.0, options=PrivateOptions(seed=1, sampling="without-replacement")
    )
    for x, y in fixed.batches(steps=3):
        assert len(x) == 4
        fixed.step(cross_entropy, x, y)
    assert releases(fixed) == [("gaussian", 1.0, "without-replacement", 0.1, 3)]
    assert fixed.spent().relation == "replace-one"


@pytest.mark.parametrize("loader", [None, "each-once-per-pass"])
def test_noise_without_a_known_amplification_is_about_replacing_one_where_the_number_is_fixed(loader):
    # One step of Laplace noise of scale b: replacing one example moves the L1 norm by 2 clips, ε = 2/b.
    options = PrivateOptions(sampling="without-replacement", mechanism=Laplace, loader=loader)
    for drawn_here in (True, False):
        private = make_private(*pair(net()), split(), batch_size=36, noise_multiplier=1.0, options=options)
        batches = private.batches(steps=1)
        private.step(cross_entropy, *(next(batches) if drawn_here else split().first(36)))
        spent = private.spent()
        assert spent.relation == "replace-one" and 2.0 * (1 - 1e-3) <= spent.epsilon <= 2.0 * (1 + 1e-3)
    discrete = PrivateOptions(seed=3, mechanism=partial(DiscreteGaussian, dimensions=10_000, resolution=64))
    private = make_private(*pair(net()), split(), batch_size=4, noise_multiplier=1.5, options=discrete)
    private.step(cross_entropy, *split().first(4))
    assert private.spent().relation == "replace-one"


def test_batches_that_the_account_does_not_cover_are_refused():
    data = split(40)
    private = make_private(*pair(net()), data, batch_size=4, noise_multiplier=1.0, options=PrivateOptions(seed=1))
    with pytest.raises(UsageError, match="holds 5 examples"):
        private.step(cross_entropy, *data.first(5))
    for x, y in private.batches(steps=30):
        if len(x) > 1:
            with pytest.raises(UsageError, match=f"a step saw 1 examples of a batch of {len(x)}"):
                private.step(cross_entropy, x[:1], y[:1])
            private.step(cross_entropy, x, y)
            with pytest.raises(UsageError, match="second step on the same batch"):
                private.step(cross_entropy, x, y)
            break


def test_the_model_and_the_streams_are_left_as_they_were():
    data, model = split(), net()
    before, random = {name: set(vars(one)) for name, one in model.named_modules()}, torch.get_rng_state()
    private = make_private(*pair(model), data, batch_size=8, noise_multiplier=1.0)
    for x, y in private.batches(steps=2):
        private.step(cross_entropy, x, y)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: set(vars(one)) for name, one in model.named_modules()} == before
    assert list(model.state_dict()) == list(net().state_dict())
    assert all(not vars(one) for one in model.parameters())
    assert not any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks for one in model.modules())
    copy.deepcopy(model)


def test_frozen_parameters_get_no_gradient():
    data, model = split(), net()
    model[0].weight.requires_grad_(False)
    private = make_private(*pair(model), data, batch_size=8, noise_multiplier=1.0)
    private.step(cross_entropy, *data.first(8))
    assert model[0].weight.grad is None and model[0].bias.grad is not None


def test_the_scale_of_the_loss_divides_out_and_autocast_stays_within_the_clip():
    data = split(dtype=torch.float32)
    x, y = data.first(8)
    grads = []
    for scale in (1.0, 2.0**14, torch.amp.GradScaler("cpu", init_scale=2.0**14)):
        model = net(dtype=torch.float32)
        options = PrivateOptions(seed=0, loss_scale=scale)
        make_private(*pair(model), data, batch_size=8, noise_multiplier=0.0, clip=0.2, options=options).step(cross_entropy, x, y)
        grads.append(torch.cat([one.grad.flatten() for one in model.parameters()]))
    assert torch.allclose(grads[1], grads[0], rtol=1e-5, atol=1e-8) and torch.equal(grads[1], grads[2])
    model = net(dtype=torch.float32)
    private = make_private(*pair(model), data, batch_size=8, noise_multiplier=0.0, clip=0.01, options=PrivateOptions(seed=0))
    with torch.autocast("cpu", torch.bfloat16):
        private.step(cross_entropy, x[:1], y[:1])
    size = float(torch.cat([one.grad.flatten() for one in model.parameters()]).double().norm()) * 8
    assert size == pytest.approx(0.01, rel=1e-4)  # one example, clipped: exactly the clip, whatever the precision of its pass


def test_a_callback_of_fit_sees_the_private_gradient():
    class Largest(Callback):
        seen = 0.0

        def before_step(self, state):
            total = torch.cat([one.grad.flatten() for one in state.model.parameters()])
            self.seen = max(self.seen, float(total.norm()))

    data, model, largest = split(), net(), Largest()
    _, optimizer = pair(model)
    private = make_private(model, optimizer, data, batch_size=10, noise_multiplier=0.0, clip=1e-3, options=PrivateOptions(seed=0))
    fit(model, data, optimizer=optimizer, gradients=private, callbacks=[largest], epochs=2)
    assert 0 < largest.seen <= 40 * 1e-3 / 10


@pytest.mark.parametrize(
    ("change", "match"),
    [({"batch_size": 0}, "batch size is 0"), ({"batch_size": 41}, "41 of 40"), ({"noise_multiplier": -1.0}, "noise multiplier"),
     ({"noise_multiplier": math.nan}, "noise multiplier"), ({"delta": 0.0}, "delta"), ({"clip": 0.0}, "clip"),
     ({"data": 0}, "0 examples"), ({"data": torch.utils.data.DataLoader(range(40))}, "DataLoader")],
)
def test_values_out_of_range_are_refused_at_the_door(change, match):
    given = {"data": split(), "batch_size": 4, "noise_multiplier": 1.0, **change}
    with pytest.raises(UsageError, match=match):
        make_private(*pair(net()), **given)


def test_less_noise_than_the_account_is_told_of_is_refused():
    for mechanism in (lambda z: Gaussian(0.01), lambda z: Gaussian(z / 2)):
        with pytest.raises(UsageError, match="has a multiplier of"):
            make_private(*pair(net()), split(), batch_size=4, noise_multiplier=2.0, options=PrivateOptions(mechanism=mechanism))
    made = []

    def waning(z):
        made.append(z)
        return Gaussian(z if len(made) < 4 else z / 10)

    private = make_private(*pair(net()), split(), batch_size=4, noise_multiplier=2.0, options=PrivateOptions(mechanism=waning))
    drawn_batches = private.batches(steps=5)

    def train():
        for x, y in drawn_batches:
            private.step(cross_entropy, x, y)

    with pytest.raises(UsageError, match=r"multiplier of 0\.2"):
        train()
    assert private.ledger.count == private.steps < 5


def unfrozen(model, optimizer):
    model[0].weight.requires_grad_(True)


def left_over(model, optimizer):
    model[0].weight.grad = torch.ones_like(model[0].weight)


def added(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def frozen(model, optimizer):
    model[3].weight.requires_grad_(False)


@pytest.mark.parametrize("change", [unfrozen, left_over, added, frozen], ids=lambda change: change.__name__)
def test_the_optimizer_trains_what_it_trained_when_it_was_made_private(change):
    data, model = split(), net()
    model[0].weight.requires_grad_(False)
    _, optimizer = pair(model)
    private = make_private(model, optimizer, data, batch_size=8, noise_multiplier=1.0)
    private.step(cross_entropy, *data.first(8))
    change(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=r"optimizer (would step 1|no longer trains 1)|does not require a gradient"):
        private.step(cross_entropy, *data.first(8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(UsageError, match="not the model's"):
        make_private(net(), pair(net())[1], split(), batch_size=4, noise_multiplier=1.0)
    model = net()
    private = make_private(*pair(model), split(), batch_size=4, noise_multiplier=1.0)
    with pytest.raises(UsageError, match="another model or optimizer"):
        fit(model, split(), gradients=private, epochs=1)


def test_data_comes_as_split_tensors_or_dataset():
    data = split()
    x, y = data.tensors()
    made = []
    for given in (data, (x, y), torch.utils.data.TensorDataset(x, y)):
        private = make_private(*pair(net()), given, batch_size=3, noise_multiplier=1.0, options=PrivateOptions(seed=6))
        made.append(list(private.batches(steps=9)))
    for other in made[1:]:
        assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(made[0], other, strict=True))
    with pytest.raises(UsageError, match="only the number"):
        make_private(*pair(net()), 40, batch_size=3, noise_multiplier=1.0).batches(epochs=1)
    with pytest.raises(UsageError, match="one of the two"):
        private.batches()


def test_an_attack_inside_the_loss_leaves_the_gradient_that_of_the_loss():
    def search(model, x, y):
        z = x.clone()
        for _ in range(3):
            z = z.requires_grad_(True)
            (slope,) = torch.autograd.grad(functional.cross_entropy(model(z), y, reduction="sum"), z)
            z = (z + 0.05 * slope.sign()).detach()
        return z

    data, model = split(), net()
    x, y = data.first(6)
    expected = summed(model, search(model, x, y), y, 0.3)
    private = make_private(*pair(model), data, batch_size=6, noise_multiplier=0.0, clip=0.3, options=PrivateOptions(seed=0))
    private.step(lambda m, x, y: functional.cross_entropy(m(search(m, x, y)), y), x, y)
    for one, total in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(one.grad * 6, total, rtol=1e-10, atol=1e-14)


def test_adversarial_training_is_made_private_by_the_same_step():
    data, model = split(dtype=torch.float32), net(dtype=torch.float32)
    private = make_private(*pair(model), data, batch_size=6, noise_multiplier=0.0, clip=0.3, options=PrivateOptions(seed=0))
    for x, y in private.batches(steps=2):
        private.step(trades(Linf(0.1)), x, y)
        total = torch.cat([one.grad.flatten() for one in model.parameters()])
        assert 0 < float(total.norm()) * 6 <= 0.3 * len(x) * (1 + 1e-5)


def test_a_batch_that_was_recorded_and_not_released_ends_the_loop_and_tells_no_epsilon() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (torch.rand(40, 4), torch.zeros(40, dtype=torch.int64))
    for close in ("ordinary", "never last"):
        private = make_private(model, optimizer, data, batch_size=20, noise_multiplier=1.0)
        batches = private.batches(steps=3)
        x, y = next(batches)
        with private.recording():
            loss = nn.functional.cross_entropy(model(x), y)
        if close == "ordinary":
            loss.backward()
        else:
            private.backward(loss, last=False)
        with pytest.raises(UsageError, match="no private gradient"):
            next(batches)
        with pytest.raises(UsageError, match="no private gradient"):
            private.spent()


@pytest.mark.parametrize(("loss", "told"), [
    (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
    (lambda model, x, y: nn.functional.cross_entropy(model(x), y, reduction="none"), r"shape \(\d+,\)"),
    (lambda model, x, y: 1.0, "float"),
    (lambda model, x, y: nn.functional.cross_entropy(model(x), y).detach(), "does not depend"),
])
def test_a_loss_that_cannot_be_used_is_refused_in_words(loss: object, told: str) -> None:
    model = nn.Linear(4, 2)
    data = (torch.rand(40, 4), torch.zeros(40, dtype=torch.int64))
    private = make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), data, batch_size=40, noise_multiplier=1.0)
    x, y = next(private.batches(steps=1))
    with pytest.raises(UsageError, match=told):
        private.step(loss, x, y)  # type: ignore[arg-type]
    assert private.steps == 0


def test_data_of_unequal_parts_and_what_is_no_optimizer_are_refused() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(UsageError, match="40 and 39"):
        make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), (torch.rand(40, 4), torch.zeros(39)), batch_size=4,
                     noise_multiplier=1.0)
    with pytest.raises(UsageError, match="optimizer is NoneType"):
        make_private(model, None, 40, batch_size=4, noise_multiplier=1.0)  # type: ignore[arg-type]
