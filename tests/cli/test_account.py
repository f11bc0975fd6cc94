"""hauberk account and calibrate: the library's figures, statements computed again, wrong options refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from hauberk.privacy.dp.accounting import Release, epsilon

Run = Callable[..., Result]
MNIST = ("--n", 60000, "--batch", 256)


def test_all_accountants_that_cover_the_releases_answer(hauberk: Run) -> None:
    run = hauberk("account", "--noise", 1.3, *MNIST, "--epochs", 15, "--format", "json")
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["release"]["count"] == 3516 and told["release"]["sampling"] == "poisson"
    found = {one["accountant"]: (one["epsilon"], one["bound"]) for one in told["accountants"]}
    assert found["pld"] == (pytest.approx(0.86459, rel=1e-4), True) and found["rdp"] == (pytest.approx(0.95456, rel=1e-4), True)
    assert found["gdp"] == (pytest.approx(0.83451, rel=1e-4), False)
    assert [one.split(":")[0] for one in told["left_out"]] == ["zcdp", "analytic"]


def test_text_says_what_is_no_bound_and_what_the_sampling_is(hauberk: Run) -> None:
    run = hauberk("account", "--noise", 4, "--steps", 50)
    rows = {line.split()[0]: line for line in run.stdout.splitlines() if line}
    assert rows["gdp"].endswith("estimate, not a bound") and rows["pld"].endswith("bound") and "add-remove" in rows["pld"]
    run = hauberk("account", "--noise", 4, *MNIST, "--epochs", 1, "--sampling", "shuffled")
    assert "replace-one" in run.stdout and "not amplified" in run.stdout


def test_a_statement_is_written_and_computed_again(hauberk: Run, tmp_path: Path) -> None:
    place = tmp_path / "privacy.json"
    options = ("account", "--noise", 2, "--rate", 0.02, "--steps", 200)
    assert hauberk(*options, "--output", place).exit_code == 0
    run = hauberk("account", place)
    assert run.exit_code == 0 and "the claim holds" in run.stdout
    run = hauberk(*options, "--output", place)
    assert run.exit_code == 2 and "exists already" in run.stderr and "--force" in run.stderr and not run.stdout
    assert hauberk(*options, "--output", place, "--force").exit_code == 0
    table = json.loads(place.read_text())
    assert table["epsilon"] == epsilon([Release("gaussian", 2, "poisson", 0.02, 200)], 1e-5).epsilon
    place.write_text(json.dumps({**table, "epsilon": table["epsilon"] / 2}))
    run = hauberk("account", place, "--format", "json")
    assert run.exit_code == 1 and json.loads(run.stdout)["holds"] is False


def test_a_delta_above_one_over_the_records_is_said(hauberk: Run) -> None:
    run = hauberk("account", "--noise", 1.1, "--n", 100, "--batch", 10, "--epochs", 2, "--delta", 0.1)
    assert run.exit_code == 0 and "note: δ = 0.1 is above 1 / 100 records: it allows that one is published outright" in run.stdout
    assert "1 / 100" not in hauberk("account", "--noise", 1.1, "--n", 100, "--batch", 10, "--epochs", 2).stdout


def test_calibrate_keeps_the_budget_both_ways(hauberk: Run) -> None:
    same = ("--epsilon", 2, "--rate", 0.01, "--accountant", "rdp", "--format", "json")
    told = json.loads(hauberk("calibrate", *same, "--steps", 1000).stdout)
    assert told["noise"] == pytest.approx(1.02229, rel=8e-4) and told["epsilon"] <= 2
    told = json.loads(hauberk("calibrate", *same, "--noise", 1.1).stdout)
    assert (told["steps"], told["epochs"]) == (1404, 14)
    run = hauberk("calibrate", "--epsilon", 1, "--steps", 1, "--accountant", "analytic")
    assert run.exit_code == 0 and run.stdout.startswith("noise 3.73")


@pytest.mark.parametrize(("options", "message"), [
    (("account",), "nothing says what was released"), (("account", "--noise", 1), "training has no length"),
    (("account", "--noise", 1, "--steps", 1, "--epochs", 1), "both --steps 1 and --epochs 1"),
    (("account", "--noise", 1, "--batch", 5, "--steps", 1), "without --n"),
    (("account", "--noise", 1, "--batch", 5, "--n", 4, "--steps", 1), "larger than the 4 records"),
    (("account", "missing.json"), "is not there"), (("account", "a.json", "--noise", 1), "both the statement"),
    (("account", "--noise", 1, "--rate", 0.1, "--steps", 9, "--accountant", "zcdp"), "no ρ holds"),
    (("calibrate", "--epsilon", 0, "--noise", 1), "the budget is"),
    (("calibrate", "--epsilon", 1, "--noise", 1, "--steps", 4), "--noise 1 is given with"),
    (("account", "--noise", 1, "--steps", 1, "--delta", 1), "δ is 1"),
])
def test_what_cannot_be_is_refused(hauberk: Run, options: tuple[object, ...], message: str) -> None:
    run = hauberk(*options)
    assert run.exit_code == 2 and message in " ".join(run.stderr.split())


@pytest.mark.parametrize(("options", "told"), [
    (("account",), ("--noise is not given", "Expected", "Try: hauberk account")),
    (("account", "--noise", 1, "--rate", 0.1, "--batch", 5, "--steps", 1), ("--rate 0.1 and --batch 5", "one", "Leave out")),
    (("account", "--noise", 1, "--batch", 5, "--steps", 1), ("--batch 5 is given without --n", "in all", "Add --n")),
    (("account", "--noise", 1, "--batch", 5, "--n", 4, "--steps", 1), ("larger than the 4 records", "at most 4", "swapped")),
    (("account", "--noise", 1), ("neither --steps nor --epochs", "one of them", "Give --epochs")),
    (("account", "--noise", 1, "--steps", 3, "--epochs", 2), ("--steps 3 and --epochs 2", "one of them", "Leave out one")),
    (("account", "--noise", 1, "--rate", 0, "--epochs", 2), ("rate of 0", "a rate above 0", "Give --steps")),
    (("calibrate", "--epsilon", 1, "--noise", 2, "--steps", 4), ("--noise 2 is given with --steps 4", "one side", "Leave out")),
])
def test_errors_name_the_value_what_is_wanted_and_the_next_step(
    hauberk: Run, options: tuple[object, ...], told: tuple[str, ...]
) -> None:
    stderr = " ".join(hauberk(*options).stderr.split())
    assert all(part in stderr for part in told)


def test_options_that_a_statement_overrides_are_not_dropped_in_silence(hauberk: Run, tmp_path: Path) -> None:
    assert hauberk("account", "--noise", 1, "--steps", 3, "--output", tmp_path / "privacy.json").exit_code == 0
    for option in (("--delta", 1e-7), ("--sampling", "full"), ("--mechanism", "laplace")):
        run = hauberk("account", tmp_path / "privacy.json", *option)
        assert run.exit_code == 2 and "which has its own" in run.stderr
    assert "is a folder" in hauberk("account", tmp_path).stderr


def test_a_rate_of_zero_is_no_training_to_calibrate(hauberk: Run) -> None:
    run = hauberk("calibrate", "--epsilon", 3, "--rate", 0, "--steps", 3)
    assert run.exit_code == 2 and "rate is 0" in run.stderr
