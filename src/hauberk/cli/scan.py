"""hauberk scan: says what opening a model file would run, without opening it; and hauberk convert: keeps the numbers alone."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hauberk.cli import options
from hauberk.cli.console import command, remark, say
from hauberk.core.errors import UsageError
from hauberk.report.report import EXIT_FINDINGS, EXIT_PASS

if TYPE_CHECKING:
    from hauberk.assets.scan import Level, ScanResult

_LIMITS = "Limits on one file; what goes beyond could not be verified"


class Format(enum.StrEnum):
    """How the verdicts are written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"


class FailOn(enum.StrEnum):
    """The least that makes the exit code 1."""

    FRAMEWORK = "framework"
    UNKNOWN = "unknown"
    UNVERIFIABLE = "unverifiable"
    DANGEROUS = "dangerous"
    NEVER = "never"


@command
def scan(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Files, folders and archives.")],
    *,
    output_format: Annotated[Format, typer.Option(
        "--format", "--output-format", help="How the verdicts are written.")] = Format.TEXT,
    output: Annotated[Path | None, typer.Option(help="Write to this file, not to stdout.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    allow: Annotated[list[str] | None, typer.Option(
        help="A name that you vouch for, module:name, or a file with one on each line; repeatable.")] = None,
    fail_on: Annotated[FailOn, typer.Option(
        help="The least that makes the exit code 1: any object but data, code, doubt, danger.")] = FailOn.UNKNOWN,
    max_seconds: Annotated[float | None, typer.Option(help="Wall time.", min=0.0, rich_help_panel=_LIMITS)] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes read and unpacked.", min=1, rich_help_panel=_LIMITS)] = None,
    max_members: Annotated[int | None, typer.Option(
        help="Entries of an archive, files of a folder.", min=1, rich_help_panel=_LIMITS)] = None,
    max_depth: Annotated[int | None, typer.Option(help="Archives in archives.", min=1, rich_help_panel=_LIMITS)] = None,
    max_ratio: Annotated[int | None, typer.Option(help="Unpacked over packed bytes.", min=1, rich_help_panel=_LIMITS)] = None,
    verbose: options.Verbose = False,
) -> None:
    """Say what opening model files would run, without opening them.

    Levels: safe data, safe framework objects, unknown code, cannot be verified, dangerous. Exit codes: 0 all is safe,
    1 something is not, 2 usage error, 3 the scan failed to run.
    """
    if output is not None:
        options.new_file(output, force)
    from hauberk.assets.scan import Level, Limits, scan_paths

    given = {"seconds": max_seconds, "read": max_bytes, "members": max_members, "depth": max_depth, "ratio": max_ratio}
    limits = Limits(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    results = list(scan_paths(paths, limits=limits, allow=_allowed(allow or [])))
    least = Level[fail_on.name] if fail_on is not FailOn.NEVER else None
    made = _written(results, output_format, least or Level.UNKNOWN)
    if output is not None:
        from hauberk.core.files import write_whole

        write_whole(output, made)
        remark(f"written to {output}")
    elif output_format is Format.TEXT:
        _print(made)
    else:
        typer.echo(made, nl=False)
    failed = least is not None and any(one.level >= least for one in results)
    raise typer.Exit(EXIT_FINDINGS if failed else EXIT_PASS)


@command
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A torch, pickle, joblib, npy or npz file.")],
    *,
    safe: Annotated[bool, typer.Option("--safe", help="Write safetensors; nothing in the file is executed.")] = False,
    output: Annotated[Path | None, typer.Option(help="The safetensors file.", show_default="FILE.safetensors")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Rewrite a model file as safetensors, beside a JSON of what was left out and why, without executing anything."""
    if not safe:
        raise UsageError("convert is asked for no form", want="--safe", fix=f"Run: hauberk convert {file} --safe")
    options.not_folder(file, "a model file")
    place = output or file.with_suffix(".safetensors")
    if place.exists() and place.resolve() == file.resolve():
        raise UsageError(f"{file} would be written over itself", want="another --output")
    from hauberk.assets.scan.convert import convert_safe, sidecar
    from hauberk.report.words import line

    options.new_file(place, force)
    options.new_file(sidecar(place), force)
    made = convert_safe(file, place)
    say(f"{place}: {len(made.tensors)} tensors, {len(made.values)} plain values in {sidecar(place).name}")
    for one in made.left_out[:10]:
        typer.echo(f"  left out: {line(one.where or 'the file')}: {line(one.what)}")
    if len(made.left_out) > 10:
        typer.echo(f"  and {len(made.left_out) - 10} more: see {line(sidecar(place))}")


def _allowed(given: list[str]) -> list[str]:
    names: list[str] = []
    for one in given:
        if ":" in one and not Path(one).is_file():
            names.append(one)
            continue
        try:
            rows = Path(one).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            found = f"--allow is {one!r}, which cannot be read ({why})"
            raise UsageError(found, want="module:name, or a file of such") from error
        names += [row.split("#")[0].strip() for row in rows if row.split("#")[0].strip()]
    return names


def _written(results: list[ScanResult], form: Format, least: Level) -> str:
    from hauberk import __version__
    from hauberk.report import scans

    if form is Format.JSON:
        return scans.as_json(results, __version__)
    if form is Format.SARIF:
        return scans.as_sarif(results, __version__, least=least)
    return scans.as_junit(results, least=least) if form is Format.JUNIT else scans.text(results)


def _print(made: str) -> None:
    import rich.console
    import rich.text

    console = rich.console.Console(highlight=False)
    styles = {"dangerous": "bold red", "cannot be verified": "red", "unknown code": "yellow", "safe data": "green",
              "safe framework objects": "green"}
    for row in made.rstrip("\n").splitlines():
        shown = rich.text.Text(row)
        style = styles.get(row[:22].strip())
        if style:
            shown.stylize(style, 0, 22)
        console.print(shown, soft_wrap=True)
