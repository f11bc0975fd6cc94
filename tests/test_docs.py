"""Every example of the README and the documentation is executed, in a fresh folder, and processes, per page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from hauberk.methods import load_methods
from warm_process import run_script

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "concepts").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOP = """import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
"""  # the model that the examples speak of
# Runs the commands of a page one after the other: `[[arguments, exit code], ...]` comes in as JSON.
RUNNER = """import json
import shlex
import sys

from hauberk.cli import main

for arguments, expected in json.loads(sys.argv[1]):
    sys.argv[:] = ["hauberk", *arguments]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    if code != expected:
        sys.exit(f"hauberk {shlex.join(arguments)} ended with {code}, not {expected}")
"""
NOT_HERE = ("make ", "pip ", "git ")  # set-up, tried by hand in a fresh clone


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of every fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def consoles_of(page: Path) -> list[str]:
    """Return the text of every console block."""
    return [text for language, text in blocks(page) if language == "console"]


def commands(text: str) -> list[tuple[list[str], int]]:
    """Return the commands of a console block and the exit code each is said to have (`# exit N`; 0 when it says nothing)."""
    found = []
    for line in text.splitlines():
        if line.startswith("$ ") and not line[2:].startswith(NOT_HERE):
            command, _, said = line[2:].partition("  # exit ")
            found.append((shlex.split(command, comments=True), int(said.split()[0]) if said else 0))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    code = "\n".join(text for language, text in blocks(page) if language == "python")
    consoles = consoles_of(page)
    if not code and not any(map(commands, consoles)):
        return  # words alone
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "page.py").write_text(code, encoding="utf-8")
    (tmp_path / "run.py").write_text(RUNNER, encoding="utf-8")
    told, there = ([one for text in texts for one in commands(text)] for texts in (consoles, consoles_of(PAGES[0])))
    if page != PAGES[0] and told == there[: len(told)]:
        told = []  # the README begins with the very same commands, and is run as well
    assert {command[0] for command, _ in told} <= {"hauberk"}
    steps = [["run.py", json.dumps([[command[1:], expected] for command, expected in told])]] if told else []
    for step in [["page.py"], *steps] if code else steps:
        ended, written = run_script(tmp_path, step, 280)
        assert ended == 0, written[-4500:]


def test_every_relative_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not target.startswith("methods/"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_has_thirteen_examples_and_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make demo") < text.index("make test") < text.index("## Thirteen")
    assert re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE) == [str(number) for number in range(1, 14)]


def test_every_kind_is_where_the_docs_say() -> None:
    """The table of packages, against the registry: all kinds but checks, each package, and calls that the signatures allow."""
    text = (ROOT / "docs" / "where.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w, -]+) \| (`hauberk[^|]+) \| `(.*)` \|$", text, re.MULTILINE)
    told = {kind: set(re.findall(r"`([\w.]+)`", packages)) for kinds, packages, _ in rows for kind in kinds.split(", ")}
    cards = [card for card in load_methods().cards() if card.kind != "check"]
    assert told.keys() == {card.kind for card in cards}
    for card in cards:
        assert card.home in told[card.kind], f"{card.kind} {card.name} is in {card.home}"
    calls = {card.call for card in cards}
    assert {call for _, _, call in rows} <= calls
