"""Reference models: kept as they are trained, asked once, and records that do not fit refused in words."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from hauberk import Schedule, Target
from hauberk.core import stacked
from hauberk.core.errors import DataError, UsageError
from hauberk.methods import load_methods
from hauberk.privacy.membership import References, kept, lira, loss_membership, rmia, train_references, variance_prior
from hauberk.privacy.membership.label_only import augmentation_membership
from hauberk.privacy.membership.signals import answers, asked_once, log_odds

SCHEDULE = Schedule(epochs=1, batch_size=8, seed=3)


class Recurrent(nn.Module):
    """No stacked pass takes its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Read the record as five steps of two."""
        return self.head(self.steps(x.view(-1, 5, 2))[0][:, -1])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))


def noise(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 10, generator=draw), torch.randint(0, 3, (n,), generator=draw)


def posted(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(one))))) for one in items]


def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the numbers of the models that are trained from here on."""
    found: list[int] = []
    true = stacked.fit_group

    def watched(*args: Any, numbers: list[int], **options: Any) -> None:
        found.extend(numbers)
        true(*args, numbers=numbers, **options)

    monkeypatch.setattr(stacked, "fit_group", watched)
    return found


def test_what_cannot_be_stacked_is_spread_and_gives_the_same() -> None:
    pool = noise(24)
    here = train_references(Recurrent(), pool, count=2, schedule=SCHEDULE)
    there = train_references(Recurrent(), pool, count=2, schedule=SCHEDULE, spread=posted)
    assert torch.equal(here.logits, there.logits) and torch.equal(here.inside, there.inside)
    assert not torch.equal(here.logits[0], here.logits[1])

    def never(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        raise AssertionError("what can be stacked is trained here, in one pass")

    train_references(perceptron(), pool, count=2, schedule=SCHEDULE, spread=never)


@pytest.mark.parametrize("build", [perceptron, Recurrent])
def test_a_training_that_was_broken_off_goes_on(
    build: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, folder = noise(24), tmp_path / "kept"
    whole = train_references(build(), pool, count=6, schedule=SCHEDULE)
    monkeypatch.setattr(stacked, "width", lambda models: 2)
    true = kept.Kept.keep

    def stops(self: kept.Kept, number: int, model: nn.Module) -> None:
        if number == 3:
            raise KeyboardInterrupt
        true(self, number, model)

    numbers = trained(monkeypatch)
    monkeypatch.setattr(kept.Kept, "keep", stops)
    with pytest.raises(KeyboardInterrupt):
        train_references(build(), pool, count=4, schedule=SCHEDULE, keep=folder)
    names = [f"reference-00{k}.safetensors" for k in range(3)]
    assert sorted(one.name for one in folder.iterdir()) == [*names, "references.json"]
    monkeypatch.setattr(kept.Kept, "keep", true)
    numbers.clear()
    again = train_references(build(), pool, count=6, schedule=SCHEDULE, keep=str(folder))  # more than were asked for before
    assert numbers == [3, 4, 5]
    torch.testing.assert_close(again.logits, whole.logits, rtol=1e-5, atol=1e-5)
    numbers.clear()
    fewer = train_references(build(), pool, count=2, schedule=SCHEDULE, keep=folder)
    assert numbers == [] and torch.equal(fewer.logits, again.logits[:2]) and not fewer.models[0].module.training


def test_a_folder_of_another_training_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    pool, folder = noise(24), tmp_path / "kept"

    def go(model: object = None, records: tuple[Tensor, Tensor] = pool, **options: Any) -> References:
        made = perceptron() if model is None else model
        return train_references(made, records, count=2, keep=folder, **{"schedule": SCHEDULE, **options})  # type: ignore[arg-type]

    first = go()
    wider = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))
    smoother = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3))
    for told, arguments in (
        ("epochs differ", {"schedule": Schedule(epochs=2, batch_size=8, seed=3)}), ("seed differ", {"schedule": Schedule(
            epochs=1, batch_size=8, seed=4)}), ("lr differ", {"lr": 0.1}), ("records differ", {"records": noise(24, 1)}),
        ("model differ", {"model": wider}), ("model differ", {"model": smoother}),
    ):
        with pytest.raises(UsageError, match=rf"reference models of another training \({told}\)"):
            go(**arguments)
    with pytest.raises(UsageError, match="estimators cannot be kept"):
        go(RandomForestClassifier(2))
    one = folder / "reference-001.safetensors"
    held = one.read_bytes()
    for wrong in (held[:-9], (folder / "references.json").read_bytes()):
        one.write_bytes(wrong)
        with pytest.raises(DataError, match=r"reference-001.safetensors cannot be read .*Delete it, and it is trained again"):
            go()
    one.unlink()
    torch.testing.assert_close(go().logits, first.logits, rtol=1e-5, atol=1e-5)
    about = folder / "references.json"
    about.write_text("[]")
    with pytest.raises(UsageError, match="of another training"):
        go()
    about.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        go()
    about.unlink()
    with pytest.raises(UsageError, match="holds weights, but not what they were trained on"):
        go()
    assert not about.exists()


def test_references_that_are_taken_share_what_is_known_and_answer_as_before() -> None:
    pool = noise(24)
    made = train_references(perceptron(), pool, count=4, schedule=SCHEDULE)
    calls: list[int] = []

    def counted(logits: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return log_odds(logits, y)

    few = made.take([2, 1])
    first, inside = few.on(pool, counted)
    second, _ = made.on(pool, counted)
    assert calls == [24] * 4  # each model once, whoever asks
    assert torch.equal(first, second[[2, 1]]) and torch.equal(inside, made.inside[[2, 1]])
    assert torch.equal(second[0], log_odds(made.logits[0].double(), pool[1]))
    assert torch.equal(made.take([3]).on((pool[0][5:9], pool[1][5:9]), counted)[0], second[3:, 5:9]) and len(calls) == 4


def test_a_target_is_asked_once_for_several_attacks() -> None:
    x, y = noise(24)
    sides, net, asked = ((x[:12], y[:12]), (x[12:], y[12:])), perceptron(), []

    def answer(z: Tensor) -> Tensor:
        asked.append(len(z))
        return net(z).detach() * (1 + 0.1 * len(asked))  # another answer each time

    target = Target(answer, outputs="logits")
    references = train_references(perceptron(), (x, y), count=2, schedule=SCHEDULE)
    with asked_once():
        for attack in (lira, rmia, variance_prior):
            attack(target, *sides, references=references)
        first = loss_membership(target, *sides)
        assert asked == [12, 12]
        answers(target, sides[0])[0].zero_()  # a copy: nobody spoils it for others
        assert torch.equal(first.members, loss_membership(target, *sides).members)
        loss_membership(target, (x[:12].clone(), y[:12]), sides[1])
        assert asked == [12, 12, 12]  # other tensors are other records
    assert not torch.equal(first.members, loss_membership(target, *sides).members) and len(asked) == 5


def test_records_of_a_wrong_shape_are_refused_in_words() -> None:
    x, y = noise(24)
    good, bad = (x[:12], y[:12]), (x[12:, :4], y[12:])
    references = train_references(perceptron(), (x, y), count=2, schedule=SCHEDULE)
    for card in load_methods().cards("inference"):
        with pytest.raises(DataError, match=r"members have the shape \(10,\) and non-members \(4,\)"):
            card.function(perceptron(), good, bad)
        with pytest.raises(DataError, match=r"the model does not take records of shape \(4,\) \(mat1 and mat2 shapes cannot be"):
            card.function(perceptron(), (x[:12, :4], y[:12]), bad)
        if "references" in inspect.signature(card.function).parameters:
            with pytest.raises(DataError, match=r"records have the shape \(4,\), those of the references \(10,\)"):
                card.function(nn.Linear(4, 3), (x[:12, :4], y[:12]), bad, references=references)


def test_what_goes_wrong_for_another_reason_is_not_laid_on_the_records() -> None:
    x, y = noise(24)

    def change(z: Tensor, draw: torch.Generator) -> Tensor:
        raise ValueError("no such change")

    with pytest.raises(ValueError, match="no such change"):
        augmentation_membership(perceptron(), (x[:12], y[:12]), (x[12:], y[12:]), change=change)
