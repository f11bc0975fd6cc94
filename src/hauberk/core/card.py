"""Card and registry: what is known of every method. All that lists, documents or tests methods walks the registry."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from hauberk.core.access import Access
from hauberk.core.errors import UsageError, nearest

KINDS = (
    "attack", "universal", "semantic", "detection-attack", "corruption", "table-corruption", "text-corruption", "detector",
    "recipe", "poison", "audit", "bound", "inference", "reconstruction", "check",
)
_SPREAD = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PRESETS = ("quick", "standard", "thorough")


@dataclasses.dataclass(frozen=True)
class Card:
    """What a decorator records of a method.

    Arguments:
        name: how the command line, plans and reports call it.
        kind: one of `KINDS`.
        function: the method itself.
        question: what it answers, in one line.
        access: the least access it needs; None where no model is questioned.
        paper: the source, such as `Madry et al. 2018, arXiv:1706.06083`.
        tags: taxonomy entries: `aisec:`, `atlas:`, `owasp:`, `nist:`.
        preset: the smallest preset that runs it.
        facts: what only its kind needs (an attack's norms, a check's thresholds).
    """

    name: str
    kind: str
    function: Callable[..., Any]
    question: str
    access: Access | None = None
    paper: str = ""
    tags: tuple[str, ...] = ()
    preset: str = "standard"
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The keyword-only options with their defaults, read from the signature."""
        target = self.function
        parameters = inspect.signature(target).parameters.values()
        return {one.name: one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def home(self) -> str:
        """The package that a user imports the method from: the outermost that exports it."""
        parts = self.function.__module__.split(".")
        for end in range(1, len(parts)):
            package = ".".join(parts[:end])
            if vars(importlib.import_module(package)).get(self.function.__name__) is self.function:
                return package
        return self.function.__module__

    @property
    def import_line(self) -> str:
        """The line of Python that imports the method."""
        return f"from {self.home} import {self.function.__name__}"

    @property
    def call(self) -> str:
        """How the method is called: what has no default, by the names of the signature."""
        parameters = inspect.signature(self.function).parameters.values()
        needed = [one for one in parameters if one.default is inspect.Parameter.empty and one.kind not in _SPREAD]
        told = [f"{one.name}=…" if one.kind is inspect.Parameter.KEYWORD_ONLY else one.name for one in needed]
        return f"{self.function.__name__}({', '.join(told)}){'.fit(data)' if self.kind == 'detector' else ''}"

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def runs_at(self, preset: str) -> bool:
        """Whether this method is part of that preset."""
        return PRESETS.index(self.preset) <= PRESETS.index(preset)


class Registry:
    """Cards by kind and name, in the order they were registered."""

    def __init__(self) -> None:
        self._cards: dict[str, dict[str, Card]] = {kind: {} for kind in KINDS}

    def add(self, card: Card) -> None:
        """Record a card. Raises ValueError for an unknown kind or preset, a name taken, or a docstring missing."""
        if card.kind not in KINDS or card.preset not in PRESETS:
            raise ValueError(f"card '{card.name}' has kind '{card.kind}' and preset '{card.preset}'")
        old = self._cards[card.kind].get(card.name)
        if old is not None and _place(old.function) != _place(card.function):
            raise ValueError(f"two {card.kind}s are called '{card.name}'")
        if not inspect.getdoc(card.function):
            raise ValueError(f"the {card.kind} '{card.name}' has no docstring")
        self._cards[card.kind][card.name] = card

    def cards(self, kind: str | None = None) -> Iterator[Card]:
        """Yield the cards of one kind, or of all."""
        for one in KINDS if kind is None else (kind,):
            yield from self._cards[one].values()

    def get(self, name: str, kind: str | None = None) -> Card:
        """Return the card of that name. Raises UsageError naming the nearest, or how one of another kind is run."""
        for card in self.cards(kind):
            if card.name == name:
                return card
        other = next((card for card in self.cards() if card.name == name), None)
        if other is not None:
            run = f"hauberk assess PLAN --select {name}" if other.kind == "check" else f"in Python: {other.import_line}"
            raise UsageError(f"'{name}' is no {kind}, but of kind {other.kind}; {run}", fix=f"How: hauberk explain {name}")
        known = [card.name for card in self.cards(kind)]
        raise UsageError(f"there is no {kind or 'method'} called '{name}'", fix=nearest(name, known))


registry = Registry()


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__
