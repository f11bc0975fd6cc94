"""hauberk list and hauberk explain: what there is, and what each does, from the registry."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command

if TYPE_CHECKING:
    from hauberk.core.card import Card


@command
def list_methods(
    *,
    kind: Annotated[str, typer.Option(
        help="attack, universal, semantic, detection-attack, corruption, table-corruption, text-corruption, detector, recipe, "
        "poison, audit, bound, inference, reconstruction or check.")] = "",
    access: Annotated[options.AccessName | None, typer.Option(help="Those that need no more than this access.")] = None,
) -> None:
    """List every method: attacks, checks and all other kinds."""
    from hauberk.core.access import Access
    from hauberk.core.card import KINDS
    from hauberk.core.errors import UsageError, nearest
    from hauberk.methods import load_methods

    if kind and kind.removesuffix("s") not in KINDS:
        raise UsageError(f"--kind is '{kind}'", want=" | ".join(KINDS), fix=nearest(kind, KINDS))
    granted = Access.parse(access.value) if access else Access.GRADIENT
    cards = [
        card for card in load_methods().cards(kind.removesuffix("s") or None) if card.access is None or card.access <= granted
    ]
    rows = [(card.kind, card.name, card.access.name.lower() if card.access else "-", card.question) for card in cards]
    _print_rows(("kind", "name", "access", "question"), rows)


@command
def explain(
    name: Annotated[str, typer.Argument(help="A method, as hauberk list names it.")],
    *,
    kind: Annotated[str, typer.Option(help="Where two kinds have the same name.")] = "",
) -> None:
    """Explain a method: its question, what it does, its options, limits, source and advice."""
    from hauberk.core.card import KINDS
    from hauberk.core.errors import UsageError, nearest
    from hauberk.methods import load_methods

    if kind and kind not in KINDS:
        raise UsageError(f"--kind is '{kind}'", want=" | ".join(KINDS), fix=nearest(kind, KINDS))
    registry = load_methods()
    found = [card for card in registry.cards(kind or None) if card.name == name] or [registry.get(name, kind or None)]
    kinds = [card.kind for card in found]
    if len(found) > 1:
        typer.echo(f"{len(found)} methods are called {name}: {' and '.join(kinds)}. One alone: --kind {kinds[0]}\n")
    typer.echo("\n\n".join(_explained(card) for card in found))


def _explained(card: Card) -> str:
    limits = _limits(card)
    norms = ", ".join(card.facts.get("norms", ()))
    facts = [
        ("kind", card.kind),
        ("needs", f"{card.access.name} access" if card.access is not None else "no access to a model"),
        ("norms", norms),
        ("goals", ", ".join(goal.value for goal in card.facts.get("goals", ()))),
        ("pillar", card.facts.get("pillar", "")),
        ("value", " ".join(part for part in (card.facts.get("unit", ""), f"({card.facts['better']} is better)") if part))
        if card.kind == "check" else ("value", ""),
        ("limits", limits),
        ("preset", f"{card.preset} and above" if card.kind == "check" and card.preset != "thorough" else card.preset),
        ("source", card.paper),
        ("tags", ", ".join(card.tags)),
    ]
    parts = [f"{card.name}\n{card.question}", "\n".join(f"  {key:<7}  {value}" for key, value in facts if value)]
    doc = inspect.getdoc(card.function) or ""
    parts.append("What it does\n" + _indented(doc))
    if card.options:
        width = max(map(len, card.options))
        rows = [f"  {one.name:<{width}}  {_type(one)}{_default(one)}" for one in card.options.values()]
        parts.append("Options\n" + "\n".join(rows))
    if card.kind == "check":
        parts.append(f"Run it\n  hauberk assess PLAN --select {card.name}")
    else:
        shell = _typed(card)
        parts.append(f"Run it\n{shell}  in Python:\n    {card.import_line}\n    {card.call}")
    advice = [_advice(one) for one in card.facts.get("advice", ())]
    if advice:
        from hauberk.report.lock import preamble

        given = preamble([one.command for one in card.facts["advice"]], place="PLAN")
        if given:
            advice.append("  In Python, first:" + "".join(f"\n    {prompt} {step}" for prompt, step in given))
        parts.append("When it does not pass\n" + "\n".join(advice))
    return "\n\n".join(parts)


def _typed(card: Card) -> str:
    """Return the line of the shell that runs a method, where a command does."""
    if card.kind == "attack":
        return f"  hauberk attack {card.name} --model MODEL --data DATA --threat linf:8/255\n"
    if card.kind == "inference":
        given = " --references 4" if "references" in card.options else ""
        return f"  hauberk membership PLAN --attack {card.name}{given}\n"
    return f"  hauberk invert PLAN --attack {card.name}\n" if card.facts.get("sees") == "update" else ""


def _limits(card: Card) -> str:
    if card.kind != "check":
        return ""
    side = "below" if card.facts["better"] == "higher" else "above"
    named = [("warns", card.facts.get("warn")), ("fails", card.facts.get("fail"))]
    told = [f"{word} {side} {value:g}" for word, value in named if value is not None]
    return ", ".join(told) or "set by the check itself"


def _advice(one: Any) -> str:
    from hauberk.report.lock import steps, with_plan

    typed = steps(with_plan(one.command, "PLAN")) if one.command else []
    call = "".join(f"\n    {prompt} {step}" for prompt, step in typed)
    return f"  - {one.text}{f' ({one.mitigation})' if one.mitigation else ''}{call}"


def _type(option: inspect.Parameter) -> str:
    known = option.annotation
    return "" if known is inspect.Parameter.empty else known if isinstance(known, str) else getattr(known, "__name__", str(known))


def _default(option: inspect.Parameter) -> str:
    return " (required)" if option.default is inspect.Parameter.empty else f" = {option.default!r}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _print_rows(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    console = rich.console.Console(highlight=False)
    if not console.is_terminal:
        widths = [max((len(row[column]) for row in (heads, *rows)), default=0) for column in range(len(heads))]
        for row in (heads, *rows):
            typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = rich.table.Table(*heads, box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(rich.text.Text(cell) for cell in row))
    console.print(table)
