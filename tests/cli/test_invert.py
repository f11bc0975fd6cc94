"""hauberk invert: figures of each sample, a report with pictures, and what a defence does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Run = Callable[..., Result]
FEW = ("--n", 2, "-o", "steps=60", "--seed", 1)


def test_samples_are_shown_beside_their_reconstructions(hauberk: Run, shop: Path) -> None:
    run = hauberk("invert", shop / "plan.toml", *FEW, "--output", "leak", "--output-format", "json")
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["attack"] == "inverting-gradients" and told["n"] == 2 and len(told["samples"]) == 2
    assert told["means"]["psnr"]["mean"] == sum(one["psnr"] for one in told["samples"]) / 2
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 4 and "Samples and their reconstructions" in page
    for name, least, most in (("ssim", -1.0, 1.0), ("fmse", 0.0, float("inf"))):
        one = told["means"][name]
        assert least <= one["low"] <= one["mean"] <= one["high"] <= most
    again = hauberk("invert", shop / "plan.toml", *FEW, "--output", "leak")
    assert again.exit_code == 2 and "index.html exists already" in again.stderr and "--force" in again.stderr
    noisy = json.loads(hauberk("invert", shop / "plan.toml", *FEW, "--defence", "private=10", "--output-format", "json").stdout)
    assert noisy["defence"] == "private=10" and noisy["means"]["psnr"]["mean"] < told["means"]["psnr"]["mean"]


def test_two_samples_of_which_none_came_back_are_no_pass(hauberk: Run, shop: Path) -> None:
    run = hauberk(
        "invert", shop / "plan.toml", "--n", 2, "-o", "steps=2", "--defence", "private=10", "--output", "leak", "--output-format",
        "json",
    )
    assert run.exit_code == 0 and json.loads(run.stdout)["at_20_dB"]["rate"] == 0
    told = json.loads((Path("leak") / "report.json").read_text(encoding="utf-8"))["findings"][0]
    assert told["status"] == "warn" and any("as many as 66% might" in note for note in told["notes"])


def test_the_table_in_words(hauberk: Run, shop: Path) -> None:
    run = hauberk("invert", shop / "plan.toml", "--n", 2, "--batch", 2, "--local-steps", 2, "-o", "steps=3")
    assert run.exit_code == 0, run.stderr
    rows = run.stdout.splitlines()
    assert rows[0].split() == ["attack", "inverting-gradients"] and rows[3].split()[:3] == ["sample", "label", "PSNR"]
    assert rows[-1].startswith("at 20 dB") and rows[-1].endswith("of 2 samples")


def test_who_knows_the_defence_is_told_first_and_who_does_not_beside_it(hauberk: Run, shop: Path) -> None:
    words = ("invert", shop / "plan.toml", "--n", 2, "-o", "steps=20", "--defence", "prune=0.9")
    run = hauberk(*words, "--output", "leak", "--output-format", "json")
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["adversary"] == "adaptive" and "knows the defence" in told["threat"]
    assert "as if it were plain" in told["naive"]["threat"]
    assert told["means"]["psnr"]["mean"] != told["naive"]["means"]["psnr"]["mean"] and len(told["naive"]["samples"]) == 2
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert page.index("by the adaptive adversary") < page.index("by the naive adversary")
    assert "whose mean PSNR is the higher" in page
    rows = hauberk(*words).stdout.splitlines()
    assert rows[2].split()[:2] == ["adversary", "adaptive:"] and sum(row.startswith("at 20 dB") for row in rows) == 2
    assert any(row.startswith("beside it") and "naive" in row for row in rows)
    plain = json.loads(hauberk(*words[:-1], "clip=1", "--output-format", "json").stdout)
    assert plain["adversary"] == "any" and "naive" not in plain


def test_defences_of_the_batch_and_of_the_model(hauberk: Run, shop: Path) -> None:
    words = ("invert", shop / "plan.toml", "--n", 2, "-o", "steps=5", "--output-format", "json", "--defence")
    told = json.loads(hauberk(*words, "mixup=1", "--batch", 2).stdout)
    assert told["adversary"] == "adaptive" and told["n"] == 2
    run = hauberk(*words, "mixup=1")
    assert run.exit_code == 2 and "--batch 2 or more" in run.stderr
    run = hauberk(*words, "mid=0.001")
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["adversary"] == "adaptive" and "trained into it on training samples; accuracy" in told["model"]
    with_it, without = (float(part.split()[-1].rstrip("%")) for part in told["model"].split("%")[:2])
    assert with_it > 60 and without > 80


def test_what_is_not_known_is_refused(hauberk: Run, shop: Path) -> None:
    for words, said in (
        (("--attack", "dgl"), "Did you mean 'dlg'?"), (("--defence", "prun"), "Did you mean 'prune'?"),
        (("--defence", "prune=much"), "Expected a number"), (("--n", 3, "--batch", 2), "divides"),
    ):
        run = hauberk("invert", shop / "plan.toml", *words, *(() if "--n" in words else ("--n", 1)))
        assert run.exit_code == 2 and said in run.stderr, run.stderr


def test_more_samples_than_there_are_is_told(hauberk: Run, shop: Path) -> None:
    run = hauberk("invert", shop / "plan.toml", "--n", 100_000, "--batch", 200, "-o", "steps=1")
    assert run.exit_code == 0 and "there are 200 test samples: all of them are taken" in run.stderr
