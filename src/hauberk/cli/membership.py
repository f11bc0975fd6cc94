"""hauberk membership: how many training records a model gives away, to adversaries of several kinds."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import EXIT_INTERRUPTED, command, complain, remark
from hauberk.cli.defence import judged, parse, told
from hauberk.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from hauberk.core.data import Data
    from hauberk.core.finding import Evidence
    from hauberk.core.target import Target
    from hauberk.privacy.defence import DefenceVerdict
    from hauberk.privacy.membership import MembershipReport
    from hauberk.privacy.membership.matching import Like
    from hauberk.privacy.membership.signals import Records

_HOW = "How"


@command
def membership(
    plan: Annotated[Path | None, typer.Argument(metavar="PLAN", help="Where model and data come from.")] = None,
    *,
    model: options.Model = "", weights: options.Weights = "", data: options.TestData = "", train: options.Train = "",
    label: options.Label = "", groups: options.Groups = None, bounds: options.Bounds = "", classes: options.Classes = None,
    access: options.Grant = None,
    attack: Annotated[list[str] | None, typer.Option(
        help="Attacks by name (hauberk list --kind inference); the first is the main one; repeatable, or a comma list. Left out: "
        "variance-prior, lira and rmia with --references, and those that need none.", rich_help_panel=_HOW)] = None,
    references: Annotated[int, typer.Option(
        help="Models of the same architecture to train on halves of the records; even. 0: none, or four with --defence.",
        rich_help_panel=_HOW, min=0,
    )] = 0,
    defence: Annotated[str, typer.Option(
        help="Try a change of the answers, against adversaries who know it: labels, rounding=DIGITS, top-k=K or "
        "memguard=DISTORTION. Reference models are trained behind the same.", rich_help_panel=_HOW)] = "",
    epochs: Annotated[int | None, typer.Option(
        help="Epochs of their training; left out, as many as fit half of the records as well as the model fits its own.",
        rich_help_panel=_HOW, min=1)] = None,
    lr: Annotated[float, typer.Option(help="Their learning rate, of Adam.", rich_help_panel=_HOW)] = 1e-3,
    workers: Annotated[int, typer.Option(
        help="Processes for references that cannot be trained side by side in one.", rich_help_panel=_HOW, min=1)] = 1,
    keep: Annotated[Path | None, typer.Option(
        help="A folder for the references as they are trained; the same call goes on from it when it was broken off.",
        rich_help_panel=_HOW)] = None,
    n: Annotated[int, typer.Option("--n", help="Records of each side.", rich_help_panel=_HOW, min=20)] = 2000,
    seed: options.Seed = None, device: options.Device = None, trust: options.Trust = False,
    output: Annotated[Path | None, typer.Option(
        help="A file for the report: .json, or .npz with the score of every record.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    output_format: options.Output = options.Format.TEXT,
    verbose: options.Verbose = False,
) -> None:
    """Tell training records from others by attacks of several kinds, at few false alarms, with intervals.

    Exit codes: 0 done, 2 usage or plan error.
    """
    if references % 2:
        raise UsageError(f"--references is {references}", want="an even number: models come in pairs, on complementary halves")
    if keep is not None and not references:
        raise UsageError("--keep is given without --references", want="references to keep", fix="Add --references 16")
    if epochs is not None and not references:
        raise UsageError("--epochs is given without --references", want="references to train", fix="Add --references 16")
    if not 0 < lr < math.inf:
        raise UsageError(f"--lr is {lr:g}", want="a learning rate above 0, such as 0.001")
    if defence:
        parse(defence)
        if attack:
            raise UsageError("--attack and --defence are both given", want="one: a defence is judged by all attacks that apply")
        if output is not None and output.suffix == ".npz":
            raise UsageError(f"--output is {output}", want="a name that ends in .json, with --defence")
    if output is not None:
        _refuse_output(output, force)
    chosen = options.choose_plan(
        plan, model={"path": model, "weights": weights, "access": access.value if access else None},
        data={
            "test": data, "train": train, "label": label, "groups": options.words(groups), "bounds": bounds, "classes": classes,
        },
        threats=None, run={"seed": seed, "device": device},
    )
    from hauberk.cli.watch import Watcher
    from hauberk.core.validate import validate
    from hauberk.planned import naming_the_call, prepare
    from hauberk.privacy.membership.matching import Like
    from hauberk.privacy.membership.signals import asked_once
    from hauberk.report.words import line

    target, samples, settings = prepare(chosen, trust)
    if not samples.is_classification or samples.train is None:
        raise DataError(
            "there is no training data" if samples.is_classification else "the labels are numbers to predict",
            want="classes, and the data the model was trained on", fix="Add --train",
        )
    with naming_the_call(chosen):
        validate(target, samples)
    wanted = Like(references, epochs, lr, settings.seed, workers, keep)
    try:
        with Watcher(quiet=output_format is options.Format.JSON, verbose=verbose).watching(), asked_once():
            if defence:
                records, *_ = chosen_sides(samples, n, settings.seed)
                verdict = judged(defence, target, records, wanted)
                return _say_verdict(verdict, target.name, defence, output, output_format)
            found, position, labels = run(target, samples, options.words(attack) or [], n, wanted)
    except KeyboardInterrupt as error:
        kept = "" if keep is None else f"; finished references are kept in {keep}: the same command goes on from there"
        complain(f"interrupted{kept}")
        raise typer.Exit(EXIT_INTERRUPTED) from error
    report = {"model": target.name, "references": references, **found.to_dict()}
    if output is not None:
        _save(output, report, found)
    if output_format is options.Format.JSON:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        source = "the command line" if plan is None and model else str(chosen.source)
        sides = f"{report['members']:,} in the training data, {report['non_members']:,} not"
        for word, said in (("model", target.name), ("plan", source), ("records", sides)):
            typer.echo(f"{word:<8} {line(said)}")
        typer.echo("\n" + describe(found.evidence(position, labels)))
        typer.echo("\n" + conclusion(found, len(samples.train), references))
        if output is not None:
            typer.echo(f"\nkept: {output}")


def conclusion(found: MembershipReport, trained: int, references: int) -> str:
    """Return the verdict of `assess` on the main attack, what the records cannot resolve, and the next step."""
    from hauberk.checks.privacy import verdict
    from hauberk.core.finding import Status

    exposed, others = found.found[found.main], len(found.scores[found.main].non_members)
    words = {
        Status.PASS: "no record is surely given away", Status.FAIL: "records are given away",
        Status.WARN: "something is given away, or the two splits differ",
    }
    grade = Status.WARN if found.broken else verdict(exposed, found.blind)
    span = exposed.tpr_interval
    lines = [
        f"verdict  {words[grade]}: {found.main} recognises {exposed.tpr:.1%} [{span.low:.1%}, {span.high:.1%}] of the members at "
        f"{exposed.fpr:.2%} false alarms"
    ]
    if exposed.fpr > 1e-3:
        lines.append(f"note     {others:,} non-members cannot resolve 0.1 %: columns below {exposed.fpr:.2%} repeat that rate")
    if not references:
        lines.append("next     who trains models like it tells more: add --references 16")
    if grade is not Status.PASS:
        size = min(256, trained)
        lines.append(
            "next     find the noise of private training: hauberk calibrate --epsilon 3 --delta 1e-5 "
            f"--n {trained} --batch {size} --epochs 20"
        )
    return "\n".join(lines)


def run(
    target: Target, data: Data, names: list[str], n: int, wanted: Like
) -> tuple[MembershipReport, Any, Any]:
    """Run the attacks; return the report, where each member stands in the training data, and its label."""
    from hauberk.core.access import Access
    from hauberk.methods import load_methods
    from hauberk.privacy.membership import MembershipReport
    from hauberk.privacy.membership.matching import references_like
    from hauberk.privacy.membership.measure import blind_auc, dealt_anew

    assert data.train is not None
    seed = wanted.seed
    cards = [load_methods().get(name, "inference") for name in names or _usual(target, wanted.count)]
    for card in cards:  # before any model is trained
        target.need(card.access or Access.LABEL, card.name)
    if wanted.count and not any("references" in card.options for card in cards):
        raise UsageError(
            f"--references is {wanted.count}, and no attack chosen takes them ({', '.join(card.name for card in cards)})",
            want="an attack that does, such as lira, or no --references",
        )
    sides, index, outside = chosen_sides(data, n, seed)
    made = None
    if wanted.count:
        made, said = references_like(target, *sides, wanted)
        if said:
            remark(said)
    scores, again = {}, None
    for card in cards:
        extra = {"references": made} if made is not None and "references" in card.options else {}
        if made is None and "references" in card.options:
            remark(f"{card.name} has no --references: it trains four small perceptrons of its own, the weakest choice")
        scores[card.name] = card.function(target, *sides, **extra)
        again = again or functools.partial(card.function, target, **extra)
    slices = {"class": (sides[0][1], sides[1][1])}
    words = {"class": data.class_names}
    for name in data.train.groups.keys() & data.test.groups.keys():
        slices[name] = (data.train.groups[name][index], data.test.groups[name][outside])
        words[name] = data.group_names.get(name, ())
    assert again is not None
    blind = blind_auc(sides[0][0], sides[1][0], seed=seed, labels=(sides[0][1], sides[1][1]))
    area, spread, _ = blind
    if spread.low > 0.5:
        remark(
            f"the two splits differ in themselves: a classifier that never saw the model tells them apart with an area of "
            f"{area:.3f}; part of every figure is that difference"
        )
    dealt = dealt_anew(again, *sides, seed=seed)
    return MembershipReport(scores, slices, words, seed, dealt, blind), index, sides[0][1]


def chosen_sides(data: Data, n: int, seed: int) -> tuple[tuple[Records, Records], Tensor, Tensor]:
    """Return at most n records of train, as many of test that are not in train, no copies among either, and their positions."""
    import torch

    from hauberk.core.overlap import distinct, overlap
    from hauberk.core.rng import generator

    assert data.train is not None
    fresh = (~overlap(data).copies).nonzero()[:, 0]
    if min(len(fresh), len(data.train)) < 20:
        raise DataError(f"{len(fresh)} test records are not in the training data", want="20 or more records of each side")
    if len(fresh) < len(data.test):
        remark(f"{len(data.test) - len(fresh)} test records are also in the training data and were left out")
    index = data.train.pick(n, seed, "members")
    order = torch.randperm(len(fresh), generator=generator(seed, "pick", "non-members"))[:n]
    outside = fresh[order.sort().values]
    drawn = len(index) + len(outside)
    # Copies are no records of their own: counted as such, they make every interval too narrow.
    index, outside = (
        place[distinct(*split.take(place))] for split, place in ((data.train, index), (data.test, outside))
    )
    if min(len(index), len(outside)) < 20:
        raise DataError(f"{min(len(index), len(outside))} records of one side differ", want="20 or more records of each side")
    if len(index) + len(outside) < drawn:
        remark(f"{drawn - len(index) - len(outside)} records are copies of others on their side and were left out")
    return (data.train.take(index), data.test.take(outside)), index, outside


def describe(evidence: tuple[Evidence, ...]) -> str:
    """Return the tables as text."""
    from hauberk.core.finding import Table

    blocks = []
    for one in evidence:
        if not isinstance(one, Table):
            continue
        rows = [[str(cell) for cell in row] for row in (one.columns, *one.rows)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(one.columns))]
        lines = ["  ".join(f"{cell:<{wide}}" for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows]
        blocks.append("\n".join([one.title, *lines]))
    return "\n\n".join(blocks)


def _usual(target: Target, count: int) -> list[str]:
    from hauberk.core.access import Access

    if target.access < Access.SCORE:
        return ["augmentation-membership", "gap-membership"]
    known = ["variance-prior", "lira", "rmia"] if count else []
    return [*known, "loss-membership", "modified-entropy", "augmentation-membership", "gap-membership"]


def _say_verdict(verdict: DefenceVerdict, model: str, defence: str, output: Path | None, form: options.Format) -> None:
    from hauberk.core.files import write_whole
    from hauberk.report.words import line

    content = json.dumps({"model": model, "defence": defence, **told(verdict)}, ensure_ascii=False, indent=1)
    if output is not None:
        write_whole(output, content.encode())
    if form is options.Format.JSON:
        typer.echo(content)
        return
    for word, said in (("model", model), ("defence", defence), *(("note", one) for one in verdict.notes)):
        typer.echo(f"{word:<8} {line(said)}")
    typer.echo(f"\n{verdict.summary}\n\n{describe((verdict.table(),))}")
    if output is not None:
        typer.echo(f"\nkept: {output}")


def _refuse_output(output: Path, force: bool) -> None:
    from hauberk.core.files import refuse_unwritable

    if output.suffix not in (".json", ".npz"):
        raise UsageError(f"--output is {output}", want="a name that ends in .json or .npz")
    if output.exists() and not force:
        raise UsageError(f"{output} exists already", want="a new file", fix="Use --force, or choose another --output")
    refuse_unwritable(output)


def _save(output: Path, told: dict[str, Any], found: MembershipReport) -> None:
    import io

    import numpy as np

    from hauberk.core.files import write_whole

    if output.suffix == ".json":
        write_whole(output, json.dumps(told, ensure_ascii=False, indent=1).encode())
        return
    content = io.BytesIO()
    arrays = {f"{name} {side}": getattr(one, side).numpy() for name, one in found.scores.items()
              for side in ("members", "non_members")}
    np.savez_compressed(content, **{"risk members": found.risk, **arrays})
    write_whole(output, content.getvalue())
