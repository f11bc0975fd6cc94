"""Reports and findings as fragments of HTML, for notebooks: the style stays within them."""

from __future__ import annotations

import functools

from markupsafe import Markup

from hauberk.core.finding import Finding
from hauberk.report import lock, overview, scope
from hauberk.report.figures import evidence_html
from hauberk.report.html import View, anchor, environment, styles
from hauberk.report.markup import trusted
from hauberk.report.report import Report


def report_html(report: Report) -> str:
    """Return the verdict, the counts, the next three actions and a row per finding."""
    return environment().get_template("notebook.html").render(
        css=_css(), name=scope.model_name(report), about=scope.about(report), verdict=overview.headline(report),
        pillars=[one for one in overview.pillars(report) if one.findings], first=overview.next_three(report),
        findings=sorted(report.findings, key=lambda one: -one.status.severity), view=None,
        steps=functools.partial(lock.steps, report=report),
    )


def finding_html(finding: Finding) -> str:
    """Return a finding with its figures, unfolded."""
    name = anchor(finding)
    figures = tuple(evidence_html(one, f"{name}-{at}") for at, one in enumerate(finding.evidence))
    return environment().get_template("notebook.html").render(css=_css(), view=_Open(finding, name, figures), steps=lock.steps)


class _Open(View):
    @property
    def open(self) -> bool:
        return True


def _css() -> Markup:
    return trusted(styles(page=False))
