"""Trials of attacks on gradients: clients that send nothing, defences of batches, and what must stay as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import isolated
from hauberk.privacy.inversion import ClientUpdate, client_update, closeness, inverting_gradients
from hauberk.privacy.inversion.client import LocalSteps
from hauberk.privacy.inversion.defences import mixup, norm_of, precode
from hauberk.privacy.inversion.trial import attempt

X, Y = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])


def model(scale: float = 1.0) -> nn.Module:
    with isolated(1):
        made = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        made[2].weight.mul_(scale)
    return made


def test_a_client_whose_gradient_is_zero_counts_as_not_won_back() -> None:
    sure = model(1e6)
    y = sure(X).argmax(1)  # saturated: the loss of each is zero, and so is its gradient
    y[1] = (y[1] + 1) % 3
    trial = attempt(sure, X, y, inverting_gradients, options={"steps": 2})
    gray = (trial.found.x == 0.5).all(1)
    assert gray.tolist() == [True, False, True, True] and trial.found.loss is not None
    assert trial.found.loss.isinf().tolist() == gray.tolist() and len(trial.close.psnr) == 4
    assert bool((attempt(model(), X, Y, inverting_gradients, defence="prune=1", options={"steps": 2}).found.x == 0.5).all())


def test_the_private_defence_of_a_batch_clips_each_sample() -> None:
    sent: list[ClientUpdate] = []

    def listen(module: nn.Module, updates: list[ClientUpdate], *, seed: int) -> Reconstruction:
        sent.extend(updates)
        return Reconstruction(torch.zeros(len(X), 6))

    big = model(100.0)
    attempt(big, X, Y, listen, defence="private=0", group=4)
    wanted: dict[str, Tensor] = {}
    for k in range(4):
        own = client_update(big, X[k : k + 1], Y[k : k + 1]).gradients
        for name, one in own.items():
            wanted[name] = wanted.get(name, torch.zeros_like(one)) + one / max(1.0, norm_of(own)) / 4
    torch.testing.assert_close(dict(sent[0].gradients), wanted)


def test_closeness_of_a_model_that_draws_is_that_of_one_draw_and_leaves_the_global_state() -> None:
    drawing, state = precode(model()), torch.get_rng_state()
    found = closeness(drawing, X, X, y=Y)
    assert torch.equal(state, torch.get_rng_state()) and found.fmse.tolist() == [0.0] * 4


@pytest.mark.parametrize(("x", "y"), [(X, Y + 2), (X, Y - 1), (X, Y.float()), (X[:, :4], Y), (X, torch.rand(4, 5))])
def test_what_a_client_cannot_have_is_refused_in_words(x: Tensor, y: Tensor) -> None:
    with pytest.raises(DataError):
        client_update(model(), x, y)


def test_empty_local_batches_and_foreign_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 sample"):
        client_update(model(), X, Y, local=LocalSteps(2, 0.1, 0))
    with pytest.raises(DataError, match="classes 0 to 1"):
        mixup(X, Y, 2)
