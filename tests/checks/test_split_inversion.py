"""Inputs from the features of a split model: what is handed over whole is found, a class alone is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hauberk
from hauberk import Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.checks.split_inversion import places
from hauberk.core.finding import Gallery, Status, Table
from hauberk.methods import load_methods
from hauberk.privacy.model_inversion import decoder_inversion
from hauberk.privacy.model_inversion.decoder import features_at

CARD = load_methods().get("privacy/split-inversion", "check")


def run(model: nn.Module, data: Data, preset: str = "quick", seed: int = 0) -> hauberk.Finding:
    return run_check(CARD, Target(model), data, Settings(preset=preset, seed=seed))


def seeded(make: type[nn.Module], *sizes: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(*sizes)


def narrow(width: int, seed: int = 0) -> nn.Module:
    return nn.Sequential(nn.Flatten(), seeded(nn.Linear, 64, width, seed=seed), seeded(nn.Linear, width, 10, seed=seed)).eval()


class Sorted(nn.Module):
    """Behind it nothing but the class is left."""

    def __init__(self, model: nn.Module, sharp: bool) -> None:
        super().__init__()
        self.model, self.pick, self.last = model, nn.Identity(), nn.Linear(10, 10, bias=False)
        self.sharp = sharp
        self.last.weight.data = 5 * torch.eye(10)

    def forward(self, x: Tensor) -> Tensor:
        said = self.model(x)
        told = nn.functional.one_hot(said.argmax(1), 10).to(said) if self.sharp else (1000 * said).softmax(1)
        return self.last(self.pick(told))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two layers of which the second is added to what the first was given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.add, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        held = self.first(x)
        return self.last(self.add(held + self.branch(held)))  # type: ignore[no-any-return]


def test_a_split_is_where_all_that_the_rest_needs_goes_through() -> None:
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    assert places(seeded(Residual), x) == ["first", "add"]  # `branch` alone does not decide the answer
    assert places(nn.Linear(6, 3), x) == []
    deep = nn.Sequential(*(seeded(nn.Linear, 6, 6, seed=k) for k in range(7)))
    assert places(deep, x) == ["0", "3", "5"]
    block = nn.Sequential(seeded(nn.Linear, 6, 6), nn.Tanh())
    activated = nn.Sequential(seeded(nn.Linear, 6, 6), nn.ReLU(), block, nn.Linear(6, 2))
    assert places(activated, x) == ["1", "2"]  # the last before the next weights; a block's own name where it ends


def test_features_that_hold_the_input_hand_it_over_and_narrow_ones_do_not(digits: Data) -> None:
    whole = run(narrow(64), digits)
    assert whole.status is Status.WARN and whole.value == 1.0 and whole.n == 20
    assert isinstance(whole.evidence[0], Table) and isinstance(whole.evidence[1], Gallery) and whole.gradients == 0
    for seed in range(4):
        found = run(narrow(2, seed), digits, seed=seed)
        assert found.status is Status.PASS and found.value == 0.0


@pytest.mark.parametrize("sharp", [False, True])
def test_a_class_says_no_more_than_the_mean_of_the_class(digits: Data, digits_model: nn.Module, sharp: bool) -> None:
    found = run(Sorted(digits_model, sharp), digits)
    table = found.evidence[0]
    assert found.status is Status.PASS and found.value == 0.0 and isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["pick", "none: the best guess"]


def test_the_attack_that_does_better_on_inputs_of_its_own_is_taken(digits: Data) -> None:
    few = Data(Split(*digits.test.first(150)), bounds=(0.0, 1.0), classes=10)
    steep = nn.Sequential(nn.Flatten(), seeded(nn.Linear, 64, 256), nn.LeakyReLU(0.5), seeded(nn.Linear, 256, 10)).eval()
    found = run(steep, few, "standard")
    assert found.status is Status.WARN and isinstance(found.evidence[0], Table) and found.gradients == 0
    assert str(found.evidence[0].rows[0][-1]).endswith("better of decoder and search on inputs of its own")
    x = torch.rand(120, 64, generator=torch.Generator().manual_seed(0))
    table = Data(Split(x, torch.arange(120) % 10), bounds=(0.0, 1.0), classes=10)
    ends = run(Sorted(narrow(10), True), table, "standard")  # behind a step no gradient flows to search along
    assert ends.status is Status.PASS and any(note.startswith("search at 'pick' was left out") for note in ends.notes)


def test_tables_are_judged_column_by_column() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(300, 8, generator=draw) * torch.logspace(0, 3, 8)
    data = Data(Split(x, (x[:, 0] > 0.5).long()), bounds=(torch.zeros(8), torch.logspace(0, 3, 8)), classes=2)
    wide = nn.Sequential(seeded(nn.Linear, 8, 16), seeded(nn.Linear, 16, 2)).eval()
    assert run(wide, data).value == 1.0
    one = nn.Sequential(seeded(nn.Linear, 8, 1), nn.Tanh(), seeded(nn.Linear, 1, 2)).eval()
    assert run(one, data).status is Status.PASS


def test_what_cannot_be_split_says_so(digits: Data) -> None:
    assert "nowhere to split" in run(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits).reason
    few = Data(Split(*digits.test.first(20)), bounds=(0.0, 1.0), classes=10)
    assert "at least 24" in run(narrow(64), few).reason
    odd = Data(Split(torch.rand(90, 4, 4), torch.arange(90) % 3), classes=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))
    assert "neither images nor tables" in run(model, odd).reason
    copies = Data(Split(torch.zeros(90, 4), torch.arange(90) % 2), classes=2)
    assert run(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), copies).status is Status.NOT_RUN


def test_models_of_another_make_are_no_error(digits: Data) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.last(self.first(x.flatten(1)))}

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    assert run(Fixed(), digits).status is Status.NOT_RUN
    assert run(Named(), digits).status is Status.NOT_RUN


def test_half_precision_hands_over_as_much(digits: Data) -> None:
    for preset in ("quick", "standard"):
        found = run(narrow(64).half(), digits, preset)
        assert found.status is Status.WARN and found.value is not None and found.value > 0.9


def test_features_that_never_change_hand_over_the_mean() -> None:
    """They leave the decoder's linear part nothing to solve for: it answered NaN, and the check had no figure."""
    model = nn.Sequential(seeded(nn.Linear, 4, 3), nn.Threshold(100.0, 7.0), seeded(nn.Linear, 3, 2)).eval()
    x = torch.randn(700, 4, generator=torch.Generator().manual_seed(0)).clamp(-4, 4)
    table = Data(Split(x, torch.arange(700) % 2), bounds=(-4.0, 4.0), classes=2)
    found = run(model, table, "standard")
    assert found.status is Status.PASS and found.value == 0
    made = decoder_inversion(model, features_at(model, x[:3], "1"), layer="1", auxiliary=x, epochs=0)
    assert torch.allclose(made.x, x.mean(0).expand(3, -1), atol=1e-6)
