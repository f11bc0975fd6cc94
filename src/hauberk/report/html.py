"""The report as one HTML page: self-contained, readable without JavaScript, in light, dark and print, at most 400 KB."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from hauberk.core.finding import Finding, Gallery, Status
from hauberk.report import lock, overview, scope
from hauberk.report.figures import evidence_html
from hauberk.report.markup import trusted
from hauberk.report.report import Report
from hauberk.report.svg import interval_bar
from hauberk.report.taxonomy import matrix, mitigation
from hauberk.report.words import clean, interval_words, line, number, plural, seconds, slug

LIMIT = 400_000
_FOLDED = (Status.PASS, Status.NOT_RUN)


@dataclasses.dataclass(frozen=True)
class View:
    """A finding with what the page needs to show it.

    Arguments:
        finding: what is shown.
        anchor: its place in the page.
        figures: its evidence as HTML.
        dropped: what was left out to keep the page small, in words.
    """

    finding: Finding
    anchor: str
    figures: tuple[Markup, ...] = ()
    dropped: str = ""

    @property
    def open(self) -> bool:
        """Whether it is shown unfolded."""
        return self.finding.status not in _FOLDED

    @property
    def value(self) -> str:
        """The figure, or nothing."""
        return "" if self.finding.value is None else number(self.finding.value, self.finding.unit)

    @property
    def interval(self) -> str:
        """Interval and n in words."""
        one, told = self.finding, []
        span = interval_words(one.interval, one.unit)
        if span:
            told.append(span)
        if one.n is not None:
            told.append(f"n = {number(one.n)}")
        return ", ".join(told)

    @property
    def bar(self) -> Markup:
        """The figure as a small bar."""
        return interval_bar(self.finding)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the figure was measured under, and what it cost."""
        one = self.finding
        spent = [plural(one.queries, "query", "queries")] if one.queries else []
        spent += [plural(one.gradients, "gradient")] if one.gradients else []
        known = [("Id", line(one.id, 120)), ("Threat", line(one.threat, 300)), ("Access", line(one.access.lower(), 40))]
        if one.interval is not None:
            known.append(("Interval", f"{number(one.interval.confidence * 100)}% {line(one.interval.method, 60)}"))
        if one.value is not None:
            known.append(("Direction", f"{line(one.better, 20)} is better"))
        spent += [seconds(one.seconds)] if one.seconds else []
        known += [("Spent", ", ".join(spent)), ("Tags", line(", ".join(map(str, one.tags)), 400))]
        return [(label, value) for label, value in known if value]


def render(report: Report, limit: int = LIMIT) -> str:
    """Return the page.

    Arguments:
        report: what to show.
        limit: bytes at most. A page that would be larger loses pictures, the last first, then other figures; it says so.
    """
    figures = [
        (finding, [evidence_html(one, f"{anchor(finding)}-{at}") for at, one in enumerate(finding.evidence)])
        for finding in report.findings
    ]
    droppable = _droppable(figures)
    dropped: set[tuple[int, int]] = set()
    page = _page(report, figures, dropped)
    excess = len(page.encode("utf-8")) - limit
    while excess > 0 and droppable:
        excess += 400  # what the notes about it take
        while excess > 0 and droppable:
            row, at = droppable.pop()
            dropped.add((row, at))
            excess -= len(figures[row][1][at].encode("utf-8"))
        page = _page(report, figures, dropped)
        excess = len(page.encode("utf-8")) - limit
    return page


def anchor(finding: Finding) -> str:
    """Return the anchor of a finding in the page."""
    name = slug(finding.id)
    # Ids that differ in more than letters, digits and hyphens must not share an anchor.
    mark = "" if name == finding.id.replace("/", "-") else f"-{zlib.crc32(finding.id.encode('utf-8', 'replace')):08x}"
    return f"f-{name}{mark}"


def _droppable(figures: Sequence[tuple[Finding, list[Markup]]]) -> list[tuple[int, int]]:
    """Return places of evidence in the order they are kept: what goes first stands last."""
    places = [(row, at) for row, (finding, _) in enumerate(figures) for at in range(len(finding.evidence))]
    pictures = [place for place in places if isinstance(figures[place[0]][0].evidence[place[1]], Gallery)]
    return [place for place in places if place not in set(pictures)] + pictures


def _page(report: Report, figures: Sequence[tuple[Finding, list[Markup]]], dropped: set[tuple[int, int]]) -> str:
    shown = {}
    for row, (finding, drawn) in enumerate(figures):
        left = [finding.evidence[at] for at in range(len(drawn)) if (row, at) in dropped]
        kept = tuple(one for at, one in enumerate(drawn) if (row, at) not in dropped)
        shown[row] = View(finding, anchor(finding), kept, _note(left))
    parts = overview.pillars(report)
    views = {
        part.name: sorted(
            (view for view in shown.values() if view.finding.pillar == part.name), key=lambda view: -view.finding.status.severity
        )
        for part in parts
    }
    cells, todo = matrix(report), overview.actions(report)
    everything = [report.findings[row].evidence[at] for row, at in dropped]
    note = _note(everything)
    return environment().get_template("report.html").render(
        name=scope.model_name(report), about=scope.about(report), verdict=overview.headline(report), worst=_worst(report),
        pillars=parts, views=views, counts=[(one.value, report.counts()[one.value]) for one in overview.SHOWN],
        blanks=[one for one in report.findings if one.status in (Status.NOT_RUN, Status.ERROR)],
        first=overview.next_three(report), actions=[one for one in todo if one.status is not Status.NOT_RUN],
        unlock=[one for one in todo if one.status is Status.NOT_RUN], matrix=cells,
        covered=sum(bool(cell.findings) for column in cells.values() for cell in column),
        scope=scope.groups(report.scope), notices=scope.notices(report.scope), versions=scope.versions(report.scope),
        lock=escape(clean(lock.lock_toml(report), 20_000)), command=lock.command(report), how=_how(report),
        steps=functools.partial(lock.steps, report=report),
        preamble=lock.preamble([one.command for one in todo], report),
        findings=report.findings, dropped=note, footer=_footer(report), css=trusted(styles()),
    )


def _note(left: Sequence[Any]) -> str:
    if not left:
        return ""
    pictures = sum(len(one.pictures) for one in left if isinstance(one, Gallery))
    others = sum(not isinstance(one, Gallery) for one in left)
    words = [plural(pictures, "picture")] if pictures else []
    words += [plural(others, "figure")] if others else []
    return f"{' and '.join(words)} left out to keep this page below {LIMIT // 1000} KB; report.json has all of them."


def _worst(report: Report) -> str:
    if not report.findings:
        return "not covered"
    counts = report.counts()
    return next((word for word in ("fail", "error", "warn") if counts[word]), "not run" if counts["not run"] else "pass")


def _how(report: Report) -> str:
    if lock.runs_again(report):
        return (
            "plan.lock.toml in this folder holds the plan, the seed and the versions: run the command in this folder. "
            "The same versions and seed give the same figures."
        )
    if lock.own_command(report):
        return "The same command, versions and seed give the same figures; what this folder keeps is taken up."
    return "Model and data came as Python objects. With the same objects, versions and seed, this call gives the same figures."


def _footer(report: Report) -> str:
    version = report.plan.get("hauberk") or dict(scope.versions(report.scope)).get("hauberk", "")
    made = f"Made by hauberk {line(version, 40)}".strip()
    return f"{made}. Every figure holds under the threat, data and access that it names."


def styles(*, page: bool = True) -> str:
    """Return the style sheet: of the whole page, or of the parts alone, kept within `.hauberk`, for a notebook."""
    tokens, parts = _template("tokens.css"), _template("parts.css")
    return f"{tokens}{parts}{_template('page.css')}" if page else f"{tokens}.hauberk {{\n{parts}}}\n"


@functools.cache
def _template(name: str) -> str:
    environment_ = environment()
    assert environment_.loader is not None
    return environment_.loader.get_source(environment_, name)[0]


@functools.cache
def environment() -> jinja2.Environment:
    """Return the templates: everything is escaped, and cleaned of control characters, on its way into a page."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("hauberk.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize,
    )
    made.globals.update(
        slug=slug, line=line, number=number, mitigation=lambda text: line(mitigation(text), 120), anchor=anchor,
        answer=lambda finding: line(overview.answer(finding), 600),
    )
    return made


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
