"""hauberk account and hauberk calibrate: what private training costs, and what a budget allows."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command, remark
from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from hauberk.privacy.dp.accounting import PrivacyStatement, Release, Spent

WHAT = "What is released"
DELTA = 1e-5


class Sampling(enum.StrEnum):
    """How the records of a step are chosen."""

    FULL = "full"
    POISSON = "poisson"
    WITHOUT = "without-replacement"
    SHUFFLED = "shuffled"


class Mechanism(enum.StrEnum):
    """What noise a release has."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"
    DISCRETE_GAUSSIAN = "discrete-gaussian"
    DISCRETE_LAPLACE = "discrete-laplace"
    RANDOMIZED_RESPONSE = "randomized-response"
    PURE = "pure"


class Accountant(enum.StrEnum):
    """How ε is computed."""

    PLD = "pld"
    RDP = "rdp"
    ZCDP = "zcdp"
    ANALYTIC = "analytic"
    GDP = "gdp"


class Relation(enum.StrEnum):
    """What neighbouring data sets differ in."""

    ADD_REMOVE = "add-remove"
    REPLACE_ONE = "replace-one"


Noise = Annotated[float | None, typer.Option(
    help="Standard deviation or scale over the clipping norm; the ε of one answer for pure mechanisms.", min=0,
    rich_help_panel=WHAT,
)]
Rate = Annotated[float | None, typer.Option(help="Sampling probability of a step.", min=0, max=1, rich_help_panel=WHAT)]
Population = Annotated[int | None, typer.Option("--n", help="Records in all, with --batch.", min=1, rich_help_panel=WHAT)]
Batch = Annotated[int | None, typer.Option(help="(Expected) records of a step.", min=1, rich_help_panel=WHAT)]
Steps = Annotated[int | None, typer.Option(help="Training steps.", min=1, rich_help_panel=WHAT)]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data, in place of --steps.", min=0, rich_help_panel=WHAT)]
Delta = Annotated[float, typer.Option(help="The δ that ε is meant at.")]
HowSampled = Annotated[Sampling | None, typer.Option(
    "--sampling", help="How records are chosen; poisson for a rate below 1. A shuffled loader is not poisson.",
    rich_help_panel=WHAT,
)]
HowNoised = Annotated[Mechanism, typer.Option("--mechanism", help="What noise.", rich_help_panel=WHAT)]
By = Annotated[Relation | None, typer.Option("--relation", help="What neighbouring data sets differ in; that of the sampling.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]


@command
def account(
    file: Annotated[str, typer.Argument(
        metavar="[FILE]", help="A privacy statement to compute again, in place of --noise and the rest.", show_default=False,
    )] = "",
    *,
    noise: Noise = None, rate: Rate = None, n: Population = None, batch: Batch = None, steps: Steps = None, epochs: Epochs = None,
    sampling: HowSampled = None, mechanism: HowNoised = Mechanism.GAUSSIAN, delta: Delta = DELTA,
    accountant: Annotated[list[Accountant] | None, typer.Option(help="One or several; all that cover the releases.")] = None,
    relation: By = None,
    output: Annotated[Path | None, typer.Option(help="Write the privacy statement to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    output_format: options.Output = options.Format.TEXT, verbose: Verbose = False,
) -> None:
    """Compute the ε of private training, by several accountants, or check the one that a statement claims.

    Exit codes: 0 computed, or the claim holds; 1 the claim is lower than what was released; 2 usage error.
    """
    from hauberk.privacy.dp import accounting
    from hauberk.privacy.dp.accounting.statement import make_statement

    if file:
        if noise is not None or rate is not None or n or batch or steps or epochs:
            raise UsageError(
                f"both the statement '{file}' and what was released are given", want="one of them",
                fix="Leave out --noise, --rate, --batch, --n, --steps and --epochs to compute the statement again",
            )
        if sampling is not None or mechanism is not Mechanism.GAUSSIAN or delta != DELTA:
            raise UsageError(
                f"--delta, --sampling or --mechanism is given with the statement '{file}', which has its own",
                want="the file alone",
                fix="Leave them out, or give --noise and the rest in place of the file",
            )
        if output is not None:
            raise UsageError(
                f"--output {output} is given with the statement '{file}'", want="one that is computed anew",
                fix="Leave out --output, or give --noise and the rest in place of the file",
            )
        statement = accounting.read_statement(file)
        releases = [accounting.Release(**one.model_dump()) for one in statement.releases]
        again = statement.recompute()
        rows, left = _rows(releases, statement.delta, [*(accountant or [])], relation or Relation(statement.relation))
        told = {"claimed": statement.epsilon, "recomputed": _finite(again.epsilon), "holds": statement.holds(again)}
        _tell(rows, left, output_format, told, statement)
        raise typer.Exit(0 if statement.holds(again) else 1)
    if noise is None:
        raise UsageError(
            "nothing says what was released: --noise is not given", want="noise and length of the training, or a statement FILE",
            fix="Try: hauberk account --noise 1.1 --n 60000 --batch 256 --epochs 15",
        )
    if output is not None:
        options.new_file(output, force)
    q, count = _rate(rate, n, batch), None
    count = _count(steps, epochs, q)
    chosen = sampling.value if sampling else "full" if q == 1 else "poisson"
    release = accounting.Release(mechanism.value, noise, chosen, q, count, n)
    rows, left = _rows([release], delta, [*(accountant or [])], relation)
    _tell(rows, left, output_format, {"release": _plain(release)}, None)
    if output:
        first = next(iter(rows)).accountant
        under = relation.value if relation else None
        make_statement([release], delta, accountant=first, relation=under).write(output)
        remark(f"wrote {output}")


@command
def calibrate(
    *,
    epsilon: Annotated[float, typer.Option(help="The budget: the ε that must not be passed.", min=0)],
    noise: Noise = None, rate: Rate = None, n: Population = None, batch: Batch = None, steps: Steps = None, epochs: Epochs = None,
    sampling: HowSampled = None, mechanism: HowNoised = Mechanism.GAUSSIAN, delta: Delta = DELTA,
    accountant: Annotated[Accountant, typer.Option(help="How ε is computed.")] = Accountant.PLD,
    relation: By = None, output_format: options.Output = options.Format.TEXT, verbose: Verbose = False,
) -> None:
    """Find the noise that keeps a budget over given steps, or the last step and epoch that a given noise allows in it."""
    from hauberk.privacy.dp import accounting
    from hauberk.privacy.dp.accounting.calibrate import steps_per_epoch

    q = _rate(rate, n, batch)
    if q == 0:
        raise UsageError("the sampling rate is 0: no record is ever used", want="a rate above 0", fix="Give --n and --batch")
    chosen = sampling.value if sampling else "full" if q == 1 else "poisson"
    under = relation.value if relation else None
    told: dict[str, Any] = {"budget": epsilon, "delta": delta}
    if noise is None:
        count = _count(steps, epochs, q)
        found = accounting.noise_for(
            epsilon, delta, rate=q, count=count, sampling=chosen, mechanism=mechanism.value, accountant=accountant.value,
            relation=under,
        )
        release = accounting.Release(mechanism.value, found, chosen, q, count, n)
        told |= {"noise": found, "steps": count}
        line = f"noise {found:.5g} keeps {count:,} steps within ε = {epsilon:g}"
    else:
        if steps or epochs:
            length = f"--steps {steps}" if steps else f"--epochs {epochs:g}"
            raise UsageError(
                f"--noise {noise:g} is given with {length}", want="one side: the other is found",
                fix=f"Leave out {length.split()[0]} to find how long it may train, or --noise to find the noise",
            )
        one = accounting.Release(mechanism.value, noise, chosen, q, 1, n)
        most = accounting.steps_for(epsilon, delta, one, accountant=accountant.value, relation=under)
        release = accounting.Release(mechanism.value, noise, chosen, q, most, n)
        told |= {"noise": noise, "steps": most, "epochs": most // steps_per_epoch(q)}
        line = f"noise {noise:g} allows {most:,} steps within ε = {epsilon:g}: {most // steps_per_epoch(q):,} whole epochs"
    spent = accounting.epsilon([release], delta, accountant=accountant.value, relation=under)
    told |= _row(spent)
    if output_format is options.Format.JSON:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        typer.echo("\n".join([line, f"spent then: {spent.describe()}", *(f"note: {note}" for note in spent.notes)]))


def _rate(rate: float | None, n: int | None, batch: int | None) -> float:
    if rate is not None and batch is not None:
        raise UsageError(
            f"both --rate {rate:g} and --batch {batch} are given", want="one of them", fix="Leave out --rate: it is batch / n",
        )
    if batch is None:
        return 1.0 if rate is None else rate
    if n is None:
        raise UsageError(f"--batch {batch} is given without --n", want="the records in all", fix="Add --n, such as --n 60000")
    if batch > n:
        raise UsageError(
            f"the batch of {batch} is larger than the {n} records", want=f"at most {n}",
            fix="Look whether --n and --batch are swapped",
        )
    return batch / n


def _count(steps: int | None, epochs: float | None, rate: float) -> int:
    if (steps is None) == (epochs is None):
        raise UsageError(
            "training has no length: neither --steps nor --epochs is given" if steps is None or epochs is None
            else f"both --steps {steps} and --epochs {epochs:g} are given",
            want="one of them",
            fix="Give --epochs 15, or --steps" if steps is None else "Leave out one: an epoch has 1 / rate steps",
        )
    if steps is not None:
        return steps
    assert epochs is not None
    if rate == 0 or not math.isfinite(epochs):
        raise UsageError(
            f"{epochs:g} epochs at a rate of {rate:g} have no end", want="a finite number of epochs at a rate above 0",
            fix="Give --steps in place of --epochs, or --n and --batch in place of --rate 0",
        )
    return math.ceil(epochs / rate - 1e-9)  # rounded up: never fewer steps than were made


def _rows(
    releases: list[Release], delta: float, wanted: list[Accountant], relation: Relation | None
) -> tuple[list[Spent], list[str]]:
    """Return what was spent by each accountant, and why others do not answer; those asked for by name must."""
    from hauberk.privacy.dp.accounting import epsilon

    rows, left = [], []
    for one in wanted or list(Accountant):
        try:
            under = relation.value if relation else None
            rows.append(epsilon(releases, delta, accountant=one.value, relation=under))
        except UsageError as error:
            if wanted or one is Accountant.PLD:
                raise
            left.append(f"{one.value}: {error.problem}")
    return rows, left


def _tell(
    rows: list[Spent], left: list[str], form: options.Format, told: dict[str, Any], statement: PrivacyStatement | None
) -> None:
    if form is options.Format.JSON:
        told |= {"accountants": [_row(one) for one in rows], "left_out": left}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
        return
    from hauberk.report.words import clean

    lines = [clean(statement.describe()), ""] if statement is not None else []
    lines.append(f"{'accountant':<11} {'ε':>10}  {'δ':<8} {'neighbours':<12} kind")
    for one in rows:
        figure = "∞" if math.isinf(one.epsilon) else f"{one.epsilon:.5f}"
        kind = "bound" if one.bound else "estimate, not a bound"
        lines.append(f"{one.accountant:<11} {figure:>10}  {one.delta:<8g} {one.relation:<12} {kind}")
    notes = dict.fromkeys(note for one in rows for note in one.notes)
    lines += [f"note: {note}" for note in notes] + [f"not asked: {one}" for one in left]
    if statement is not None:
        verdict = "holds" if told["holds"] else "is too low"
        again = "∞" if told["recomputed"] is None else f"{told['recomputed']:.5f}"
        lines += ["", f"verdict: the claim {verdict}; computed again it is ε = {again}"]
    typer.echo("\n".join(lines))


def _row(one: Spent) -> dict[str, Any]:
    return {
        "accountant": one.accountant, "epsilon": _finite(one.epsilon), "delta": one.delta, "relation": one.relation,
        "bound": one.bound, "notes": list(one.notes),
    }


def _plain(release: Release) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(release)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
