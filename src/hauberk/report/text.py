"""The report as plain text: in full, its summary, a line per finding, or as workflow commands of GitHub."""

from __future__ import annotations

import textwrap

from hauberk.core.finding import Finding, Status
from hauberk.report import lock, scope
from hauberk.report.overview import Action, Pillar, answer, headline, next_three, pillars
from hauberk.report.report import Report
from hauberk.report.taxonomy import mitigation
from hauberk.report.words import figure, line, listed, plural, seconds

WIDTH = 100
_STATUS = 8
_COMMANDS = {Status.FAIL: "error", Status.ERROR: "error", Status.WARN: "warning", Status.NOT_RUN: "notice"}


def full(report: Report, place: str = lock.LOCK) -> str:
    """Return the report in at most 100 columns: scope, findings pillar by pillar, the verdict, what to do next.

    Arguments:
        report: what to write.
        place: where the locked plan will be, seen from where the reader is; the commands name it.
    """
    blocks = _head(report)
    for pillar in pillars(report):
        if pillar.findings:
            rows = [line(pillar.title, 60).upper()]
            for finding in sorted(pillar.findings, key=lambda one: -one.status.severity):
                rows += _finding(finding, report, place)
            blocks.append("\n".join(rows))
    blocks.append("\n".join(_verdict(report, place)))
    return "\n\n".join(blocks) + "\n"


def summary(report: Report, place: str = lock.LOCK) -> str:
    """Return scope, verdict and what to do next: for those who saw each finding as it was made."""
    return "\n\n".join([*_head(report), "\n".join(_verdict(report, place))]) + "\n"


def concise(report: Report) -> str:
    """Return one line per finding, in the order of the checks, and one with the counts."""
    width = min(38, max([len(line(one.id)) for one in report.findings], default=0))
    rows = []
    for one in report.findings:
        answered = one.status not in (Status.NOT_RUN, Status.ERROR)
        told = figure(one) if answered and figure(one) else answer(one)
        rows.append(_fit(f"{one.status.value:<{_STATUS}} {line(one.id, 38):<{width}}  {told}"))
    return "\n".join([*rows, _counts(report)]) + "\n"


def github(report: Report, place: str = lock.LOCK) -> str:
    """Return workflow commands: `::error` for what fails or broke, `::warning` for warnings, `::notice` for what was not run."""
    rows = []
    for one in report.findings:
        command = _COMMANDS.get(one.status)
        if command is None:
            continue
        told = [
            answer(one) or one.question,
            *(f"To do: {item.text}{_command(item.command, report, place)}" for item in one.advice[:1]),
        ]
        title = f"{one.id} ({one.status.value})"
        rows.append(f"::{command} title={_property(title)}::{_data(line(' '.join(told), 1000))}")
    title, said = headline(report)
    # No line of ours can begin with two colons, so that no text of a finding is taken for a command.
    return "\n".join([*rows, f"Hauberk: {line(title)}. {line(said)}", _counts(report)]) + "\n"


def _head(report: Report) -> list[str]:
    name, about = scope.model_name(report), scope.about(report)
    blocks = ["\n".join(_wrap(f"Hauberk: {name}", indent="") + (_wrap(about, indent="") if about else []))]
    notices = scope.notices(report.scope)
    if notices:
        blocks.append("\n".join(row for one in notices for row in _wrap(f"notice: {one}", indent="")))
    return blocks


def _finding(finding: Finding, report: Report, place: str) -> list[str]:
    rows = [_fit(f"  {finding.status.value:<{_STATUS}} {line(finding.question or finding.id)}")]
    indent = " " * (_STATUS + 3)
    rows += _wrap(answer(finding), indent)
    facts = [line(finding.id, 80)]
    if finding.status not in (Status.NOT_RUN, Status.ERROR):
        facts += [figure(finding), line(finding.threat, 200)]
        facts += [plural(finding.queries, "query", "queries")] if finding.queries else []
        facts += [seconds(finding.seconds)]
    rows += _wrap(" · ".join(one for one in facts if one), indent)
    for note in finding.notes:
        rows += _wrap(f"note: {note}", indent)
    if finding.status is not Status.PASS:
        for one in finding.advice:
            named = f" ({mitigation(one.mitigation)})" if one.mitigation else ""
            rows += _wrap(f"to do: {one.text}{named}{_command(one.command, report, place)}", indent)
    return rows


def _verdict(report: Report, place: str) -> list[str]:
    title, said = headline(report)
    parts = pillars(report)
    width = max(len(line(one.title, 30)) for one in parts)
    rows = ["VERDICT", *_wrap(f"{title}. {said}", "  "), *(_fit(_pillar(one, width)) for one in parts), f"  {_counts(report)}"]
    first = next_three(report)
    if first:
        rows += ["", "DO NEXT"]
        given = lock.preamble([action.command for action in first], report, place)
        rows += ["  Before what is Python:"] if given else []
        for prompt, step in given:
            rows += _typed(prompt, step)
        for at, action in enumerate(first, 1):
            rows += _action(at, action, report, place)
    if lock.runs_again(report):
        rows += ["", f"Again: {line(lock.command(report, place), 1200)}"]
    return rows


def _pillar(pillar: Pillar, width: int) -> str:
    return f"  {line(pillar.title, 30):<{width}}  {pillar.word:<11}  {pillar.words}"


def _action(at: int, action: Action, report: Report, place: str) -> list[str]:
    ids = [line(one.id, 60) for one in action.findings]
    shown = listed(ids if len(ids) <= 3 else [*ids[:3], f"{len(ids) - 3} more"])
    named = f" ({mitigation(action.mitigation)})" if action.mitigation else ""
    rows = _wrap(f"{at}. {action.text}{named}", "  ", "     ")
    rows += _wrap(f"for {shown} ({action.status.value})", "     ")
    for prompt, step in lock.steps(action.command, report, place) if action.command else []:
        rows += _typed(prompt, step)
    return rows


def _counts(report: Report) -> str:
    counts = report.counts()
    told = ", ".join(f"{counts[word]} {word}" for word in ("fail", "warn", "pass", "error", "not run"))
    return f"{plural(len(report.findings), 'finding')}: {told}"


def _command(command: str, report: Report, place: str) -> str:
    typed = " ".join(f"{prompt} {step}" for prompt, step in lock.steps(command, report, place)) if command else ""
    return f": {line(typed, 300)}" if typed else ""


def _typed(prompt: str, step: str) -> list[str]:
    """Return a step behind its prompt; where it takes several rows, they can still be typed as they stand."""
    more, end = (f"     {' ' * len(prompt)} ", " \\") if prompt == "$" else ("     ... ", "")
    rows = textwrap.wrap(
        line(step, 1200), WIDTH - len(end), initial_indent=f"     {prompt} ", subsequent_indent=more, break_on_hyphens=False
    )
    return [*(row + end for row in rows[:-1]), *rows[-1:]]


def _wrap(text: str, indent: str, later: str | None = None) -> list[str]:
    return textwrap.wrap(
        line(text, 1200), WIDTH, initial_indent=indent, subsequent_indent=later or " " * len(indent), break_on_hyphens=False
    )


def _fit(text: str) -> str:
    text = text.rstrip()
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(line(text, 200)).replace(":", "%3A").replace(",", "%2C")
