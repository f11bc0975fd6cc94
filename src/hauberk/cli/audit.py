"""hauberk audit: the ε that training claims, beside the ε that an attack on it shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command
from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from hauberk.core.data import Split
    from hauberk.privacy.dp.audit import Audit, BlackBox, WhiteBox

_CANARIES, _RECIPE = "What the adversary does", "The built-in recipe"


_BLIND = {
    "--companions": "groups of examples that are clipped together: --companions 7",
    "--spare": "a clip that follows the data: --canaries 1 --runs 60 --spare 2000",
    "--black-box": "records learnt by heart, as anybody could put them in: --black-box --model ... --data ...",
}


@command
def audit(
    trainer: Annotated[str, typer.Argument(
        metavar="TRAINER", help="A function (model, data, seed) that trains in place: package.module:attr or file.py:attr. "
        "Without one, DP-SGD of this library.", show_default=False,
    )] = "",
    *,
    epsilon: Annotated[float | None, typer.Option(
        "--epsilon", help="The ε claimed; else what the trainer returns.", min=0)] = None,
    delta: Annotated[float, typer.Option("--delta", help="δ of the claim.")] = 1e-5,
    model: options.Model = "", data: options.TestData = "", label: options.Label = "",
    black_box: Annotated[bool, typer.Option(
        "--black-box", help="Put in mislabelled records and see losses alone; needs --model and --data.",
        rich_help_panel=_CANARIES)] = False,
    canaries: Annotated[int, typer.Option(help="Records that are in or out by a coin.", rich_help_panel=_CANARIES, min=1)] = 500,
    runs: Annotated[int, typer.Option(help="Trainings.", rich_help_panel=_CANARIES, min=1)] = 4,
    companions: Annotated[int, typer.Option(
        help="Records against each canary: what groups that are clipped together give away.", rich_help_panel=_CANARIES, min=0,
    )] = 0,
    spare: Annotated[int, typer.Option(
        help="Weights that show the size of the noise; thousands, with --canaries 1.", rich_help_panel=_CANARIES, min=0)] = 0,
    remove: Annotated[bool, typer.Option(
        "--remove", help="A canary that is out is missing, not replaced by a record without a gradient.",
        rich_help_panel=_CANARIES)] = False,
    every: Annotated[bool, typer.Option(
        "--all", help="Run every design in turn, and print a table: what one misses, another sees.",
        rich_help_panel=_CANARIES)] = False,
    bound: Annotated[str, typer.Option(
        help="gdp, f-dp, one-run or clopper-pearson; empty: gdp for a white box, one-run for a black box.",
        rich_help_panel=_CANARIES)] = "",
    noise: Annotated[float, typer.Option("--noise", help="Noise multiplier.", rich_help_panel=_RECIPE, min=0)] = 1.0,
    clip: Annotated[float, typer.Option(help="Largest norm of a gradient.", rich_help_panel=_RECIPE)] = 1.0,
    rate: Annotated[float, typer.Option(help="Share of the records in a batch.", rich_help_panel=_RECIPE)] = 0.1,
    steps: Annotated[int, typer.Option(help="Steps of training.", rich_help_panel=_RECIPE, min=1)] = 20,
    lr: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=_RECIPE)] = 0.1,
    seed: options.Seed = None, trust: options.Trust = False,
    output_format: options.Output = options.Format.TEXT,
    verbose: options.Verbose = False,
) -> None:
    """Train with canaries, and set the ε that they show beside the ε that is claimed.

    Exit codes: 0 the claim stands, 1 an attack shows more than is claimed, 2 usage error.
    """
    if bool(model) != bool(data):
        raise UsageError("one of --model and --data is given", want="both, or neither")
    if black_box and not model:
        raise UsageError("--black-box is given without --model and --data", want="the model to train and its data")
    if every and (black_box or companions or spare):
        raise UsageError(
            "--all is given with --black-box, --companions or --spare", want="one of them",
            fix="Leave out --all to run one design",
        )
    from hauberk.io.code import function_from_code
    from hauberk.privacy.dp.audit import BlackBox, WhiteBox, audit_training

    module, split = _material(model, data, label, trust) if model else (None, None)
    if trainer:
        train = function_from_code(trainer, arguments=3, want="a function (model, data, seed) that trains the model in place")
    else:
        from hauberk.privacy.dp.audit.recipe import dp_sgd

        train = dp_sgd(noise=noise, clip=clip, rate=rate, steps=steps, lr=lr)
    design: WhiteBox | BlackBox = WhiteBox(canaries, runs, companions, spare, remove)
    if black_box:
        design = BlackBox(canaries, runs)
    chosen = _designs(canaries, runs, remove, module is not None) if every else {"": design}
    if every and bound:
        raise UsageError(f"--bound {bound} is given with --all", want="each design with its own bound", fix="Leave out --bound")
    found = {
        name: audit_training(
            train, split, model=module, claimed=epsilon, delta=delta, design=one, bound=bound or None, seed=seed or 0
        )
        for name, one in chosen.items()
    }
    if output_format is options.Format.JSON:
        told = [{"design": name, **one.to_dict()} for name, one in found.items()] if every else found[""].to_dict()
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        typer.echo(table(found) if every else describe(found[""]))
    raise typer.Exit(1 if any(one.violated for one in found.values()) else 0)


def _designs(canaries: int, runs: int, remove: bool, material: bool) -> dict[str, WhiteBox | BlackBox]:
    """Return every design by what it is after; the black box where there is a model and data."""
    from hauberk.privacy.dp.audit import BlackBox, WhiteBox

    made: dict[str, WhiteBox | BlackBox] = {
        "gradients": WhiteBox(canaries, runs, remove=remove),
        "clipped in groups": WhiteBox(max(1, canaries // 4), runs, companions=7, remove=remove),
        "clip from the data": WhiteBox(1, 60, spare=2000, remove=remove),
    }
    return made | {"losses": BlackBox(canaries, runs)} if material else made


def table(found: dict[str, Audit]) -> str:
    """Return the audits side by side: the ε claimed, the ε shown, the most that could have been shown, the verdict."""
    lines = [f"{'design':<19} {'claimed ε':>10} {'audited ε ≥':>12} {'reach':>8}  {'trials':>6}  verdict"]
    for name, one in found.items():
        lines.append(f"{name:<19} {one.claimed:>10.3f} {one.audited:>12.3f} {one.reach:>8.3f}  {one.n:>6}  {one.verdict}")
    delta = next(iter(found.values())).delta
    lines += ["", f"δ = {delta:g}; each bound holds with 95 % by itself. reach: the most that so many trials can show"]
    if "losses" not in found:
        lines.append("not run: losses of records learnt by heart; give --model and --data")
    return "\n".join(lines)


def describe(found: Audit) -> str:
    """Return the audit as text: both ε, what they rest on, the verdict."""
    from hauberk.privacy.dp.audit.training import MEANING

    rows = [
        ("claimed", f"ε = {found.claimed:.3f} at δ = {found.delta:g}"),
        ("audited", f"ε ≥ {found.audited:.3f} at δ = {found.delta:g}, confidence {found.interval.confidence:.0%}"),
        ("reach", f"ε = {found.reach:.3f}: the most that so many trials can show"),
        ("trials", f"{found.n}"), ("adversary", found.threat), ("signal", found.signal),
        ("bound", f"{found.bound}: {MEANING[found.bound]}"),
    ]
    verdict = {
        "stands": "the claim stands: this attack shows less than is claimed",
        "cannot tell": "cannot tell: so few trials could not have contradicted the claim, whatever they showed. Ask for more "
        "--canaries or --runs",
        "violated": "the claim does not stand: an attack shows more than is claimed. Look at how examples are clipped, how much "
        "noise is added, how batches are drawn, and whether every release is in the account",
    }[found.verdict]
    if math.isinf(found.claimed):
        verdict = (
            "cannot tell: nothing is claimed (training without noise, or without a bound), and nothing can contradict it. Give "
            "--epsilon to hold it against a claim"
        )
    blind = [said for flag, said in _BLIND.items() if not seen(found.threat, flag)]
    rows += [("not seen", said) for said in blind]
    return "\n".join([*(f"{key:<10} {value}" for key, value in rows), "", f"verdict: {verdict}"])


def seen(threat: str, flag: str) -> bool:
    """Return whether an adversary, in words, is the one that an option asks for."""
    words = {"--black-box": "sees the loss", "--companions": "records against each", "--spare": "size of the noise"}
    return words[flag] in threat


def _material(model: str, data: str, label: str, trust: bool) -> tuple[Any, Split]:
    from hauberk.core.access import Access
    from hauberk.core.errors import ModelError
    from hauberk.io.datasets import load_data
    from hauberk.io.models import load_model

    loaded = load_data(Path(data) if Path(data).exists() else data, label=label or None)
    target = load_model(model, bounds=loaded.bounds, trust=trust)
    if target.access < Access.GRADIENT:
        raise ModelError(f"the model {model} cannot be trained here", want="a torch module")
    return target.module, loaded.train if loaded.train is not None else loaded.test
