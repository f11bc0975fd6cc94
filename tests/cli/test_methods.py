"""hauberk list and explain: the registry as people read it; help, versions and completion."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hauberk
from hauberk.cli import app
from hauberk.core.access import Access
from hauberk.core.card import KINDS, Card
from hauberk.methods import load_methods
from hauberk.report.lock import steps, with_plan

COMMANDS = ("assess", "init", "schema", "list", "explain", "attack", "diff", "gate")
CARDS = list(load_methods().cards())


def call(*arguments: str) -> tuple[int, str, str]:
    run = CliRunner().invoke(app, list(arguments))
    return run.exit_code, run.stdout, run.stderr


def names(text: str) -> set[tuple[str, str]]:
    return {(row.split()[0], row.split()[1]) for row in text.splitlines()[1:]}


def test_list_names_every_method_once() -> None:
    code, out, _ = call("list")
    assert code == 0
    assert len(out.splitlines()) == 1 + len(CARDS)
    assert names(out) == {(card.kind, card.name) for card in CARDS}


@pytest.mark.parametrize("kind", KINDS)
def test_list_of_one_kind(kind: str) -> None:
    code, out, _ = call("list", "--kind", kind)
    assert (code, names(out)) == (0, {(card.kind, card.name) for card in CARDS if card.kind == kind})


@pytest.mark.parametrize("access", list(Access))
def test_list_of_what_an_access_suffices_for(access: Access) -> None:
    code, out, _ = call("list", "--access", access.name.lower())
    assert (code, names(out)) == (0, {(card.kind, card.name) for card in CARDS if card.access is None or card.access <= access})


def test_list_refuses_a_kind_that_is_none() -> None:
    code, out, err = call("list", "--kind", "atack")
    assert (code, out) == (2, "")
    assert err == f"error: --kind is 'atack'. Expected {' | '.join(KINDS)}. Did you mean 'attack'?\n"
    assert call("list", "--access", "white")[0] == 2


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.kind}:{card.name}")
def test_every_card_is_explained(card: Card) -> None:
    code, out, _ = call("explain", card.name, "--kind", card.kind)
    assert code == 0
    rows = out.splitlines()
    assert rows[:2] == [card.name, card.question]
    assert f"  {card.summary}" in rows
    assert ("  needs    " + (f"{card.access.name} access" if card.access else "no access to a model")) in rows
    for tag in card.tags:
        assert tag in out
    for option in card.options.values():
        default = " (required)" if option.default is inspect.Parameter.empty else f" = {option.default!r}"
        assert any(row.split()[:1] == [option.name] and row.endswith(default) for row in rows)
    for advice in card.facts.get("advice", ()):
        assert advice.text in out
        assert all(f"{prompt} {step}" in out for prompt, step in steps(with_plan(advice.command, "PLAN")))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.kind}:{card.name}")
def test_explain_says_how_every_method_is_run(card: Card) -> None:
    _, out, _ = call("explain", card.name, "--kind", card.kind)
    run = out.split("\nRun it\n")[1].split("\n\n")[0]
    if card.kind == "check":
        assert run.strip() == f"hauberk assess PLAN --select {card.name}"
        return
    assert run.startswith("  hauberk attack ") == (card.kind == "attack")
    line, said = (one.strip() for one in run.rstrip().splitlines()[-2:])
    scope: dict[str, object] = {}
    exec(line, scope)  # the line is of a card of ours
    assert scope[card.function.__name__] is card.function
    assert card.home.count(".") < card.function.__module__.count("."), "a package is named, not a file of it"
    tree = ast.parse(said.replace("…", "0")).body[0].value
    tree = tree.func.value if card.kind == "detector" else tree
    inspect.signature(card.function).bind(*tree.args, **{one.arg: 0 for one in tree.keywords})


@pytest.mark.parametrize(("name", "kind", "package"), [
    ("universal-pgd", "universal", "robustness.attack.physical"), ("spatial-grid", "semantic", "robustness.attack.physical"),
    ("gaussian-noise", "corruption", "robustness.natural"), ("dag", "detection-attack", "robustness.attack.detection"),
])
def test_a_method_of_another_kind_is_named_with_its_import(name: str, kind: str, package: str, shop: Path) -> None:
    code, _, err = call("attack", name, str(shop))
    line = f"from hauberk.{package} import {name.replace('-', '_')}"
    assert (code, err) == (
        2, f"error: '{name}' is no attack, but of kind {kind}; in Python: {line}. How: hauberk explain {name}.\n"
    )


@pytest.mark.parametrize(("name", "typed"), [
    ("rmia", "hauberk membership PLAN --attack rmia --references 4\n"),
    ("gap-membership", "hauberk membership PLAN --attack gap-membership\n"), ("dlg", "hauberk invert PLAN --attack dlg\n"),
])
def test_explain_names_the_command_that_runs_a_method(name: str, typed: str) -> None:
    """Attacks on membership and on gradients have commands of their own."""
    assert typed in call("explain", name)[1]


def test_explain_names_the_nearest() -> None:
    assert call("explain", "pgdd") == (2, "", "error: there is no method called 'pgdd'. Did you mean 'pgd'?\n")


def test_explain_shows_options_and_limits() -> None:
    _, out, _ = call("explain", "pgd")
    assert "  steps         int = 40\n" in out
    assert "  step_size     float | None = None\n" in out
    assert "  source   Madry et al. 2018, arXiv:1706.06083\n" in out
    _, out, _ = call("explain", "robustness/clean-accuracy")
    assert "  limits   warns below 0.8, fails below 0.5\n" in out
    assert "  hauberk assess PLAN --select robustness/clean-accuracy\n" in out


def test_version_and_schema() -> None:
    assert call("--version") == (0, f"hauberk {hauberk.__version__}\n", "")
    code, out, _ = call("schema")
    assert code == 0
    assert set(json.loads(out)["properties"]) >= {"model", "data", "threat", "run", "gate"}


def test_usage_errors_exit_with_two() -> None:
    assert call("asess")[0] == 2
    assert call("assess", "--no-such-option")[0] == 2
    assert call("explain")[0] == 2


def test_help_of_every_command_loads_neither_torch_nor_scipy_nor_sklearn() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom hauberk.cli import app\n"
        f"for name in {('', *COMMANDS)!r}:\n"
        "    run = CliRunner().invoke(app, [*name.split(), '--help'])\n"
        "    assert run.exit_code == 0 and 'Usage: hauberk' in run.stdout, name\n"
        "print(sorted({'torch', 'scipy', 'sklearn', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr


def test_the_shell_completes_commands_and_options() -> None:
    def complete(words: str, position: int) -> list[str]:
        environment = {**os.environ, "_HAUBERK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        code = "import sys; sys.argv = ['hauberk']; from hauberk.cli import main; main()"
        run = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
        return run.stdout.split()

    assert complete("hauberk as", 1) == ["assess"]
    assert complete("hauberk assess --fail", 2) == ["--fail-on"]
    assert complete("hauberk assess --preset st", 3) == ["standard"]


def test_explain_says_first_that_there_are_two() -> None:
    _, out, _ = call("explain", "salt-and-pepper")
    assert out.splitlines()[0] == "2 methods are called salt-and-pepper: attack and corruption. One alone: --kind attack"
    assert out.count("\nRun it\n") == 2
    _, out, _ = call("explain", "salt-and-pepper", "--kind", "corruption")
    assert out.splitlines()[0] == "salt-and-pepper"


def test_init_alone_says_what_it_needs() -> None:
    code, _, err = call("init")
    assert (code, err) == (2, "error: model and data are missing. Expected hauberk init MODEL DATA. For example: hauberk init "
                           "shop.py:build test.npz, or sklearn:digits for the data.\n")
    assert "hauberk init net.py:build test.npz" in call("init", "net.py:build")[2]
