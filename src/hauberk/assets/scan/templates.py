"""Chat templates: programs in Jinja that come with a model and run at every message, often without a sandbox.

Plain steps (loops, conditions, joining text) call a few known methods and nothing else. Whatever else is called, or reached
through names that begin with an underscore, is an issue: that is how a template gets from a text to Python itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hauberk.assets.scan.template_names import Names
from hauberk.assets.scan.verdict import Level, Unverifiable

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

LARGEST = 2**20
_OPENS = re.compile(r"\{[{%#]")
_ENDS = {"{{": "}}", "{%": "%}", "{#": "#}"}
_TOKEN = re.compile(
    r"(?P<text>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')|(?P<name>[A-Za-z_]\w*)|(?P<number>\d[\d_.]*)|(?P<space>\s+)"
    r"|(?P<other>[-+*/%~.,:|()\[\]{}<>=!])", re.DOTALL,
)
_TAGS = frozenset(
    "for endfor if elif else endif set endset macro endmacro generation endgeneration break continue filter endfilter".split()  # noqa: SIM905
)
_CALLS = frozenset(
    """raise_exception strftime_now namespace range dict list tojson strip lstrip rstrip split rsplit splitlines startswith
    endswith replace upper lower title capitalize items keys values get append find index count join isdigit isalpha
    removeprefix removesuffix loop cycle default length trim first last selectattr rejectattr select reject map int float
    string sort unique indent defined and or not in is if else elif""".split()  # noqa: SIM905
)
_FILTERS = frozenset(
    """tojson trim length count upper lower title capitalize join default d first last list items string int float safe e escape
    indent replace selectattr rejectattr select reject map sort dictsort unique reverse batch round abs min max sum truncate
    wordwrap from_json fromjson""".split()  # noqa: SIM905
)


def scan_template(scan: Scan, text: str, where: str) -> None:
    """Judge one chat template."""
    if len(text) > LARGEST:
        raise Unverifiable(f"a chat template of {len(text)} characters")
    names = Names(scan.meter.step)
    for opened, body in _parts(scan, text, where):
        scan.meter.step()
        if opened == "{%":
            tag = re.match(r"[-+]?\s*(\w*)", body)
            word = tag.group(1) if tag else ""
            if word not in _TAGS:
                scan.issue(Level.UNKNOWN, where, f"its chat template holds the step {word[:40]!r}")
        names.read([token for token in _tokens(scan, body.strip("-+"), where) if not token.isspace()])
        _follow(scan, body.strip("-+"), where)
    for what in names.issues():
        scan.issue(Level.UNKNOWN, where, what)
    scan.holds("chat template")


def _parts(scan: Scan, text: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield how each step or value begins, and what is in it; comments are left out. Once over the text, however it is made."""
    place = 0
    while found := _OPENS.search(text, place):
        end = text.find(_ENDS[found.group()], found.end())
        if end < 0:
            scan.issue(Level.UNVERIFIABLE, where, "its chat template has a part without an end")
            return
        if found.group() != "{#":
            yield found.group(), text[found.end() : end]
        place = end + 2


def _tokens(scan: Scan, body: str, where: str) -> Iterator[str]:
    place = 0
    while found := _TOKEN.match(body, place):
        scan.meter.step()
        yield found.group()
        place = found.end()


def _follow(scan: Scan, body: str, where: str) -> None:
    place, before, earlier = 0, "", ""
    macros = set(re.findall(r"\bmacro\s+(\w+)", body))
    scan.macros |= macros
    while place < len(body):
        scan.meter.step()
        found = _TOKEN.match(body, place)
        if found is None:
            scan.issue(Level.UNVERIFIABLE, where, "its chat template cannot be read")
            return
        place, token = found.end(), found.group()
        if found.lastgroup == "space":
            continue
        if found.lastgroup == "text" and (token[1:2] == "_" or token[-2:-1] == "_" or "__" in token or "\\x" in token
                                          or "\\u" in token or re.search(r"\\[0-7N]", token)):
            scan.issue(Level.DANGEROUS, where, f"its chat template holds the text {token[:60]}, a way to Python's inside")
        elif found.lastgroup == "name" and token.startswith("_"):
            scan.issue(Level.DANGEROUS, where, f"its chat template reaches {token[:60]!r}, a way to Python's inside")
        elif found.lastgroup == "name" and before == "|" and token not in _FILTERS:
            level = Level.DANGEROUS if token == "attr" else Level.UNKNOWN
            scan.issue(level, where, f"its chat template uses the filter {token[:40]!r}")
        elif token == "(" and before and (before in (")", "]", "}") or before[-1] in "\"'" or (
            re.match(r"[A-Za-z_]", before) and before not in _CALLS and before not in scan.macros and earlier != "macro"
            and earlier != "|"
        )):
            scan.issue(Level.UNKNOWN, where, f"its chat template calls {before[:40]!r}")
        earlier, before = before, token
