"""hauberk assess: from a plan to a report folder, a summary and an exit code."""

from __future__ import annotations

import enum
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import EXIT_INTERRUPTED, STYLES, command, complain, remark
from hauberk.core.finding import Status

if TYPE_CHECKING:
    from hauberk.io.plan_schema import Plan
    from hauberk.report.report import Report


_STATUS = re.compile(r"(?: {2}[A-Z][a-z]+ +)?(?: {2})?(pass|warn|fail|error|not run)\b")


class Format(enum.StrEnum):
    """What is written on stdout."""

    FULL = "full"
    CONCISE = "concise"
    JSON = "json"
    JUNIT = "junit"
    SARIF = "sarif"
    GITHUB = "github"


class FailOn(enum.StrEnum):
    """The least that makes the exit code 1."""

    FAIL = "fail"
    WARN = "warn"
    NEVER = "never"


@command
def assess(
    plan: Annotated[Path | None, typer.Argument(
        metavar="PLAN", help="A plan.toml, a pyproject.toml with a table tool.hauberk, or a folder with one (this one).",
    )] = None,
    *,
    model: options.Model = "", weights: options.Weights = "", data: options.TestData = "", train: options.Train = "",
    label: options.Label = "", groups: options.Groups = None, bounds: options.Bounds = "",
    classes: options.Classes = None, threat: options.Threats = None,
    access: options.Grant = None,
    select: Annotated[list[str] | None, typer.Option(
        help="Checks by name, pillar or glob; repeatable, or a comma list.", rich_help_panel="How")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Checks to leave out.", rich_help_panel="How")] = None,
    preset: Annotated[options.Preset | None, typer.Option(help="How thoroughly.", rich_help_panel="How")] = None,
    budget: Annotated[str, typer.Option(
        help="Time, such as 90s, 10m or 1h; checks whose turn comes later are reported as not run.", rich_help_panel="How")] = "",
    seed: options.Seed = None, device: options.Device = None,
    workers: Annotated[int | None, typer.Option(help="Processes.", rich_help_panel="How", min=1)] = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Go on where an interrupted run in the output folder stopped.", rich_help_panel="How")] = False,
    trust: options.Trust = False,
    gate: Annotated[Path | None, typer.Option(
        help="A file of limits, as hauberk gate writes it; they come before those of the plan.", rich_help_panel="How",
    )] = None,
    output: Annotated[Path, typer.Option(help="The report folder.")] = Path("report"),
    output_format: Annotated[Format | None, typer.Option(
        help="What to write on stdout.", show_default="a summary; the findings are shown as they are made")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="The least that makes the exit code 1.")] = FailOn.FAIL,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, and the summary in short.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Assess a model and write a report folder.

    Options come before what the plan says. Exit codes: 0 pass, 1 findings at the gate, 2 usage or plan error, 3 a check failed
    to run.
    """
    chosen = options.choose_plan(
        plan,
        model={"path": model, "weights": weights, "access": access.value if access else None},
        data={
            "test": data, "train": train, "label": label, "groups": options.words(groups), "bounds": bounds, "classes": classes,
        },
        threats=threat,
        run={
            "preset": preset.value if preset else None, "seed": seed, "minutes": options.seconds(budget) / 60 if budget else None,
            "select": options.words(select), "ignore": options.words(ignore), "workers": workers, "device": device,
        },
    )
    if gate is not None:
        chosen = _gated(chosen, gate)
    report = _carry_out(chosen, output, resume=resume, trust=trust, quiet=quiet, verbose=verbose)
    report.to_html(output)
    form = output_format or (Format.CONCISE if quiet else None)
    _print(render(report, form, output), coloured=form in (None, Format.FULL, Format.CONCISE))
    late = sum("the time budget of" in finding.reason for finding in report.findings)
    if late:
        remark(f"the time was up: {late} checks have no answer; --resume with a larger --budget goes on from here")
    if not quiet:
        remark(f"report: {output / 'index.html'}")
    raise typer.Exit(report.exit_code(fail_on.value))


def render(report: Report, form: Format | None, output: Path = Path("report")) -> str:
    """Return the report, kept in the folder `output`, in a form for stdout; None gives the summary."""
    if form is Format.JSON:
        return report.to_json()
    if form is Format.JUNIT:
        from hauberk.report.junit import junit

        return junit(report)
    if form is Format.SARIF:
        from hauberk.report.sarif import sarif_json

        return sarif_json(report)
    from hauberk.report import lock, text

    if form is Format.CONCISE:
        return text.concise(report)
    made = {None: text.summary, Format.FULL: text.full, Format.GITHUB: text.github}[form]
    return made(report, str(output / lock.LOCK))


def _print(text: str, *, coloured: bool) -> None:
    """Write a rendered report on stdout, statuses coloured on a terminal."""
    import rich.console
    import rich.text

    console = rich.console.Console(highlight=False)
    if not coloured or not console.is_terminal:
        typer.echo(text.rstrip("\n"))
        return
    for row in text.rstrip("\n").splitlines():
        shown = rich.text.Text(row, style="bold" if row.isupper() else "")
        found = _STATUS.match(row)
        if found:
            shown.stylize(STYLES[Status(found[1])], *found.span(1))
        console.print(shown, soft_wrap=True)


def _carry_out(plan: Plan, output: Path, *, resume: bool, trust: bool, quiet: bool, verbose: bool) -> Report:
    from hauberk.cli.watch import Watcher

    watcher = Watcher(quiet=quiet, verbose=verbose)
    try:
        with watcher.watching():
            watcher.say("loading")
            from hauberk.assessment import Run, carry_out
            from hauberk.io.plan import resolved
            from hauberk.planned import naming_the_call, prepare, selection

            names = selection(plan)
            left_out = [name for name in plan.gate if name not in names]
            if left_out:
                more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
                watcher.say(f"gates without a check in this run: {', '.join(left_out[:3])}{more}")
            target, data, settings = prepare(plan, trust)
            minutes = plan.run.minutes

            def told(count: int) -> None:
                if not count:
                    watcher.say(f"{output} holds no findings to go on with: a new run begins")
                    return
                found = "1 finding is" if count == 1 else f"{count} findings are"
                watcher.say(f"{found} taken over from the interrupted run in {output}")

            def noticed(text: str) -> None:
                remark(f"notice: {text}")  # whatever else is quiet

            run = Run(
                select=names, output=output, resume=resume, seconds=None if minutes is None else minutes * 60,
                workers=plan.run.workers, material=functools.partial(prepare, plan, trust), plan=resolved(plan, output=output),
            )
            with naming_the_call(plan):
                return carry_out(target, data, settings, run, watch=watcher.finding, taken_over=told, notice=noticed)
    except KeyboardInterrupt as error:
        kept = f"{watcher.findings} findings are kept in {output}: " if watcher.findings else ""
        complain(f"interrupted; {kept}the same command with --resume goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from error


def _gated(plan: Plan, place: Path) -> Plan:
    from hauberk.core.errors import UsageError
    from hauberk.io.plan import changed, read_table

    make = f"Make one: hauberk gate --from REPORT --output {place}"
    if not place.is_file():
        what = "is a folder" if place.is_dir() else "does not exist"
        raise UsageError(f"the gate file {place} {what}", want="a file of limits", fix=make)
    try:
        table: Any = read_table(place).get("gate")
    except UsageError as error:
        raise UsageError(f"the gate file: {error.problem}", want="a file of limits", fix=make) from error
    if not isinstance(table, dict):
        raise UsageError(f"the gate file {place} has no table [gate]", want="a file of limits", fix=make)
    return changed(plan, {"gate": table}, name=place.name)
