from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sample_report
from chromium import Browser, executable
from test_html import hostile_report

from hauberk.report.folder import write_folder
from hauberk.report.html import anchor
from hauberk.report.notebook import finding_html, report_html

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="neither chromium nor chromium-browser is installed"),
]
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
# What sticks out of the window, unless it is inside a box that scrolls or is meant to be off screen.
WIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, .skip') && e.checkVisibility()
  && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(sample_report.report(), tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_fits_its_window(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.ask("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask(WIDE) == []
    assert browser.ask(BACKGROUND) == ("rgb(16, 19, 23)" if dark else "rgb(250, 250, 248)")
    assert browser.complaints() == []


def test_hostile_text_neither_runs_nor_widens_the_page(browser: Browser, tmp_path: Path) -> None:
    report = hostile_report()
    report.findings[0].summary = "x" * 3000  # one word without an end
    report.findings[0].question = report.findings[0].threat = "y" * 500
    browser.open(write_folder(report, tmp_path), width=390)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") == 390
    assert browser.complaints() == [] and not [one for one in browser.events if one["method"] == "Page.javascriptDialogOpening"]


def test_it_reads_without_scripts(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280, scripts=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    heading = browser.call("DOM.querySelector", nodeId=root, selector="#verdict .big")["nodeId"]
    assert "Fix before release" in browser.call("DOM.getOuterHTML", nodeId=heading)["outerHTML"]
    box = browser.call("DOM.getBoxModel", nodeId=heading)["model"]
    assert box["width"] > 100 and box["height"] > 10
    shot = browser.call("Page.captureScreenshot", format="png")["data"]
    assert len(shot) > 20_000  # an empty page is far smaller


def test_a_link_opens_what_is_folded(browser: Browser, page: Path) -> None:
    passed = anchor(sample_report.findings()[0])
    browser.open(page, width=1280)
    closed = f"document.getElementById('{passed}').closest('details').open"
    assert browser.ask(closed) is False
    browser.ask(f"location.hash = '{passed}'")
    assert browser.ask(f"new Promise(done => setTimeout(() => done({closed}), 100))") is True


def test_a_print_shows_what_is_folded_in_light_colours(browser: Browser, page: Path) -> None:
    browser.open(page, width=1000, dark=True, media="print")
    passed = anchor(sample_report.findings()[0])
    assert browser.ask(f"document.getElementById('{passed}').checkVisibility()") is True
    assert browser.ask(f"document.getElementById('{passed}').getBoundingClientRect().height") > 20
    assert browser.ask("getComputedStyle(document.querySelector('.finding')).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('.nav')).display") == "none"


def test_words_are_dark_enough_as_drawn(browser: Browser, page: Path) -> None:
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        colours = browser.ask("[...new Set([...document.querySelectorAll('.heat td')].map(e => getComputedStyle(e).color))]")
        assert colours == ["rgb(230, 233, 237)" if dark else "rgb(27, 31, 36)"]


def test_a_fragment_leaves_the_notebook_alone(browser: Browser, tmp_path: Path) -> None:
    report = sample_report.report()
    host = "<!doctype html><meta charset=utf-8><body style='margin:0'><table id=theirs><td>x</table><p id=text>text"
    plain, notebook = tmp_path / "plain.html", tmp_path / "notebook.html"
    plain.write_text(host, encoding="utf-8")
    notebook.write_text(host + report_html(report) + finding_html(report.findings[2]), encoding="utf-8")
    asked = "['theirs', 'text'].map(i => { const s = getComputedStyle(document.getElementById(i));" \
        " return [s.color, s.fontSize, s.borderCollapse, s.margin, s.backgroundColor] })"
    browser.open(plain, width=900)
    before = browser.ask(asked)
    browser.open(notebook, width=900)
    assert browser.ask(asked) == before
    assert browser.ask("getComputedStyle(document.querySelector('.finding')).borderTopLeftRadius") == "12px"
    assert browser.ask("document.documentElement.scrollWidth") == 900 and browser.complaints() == []
