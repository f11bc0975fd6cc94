"""hauberk attack: what it says is what the examples it keeps say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import Result

from hauberk.cli.attack import parse_options
from hauberk.core.card import Card, registry
from hauberk.core.errors import UsageError
from hauberk.core.stats import wilson
from hauberk.methods import load_methods

Run = Callable[..., Result]


def kept(place: str = "adv.npz") -> dict[str, np.ndarray]:
    with np.load(place, allow_pickle=False) as file:
        return dict(file)


def test_what_is_said_is_what_is_kept(hauberk: Run, shop: Path, digits_model: nn.Module) -> None:
    run = hauberk("attack", "pgd", shop, "--threat", "linf:0.08", "--n", 60, "--option", "steps=5", "--seed", "3")
    assert run.exit_code == 0, run.stderr
    adv = kept()
    assert adv["x"].shape == adv["x_adv"].shape == (60, 1, 8, 8)
    with torch.no_grad():
        before, after = (digits_model(torch.from_numpy(adv[key])).argmax(1).numpy() for key in ("x", "x_adv"))
    assert (adv["prediction"] == before).all()
    assert (adv["prediction_adv"] == after).all()
    distance = np.abs(adv["x_adv"].astype(float) - adv["x"].astype(float)).reshape(60, -1).max(1)
    assert distance.max() <= 0.08
    right = before == adv["y"]
    won, n = int((right & (after != adv["y"])).sum()), int(right.sum())
    assert 0 < won < n
    ends = wilson(won, n)
    winning = np.sort(distance[right & (after != adv["y"])])
    median, most = winning[(won - 1) // 2], winning[-1]
    rows = dict(re.split(r"\s{2,}| (?=adv)", row, maxsplit=1) for row in run.stdout.splitlines())
    assert rows["attack"] == "pgd"
    assert rows["threat"].startswith("Linf, ε = 0.08, untargeted, inputs in [0, 1]")
    assert rows["success"] == f"{won / n:.1%} [{ends.low:.1%} to {ends.high:.1%}], {won} of {n} samples that were right before"
    assert rows["clean"] == f"{n} of 60 samples right before the attack"
    assert rows["distance"] == f"median {median:.4g}, largest {most:.4g}, where it won"
    queries = int(rows["queries"].split()[0].replace(",", ""))
    # Six forwards at most per sample: five steps and the last look; broken samples stop earlier.
    assert 60 < queries < 360
    assert rows["kept"] == "adv.npz: x, x_adv, y, prediction, prediction_adv"


def test_the_seed_decides(hauberk: Run, shop: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        hauberk("attack", "pgd", shop, "--n", 20, "--seed", seed, "--option", "steps=2", "--output", f"{name}.npz")
    a, b, c = (kept(f"{name}.npz") for name in "abc")
    assert (a["x_adv"] == b["x_adv"]).all()
    assert not (a["x"] == c["x"]).all()


def test_a_target_label_is_reached_or_not(hauberk: Run, shop: Path) -> None:
    run = hauberk("attack", "pgd", shop, "--threat", "linf:0.3", "--n", 40, "--target-label", 8)
    assert run.exit_code == 0, run.stderr
    adv = kept()
    assert 8 not in adv["y"]
    right = adv["prediction"] == adv["y"]
    won = int((right & (adv["prediction_adv"] == 8)).sum())
    assert f", {won} of {int(right.sum())} samples that were right before" in run.stdout
    assert won > 0.9 * right.sum()
    assert hauberk("attack", "pgd", shop, "--target-label", 10).exit_code == 2


def test_access_is_not_widened(hauberk: Run, shop: Path) -> None:
    run = hauberk("attack", "pgd", shop, "--access", "score")
    assert run.exit_code == 2
    assert run.stderr.splitlines()[-1].startswith("error: pgd needs GRADIENT access, this target grants SCORE.")
    assert not Path("adv.npz").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["pgdd"], "there is no attack called 'pgdd'. Did you mean 'pgd'?"),
    (["pgd", "--option", "step=3"], "pgd has no option 'step'. Did you mean 'steps'?"),
    (["pgd", "--option", "steps=x"], "--option steps is 'x'. Expected a whole number."),
    (["pgd", "--option", "steps"], "--option is 'steps'. Expected key=value, e.g. steps=100."),
])
def test_wrong_names_and_options(hauberk: Run, shop: Path, arguments: list[str], words: str) -> None:
    run = hauberk("attack", arguments[0], shop, *arguments[1:])
    assert (run.exit_code, run.stderr) == (2, f"error: {words}\n")


def made(
    target: object, x: Tensor, *, steps: int = 3, size: float | None = None, quick: bool = True,
    loss: Literal["ce", "margin"] = "ce", scales: tuple[float, ...] = (), rounds: Sequence[int] = (),
    call: Callable[[], int] | None = None, name: str = "",
) -> None:
    """Make nothing."""


@pytest.mark.parametrize(("text", "value"), [
    ("steps=12", 12), ("steps=-1", -1), ("size=0.5", 0.5), ("size=8/255", 8 / 255), ("size=none", None), ("size=1e-3", 1e-3),
    ("quick=no", False), ("quick=TRUE", True), ("loss=margin", "margin"), ("scales=0.5,1/4", (0.5, 0.25)),
    ("rounds=1, 2", [1, 2]), ("name=a=b", "a=b"), ("call=none", None),
])
def test_options_are_read_by_the_types_of_the_signature(text: str, value: object) -> None:
    card = Card("made", "attack", made, "?")
    (found,) = parse_options(card, [text]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "want"), [
    ("steps=1.5", "a whole number"), ("size=big", "a number or none"), ("quick=perhaps", "true or false"),
    ("loss=hinge", "ce | margin"), ("rounds=1,x", "a comma list, each a whole number"),
])
def test_values_of_another_type_are_refused(text: str, want: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"Expected {want}.")):
        parse_options(Card("made", "attack", made, "?"), [text])


@pytest.mark.parametrize("card", list(load_methods().cards("attack")), ids=lambda card: card.name)
def test_every_default_of_every_attack_can_be_written_down(card: Card) -> None:
    defaults: dict[str, Any] = {name: one.default for name, one in card.options.items()}
    plain = {name: value for name, value in defaults.items() if value is None or isinstance(value, (bool, int, float, str))}
    found = parse_options(card, [f"{name}={value}" for name, value in plain.items()])
    assert found == plain
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in plain.items()}


def test_examples_are_not_written_over_unasked(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "adv.npz").write_text("mine")
    run = hauberk("attack", "fgsm", shop, "--n", 4)
    assert run.exit_code == 2 and "adv.npz exists already" in run.stderr and "--force" in run.stderr
    assert (tmp_path / "adv.npz").read_text() == "mine"
    assert hauberk("attack", "fgsm", shop, "--n", 4, "--force").exit_code == 0
    with np.load(tmp_path / "adv.npz") as kept:
        assert kept["x"].shape == (4, 1, 8, 8)


def test_an_interrupt_says_what_to_do(hauberk: Callable[..., Result], shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_methods().get("pgd", "attack")

    def stopped(*_: object, steps: int = 40) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(registry._cards["attack"], "pgd", dataclasses.replace(card, function=stopped))
    run = hauberk("attack", "pgd", shop)
    assert run.exit_code == 130
    assert run.stderr.splitlines()[-1] == (
        "error: interrupted after 0 queries; nothing is kept: give fewer samples with --n, or fewer steps with --option steps=…"
    )
