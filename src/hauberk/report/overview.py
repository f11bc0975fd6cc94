"""What a report says at first sight: the verdict per pillar, the headline, and what to do next."""

from __future__ import annotations

import dataclasses

from hauberk.core.finding import PILLARS, Finding, Status
from hauberk.report.report import Report
from hauberk.report.words import line, listed, plural

SHOWN = (Status.FAIL, Status.WARN, Status.PASS, Status.ERROR, Status.NOT_RUN)
TITLES = {
    "robustness": "Robustness", "integrity": "Integrity", "privacy": "Privacy", "assets": "Assets", "trust": "Trust",
}
ABOUT = {
    "robustness": "Does the model keep its answers when inputs are disturbed, by nature or on purpose?",
    "integrity": "Do training data, weights and hardware leave room for a hidden change?",
    "privacy": "What does the model tell about the people in its training data?",
    "assets": "May the files be loaded and released, and what would a thief get?",
    "trust": "When may an answer be relied on, and is the model fair, calibrated and stable?",
}


@dataclasses.dataclass(frozen=True)
class Pillar:
    """The findings of one pillar and its verdict: the worst of them, never an average."""

    name: str
    findings: tuple[Finding, ...]
    verdict: Status | None

    @property
    def title(self) -> str:
        """How the pillar is headed."""
        return TITLES.get(self.name, self.name[:1].upper() + self.name[1:] or "Other")

    @property
    def about(self) -> str:
        """The question that the pillar answers."""
        return ABOUT.get(self.name, "")

    @property
    def word(self) -> str:
        """The verdict in one word: `incomplete` where all that ran passed but not all ran."""
        if self.verdict is None:
            return "not covered"
        ran = any(one.status is Status.PASS for one in self.findings)
        return "incomplete" if self.verdict is Status.NOT_RUN and ran else self.verdict.value

    @property
    def counts(self) -> dict[str, int]:
        """How many findings have each status, those without any left out."""
        every = {status.value: sum(one.status is status for one in self.findings) for status in SHOWN}
        return {word: count for word, count in every.items() if count}

    @property
    def words(self) -> str:
        """The counts in words, such as `1 fail, 5 pass`."""
        return ", ".join(f"{count} {word}" for word, count in self.counts.items()) or "no check looked here"


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing to do, and the findings that ask for it, worst first."""

    text: str
    command: str
    mitigation: str
    findings: tuple[Finding, ...]

    @property
    def status(self) -> Status:
        """The worst status among the findings."""
        return self.findings[0].status


def pillars(report: Report) -> list[Pillar]:
    """Return the five pillars in order, then any other that a finding names; a pillar without findings has no verdict."""
    verdicts = report.verdicts()
    names = [*PILLARS, *(name for name in verdicts if name not in PILLARS)]
    return [Pillar(name, tuple(one for one in report.findings if one.pillar == name), verdicts.get(name)) for name in names]


def actions(report: Report) -> list[Action]:
    """Return what to do, most pressing first: by the worst finding it answers, then by how many it answers.

    Findings that ask for the same thing make one action. A finding that gives no advice asks to be looked at.
    """
    groups: dict[tuple[str, str, str], list[tuple[Finding, int]]] = {}
    for finding in report.findings:
        for place, key in enumerate(_asked(finding)):
            groups.setdefault(key, []).append((finding, place))
    made = []
    for key, group in groups.items():
        group.sort(key=lambda one: -one[0].status.severity)
        worst = group[0][0].status
        places = [place for finding, place in group if finding.status is worst]
        # What a finding asks for first comes before what it asks for second.
        order = (-worst.severity, min(places), -len(places), -len(group))
        made.append((order, Action(*key, tuple(finding for finding, _ in group))))
    made.sort(key=lambda one: one[0])
    return [action for _, action in made]


def next_three(report: Report) -> list[Action]:
    """Return the three actions to begin with; what only was not run comes after all that was found."""
    return actions(report)[:3]


def headline(report: Report) -> tuple[str, str]:
    """Return the verdict in a few words, and the sentence that explains it."""
    counts, total = report.counts(), len(report.findings)
    ran = total - counts["not run"] - counts["error"]
    gaps = []
    if counts["error"]:
        gaps.append(f"{plural(counts['error'], 'check')} broke")
    if counts["not run"]:
        gaps.append(f"{counts['not run']} {'was' if counts['not run'] == 1 else 'were'} not run")
    rest = f" {listed(gaps)[:1].upper()}{listed(gaps)[1:]}: there the report says nothing." if gaps else ""
    if not total:
        return "Nothing was assessed", "The report holds no finding."
    if counts["fail"]:
        where = listed([one.title.lower() for one in pillars(report) if one.counts.get("fail")])
        said = f"{plural(counts['fail'], 'check')} of {ran} that ran {_verb(counts['fail'])}, in {where}.{rest}"
        return "Fix before release", said
    if counts["error"]:
        return "The assessment is incomplete", f"No check of {ran} that ran fails.{rest}"
    if counts["warn"]:
        said = f"No check fails; {plural(counts['warn'], 'check')} of {ran} that ran {_verb(counts['warn'], 'warn')}.{rest}"
        return "Look closer", said
    if not ran:
        return "Nothing was measured", rest.strip()
    passed = f"All {ran} checks that ran pass" if ran > 1 else "The one check that ran passes"
    return "Nothing was found", f"{passed}, under the threats named below.{rest}"


def answer(finding: Finding) -> str:
    """Return the one sentence that a finding comes down to: why it has no answer, or the answer."""
    if finding.status in (Status.NOT_RUN, Status.ERROR):
        return line(finding.reason or finding.summary or "no reason was given")
    return line(finding.summary or finding.reason)


def _asked(finding: Finding) -> list[tuple[str, str, str]]:
    if finding.status is Status.PASS:
        return []
    if finding.status is Status.ERROR:
        return [("Mend what broke, then assess again: until then the verdict has a gap", "", "")]
    if finding.status is Status.NOT_RUN:
        return [(f"To let it run, change this: {line(finding.reason or 'no reason was given', 300)}", "", "")]
    given = [(one.text, one.command, one.mitigation) for one in finding.advice]
    return given or [(f"Look at {finding.id}: {line(finding.summary or finding.question, 300)}", "", "")]


def _verb(count: int, verb: str = "fail") -> str:
    return verb + "s" if count == 1 else verb
