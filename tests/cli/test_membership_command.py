"""hauberk membership: the table, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import Result

from hauberk.cli.membership import conclusion
from hauberk.core.finding import Interval
from hauberk.core.kinds import MembershipScores
from hauberk.core.roc import roc
from hauberk.privacy.membership import MembershipReport
from hauberk.privacy.membership.kept import Kept

Run = Callable[..., Result]


def call(shop: Path, *more: object) -> tuple[object, ...]:
    return (
        "membership", "--model", f"{shop / 'net.py'}:build", "--weights", shop / "weights.safetensors",
        "--train", shop / "train.npz", "--data", shop / "test.npz", "--bounds", "0,1", *more,
    )


def test_references_attack_and_every_score_is_kept(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    run = hauberk(*call(
        shop, "--references", 2, "--epochs", 3, "--attack", "variance-prior,loss-membership", "--output", "found.json",
    ))
    assert run.exit_code == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[1] == "plan     the command line" and lines[2].startswith("records  200 in the training data, ")
    assert lines[0].startswith("model    ") and lines[4].startswith("Members told from non-members")
    assert lines[6].startswith("variance-prior ")
    assert any(line.startswith("inputs and labels alone, without the model") for line in lines)
    assert any(line.startswith("membership dealt at random") for line in lines) and lines[-1] == "kept: found.json"
    told = json.loads((tmp_path / "found.json").read_text())
    assert (told["main"], told["references"], told["members"]) == ("variance-prior", 2, 200)
    assert 0.3 < told["attacks"]["loss-membership"]["auc"] < 0.7
    assert hauberk(*call(shop, "--attack", "gap-membership", "--output", "found.json")).exit_code == 2
    run = hauberk(*call(shop, "--attack", "gap-membership", "--n", 50, "--output", "found.npz", "--output-format", "json"))
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["members"] == 50
    with np.load(tmp_path / "found.npz") as kept:
        assert kept["gap-membership members"].shape == (50,) and kept["risk members"].shape == (50,)


def test_a_run_that_was_broken_off_goes_on(hauberk: Run, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = call(shop, "--references", 4, "--epochs", 1, "--attack", "lira", "--n", 40, "--keep", "kept", "--workers", 2)
    true = Kept.keep

    def stops(self: Kept, number: int, model: nn.Module) -> None:
        if number == 1:
            raise KeyboardInterrupt
        true(self, number, model)

    monkeypatch.setattr(Kept, "keep", stops)
    run = hauberk(*command)
    assert run.exit_code == 130 and "kept in kept: the same command goes on from there" in run.stderr
    assert [one.name for one in (tmp_path / "kept").glob("*.safetensors")] == ["reference-000.safetensors"]
    monkeypatch.setattr(Kept, "keep", true)
    run = hauberk(*command, "--output", "again.json")
    assert run.exit_code == 0 and "going on: 1 reference model in kept" in run.stderr, run.stderr
    assert hauberk(*command[:-4], "--output", "whole.json").exit_code == 0  # without a folder
    again, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("again", "whole"))
    assert again["attacks"]["lira"]["auc"] == pytest.approx(whole["attacks"]["lira"]["auc"], abs=1e-3)
    run = hauberk(*command, "--lr", 0.1)
    assert run.exit_code == 2 and "of another training (lr differ)" in run.stderr


def test_options_of_references_are_not_dropped_in_silence(hauberk: Run, shop: Path) -> None:
    run = hauberk(*call(shop, "--defence", "labels", "--epochs", 3, "--n", 40))
    assert run.exit_code == 2 and "--epochs is given without --references" in run.stderr
    run = hauberk(*call(shop, "--defence", "labels", "--references", 2, "--n", 40))
    assert run.exit_code == 0 and "references train for" in run.stderr, run.stderr


def test_labels_alone_choose_their_own_attacks(hauberk: Run, shop: Path) -> None:
    run = hauberk(*call(shop, "--access", "label", "--n", 40, "--output-format", "json"))
    assert run.exit_code == 0, run.stderr
    assert list(json.loads(run.stdout)["attacks"]) == ["augmentation-membership", "gap-membership"]


def test_a_defence_is_tried_against_adversaries_who_know_it(hauberk: Run, shop: Path, tmp_path: Path) -> None:
    run = hauberk(*call(
        shop, "--defence", "labels", "--references", 2, "--epochs", 3, "--n", 60, "--output", "verdict.json",
    ))
    assert run.exit_code == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[1] == "defence  labels" and lines[2] == "note     2 reference models repeat the defence"
    assert " of members at " in lines[4] and "accuracy +0.0 points" in lines[4] and lines[-1] == "kept: verdict.json"
    table = {line.split("  ")[0]: line for line in lines[7:]}
    assert table["LiRA, references"].count("refused") == 3 and "refused" not in table["labels of noisy copies, references"]
    told = json.loads((tmp_path / "verdict.json").read_text())
    assert told["attacks"]["loss"]["defended"] is None and told["attacks"]["loss"]["plain"]["auc"] > 0
    assert told["accuracy"][0] == told["accuracy"][1] and told["calibration"][1] is None
    assert told["change"]["value"] <= 0 and told["helps"] in (True, False)


def test_what_cannot_be_is_refused(hauberk: Run, shop: Path) -> None:
    bare = [one for one in call(shop) if one not in ("--train", shop / "train.npz")]
    for arguments, told in (
        (bare, "no training data"), (call(shop, "--attack", "lyra"), "Did you mean 'lira'"),
        (call(shop, "--references", 3, "--epochs", 1), "an even number"),
        (("membership", "no-plan.toml", "--references", 3), "an even number"),  # before anything is opened
        (call(shop, "--lr", -1, "--references", 2), "a learning rate above 0"), (call(shop, "--lr", "nan"), "above 0"),
        (call(shop, "--keep", "kept"), "--keep is given without --references"),
        (call(shop, "--output", "a.txt"), "ends in .json or .npz"),
        (call(shop, "--references", 2, "--attack", "loss-membership"), "no attack chosen takes them (loss-membership)"),
        # Before references are trained, which here would take hours.
        (call(shop, "--access", "label", "--attack", "gap-membership,lira", "--references", 64, "--epochs", 10**6), "SCORE acc"),
        (call(shop, "--defence", "roundin=1"), "'rounding'"),
        (call(shop, "--defence", "rounding=1.5"), "a whole number from 1 to 15"),
        (call(shop, "--defence", "labels=1"), "top-k=K"),
        (call(shop, "--defence", "memguard=3"), "from 0 to 2"), (call(shop, "--defence", "top-k=nan"), "a whole number from 1"),
        (call(shop, "--defence", "labels", "--attack", "lira"), "are both given"),
        (call(shop, "--defence", "labels", "--output", "a.npz"), "ends in .json"),
    ):
        run = hauberk(*arguments)
        assert run.exit_code == 2 and told in run.stderr, run.stderr


def test_the_words_follow_the_figures() -> None:
    draws = torch.Generator().manual_seed(0)
    sides = [torch.randn(100, generator=draws).double() for _ in range(2)]
    told = conclusion(MembershipReport({"loss-membership": MembershipScores(sides[0] + 9, sides[1])}), 600, 0).splitlines()
    assert told[0].startswith("verdict  records are given away: loss-membership recognises 100.0%")
    assert told[1:3] == [
        "note     100 non-members cannot resolve 0.1 %: columns below 1.00% repeat that rate",
        "next     who trains models like it tells more: add --references 16",
    ]
    assert told[3].endswith("hauberk calibrate --epsilon 3 --delta 1e-5 --n 600 --batch 256 --epochs 20")
    told = conclusion(MembershipReport({"lira": MembershipScores(*sides)}), 600, 16).splitlines()
    assert len(told) == 2 and told[0].startswith("verdict  no record is surely given away: lira")
    # A shift of the whole split that a classifier without the model sees, and one member in five that only the model tells.
    others = torch.randn(2000, generator=draws).double()
    members = torch.randn(2000, generator=draws).double() + 1.2
    shift, spread = roc(members.numpy(), others.numpy()), Interval(0.75, 0.85, "range")
    members = torch.cat([members[:1600] - 0.4, members[1600:] + 20])
    alone = shift.auc, spread
    for blind, words in ((alone, "something is given away"), ((*alone, shift), "records are given away")):
        report = MembershipReport({"lira": MembershipScores(members, others)}, blind=blind)
        assert conclusion(report, 600, 16).startswith(f"verdict  {words}")
