from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
import sample_report
from pages import HOSTILE, Page

from hauberk.core.finding import Advice, Curve, Finding, Gallery, Heatmap, Interval, Picture, Series, Status, Table
from hauberk.report.html import LIMIT, anchor, render, styles
from hauberk.report.report import Report


@pytest.fixture(scope="module")
def source() -> str:
    return render(sample_report.report())


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def hostile_report() -> Report:
    figures = [
        Table(HOSTILE, [HOSTILE, "n"], [[HOSTILE, 1.0], ["b"]]),  # the second row is short
        Curve(HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, [0.0, 1.0], [0.0, float("inf")]), Series("empty", [], [])]),
        Heatmap(HOSTILE, [HOSTILE], [HOSTILE], [[float("nan")]]),
        Gallery(HOSTILE, [Picture(sample_report.png(1, 8), HOSTILE), Picture(HOSTILE, HOSTILE)]),
    ]
    findings = [
        Finding(
            f"odd/{HOSTILE}", HOSTILE, HOSTILE, status, 0.5, HOSTILE, 3, Interval(0.1, float("nan"), HOSTILE), "higher", HOSTILE,
            HOSTILE, 1, 1, 1.0, HOSTILE, figures, [HOSTILE, "aisec:model-stealing"], [Advice(HOSTILE, HOSTILE, HOSTILE)],
            [HOSTILE], HOSTILE,
        )
        for status in Status
    ]
    model = {"name": HOSTILE, HOSTILE: HOSTILE}
    scope = {"model": model, "notices": [HOSTILE], "versions": {HOSTILE: HOSTILE}, "odd": [[{}], None]}
    return Report(findings, scope, {"hauberk": HOSTILE, "model": {"path": HOSTILE}, "data": {"test": HOSTILE}})


def test_the_ten_sections_stand_in_order(page: Page) -> None:
    sections = [found["id"] for found in page.all("section")]
    pillars = [f"pillar-{name}" for name in ("robustness", "integrity", "privacy", "assets", "trust")]
    assert sections == ["verdict", "scope", "surface", *pillars, "actions", "reproduce"]


def test_every_finding_is_there_once_and_every_link_leads_somewhere(page: Page) -> None:
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert {anchor(one) for one in sample_report.findings()} <= set(ids)
    links = [found["href"] for found in page.all("a")]
    assert all(link.startswith("#") for link in links) and {link[1:] for link in links} <= set(ids)


def test_passed_is_folded_and_failed_is_open(source: str) -> None:
    for one in sample_report.findings():
        before = source[: source.index(f'id="{anchor(one)}"')]
        opened = before[before.rindex('<details class="finding"') :].startswith('<details class="finding" open>')
        assert opened is (one.status in (Status.FAIL, Status.WARN, Status.ERROR)), one.id


def test_verdict_counts_and_actions_are_told(page: Page) -> None:
    assert "Fix before release 3 checks of 24 that ran fail, in robustness and privacy." in page.text
    assert "3 fail 8 warn 13 pass 1 error 5 not run" in page.text
    assert "privacy/gradient-leak : the first layer is a convolution" in page.text
    assert page.text.index("Do next Error Mend what broke") < page.text.index("Scope What was assessed")
    assert "AML.M0004 Restrict Number of AI Model Queries" in page.text


def test_a_figure_has_unit_interval_n_threat_and_cost(page: Page) -> None:
    shown = "16.1% accuracy 13.1% to 19.6%, n = 500 Id robustness/pgd-linf Threat Linf, eps 0.1, untargeted, inputs in [0, 1]"
    assert shown in page.text
    assert "95% wilson Direction higher is better Spent 20,480 queries, 20,000 gradients, 3.9 s" in page.text


def test_the_matrix_has_21_cells_each_with_its_state_in_words(source: str) -> None:
    cell = r'<li class="cell is-([a-z-]+)" id="cell-([a-z-]+)">(.*?)(?=<li class="cell|<ul class="states")'
    cells = re.findall(cell, source, re.S)
    assert len(cells) == 21
    for state, _, inside in cells:
        assert f"</svg>{state.replace('-', ' ').capitalize()}</span>" in inside
    states = {slug: state for state, slug, _ in cells}
    assert states["digital-adversarial-attacks"] == "fail" and states["data-recovery-in-the-model"] == "not-run"
    assert states["query-architecture-stealing"] == "not-covered" and states["data-poisoning"] == "pass"


def test_the_page_stands_alone(source: str, page: Page) -> None:
    assert not re.search(r"https?://|//cdn|@import|url\(", source)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert [found["href"] for found in page.all("link")] == ["data:,"]
    assert all(found["src"].startswith("data:image/png;base64,") and found["alt"] for found in page.all("img"))
    policy = [found for found in page.all("meta") if "http-equiv" in found]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_it_can_be_read_aloud(page: Page) -> None:
    assert [found["lang"] for found in page.all("html")] == ["en"]
    assert len(page.all("h1")) == 1 and page.all("a", class_="skip", href="#main") and page.all("main", id="main")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    assert all(found.get("scope") in ("col", "row") for found in page.all("th"))
    drawn = page.all("svg")
    assert all(found.get("aria-hidden") == "true" or found.get("role") == "img" for found in drawn)


def test_light_dark_and_print_are_styled(source: str) -> None:
    css = styles()
    assert css in source
    for needed in ("prefers-color-scheme: dark", "@media print", "details-content", "max-width: 720px", "scheme: light dark"):
        assert needed in css


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_their_ground(dark: bool) -> None:
    blocks = re.findall(r"\.hauberk \{([^}]*)\}", styles())
    given = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[0]))
    if dark:
        given |= dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[1]))
    for ground in ("bg", "panel", "sunk"):
        for word in ("fg", "muted", "link", "fail", "warn", "pass", "error", "notrun"):
            assert contrast(given[word], given[ground]) >= 4.5, (word, ground)
        assert all(contrast(given[f"s{at}"], given[ground]) >= 3 for at in range(1, 7)), ground
    depth = int(re.findall(r"--depth: (\d+)%", blocks[int(dark)])[0]) / 100
    tinted = mix(given["heat"], given["sunk"], depth)
    assert contrast(given["fg"], tinted) >= 4.5


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def mix(one: str, other: str, share: float) -> str:
    """What color-mix(in srgb, one share, other) gives."""
    pairs = [(int(one[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * first + (1 - share) * second):02x}" for first, second in pairs)


def test_hostile_text_stays_text() -> None:
    made = render(hostile_report())
    page = Page(made)
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text
    assert not page.all("script") and len(page.all("img")) == 5
    assert all(set(found) == {"src", "width", "height", "alt"} for found in page.all("img"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", made)
    made.encode("utf-8")
    assert "not a PNG: left out" in page.text


def test_odd_findings_still_show() -> None:
    plain = Finding("x", "elsewhere", "", Status.WARN)
    text = Page(render(Report([plain]))).text
    assert "Elsewhere Warn 1 warn" in text and "The report does not say what it was made on." in text
    assert "Nothing was assessed" in Page(render(Report([]))).text


def test_a_page_of_thirty_findings_is_small(source: str) -> None:
    assert len(source.encode()) <= LIMIT


def test_pictures_are_dropped_last_first_and_this_is_said() -> None:
    report = sample_report.report()
    for finding in report.findings[:20]:
        finding.evidence = [*finding.evidence, sample_report.gallery(6)]  # about 33 KB each
    made = render(report)
    assert len(made.encode()) <= LIMIT
    page = Page(made)
    kept, total = len(page.all("img")), sum(6 for one in report.findings for item in one.evidence if isinstance(item, Gallery))
    told = re.search(r"Verdict .*? (\d+) pictures left out to keep this page below 400 KB; report.json has all", page.text)
    assert told and kept + int(told.group(1)) == total and kept > 30
    at = made.index(f'id="{anchor(report.findings[0])}"')
    assert "<img" in made[at : made.index('class="finding"', at)]
    # The last finding that had pictures has none left, and says so.
    at = made.index(f'id="{anchor(report.findings[19])}"')
    assert "<img" not in made[at : made.index('class="finding"', at)]
    assert page.text.count("6 pictures left out") == (total - kept) // 6


def test_figures_go_when_pictures_are_not_enough() -> None:
    report = sample_report.report()
    big = Table("big", [f"c{at}" for at in range(20)], [["word" * 10] * 20] * 40)
    report.findings = [dataclasses.replace(one, evidence=[big, big]) for one in report.findings]
    made = render(report)
    assert len(made.encode()) <= LIMIT and "figures left out to keep this page below 400 KB" in made
    assert made.count("<caption>big</caption>") >= 5


def test_prompts_tell_shell_and_python_apart_and_are_not_copied() -> None:
    advice = [Advice("a", "hauberk assess --preset thorough"), Advice("b", "from a import b; b(x < 1)")]
    finding = Finding("trust/x", "trust", "?", Status.FAIL, summary="It fails.", advice=advice)
    page = render(Report([finding], plan={"model": {"path": "m.py:f"}, "data": {"test": "sklearn:digits"}}))
    shell = '<span class="prompt">$ </span>hauberk assess plan.lock.toml'
    prompt = '<span class="prompt">&gt;&gt;&gt; </span>'
    python = f"{prompt}from a import b\n{prompt}b(x &lt; 1)</code>"
    assert page.count(f"{shell} --preset thorough --output ../again</code>") == 3  # do next, the finding, the list of actions
    assert page.count(python) == 3 and f"{shell} --output ../again</pre>" in page
    assert "run the command in this folder" in page and re.search(r"\.prompt \{[^}]*user-select: none", page)
