"""Writes docs/methods/*.md from the cards of the registry, and docs/cli.md and docs/plan-schema from the code."""

from __future__ import annotations

import inspect
from pathlib import Path

from hauberk.core.card import KINDS, Card
from hauberk.methods import load_methods

HERE = Path(__file__).parent
INTRO = {
    "attack": "Adversarial examples: `(target, x, y, threat, *, ...) -> x_adv`. Every attack stays strictly inside its threat, "
    "leaves the model and the global random state untouched, and is counted.",
    "universal": "One change for all inputs: `(target, x, y, threat, *, ...) -> Universal`, whose `apply` puts it on any inputs, "
    "those never seen before too, strictly inside the threat.",
    "semantic": "Attacks over natural changes, bounded by their own options: `(target, x, y, *, ...) -> x_adv`.",
    "detection-attack": "Attacks on object detectors: `(target, x, truth, threat, *, ...) -> x_adv`.",
    "corruption": "Natural disturbances: `(x, severity, *, generator) -> x`. Severity 0 is the identity, 5 the strongest.",
    "table-corruption": "Accidents of tables: `(x, severity, columns, *, generator) -> x`; `columns = Columns.of(clean_rows)`.",
    "text-corruption": "Accidents of text: `(texts, severity, *, generator) -> texts`, on lists of strings.",
    "detector": "Classes with `fit`, `score` and `flag` at a stated false-positive rate.",
    "recipe": "Training losses that harden: factories of `(model, x, y) -> loss` for `hauberk.fit` or your own loop.",
    "poison": "Attacks on training data and backdoors: `(data, *, rate, ...) -> Poisoned`.",
    "audit": "Filters of training data: a suspicion score per sample.",
    "bound": "Verification: lower bounds of the margins over a whole threat.",
    "inference": "Membership: scores that are higher for training members.",
    "reconstruction": "Inputs won back from gradients, outputs or models.",
    "check": "What `hauberk assess` asks: each check answers one question with a finding.",
}
TITLES = {
    "universal": "Universal and physical attacks", "semantic": "Semantic attacks", "detection-attack": "Attacks on detectors",
    "table-corruption": "Corruptions of tables", "text-corruption": "Corruptions of text",
}


def section(card: Card) -> str:
    """Return the part of a page about one method."""
    lines = [f"## {card.name}", "", f"*{card.question}*", ""]
    facts = []
    if card.access is not None:
        facts.append(f"**Access** {card.access.name}")
    if card.facts.get("norms"):
        facts.append("**Norms** " + ", ".join(card.facts["norms"]))
    if card.kind == "check":
        limits = [f"{key} {card.facts[key]:g}" for key in ("warn", "fail") if card.facts.get(key) is not None]
        facts.append(f"**Preset** {card.preset}")
        facts.append(f"**Better** {card.facts['better']}" + (f" ({', '.join(limits)})" if limits else ""))
    if card.paper:
        facts.append(f"**Source** {card.paper}")
    if card.tags:
        facts.append("**Tags** " + ", ".join(f"`{tag}`" for tag in card.tags))
    lines += [" · ".join(facts), ""] if facts else []
    if card.kind != "check":
        lines += [f"```text\n{card.import_line}\n{card.call}\n```", ""]
    doc = (inspect.getdoc(card.function) or "").strip()
    lines += ["```text", doc, "```", ""]
    if card.options:
        lines += ["| option | default |", "|---|---|"]
        for option in card.options.values():
            required = option.default is inspect.Parameter.empty
            lines.append(f"| `{option.name}` | {'required' if required else f'`{option.default!r}`'} |")
        lines.append("")
    for advice in card.facts.get("advice", ()):
        command = f" (`{advice.command}`)" if advice.command else ""
        lines.append(f"- Advice: {advice.text}{command}{f' [{advice.mitigation}]' if advice.mitigation else ''}")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write a page per kind."""
    registry = load_methods()
    (HERE / "methods").mkdir(exist_ok=True)
    for kind in KINDS:
        cards = list(registry.cards(kind))
        page = [f"# {TITLES.get(kind, f'{kind.capitalize()}s')}", "", INTRO[kind], "", *(section(card) for card in cards)]
        (HERE / "methods" / f"{kind}.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
