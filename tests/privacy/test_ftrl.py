"""Private training with correlated noise: the noise in the weights, the account of a run, the order it is private for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk import Schedule, Split, fit
from hauberk.core.errors import UsageError
from hauberk.privacy.dp import PrivateFtrl, PrivateOptions, make_private_ftrl
from hauberk.privacy.dp.accounting import PrivacyLedger, Release
from hauberk.privacy.dp.clipping import Flat
from hauberk.privacy.dp.mechanisms import BandedNoise, TreeNoise, square_root
from hauberk.privacy.dp.noise import SeededSource

N, BATCH, EPOCH = 10, 3, 4  # a last batch of one


def linear(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradients do not depend on the weights: noise in one step changes no other's gradient."""
    return model(x).sum(1).mul(y.double() - 1).mean()


def made(noise: TreeNoise | BandedNoise, seed: int | None = 5) -> tuple[nn.Module, PrivateFtrl]:
    draw = torch.Generator().manual_seed(1)
    data = Split(torch.randn(N, 2, generator=draw, dtype=torch.float64), torch.randint(3, (N,), generator=draw))
    model = nn.Linear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = PrivateOptions(seed=seed)
    return model, make_private_ftrl(model, optimizer, data, batch_size=BATCH, noise=noise, clip=0.7, options=options)


def weights(noise: TreeNoise | BandedNoise, epochs: int) -> Tensor:
    model, private = made(noise)
    for x, y in private.batches(epochs=epochs):
        private.step(linear, x, y)
    return torch.cat([one.detach().flatten() for one in model.parameters()])


NOISES = {
    "tree": lambda z: TreeNoise(z, EPOCH, trees=2), "efficient": lambda z: TreeNoise(z, EPOCH, trees=2, efficient=True),
    "banded": lambda z: BandedNoise(z, square_root(3), 2 * EPOCH, participations=2, separation=EPOCH),
}


@pytest.mark.parametrize("kind", NOISES)
def test_the_noise_in_the_weights_is_the_sum_of_the_correlated_draws(kind: str) -> None:
    found = weights(NOISES[kind](1.3), 2) - weights(NOISES[kind](0.0), 2)
    noise, summed = NOISES[kind](1.3), [torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    for t in range(2 * EPOCH):
        step, source = noise.at(t), SeededSource(5, "noise", t)
        for total in summed:
            step.add_(total, 0.7, source)
    expected = torch.cat([one.flatten() for one in summed]) * -0.1 / BATCH
    torch.testing.assert_close(found, expected)


def test_the_account_is_of_trees_and_runs_not_of_steps() -> None:
    _, private = made(TreeNoise(1.3, EPOCH, trees=2))
    for x, y in private.batches(steps=EPOCH + 1):
        private.step(linear, x, y)
    assert private.ledger.releases == (Release("tree", 1.3, count=2, population=EPOCH),)
    assert private.ledger.releases == private.noise.releases
    for said in (private.spent(1e-5).notes, private.statement().warnings):
        assert any(one.startswith("zero-out") for one in said)
    _, private = made(NOISES["banded"](1.3))
    for x, y in private.batches(epochs=2):
        private.step(linear, x, y)
    assert private.ledger.releases == (Release("gaussian", 1.3, population=N),)
    assert private.spent(1e-5).epsilon == pytest.approx(PrivacyLedger([Release("gaussian", 1.3)]).epsilon(1e-5).epsilon, rel=1e-9)


def test_every_pass_has_the_same_order_and_each_example_once() -> None:
    _, private = made(TreeNoise(1.0, EPOCH, trees=2))
    passes = []
    for x, y in private.batches(epochs=2):
        passes.append(x)
        private.step(linear, x, y)
    assert [len(x) for x in passes] == [3, 3, 3, 1] * 2
    assert torch.equal(torch.cat(passes[:EPOCH]), torch.cat(passes[EPOCH:]))
    assert len(torch.cat(passes[:EPOCH]).unique(dim=0)) == N


def test_a_run_of_fit_that_was_resumed_is_the_one_that_was_not_stopped(tmp_path) -> None:
    def run(epochs: int, name: str) -> list[float]:
        model, private = made(NOISES["tree"](1.3))
        fit(model, private.draws.data, loss=linear, optimizer=private.optimizer, gradients=private,
            schedule=Schedule(epochs=epochs, checkpoint=tmp_path / name))
        return [value for one in model.parameters() for value in one.detach().flatten().tolist()]

    whole = run(2, "whole")
    run(1, "parts")
    assert run(2, "parts") == whole


def test_noise_planned_for_another_order_is_refused() -> None:
    for wrong in (TreeNoise(1.0, EPOCH + 1), BandedNoise(1.0, [1.0, 0.5], 2 * EPOCH),
                  BandedNoise(1.0, [1.0, 0.5], 2 * EPOCH, participations=2, separation=EPOCH + 1)):
        with pytest.raises(UsageError, match=r"leaves|participations"):
            made(wrong)
    used = TreeNoise(1.0, EPOCH)
    used.at(0)
    with pytest.raises(UsageError, match="fresh"):
        made(used)


def test_batches_from_elsewhere_and_steps_beyond_the_plan_are_refused() -> None:
    _, private = made(TreeNoise(1.0, EPOCH))
    x, y = private.draws.data.take(torch.arange(BATCH))
    with pytest.raises(UsageError, match="next batch"):
        private.step(linear, x, y)
    _, private = made(TreeNoise(1.0, EPOCH))
    drawn = private.batches(epochs=2)
    for _ in range(EPOCH):
        private.step(linear, *next(drawn))
    beyond = next(drawn)
    with pytest.raises(UsageError, match="fewer than"):
        private.step(linear, *beyond)
    assert private.steps == EPOCH


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("change", ["noise", "order"])
def test_a_run_does_not_go_on_with_less_noise_or_another_order(kind: str, change: str) -> None:
    _, private = made(NOISES[kind](4.0))
    for x, y in private.batches(steps=EPOCH + 1):  # in the second tree, or the only run: both are counted already
        private.step(linear, x, y)
    state = private.state_dict()
    _, other = made(NOISES[kind](0.4 if change == "noise" else 4.0), seed=5 if change == "noise" else 6)
    with pytest.raises((UsageError, ValueError), match="planned as" if change == "noise" else "another order"):
        other.load_state_dict(state)
    assert other.ledger.count == 0
    _, same = made(NOISES[kind](4.0))
    same.load_state_dict(state)
    for x, y in same.batches(steps=EPOCH - 1):
        same.step(linear, x, y)
    assert same.ledger.count == (1 if kind == "banded" else 2)


def test_what_is_no_correlated_noise_and_no_single_clip_is_named() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for noise, clip, said in ((4.0, 1.0, "noise is float"), (TreeNoise(1.0, 4), Flat(1.0), "clip is a Flat")):
        with pytest.raises(UsageError, match=said):
            make_private_ftrl(model, optimizer, (torch.randn(10, 2), torch.zeros(10)), batch_size=3, noise=noise, clip=clip)
