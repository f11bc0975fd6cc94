from __future__ import annotations

import re
import shlex

import pytest
import sample_report
from pages import Page
from test_html import hostile_report

from hauberk.core.finding import Advice, Finding, Status
from hauberk.report.notebook import finding_html, report_html
from hauberk.report.report import Report
from hauberk.report.text import concise, full, github, summary


@pytest.mark.parametrize("report", [sample_report.report(), Report([]), hostile_report()], ids=["usual", "empty", "hostile"])
@pytest.mark.parametrize("form", [full, summary, concise])
def test_text_fits_a_terminal_and_does_not_command_it(form: object, report: Report) -> None:
    made = form(report)  # type: ignore[operator]
    assert all(len(row) <= 100 for row in made.splitlines())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", made) and made.endswith("\n")


def test_full_ends_with_the_verdict_and_what_to_do() -> None:
    made = full(sample_report.report())
    end = made[made.index("VERDICT") :].splitlines()
    assert end[3:9] == [
        "  Robustness  fail         2 fail, 4 warn, 3 pass, 1 not run",
        "  Integrity   warn         1 warn, 3 pass, 1 not run",
        "  Privacy     error        1 fail, 1 warn, 1 pass, 1 error, 1 not run",
        "  Assets      warn         1 warn, 2 pass, 1 not run",
        "  Trust       warn         1 warn, 4 pass, 1 not run",
        "  30 findings: 3 fail, 8 warn, 13 pass, 1 error, 5 not run",
    ]
    assert [row[:4] for row in end if re.match(r"  \d\. ", row)] == ["  1.", "  2.", "  3."]
    assert "  2. Train on adversarial examples (AML.M0003 Model Hardening)" in end
    assert end[-1] == "Again: hauberk assess plan.lock.toml --output ../again"


def advised(*commands: str) -> Report:
    advice = [Advice(f"Do {at}", one) for at, one in enumerate(commands)]
    plan = {"model": {"path": "net.py:build"}, "data": {"test": "sklearn:digits"}}
    return Report([Finding("trust/x", "trust", "?", Status.FAIL, summary="It fails.", advice=advice)], plan=plan)


def test_commands_can_be_typed_as_they_are_printed() -> None:
    given = "hauberk assess --preset thorough --select robustness", "from a import b; b(model)", "hauberk explain pgd"
    made = summary(advised(*given), "my report/plan.lock.toml").splitlines()
    assert [row.strip() for row in made if row.startswith(("     $", "     >>>"))] == [
        ">>> import hauberk", ">>> plan = hauberk.load_plan('my report/plan.lock.toml')", ">>> model = plan.model",
        "$ hauberk assess 'my report/plan.lock.toml' --preset thorough --select robustness", ">>> from a import b",
        ">>> b(model)", "$ hauberk explain pgd",
    ]
    assert made[-1] == "Again: hauberk assess 'my report/plan.lock.toml'"
    inline = [row.split(": ", 2)[2] for row in full(advised(*given)).splitlines() if "to do: " in row]
    assert inline == [
        "$ hauberk assess plan.lock.toml --preset thorough --select robustness", ">>> from a import b >>> b(model)",
        "$ hauberk explain pgd",
    ]


def test_a_command_that_needs_a_plan_is_a_call_where_there_is_none() -> None:
    bare = Report(advised("hauberk assess --preset thorough --select robustness").findings)
    assert "     >>> hauberk.assess(model, data, threat, preset='thorough', select=['robustness'])" in summary(bare).splitlines()


def test_a_long_command_of_the_shell_is_continued_as_the_shell_wants_it() -> None:
    rows = summary(advised("hauberk attack pgd " + "--option steps=10 " * 10)).splitlines()
    start = next(at for at, row in enumerate(rows) if row.startswith("     $"))
    end = next(at for at in range(start, len(rows)) if not rows[at].endswith(" \\"))
    typed = "\n".join(rows[start : end + 1]).removeprefix("     $ ")
    assert end == start + 2 and "\n       --option" in typed
    assert shlex.split(typed.replace("\\\n", "")) == ["hauberk", "attack", "pgd", *["--option", "steps=10"] * 10]


def test_the_summary_is_head_and_end_of_the_full_report() -> None:
    whole, short = full(sample_report.report()), summary(sample_report.report())
    head, end = short[: short.index("VERDICT")], short[short.index("VERDICT") :]
    assert whole.startswith(head) and whole.endswith(end) and len(head) + len(end) < len(whole)
    assert "ROBUSTNESS" not in short


def test_concise_has_a_line_per_finding() -> None:
    rows = concise(sample_report.report()).splitlines()
    assert len(rows) == 31
    assert rows[2] == "fail     robustness/pgd-linf         16.1% accuracy [13.1% to 19.6%] n=500"
    assert rows[9] == "not run  robustness/patch            no patch threat was named (plan: threat.mask)"
    assert rows[-1] == "30 findings: 3 fail, 8 warn, 13 pass, 1 error, 5 not run"


def test_github_annotates_all_that_does_not_pass() -> None:
    rows = github(sample_report.report()).splitlines()
    kinds = [row.split(" ", 1)[0] for row in rows if row.startswith("::")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"::error": 4, "::warning": 8, "::notice": 5}
    assert rows[1].startswith("::error title=robustness/pgd-linf (fail)::16.1%25 of 500 samples keep their label To do: Train")


def test_github_commands_cannot_be_forged() -> None:
    text = "a\n::error::forged\r\n%0A::set-env name=x::y"
    finding = Finding("a/b,title=c:d", "a", "?", Status.FAIL, summary=text)
    rows = github(Report([finding])).splitlines()
    assert rows[0] == "::error title=a/b%2Ctitle=c%3Ad (fail)::a ::error::forged %250A::set-env name=x::y"
    assert len([row for row in rows if row.startswith("::")]) == 1


def test_a_notebook_shows_a_report() -> None:
    made = report_html(sample_report.report())
    page = Page(made)
    assert made == sample_report.report()._repr_html_()
    assert "digits CNN: Fix before release" in page.text and "Privacy Error 1 fail, 1 warn" in page.text
    assert sum(found.get("scope") == "row" for found in page.all("th")) == 30
    assert not page.all("script") and not re.search("https?://", made)


def test_a_notebook_shows_a_finding_with_its_figures() -> None:
    finding = sample_report.findings()[2]
    page = Page(finding_html(finding))
    assert page.all("details", class_="finding") == [{"class": "finding", "open": ""}]
    assert len(page.all("img")) == 6 and page.all("svg", class_="plot") and "16.1% accuracy" in page.text


def test_the_style_of_a_fragment_stays_in_it() -> None:
    css = re.findall(r"<style>(.*?)</style>", finding_html(sample_report.findings()[0]), re.S)[0]
    outer, depth = "", 0
    for letter in css:
        depth -= letter == "}"
        outer += letter if depth == 0 else ""
        depth += letter == "{"
    heads = {head.strip() for head in re.split(r"[{}]", outer) if head.strip()}
    assert heads == {".hauberk", "@media screen and (prefers-color-scheme: dark)"}
    assert Page(report_html(hostile_report())).all("script") == []


def test_the_name_in_the_plan_heads_the_report() -> None:
    named = sample_report.report()
    named.plan["model"]["name"] = "Shop sorter"
    assert summary(named).splitlines()[0] == "Hauberk: Shop sorter"
    assert summary(sample_report.report()).splitlines()[0] == "Hauberk: digits CNN"
