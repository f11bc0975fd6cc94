"""What a running assessment tells: bars on a terminal, a line per finding elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import rich.console
import rich.progress
import rich.text

from hauberk.cli.console import STYLES
from hauberk.core import progress
from hauberk.report.words import clean, figure, line, number, seconds

if TYPE_CHECKING:
    from hauberk.core.finding import Finding


class Watcher:
    """Is told of progress and findings, and shows them.

    Arguments:
        quiet: show nothing.
        verbose: with every finding its cost and notes.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = rich.console.Console(stderr=True, highlight=False)
        self.findings = 0
        self._bars: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watcher]:
        """Listen to the progress of the block."""
        if self.quiet:
            yield self
            return
        if not self.console.is_terminal:
            with progress.listening(self):
                yield self
            return
        bars = rich.progress.Progress(
            rich.progress.SpinnerColumn(), rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(), rich.progress.TimeElapsedColumn(), console=self.console, transient=True,
        )
        self._bars = bars
        try:
            with bars, progress.listening(self):
                yield self
        finally:
            self._bars = None
            self._tasks.clear()

    def update(self, label: str, done: int, total: int | None) -> None:
        """Move the bar of a loop; it goes when the loop is done."""
        if self._bars is None:
            return
        if total is not None and done >= total:
            if label in self._tasks:
                self._bars.remove_task(self._tasks.pop(label))
            return
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(line(label), total=total)
        self._bars.update(self._tasks[label], completed=done, total=total)

    def finding(self, finding: Finding) -> None:
        """Show a finding as it is made."""
        self.findings += 1
        if not self.quiet:
            self.console.print(finding_line(finding), soft_wrap=True)
            if self.verbose:
                self._details(finding)

    def say(self, text: str) -> None:
        """Show a remark."""
        if not self.quiet:
            self.console.print(rich.text.Text(line(text)), soft_wrap=True)

    def stage(self, text: str) -> None:
        """Show that a stage is done; on a terminal the bars tell it."""
        if not self.console.is_terminal:
            self.say(f"finished: {text}")

    def _details(self, finding: Finding) -> None:
        cost = [f"{number(finding.queries)} queries"] if finding.queries else []
        cost += [f"{number(finding.gradients)} gradients"] if finding.gradients else []
        told = [", ".join([*cost, seconds(finding.seconds)])]
        told += [text for text in (finding.summary, finding.threat, *finding.notes) if text]
        for text in told:
            self.console.print(rich.text.Text(f"        {clean(line(text))}", style="dim"), soft_wrap=True)


def finding_line(finding: Finding) -> rich.text.Text:
    """Return status, id, value with interval and n of a finding on one line; the reason where there is no value."""
    told = figure(finding) or finding.reason or finding.summary
    return rich.text.Text.assemble(
        (f"{finding.status.value:<7}", STYLES[finding.status]), f"  {line(finding.id):<34}  {line(told, 300)}"
    )
