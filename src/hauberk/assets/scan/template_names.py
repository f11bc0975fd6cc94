"""Names that a chat template puts together: the way to a hidden attribute is a text with underscores that stands nowhere whole.

Three things are told: a part that is reached by a text made of others (`x[u ~ "class" ~ u]`), by a name that such a text was put
under, and a call of a name that the template itself has set, so that a harmless name stands for something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_NAME = re.compile(r"[A-Za-z_]\w*")
_JOINS = {"~", "%", "|"}
_QUOTES = ("'", '"')


class Names:
    """What a template binds, calls and reaches into, gathered part by part."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step  # told how many tokens are gone over once more
        self._bound: set[str] = set()
        self._called: set[str] = set()
        self._made: set[str] = set()
        self._indices: set[str] = set()
        self._told: set[str] = set()
        self._macros: set[str] = set()
        self._given: set[str] = set()  # what a macro is told or a loop goes over: theirs to say who calls
        self._passed = False

    def read(self, tokens: Sequence[str]) -> None:
        """Take in one step or value."""
        word = next((one for one in tokens[:2] if _NAME.fullmatch(one)), "")
        if word in ("set", "for"):
            self._assigned(tokens, word)
        elif word == "macro":
            self._macros |= set(tokens[tokens.index("macro") + 1 :][:1])
            self._given |= {one for one in tokens[3:] if _NAME.fullmatch(one)}
        depth: list[int] = []
        calls: list[tuple[str, int]] = []
        for place, token in enumerate(tokens):
            before = tokens[place - 1] if place else ""
            after = tokens[place + 1] if place + 1 < len(tokens) else ""
            if token == "(":
                earlier = tokens[place - 2] if place > 1 else ""
                calls.append((before, place))
                if _NAME.fullmatch(before) and earlier not in ("|", "macro"):
                    self._called.add(before)
            elif token == ")" and calls:
                called, start = calls.pop()
                if not self._passed and called in self._macros:
                    self._step(place - start)
                    self._passed = self._composed(tokens[start + 1 : place])
            elif token == "[":
                depth.append(place if _is_value(before) else -1)
            elif token == "]" and depth and (start := depth.pop()) >= 0:
                self._step(place - start)
                self._index(tokens[start + 1 : place])
            if after == ":" and token.startswith(_QUOTES):
                self._bound.add(token[1:-1])
            elif after == "=" and tokens[place + 2 : place + 3] != ["="] and calls and calls[-1][0] in ("namespace", "dict"):
                self._bound.add(token)
            elif after == "=" and token == "attribute" and not _plain(tokens[place + 2 : place + 4]):
                self._told.add("reaches an attribute by a name that it puts together")

    def issues(self) -> list[str]:
        """Return what was found, in words."""
        told = [f"its chat template {one}" for one in sorted(self._told)]
        made = self._made | (self._given if self._passed else set())
        told += [f"its chat template reaches a part by {one[:40]!r}, which it makes" for one in sorted(self._indices & made)]
        told += [f"its chat template calls {one[:40]!r}, which it sets itself" for one in sorted(self._bound & self._called)]
        return told

    def _assigned(self, tokens: Sequence[str], word: str) -> None:
        ends = "=" if word == "set" else "in"
        cut = next((place for place, one in enumerate(tokens) if one == ends), len(tokens))
        targets = {one for one in tokens[:cut] if _NAME.fullmatch(one)} - {word}
        self._bound |= targets
        self._given |= targets if word == "for" else set()
        value = tokens[cut + 1 :]
        if self._composed(value) or (word == "for" and value and value[0].startswith(_QUOTES)):
            self._made |= targets

    def _index(self, inside: Sequence[str]) -> None:
        if len(inside) == 1 and _NAME.fullmatch(inside[0]):
            self._indices.add(inside[0])
        elif self._composed(inside):
            self._told.add("reaches a part by a name that it puts together")

    def _composed(self, tokens: Sequence[str]) -> bool:
        """Whether an expression makes a text out of others, or takes one apart."""
        texts = [place for place, one in enumerate(tokens) if one.startswith(_QUOTES)]
        apart = any(tokens[place + 1 : place + 2] == ["["] for place in texts)
        sums = bool(texts) and not {"+", "*"}.isdisjoint(tokens) and not _comparing(tokens)
        joined = "~" in tokens or ("%" in tokens and bool(texts)) or ("|" in tokens and "join" in tokens)
        return apart or sums or joined or not self._made.isdisjoint(tokens)


def _comparing(tokens: Sequence[str]) -> bool:
    """Whether texts stand in brackets of their own or beside a comparison alone, as in `messages[i + 1]['role'] == 'user'`."""
    level, plain = 0, True
    for place, token in enumerate(tokens):
        level += (token in "[(") - (token in "])")
        beside = {*tokens[max(0, place - 1) : place], *tokens[place + 1 : place + 2]}
        if token.startswith(_QUOTES) and beside & {"+", "*"}:
            plain = False
    return plain


def _plain(tokens: Sequence[str]) -> bool:
    return bool(tokens) and tokens[0].startswith(_QUOTES) and tokens[1:2] in ([], [")"], [","])


def _is_value(token: str) -> bool:
    return token in (")", "]", "}") or token.startswith(_QUOTES) or (
        _NAME.fullmatch(token) is not None and token not in ("in", "not", "and", "or", "if", "else", "is", "set", "elif")
    )
