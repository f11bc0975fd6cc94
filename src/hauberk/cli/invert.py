"""hauberk invert: what comes back from the gradients of the user's own samples on his own model, with or without a defence."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.attack import parse_options
from hauberk.cli.console import EXIT_INTERRUPTED, command, complain, remark
from hauberk.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from hauberk.core.card import Card
    from hauberk.core.data import Data
    from hauberk.core.target import Target
    from hauberk.privacy.inversion.trial import Trial

DECIDED = 0.1  # the upper end of the interval below which "none came back" is said to be so


@command
def invert(
    plan: Annotated[Path | None, typer.Argument(metavar="PLAN", help="Where model and data come from.")] = None,
    *,
    model: options.Model = "", weights: options.Weights = "", data: options.TestData = "", label: options.Label = "",
    bounds: options.Bounds = "", classes: options.Classes = None,
    attack: Annotated[str, typer.Option(
        help="inverting-gradients, dlg, batch-norm-matching, group-consistency or see-through.", rich_help_panel="How",
    )] = "inverting-gradients",
    option: Annotated[list[str] | None, typer.Option(
        "--option", "-o", metavar="KEY=VALUE", help="An option of the attack (hauberk explain NAME); repeatable.",
        rich_help_panel="How")] = None,
    defence: Annotated[str, typer.Option(
        metavar="NAME[=STRENGTH]", help="What clients do to a gradient before they send it: gaussian-noise, laplace-noise, "
        "prune, top-k, quantise, clip, private or soteria; to their batch: mixup; to the model: precode or mid. "
        "Attacked by who knows of it and by who does not, in about twice the time.", rich_help_panel="How")] = "",
    n: Annotated[int, typer.Option("--n", help="Samples to win back.", rich_help_panel="How", min=1)] = 4,
    batch: Annotated[int, typer.Option(help="Samples of one client.", rich_help_panel="How", min=1)] = 1,
    local_steps: Annotated[int, typer.Option(
        help="Steps that a client trains before it sends how its weights changed; 0 sends the gradient.", rich_help_panel="How",
        min=0)] = 0,
    local_rate: Annotated[float, typer.Option(help="Learning rate of those steps.", rich_help_panel="How")] = 0.01,
    seed: options.Seed = None, device: options.Device = None, trust: options.Trust = False,
    output: Annotated[Path | None, typer.Option(help="A folder for the report with its pictures, index.html.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a report that is there.")] = False,
    output_format: options.Output = options.Format.TEXT,
    verbose: options.Verbose = False,
) -> None:
    """Make the gradients of test samples, invert them, and show how close the reconstructions come.

    With a defence, the figures are of an adversary who knows it and its strength; those of one who does not stand beside them.
    """
    if output is not None:
        _refuse_output(output, force)
    chosen = options.choose_plan(
        plan, model={"path": model, "weights": weights, "access": None},
        data={"test": data, "label": label, "bounds": bounds, "classes": classes}, threats=None,
        run={"seed": seed, "device": device},
    )
    from hauberk.cli.watch import Watcher
    from hauberk.core.validate import validate
    from hauberk.methods import load_methods
    from hauberk.planned import naming_the_call, prepare
    from hauberk.privacy.inversion.client import LocalSteps
    from hauberk.privacy.inversion.trial import attempt, parse, scalar_bounds

    cards = {card.name: card for card in load_methods().cards("reconstruction") if card.facts.get("sees") == "update"}
    if attack not in cards:
        raise UsageError(f"there is no attack on gradients called '{attack}'", fix=nearest(attack, list(cards)))
    defended, strength = parse(defence)
    if defended == "mixup" and batch < 2:
        raise UsageError("mixup blends the samples of a client, and each has one", want="--batch 2 or more")
    card = cards[attack]
    given = parse_options(card, option or ())
    target, samples, settings = prepare(chosen, trust)
    with naming_the_call(chosen):
        validate(target, samples)
    if not samples.is_classification or samples.classes is None:
        raise UsageError("the labels are not classes", want="data of a classification task")
    if n > len(samples.test):
        remark(f"--n is {n:,}, and there are {len(samples.test):,} test samples: all of them are taken")
    picked = samples.test.pick(n, settings.seed, "invert")
    x, y = samples.test.take(picked)
    _need_logits(target, x[:1], samples.classes)
    module, about = target.module, ""
    local = LocalSteps(local_steps, local_rate) if local_steps else None
    try:
        with Watcher(quiet=output_format is options.Format.JSON, verbose=verbose).watching():
            if defended in ("precode", "mid"):
                module, about = _with_bottleneck(target, samples, picked, (defended, strength), settings.seed)
            trial = attempt(
                module, x, y, card.function, defence=defence, group=batch, local=local,
                options={"seed": settings.seed, **given, "bounds": scalar_bounds(samples.bounds)},
            )
    except KeyboardInterrupt as error:
        complain("interrupted; nothing is kept: give fewer samples with --n, or fewer steps with --option steps=…")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    told = summary(trial, card, defence)
    if about:
        told["model"] = about
    if output is not None:
        told["report"] = str(_write(output, trial, card, defence, told, samples.bounds, samples.modality == "image",
                                    (target.name, samples.name, settings.seed)))
    typer.echo(json.dumps(told, indent=1) if output_format is options.Format.JSON else describe(trial, told))


def summary(trial: Trial, card: Card, defence: str) -> dict[str, Any]:
    """Return the figures as plain values: means with intervals, the share at 20 dB, and each sample."""
    from hauberk.core.stats import mean_interval
    from hauberk.privacy.inversion.trial import ADVERSARIES

    close = trial.close
    rate, n, ends = close.success(20.0)
    means = {}
    # Student's interval of few samples can reach beyond what a figure can be; what lies there is no part of it.
    for name, least, most in (("psnr", -math.inf, math.inf), ("ssim", -1.0, 1.0), ("fmse", 0.0, math.inf)):
        values = getattr(close, name)
        if bool(values.isfinite().all()):
            known = mean_interval(values.cpu().numpy()) if n > 1 else None
            low, high = (max(least, known.low), min(most, known.high)) if known else (None, None)
            means[name] = {"mean": float(values.mean()), "low": low, "high": high}
    rows = [
        {"label": int(trial.y[k]), **{key: _plain(getattr(close, key)[k]) for key in ("psnr", "ssim", "mse", "fmse", "loss")},
         "gradient_norm": _plain(close.gradient_norm[k])}
        for k in range(n)
    ]
    told = {
        "attack": card.name, "paper": card.paper, "defence": defence or "none", "adversary": trial.adversary,
        "threat": ADVERSARIES[trial.adversary], "n": n, "means": means,
        "at_20_dB": {"rate": rate, "low": ends.low, "high": ends.high}, "samples": rows,
    }
    if trial.naive is not None:
        beside = summary(trial.naive, card, defence)
        told["naive"] = {key: beside[key] for key in ("threat", "means", "at_20_dB", "samples")}
    return told


def describe(trial: Trial, told: dict[str, Any]) -> str:
    """Return the figures as text: a row per sample, then means with their intervals."""
    lines = [f"{'attack':<12} {told['attack']}", f"{'defence':<12} {told['defence']}"]
    if told["defence"] != "none":
        lines.append(f"{'adversary':<12} {told['adversary']}: {told['threat']}")
    if "model" in told:
        lines.append(f"{'model':<12} {told['model']}")
    lines.append("")
    lines.append(f"{'sample':>6} {'label':>6} {'PSNR dB':>8} {'SSIM':>6} {'FMSE':>8} {'loss':>8} {'gradient norm':>14}")
    for k, row in enumerate(told["samples"]):
        ssim = "–" if row["ssim"] is None else f"{row['ssim']:.3f}"
        lines.append(
            f"{k:>6} {row['label']:>6} {row['psnr']:>8.1f} {ssim:>6} {row['fmse']:>8.1e} {row['loss']:>8.1e} "
            f"{row['gradient_norm']:>14.1e}"
        )
    lines += ["", *_means(told, told["n"])]
    if "naive" in told:
        lines += ["", f"{'beside it':<12} naive: {told['naive']['threat']}", *_means(told["naive"], told["n"])]
    if "report" in told:
        lines.append(f"{'report':<12} {told['report']}")
    return "\n".join(lines)


def _means(told: dict[str, Any], n: int) -> list[str]:
    lines = []
    for key, word in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if key in told["means"]:
            one = told["means"][key]
            ends = f" [{one['low']:.2f} to {one['high']:.2f}]" if one["low"] is not None else ""
            lines.append(f"{word:<12} {one['mean']:.2f}{ends}")
    share = told["at_20_dB"]
    return [*lines, f"{'at 20 dB':<12} {share['rate']:.1%} [{share['low']:.1%} to {share['high']:.1%}] of {n} samples"]


def _with_bottleneck(
    target: Target, data: Data, picked: Any, asked: tuple[str, float], seed: int
) -> tuple[Any, str]:
    """Return the model with a bottleneck, trained on samples that are not to be won back, and what to say of it."""
    import torch

    from hauberk.core.data import Split
    from hauberk.privacy.inversion.defences.insert import agreement, insert_bottleneck

    rest = sorted(set(range(len(data.test))) - set(picked.tolist()))
    split, where = data.train, "training"
    if split is None or not len(split):
        if not rest:
            raise UsageError("all samples are to be won back", want="others to train the bottleneck on", fix="Lower --n")
        split, where = Split(*data.test.take(torch.tensor(rest))), "other test"
    name, strength = asked
    if name == "precode":
        made = insert_bottleneck(target.module, split, strength=strength, seed=seed)
    else:
        made = insert_bottleneck(target.module, split, nats=strength, seed=seed)
    judged = data.test.take(torch.tensor(rest[:1000])) if rest else data.test.take(picked)
    before, after = (agreement(one, *judged) for one in (target.module, made))
    return made, f"a bottleneck trained into it on {where} samples; accuracy {after:.1%} with it, {before:.1%} without"


def _refuse_output(output: Path, force: bool) -> None:
    from hauberk.core.files import refuse_unwritable

    page = output / "index.html"
    if page.exists() and not force:
        raise UsageError(f"{page} exists already", want="a new folder", fix="Use --force, or choose another --output")
    refuse_unwritable(page)


def _plain(value: Any) -> float | None:
    found = float(value)
    return found if found == found else None


def _need_logits(target: Target, x: Any, classes: int) -> None:
    from hauberk.checks.context import NotRun
    from hauberk.checks.gradient_inversion import need_logits
    from hauberk.core.errors import ModelError

    try:
        need_logits(target, x, classes)
    except NotRun as error:
        raise ModelError(str(error), want=f"a torch module that answers (n, {classes}) logits") from error


def _write(
    output: Path, trial: Trial, card: Card, defence: str, told: dict[str, Any], bounds: Any, image: bool,
    names: tuple[str, str, int],
) -> Path:
    from hauberk.checks.gradient_inversion import ADVICE, trial_gallery, trial_table
    from hauberk.core.finding import Finding, Interval, Status
    from hauberk.privacy.inversion.trial import ADVERSARIES
    from hauberk.report.report import Report

    strongest = trial.stronger
    share = (told if strongest is trial else told["naive"])["at_20_dB"]
    evidence: list[Any] = []
    trials = [one for one in (trial, trial.naive) if one is not None]
    for one in trials:
        who = f" by the {one.adversary} adversary" if defence and one.adversary != "any" else ""
        evidence.append(trial_table(f"{card.name}{who}", one))
        if image:
            evidence.append(trial_gallery(f"Samples and their reconstructions{who}", one, bounds, most=16))
    notes = [f"{one.adversary}: {ADVERSARIES[one.adversary]}" for one in trials] if defence else []
    if trial.naive is not None:
        notes.append(f"the figure is that of the {strongest.adversary} adversary, whose mean PSNR is the higher of both")
    if "model" in told:
        notes.append(told["model"])
    # Of two samples none may come back where two of three would: too few to call it nothing.
    few = not share["rate"] and share["high"] > DECIDED
    if few:
        notes.append(
            f"none came back, but as many as {share['high']:.0%} might of more samples: undecided until --n is large enough to "
            f"bring that below {DECIDED:.0%}"
        )
    finding = Finding(
        "privacy/gradient-inversion", "privacy", inspect.cleandoc(card.question),
        Status.WARN if share["rate"] or few else Status.PASS,
        value=share["rate"], unit="rate", n=told["n"], interval=Interval(share["low"], share["high"], "wilson", 0.95),
        better="lower", threat=f"an adversary who sees what each client sends; defence: {defence or 'none'}"
        + (f"; {ADVERSARIES[strongest.adversary]}" if defence else ""),
        access="GRADIENT", summary=f"{share['rate']:.1%} of {told['n']} samples come back at 20 dB or better", evidence=evidence,
        notes=notes, tags=card.tags, advice=ADVICE if share["rate"] else (),
    )
    about = {"model": {"name": names[0]}, "data": {"name": names[1]}, "access": "gradient", "seed": names[2]}
    scope = {**about, "method": card.name, "defence": defence or "none", "adversary": strongest.adversary}
    return Report([finding], scope).to_html(output)
