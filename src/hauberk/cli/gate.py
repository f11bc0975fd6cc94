"""hauberk gate: turns the findings of a report into limits for CI."""

from __future__ import annotations

import decimal
import json
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hauberk.cli.console import command, remark

if TYPE_CHECKING:
    from hauberk.core.finding import Finding
    from hauberk.report.report import Report


@command
def gate(
    *,
    source: Annotated[Path, typer.Option("--from", help="A report folder or report.json.")],
    output: Annotated[Path | None, typer.Option(help="A file to write; left out, the table is printed.")] = None,
    margin: Annotated[float, typer.Option(help="Room beyond the interval, in the unit of each value.", min=0)] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Turn the findings of a report into limits for CI: what is reached today must hold tomorrow.

    Each limit is the unfavourable end of the finding's interval, so that chance alone does not trip it; where there is no
    interval, the check's own limits stay. Use the table in a plan, or the file with: hauberk assess PLAN --gate FILE.
    """
    from hauberk.core.errors import UsageError
    from hauberk.core.files import write_whole
    from hauberk.report.lock import LOCK, runs_again
    from hauberk.report.report import Report

    if output is not None and output.exists() and not force:
        raise UsageError(f"{output} exists already", want="a new file", fix="Use --force to write over it")
    report = Report.load(source)
    text = gate_table(report, margin)
    failing = [finding.id for finding in report.findings if finding.status.value == "fail"]
    if failing:
        remark(f"failing in this report: {', '.join(failing)}. A limit made from a failure accepts it: mend it first, or mean it")
    if output is None:
        typer.echo(text, nl=False)
        return
    write_whole(output, text)
    limits = sum(row.startswith('"') for row in text.splitlines())
    lock = (source if source.is_dir() else source.parent) / LOCK
    plan = shlex.quote(str(lock)) if runs_again(report) and lock.exists() else "PLAN"
    typer.echo(f"{output} is written: {limits} gates. Next: hauberk assess {plan} --gate {shlex.quote(str(output))}")


def gate_table(report: Report, margin: float = 0.0) -> str:
    """Return the [gate] table of a report as TOML, with value and interval in a comment above each limit."""
    from hauberk.report.words import figure, line

    lines = ["# Limits made from a report by hauberk gate: a check fails beyond its limit, and where it does not run.", "[gate]"]
    for finding in report.findings:
        limit = _limit(finding, margin)
        told = line(figure(finding) or finding.reason or finding.summary, 200)
        if finding.status.value in ("error", "not run"):
            lines.append(f"# {line(finding.id)}: {finding.status.value} ({told}); no gate")
            continue
        lines.append(f"# {finding.status.value}: {told}" if told else f"# {finding.status.value}")
        key = json.dumps(finding.id, ensure_ascii=False)
        lines.append(f"{key} = {{ {limit}, run = true }}" if limit else f"{key} = {{ run = true }}")
    return "\n".join(lines) + "\n"


def _limit(finding: Finding, margin: float) -> str:
    """Return `min = …` or `max = …`: the unfavourable end of the interval, rounded away from the value.

    A figure without an interval gets none, and its check's own limits stay; nor does a p-value, which is no level to hold.
    """
    if finding.value is None or finding.interval is None or finding.unit == "p-value":
        return ""
    better = finding.better == "higher"
    end: float | None = finding.interval.low if better else finding.interval.high
    if end is None or not math.isfinite(end):  # an end that is infinite comes back from a file as None
        return ""
    if better:
        return f"min = {_rounded(min(end, finding.value) - margin, down=True)}"
    return f"max = {_rounded(max(end, finding.value) + margin, down=False)}"


def _rounded(value: float, *, down: bool) -> str:
    """Return the value with four significant digits, never on the favourable side of it."""
    rounding = decimal.ROUND_FLOOR if down else decimal.ROUND_CEILING
    return repr(float(decimal.Context(prec=4, rounding=rounding).create_decimal(repr(float(value)))))
