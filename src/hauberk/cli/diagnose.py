"""hauberk diagnose: can a figure of robustness be believed?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hauberk.cli import options
from hauberk.cli.assess import FailOn
from hauberk.cli.console import command
from hauberk.core.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from hauberk.robustness.diagnose import Alarm, Diagnosis


@command
def diagnose(
    what: Annotated[str, typer.Argument(
        metavar="MODEL|PLAN", help="A model as --model takes it, or a plan or a folder with one (this one).", show_default=False,
    )] = "",
    *,
    model: options.Model = "", weights: options.Weights = "", data: options.TestData = "", label: options.Label = "",
    bounds: options.Bounds = "", classes: options.Classes = None, threat: options.Threats = None,
    n: Annotated[int, typer.Option("--n", help="Test samples to look at.", rich_help_panel="How", min=1)] = 128,
    remedy: Annotated[bool, typer.Option(
        "--remedy", help="Apply the remedies that the signs call for, and show what they bring to light.",
        rich_help_panel="How")] = False,
    seed: options.Seed = None, device: options.Device = None, trust: options.Trust = False,
    output_format: options.Output = options.Format.TEXT,
    fail_on: Annotated[FailOn, typer.Option(help="What makes the exit code 1: a clear sign, or a faint one.")] = FailOn.FAIL,
    verbose: options.Verbose = False,
) -> None:
    """Look for signs that a model only seems robust: masked gradients, a blinded loss, attacks that fail.

    Exit codes: 0 the figure can be believed, 1 it cannot, 2 usage or plan error.
    """
    plan, model = _plan_or_model(what, model)
    chosen = options.choose_plan(
        plan, model={"path": model, "weights": weights},
        data={"test": data, "label": label, "bounds": bounds, "classes": classes}, threats=threat,
        run={"seed": seed, "device": device},
    )
    from hauberk.cli.watch import Watcher
    from hauberk.core.access import Access
    from hauberk.core.validate import unnarrowed, validate
    from hauberk.planned import naming_the_call, prepare
    from hauberk.robustness import diagnose as diagnosis

    target, samples, settings = prepare(chosen, trust)
    if not samples.is_classification:
        raise DataError("the labels are numbers to predict", want="classes", fix="Give a classifier and its data")
    with naming_the_call(chosen):
        validate(target, samples)
    assumed = settings.threats[0].within(samples.bounds)
    x, y = samples.test.sample(n, settings.seed, "diagnose")
    with Watcher(quiet=False, verbose=verbose).watching():
        try:
            found = diagnosis.diagnose(unnarrowed(target), x, y, assumed, remedy=remedy, seed=settings.seed)
        except RuntimeError as error:
            if target.access >= Access.GRADIENT:
                raise
            raise ModelError(
                target.notices[-1] if target.notices else f"the model fails where gradients are asked for ({error})",
                want="a model that can be differentiated", fix="Measure it by scores: hauberk attack square, or hop-skip-jump",
            ) from error
    if not found.told:
        raise DataError(
            f"{found.clean} of {found.n} samples are classified correctly", want="at least 10 that an attack could break",
            fix="Check that model and labels belong together, or give more samples",
        )
    if output_format is options.Format.JSON:
        told = {"model": target.name, "threat": assumed.describe(), **found.to_dict()}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        typer.echo(describe(found, target.name, assumed.describe(), remedy=remedy))
    failing = {FailOn.FAIL: found.raised, FailOn.WARN: [*found.raised, *found.warned], FailOn.NEVER: []}[fail_on]
    raise typer.Exit(1 if failing else 0)


def describe(found: Diagnosis, name: str, threat: str, *, remedy: bool) -> str:
    """Return the diagnosis as text: what holds, every sign with its figure, the remedies, the verdict."""
    from hauberk.core.stats import wilson
    from hauberk.report.words import line, number

    ends = wilson(found.before, found.n)
    head = [
        ("model", line(name)), ("threat", threat), ("samples", f"{found.n}, of which {found.clean} are right undisturbed"),
        ("plain", f"{found.before / found.n:.1%} [{ends.low:.1%} to {ends.high:.1%}] hold under the plain attack"),
        ("spent", f"{number(found.queries)} queries, {number(found.gradients)} gradients"),
    ]
    lines = [f"{key:<9} {value}" for key, value in head]
    lines += ["", f"{'sign':<40} {'value':>8}  {'95 % interval':<16} {'limit':>7} {'n':>5}  alarm"]
    for alarm in found.alarms:
        lines.append(_row(alarm))
        if alarm.level != "quiet":
            lines.append(f"    {alarm.meaning}. {alarm.remedy}." if alarm.level != "not run" else f"    {alarm.meaning}.")
    if found.treatments:
        lines += ["", f"{'left under the remedy':<24} {'lost':>5}  remedy"]
        for one in found.treatments:
            band = f"{one.held:.1%} [{one.interval.low:.1%} to {one.interval.high:.1%}]"
            lines.append(f"{band:<24} {one.gained:>5}  {one.name}: {one.detail}")
        lines.append(f"left under all that was tried: {found.after / found.n:.1%}, the worst case per sample")
    elif found.raised and not remedy:
        lines += ["", "Next: the same command with --remedy."]
    return "\n".join([*lines, "", f"verdict: {found.verdict}"])


def _row(alarm: Alarm) -> str:
    value = f"{alarm.value:.3g}" if alarm.n else "–"
    band = f"{alarm.interval.low:.3f} to {alarm.interval.high:.3f}" if alarm.interval else ""
    return f"{alarm.name:<40} {value:>8}  {band:<16} {alarm.limit:>7.4g} {alarm.n:>5}  {alarm.level}"


def _plan_or_model(what: str, model: str) -> tuple[Path | None, str]:
    """Return the plan and the model that the argument and --model name together."""
    if not what or what.endswith(".toml") or Path(what).is_dir():
        return (Path(what) if what else None), model
    if model:
        raise UsageError(f"two models are named: '{what}' and --model '{model}'", want="one of them")
    return None, what
