"""Two processes under torch.distributed make the step of one: each clips its own, noise comes in once, clips stay the same."""

from __future__ import annotations

import copy

import pytest
import torch
from test_private import examples, far, net, split, summed
from torch import distributed, multiprocessing, nn

from hauberk import Schedule, fit
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.clipping import Quantile
from hauberk.privacy.dp.noise import SeededSource
from hauberk.privacy.dp.sampling import poisson_batch

CLIP = {"clip": 0.4, "count_noise": 2.0}


def work(rank, place, through_fit):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    model, data = net(seed=rank), split()  # other weights in each: the first one's count
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    shared = nn.parallel.DistributedDataParallel(model)
    private = make_private(
        shared, optimizer, data, batch_size=8, noise_multiplier=1.0, clip=Quantile(**CLIP), options=PrivateOptions(seed=3)
    )
    if through_fit:
        fit(shared, data, optimizer=optimizer, gradients=private, schedule=Schedule(1))
    else:
        for x, y in private.batches(steps=5):
            private.step(cross_entropy, x, y)
    torch.save((model.state_dict(), private.state_dict()), f"{place}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow  # two fresh processes import torch
@pytest.mark.parametrize("through_fit", [False, True], ids=["loop", "fit"])
def test_two_processes_make_the_steps_of_one(tmp_path, through_fit):
    multiprocessing.spawn(work, (str(tmp_path), through_fit), nprocs=2)
    (weights, state), (others, other_state) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(weights[name], others[name]) for name in weights) and state == other_state

    data, slow = split(), net(seed=0)
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.2, momentum=0.9)
    clipping = Quantile(**CLIP)
    clipping.bind({}, 8.0)
    for step in range(5):
        parts = [
            torch.arange(rank, 40, 2)[poisson_batch(20, 0.2, SeededSource(3, "sampling", step, rank))] for rank in (0, 1)
        ]
        x, y = data.take(torch.cat(parts))
        source = SeededSource(3, "noise", step)
        sums = summed(slow, x, y, clipping.bound)
        norms = torch.stack([torch.cat([g.flatten() for g in rows]).norm() for rows in examples(slow, x, y)])
        for one, total in zip(slow.parameters(), sums, strict=True):
            one.grad = (total + clipping.gradient_multiplier(1.0) * clipping.bound * source.normal(total)) / 8
        clipping.weights({next(slow.parameters()): norms})
        clipping.finish(lambda counted, deviation, source=source: counted + deviation * source.normal(counted))
        optimizer.step()
    model = copy.deepcopy(slow)
    model.load_state_dict(weights)
    assert far(model, slow) < 1e-9
    assert state["clipping"]["clip"] == pytest.approx(clipping.bound, rel=1e-9)
    assert state["steps"] == 5
