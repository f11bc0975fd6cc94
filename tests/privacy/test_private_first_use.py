"""What a newcomer gets wrong is named with the value, what is wanted and the next step; what is foretold is never too little."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.accounting import PrivacyMonitor, Release, epsilon


def pair(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def table(n: int = 40) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=draw), torch.randint(3, (n,), generator=draw)


@pytest.mark.parametrize(("given", "says"), [
    ({"clip": "1"}, r"the clip is '1', str.*Expected a number above 0.*clip=1\.0"),
    ({"clip": True}, r"the clip is True, bool"),
    ({"options": {"micro_batch": 4}}, r"options is \{'micro_batch': 4\}.*PrivateOptions\(micro_batch"),
    ({"data": table()[0]}, r"one tensor of shape \(40, 4\).*tuple \(x, y\)"),
    ({"data": list(table())}, r"a list of 2.*tuple \(x, y\)"),
    ({"data": [1, 2, 3]}, r"a list of 3"),
    ({"batch_size": "8"}, r"batch size is '8'.*whole number from 1 to 40"),
])
def test_arguments_of_the_wrong_kind(given: dict[str, object], says: str) -> None:
    model, optimizer = pair(nn.Linear(4, 3))
    settings = {"data": table(), "batch_size": 8, "noise_multiplier": 1.0, **given}
    with pytest.raises(UsageError, match=says):
        make_private(model, optimizer, settings.pop("data"), **settings)  # type: ignore[arg-type]


def test_a_list_of_pairs_is_a_data_set() -> None:
    private = make_private(*pair(nn.Linear(4, 3)), list(zip(*table(), strict=True)), batch_size=8, noise_multiplier=1.0)
    for x, y in private.batches(steps=2):
        assert x.shape[1:] == (4,) and len(x) == len(y)
        private.step(cross_entropy, x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_x_of_another_type_than_the_model(dtype: torch.dtype) -> None:
    x, y = table()
    private = make_private(*pair(nn.Linear(4, 3)), (x.to(dtype), y), batch_size=40, noise_multiplier=1.0)
    for batch in private.batches(steps=1):
        with pytest.raises(DataError, match=f"x of type {dtype}: its parameters are torch.float32"):
            private.step(cross_entropy, *batch)


def test_tokens_of_a_split_stay_whole_numbers() -> None:
    draw = torch.Generator().manual_seed(1)
    words = Split(torch.randint(11, (40, 5), generator=draw), torch.randint(3, (40,), generator=draw))
    pixels = Split(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2))
    assert words.first(2)[0].dtype == torch.int64 and pixels.first(1)[0].dtype == torch.float32
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 3))
    private = make_private(*pair(model), words, batch_size=10, noise_multiplier=1.0, options=PrivateOptions(seed=0))
    before = model[0].weight.detach().clone()
    for x, y in private.batches(steps=3):
        private.step(cross_entropy, x, y)
    assert private.steps == 3 and not torch.equal(before, model[0].weight)


def test_time_first_is_refused_where_the_data_show_it() -> None:
    """Rows of time would be clipped in place of examples; a model without memory does not show it."""
    data = torch.randn(40, 7, 4), torch.randint(3, (40, 7))
    private = make_private(*pair(nn.Linear(4, 3)), data, batch_size=10, noise_multiplier=1.0)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    x, y = data[0][:10], data[1][:10]
    with pytest.raises(UsageError, match=r"\(7, 10, 4\), its first dimension that of time.*transpose"):
        private.step(loss, x.transpose(0, 1), y.t())
    assert private.steps == 0
    private.step(loss, x, y)


def test_the_first_step_on_a_loader_of_ones_own_is_foretold_for_every_example() -> None:
    x, y = table()
    one = epsilon([Release("gaussian", 1.0, "any", population=40)], 1e-5).epsilon
    drawn = epsilon([Release("gaussian", 1.0, "poisson", 0.2, 1, 40)], 1e-5).epsilon
    assert drawn < 6.0 < one
    private = make_private(*pair(nn.Linear(4, 3)), (x, y), batch_size=8, noise_multiplier=1.0, delta=1e-5)
    monitor = PrivacyMonitor(ledger=private.ledger, delta=1e-5, budget=6.0)
    assert not monitor.allows()  # 8 examples of a loader would cost more
    for batch in private.batches(steps=2):
        assert monitor.allows()
        private.step(cross_entropy, *batch)
        assert private.spent().epsilon <= 6.0
    assert monitor.allows()  # the next batch is taken to be drawn as the last
    declared = make_private(
        *pair(nn.Linear(4, 3)), (x, y), batch_size=8, noise_multiplier=1.0, delta=1e-5,
        options=PrivateOptions(loader="each-once-per-pass"),
    )
    monitor = PrivacyMonitor(ledger=declared.ledger, delta=1e-5, budget=one)
    steps = 0
    while monitor.allows():
        declared.step(cross_entropy, x[:8], y[:8])
        steps += 1
    assert steps == 5 and declared.spent().epsilon <= one


def test_a_ragged_last_batch_is_never_charged_too_little() -> None:
    """Passes of 38 examples in tens have 4 steps; one is counted for every 3 begun."""
    for passes in (1, 2, 5):
        counted = Release("gaussian", 8.0, "shuffled", 10 / 38, 4 * passes, 38).participations
        assert passes <= counted <= -(-4 * passes // 3)


def test_data_without_values_is_told_once() -> None:
    x, y = table()
    x[:5] = torch.nan
    private = make_private(*pair(nn.Linear(4, 3)), (x, y), batch_size=40, noise_multiplier=1.0)
    for batch in private.batches(steps=1):
        with pytest.warns(RuntimeWarning, match="gradients of 5 examples of step 0 are not finite"):
            private.step(cross_entropy, *batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in private.batches(steps=1):
            private.step(cross_entropy, *batch)
    assert private.dropped == 10


def test_numbers_that_are_none_are_named() -> None:
    x, y = table()
    private = make_private(*pair(nn.Linear(4, 3)), (x, y), batch_size=40, noise_multiplier=1.0)
    for given in ({"epochs": float("inf")}, {"epochs": float("nan")}, {"steps": 2.5}):
        with pytest.raises(UsageError, match="epochs is"):
            private.batches(**given)
    for given in ({"seed": "a"}, {"micro_batch": 2.5}):
        with pytest.raises(UsageError, match="whole number"):
            PrivateOptions(**given)
