"""hauberk diff: what changed between two reports, and what of it is more than chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hauberk.cli.console import command
from hauberk.core.finding import Status
from hauberk.report.report import EXIT_FINDINGS, EXIT_PASS

if TYPE_CHECKING:
    from hauberk.core.finding import Finding
    from hauberk.report.report import Report

ANSWERED = (Status.PASS, Status.WARN, Status.FAIL)
STYLES = {"worse": "red", "lost": "red", "better": "green", "new": "cyan", "changed": "yellow", "other": "yellow", "same": "dim"}


@command
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="The earlier report: its folder or report.json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The later one.")],
    *,
    everything: Annotated[bool, typer.Option("--all", help="List what did not change as well.")] = False,
) -> None:
    """Compare two reports; the exit code is 1 if anything got worse.

    A figure is better or worse only where the intervals have no point in common. A check that answered before and does not
    now is lost, which counts as worse: not run is never green.
    """
    from hauberk.report.report import Report

    changes = compare(Report.load(before), Report.load(after))
    shown = [change for change in changes if everything or change.verdict != "same"]
    _show(shown)
    worse = sum(change.worse for change in changes)
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in STYLES}
    typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "no findings in either report")
    raise typer.Exit(EXIT_FINDINGS if worse else EXIT_PASS)


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one finding: `worse`, `lost`, `better`, `new`, `changed` (its status), `other` (not comparable), `same`."""

    id: str
    verdict: str
    words: str

    @property
    def worse(self) -> bool:
        """Whether the exit code should tell."""
        return self.verdict in ("worse", "lost")


def compare(before: Report, after: Report) -> list[Change]:
    """Return the changes from one report to another, the findings of the later one first."""
    old = {finding.id: finding for finding in before.findings}
    new = {finding.id: finding for finding in after.findings}
    return [_change(name, old.get(name), new.get(name)) for name in [*new, *(name for name in old if name not in new)]]


def _change(name: str, old: Finding | None, new: Finding | None) -> Change:
    from hauberk.core.stats import separate

    if new is None or old is None:
        one = new or old
        assert one is not None
        lost = new is None and one.status in ANSWERED
        verdict = "lost" if lost else "new" if new is not None else "changed"
        return Change(name, verdict, f"{_words(old)} → {_words(new)}")
    words = f"{_words(old)} → {_words(new)}"
    if old.status in ANSWERED and new.status not in ANSWERED:
        return Change(name, "lost", words + (f": {new.reason}" if new.reason else ""))
    if old.status not in ANSWERED:
        return Change(name, "same" if old.status is new.status else "new", words)
    if old.threat != new.threat or old.unit != new.unit or old.access != new.access:
        return Change(name, "other", f"{words}; measured otherwise: {_conditions(old)} → {_conditions(new)}")
    if old.value is not None and new.value is not None and old.interval is not None and new.interval is not None:
        if separate(old.interval, new.interval):
            gained = (new.value > old.value) == (new.better == "higher")
            return Change(name, "better" if gained else "worse", words)
        if old.status is not new.status:
            why = "judged by other limits" if old.value == new.value else "the intervals overlap: no more than chance"
            return Change(name, "changed", f"{words}; {why}")
        return Change(name, "same", words)
    if old.status is not new.status:  # no interval can tell: the verdict of the check does
        return Change(name, "worse" if new.status.severity > old.status.severity else "better", words)
    return Change(name, "same", words)


def _words(finding: Finding | None) -> str:
    from hauberk.report.words import figure

    if finding is None:
        return "absent"
    told = figure(finding)
    return f"{finding.status.value} {told}" if told else finding.status.value


def _conditions(finding: Finding) -> str:
    return ", ".join(part for part in (finding.threat or "no threat", finding.access and f"{finding.access} access") if part)


def _show(changes: list[Change]) -> None:
    import rich.console
    import rich.text

    from hauberk.report.words import line

    console = rich.console.Console(highlight=False)
    width = max((len(change.id) for change in changes), default=0)
    for change in changes:
        text = rich.text.Text.assemble(
            (f"{change.verdict:<7}", STYLES[change.verdict]), f"  {line(change.id):<{width}}  {line(change.words)}"
        )
        console.print(text, soft_wrap=True)
