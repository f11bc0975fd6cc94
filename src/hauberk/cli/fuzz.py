"""hauberk fuzz: searches for failures, beside as much random mutation, and keeps each so that it can be made again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hauberk.cli import options
from hauberk.cli.console import EXIT_INTERRUPTED, command, complain, remark
from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from hauberk.core.data import Data
    from hauberk.io.plan_schema import Plan
    from hauberk.robustness.fuzz import Objective


@command
def fuzz(
    plan: Annotated[Path | None, typer.Argument(metavar="PLAN", help="Where model and data come from.")] = None,
    *,
    model: options.Model = "", weights: options.Weights = "", data: options.TestData = "", train: options.Train = "",
    label: options.Label = "", bounds: options.Bounds = "", classes: options.Classes = None, access: options.Grant = None,
    against: Annotated[str, typer.Option(
        help="A second model: seeds on which the two answer differently are failures.", rich_help_panel="How")] = "",
    objective: Annotated[list[str] | None, typer.Option(
        help="misclassification, label-invariance, not-a-number, batch-invariance, monotone:FEATURE:STEP, falling:FEATURE:STEP, "
        "bounded-change:MSE; repeatable, or a comma list.",
        rich_help_panel="How")] = None,
    mutator: Annotated[list[str] | None, typer.Option(
        help="Corruptions for images, jitter and reset for other data (a little on every feature; a few drawn anew), and fgsm, "
        "pgd, mdi-fgsm; left out, all that fit; repeatable, or a comma list.",
        rich_help_panel="How")] = None,
    coverage: Annotated[list[str] | None, typer.Option(
        help="Criteria, the first steers: nc, tknc, tknp, kmnc, nbc, snac, scc, lsc, dsc, mdsc, nlc, novelty.",
        rich_help_panel="How")] = None,
    budget: Annotated[int, typer.Option(help="Mutants sent to the model; the control gets as many.", rich_help_panel="How",
                                        min=1)] = 2000,
    seeds: Annotated[int, typer.Option(help="Test samples to start from.", rich_help_panel="How", min=1)] = 100,
    eps: Annotated[float, typer.Option(help="Linf radius of gradient attacks, in input units.", rich_help_panel="How",
                                       min=0.0)] = 0.1,
    seed: options.Seed = None, device: options.Device = None, trust: options.Trust = False,
    output: Annotated[Path, typer.Option(help="The folder of corpus and failures.")] = Path("fuzz"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the campaign in the folder.")] = False,
    output_format: options.Output = options.Format.TEXT,
    verbose: options.Verbose = False,
) -> None:
    """Search for failures around test samples, beside random mutation of the same budget."""
    chosen = options.choose_plan(
        plan, model={"path": model, "weights": weights, "access": access.value if access else None},
        data={"test": data, "train": train, "label": label, "bounds": bounds, "classes": classes}, threats=None,
        run={"seed": seed, "device": device},
    )
    from hauberk.cli.watch import Watcher
    from hauberk.core.validate import validate
    from hauberk.planned import naming_the_call, prepare
    from hauberk.robustness.fuzz import Options
    from hauberk.robustness.fuzz import fuzz as run
    from hauberk.robustness.fuzz.corpus import CAMPAIGN
    from hauberk.robustness.fuzz.coverage import CRITERIA

    criteria = options.words(coverage) or []
    for name in criteria:
        if name not in CRITERIA:
            raise UsageError(f"--coverage is '{name}'", want=" | ".join(CRITERIA))
    target, samples, settings = prepare(chosen, trust)
    with naming_the_call(chosen):
        validate(target, samples)
    how = Options(budget=budget, eps=eps, seed=settings.seed)
    if criteria:
        how = dataclasses.replace(how, steering=criteria[0], criteria=tuple(criteria[1:]))
    wanted = _objectives(options.words(objective) or [], against, chosen, samples, trust)
    if resume and not (output / CAMPAIGN).exists():
        remark(f"{output} holds no campaign to go on with: a new one begins")
    try:
        with Watcher(quiet=output_format is options.Format.JSON, verbose=verbose).watching():
            found = run(
                target, samples, seeds=seeds, options=how, objectives=wanted, with_mutators=options.words(mutator) or (),
                folder=output, resume=resume,
            )
    except KeyboardInterrupt as error:
        complain(f"interrupted; the finished rounds are kept in {output}: the same command with --resume goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    if output_format is options.Format.JSON:
        typer.echo(json.dumps(found.table(), indent=1))
        return
    typer.echo(found.describe())
    typer.echo(f"{'kept':<18} {output}: results.json, failures.npz, and the corpus")
    if not found.guided.failing:
        remark("no failure was found: that is no proof that there is none")


def _objectives(names: list[str], against: str, plan: Plan, data: Data, trust: bool) -> list[Objective]:
    """Return the objectives named, and the disagreement with a second model; nothing where the defaults are meant."""
    from hauberk.io.models import load_model
    from hauberk.robustness.fuzz import objectives

    found = objectives.named(names)
    if against:
        base = plan.model
        second = load_model(against, bounds=data.bounds, batch_size=base.batch_size, trust=trust)
        found.append(objectives.disagreement(second))
    return found
