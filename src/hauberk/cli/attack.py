"""hauberk attack: runs one attack, says what it reached, and keeps the examples."""

from __future__ import annotations

import dataclasses
import inspect
import io
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from hauberk.cli import options
from hauberk.cli.console import EXIT_INTERRUPTED, command, complain
from hauberk.core.errors import UsageError, nearest
from hauberk.core.files import refuse_unwritable

if TYPE_CHECKING:
    from torch import Tensor

    from hauberk.core.access import Ledger
    from hauberk.core.card import Card
    from hauberk.core.threat import Threat

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@command
def attack(
    name: Annotated[str, typer.Argument(help="An attack, as `hauberk list --kind attack` names it.")],
    plan: Annotated[Path | None, typer.Argument(metavar="PLAN", help="Where model, data and threat come from.")] = None,
    *,
    model: options.Model = "", weights: options.Weights = "", data: options.TestData = "", label: options.Label = "",
    bounds: options.Bounds = "", classes: options.Classes = None, threat: options.Threats = None, access: options.Grant = None,
    option: Annotated[list[str] | None, typer.Option(
        "--option", "-o", metavar="KEY=VALUE", help="An option of the attack (hauberk explain NAME); repeatable.",
        rich_help_panel="How")] = None,
    n: Annotated[int, typer.Option("--n", help="Test samples to attack.", rich_help_panel="How", min=1)] = 100,
    target_label: Annotated[int | None, typer.Option(
        help="The label to reach; left out, any wrong one counts.", rich_help_panel="How", min=0)] = None,
    seed: options.Seed = None, device: options.Device = None, trust: options.Trust = False,
    output: Annotated[Path, typer.Option(help="Where x, x_adv, y and the predictions are kept.")] = Path("adv.npz"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Run one attack on test samples and keep the examples."""
    if output.exists() and not force:
        raise UsageError(f"{output} exists already", want="a new file", fix="Use --force, or choose another --output")
    refuse_unwritable(output)
    chosen = options.choose_plan(
        plan, model={"path": model, "weights": weights, "access": access.value if access else None},
        data={"test": data, "label": label, "bounds": bounds, "classes": classes}, threats=threat,
        run={"seed": seed, "device": device},
    )
    from hauberk.cli.watch import Watcher
    from hauberk.core.validate import validate
    from hauberk.methods import load_methods
    from hauberk.planned import naming_the_call, prepare

    card = load_methods().get(name, "attack")
    given = parse_options(card, option or ())
    target, samples, settings = prepare(chosen, trust)
    with naming_the_call(chosen):
        validate(target, samples)
    assumed = settings.threats[0].within(samples.bounds)
    if "seed" in card.options:
        given.setdefault("seed", settings.seed)
    x, y = samples.test.sample(n, settings.seed, "attack")
    if target_label is not None:
        assumed, kept = assumed.targeted(), y != target_label
        x, y = x[kept], y[kept]
        if samples.classes is not None and target_label >= samples.classes:
            raise UsageError(f"--target-label is {target_label}", want=f"a label from 0 to {samples.classes - 1}")
    wanted = y if target_label is None else y.new_full(y.shape, target_label)
    before = target.labels(x)
    view = target.fresh()
    try:
        with Watcher(quiet=False, verbose=verbose).watching():
            x_adv = card.function(view, x, wanted, assumed, **given)
    except KeyboardInterrupt as error:
        less = next((key for key in ("steps", "queries") if key in card.options), "")
        how = f", or fewer {less} with --option {less}=…" if less else ""
        complain(f"interrupted after {view.ledger.queries} queries; nothing is kept: give fewer samples with --n{how}")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    result = Result(name, assumed, x, x_adv, y, before, target.labels(x_adv), wanted, view.ledger)
    result.save(output)
    typer.echo(result.describe())
    typer.echo(f"{'kept':<12} {output}: x, x_adv, y, prediction, prediction_adv")


@dataclasses.dataclass
class Result:
    """What one attack reached.

    Arguments:
        x, x_adv: clean and attacked inputs, shape (n, ...).
        y, before, after, wanted: true labels, predictions on both, and the labels the attack was given, shape (n,).
        spent: queries and gradients.
    """

    name: str
    threat: Threat
    x: Tensor
    x_adv: Tensor
    y: Tensor
    before: Tensor
    after: Tensor
    wanted: Tensor
    spent: Ledger

    def describe(self) -> str:
        """Return success with its interval, distances and cost, one line each."""
        from hauberk.core.stats import wilson
        from hauberk.report.words import number

        right = self.before == self.y
        won = self.threat.reached(self.after, self.wanted) & right
        count, n = int(won.sum()), int(right.sum())
        ends = wilson(count, n)
        rate = f"{count / n:.1%}" if n else "–"
        lines = [
            ("attack", self.name), ("threat", self.threat.describe()),
            ("success", f"{rate} [{ends.low:.1%} to {ends.high:.1%}], {count} of {n} samples that were right before"),
            ("clean", f"{n} of {len(self.y)} samples right before the attack"),
        ]
        if count:
            distance = self.threat.distance(self.x_adv[won], self.x[won])
            middle, most = float(distance.median()), float(distance.max())
            lines.append(("distance", f"median {middle:.4g}, largest {most:.4g}, where it won"))
        each = f"{self.spent.queries / max(len(self.y), 1):.4g} per sample"
        lines.append(("queries", f"{number(self.spent.queries)} ({each})"))
        lines.append(("gradients", number(self.spent.gradients)))
        return "\n".join(f"{key:<12} {value}" for key, value in lines)

    def save(self, output: Path) -> None:
        """Write the examples as one .npz, whole or not at all."""
        import numpy as np

        from hauberk.core.files import write_whole

        arrays = {
            "x": self.x, "x_adv": self.x_adv, "y": self.y, "prediction": self.before, "prediction_adv": self.after,
        }
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{key: value.detach().cpu().numpy() for key, value in arrays.items()})
        write_whole(output, content.getvalue())


def parse_options(card: Card, given: Sequence[str]) -> dict[str, Any]:
    """Return the options written as `key=value`, as the types of the method's signature.

    Raises:
        UsageError: for an option that the method does not have, or a value that is not of its type.
    """
    hints, found = get_type_hints(inspect.unwrap(card.function)), {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"--option is '{text}'", want="key=value, e.g. steps=100")
        if key not in card.options:
            hint = nearest(key, list(card.options)) if card.options else "It has none."
            raise UsageError(f"{card.name} has no option '{key}'", fix=hint)
        try:
            found[key] = _parse(value.strip(), hints.get(key, str))
        except ValueError:
            raise UsageError(f"--option {key} is '{value}'", want=_wanted(hints[key])) from None
    missing = [name for name, one in card.options.items() if one.default is inspect.Parameter.empty and name not in found]
    if missing:
        raise UsageError(f"{card.name} needs the option '{missing[0]}'", fix=f"Add --option {missing[0]}=…")
    return found


def _parse(text: str, hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in parts and text.lower() == "none":
            return None
        for part in parts:
            try:
                return _parse(text, part)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is Literal:
        return next(_chosen(text, parts))
    if origin in (list, tuple, Sequence):
        items = [_parse(part.strip(), parts[0] if parts else str) for part in text.split(",") if part.strip()]
        return tuple(items) if origin is tuple else items
    if hint is bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]
    if hint is float:
        from hauberk.io.plan import number

        return number(text)
    if hint in (int, str):
        return hint(text)
    raise ValueError(text)


def _chosen(text: str, known: Sequence[Any]) -> Any:
    found = [one for one in known if str(one) == text]
    if not found:
        raise ValueError(text)
    return iter(found)


def _wanted(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_wanted(part) for part in parts)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (list, tuple, Sequence):
        return f"a comma list, each {_wanted(parts[0] if parts else str)}"
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}, which only Python can give")
