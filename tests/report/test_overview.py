from __future__ import annotations

from pathlib import Path

import sample_report

from hauberk.core.finding import Advice, Finding, Status
from hauberk.report.overview import actions, headline, next_three, pillars
from hauberk.report.report import Report
from hauberk.report.taxonomy import COLUMNS, matrix, mitigation

TRAIN, LIMIT, SIGN = Advice("train", "a"), Advice("limit", "b", "AML.M0004"), Advice("sign")


def one(name: str, status: Status, *advice: Advice, tags: tuple[str, ...] = ()) -> Finding:
    return Finding(name, name.split("/")[0], f"{name}?", status, advice=advice, tags=tags, reason="because")


def test_a_pillar_is_its_worst_finding() -> None:
    found = {part.name: (part.verdict, part.word) for part in pillars(sample_report.report())}
    assert found == {
        "robustness": (Status.FAIL, "fail"), "integrity": (Status.WARN, "warn"), "privacy": (Status.ERROR, "error"),
        "assets": (Status.WARN, "warn"), "trust": (Status.WARN, "warn"),
    }


def test_a_pillar_with_gaps_is_not_green_and_one_without_findings_is_not_covered() -> None:
    report = Report([one("trust/a", Status.PASS), one("trust/b", Status.NOT_RUN), one("assets/a", Status.NOT_RUN)])
    words = {part.name: part.word for part in pillars(report)}
    assert words == {
        "robustness": "not covered", "integrity": "not covered", "privacy": "not covered", "assets": "not run",
        "trust": "incomplete",
    }


def test_a_pillar_of_another_name_comes_last() -> None:
    parts = pillars(Report([one("odd/a", Status.FAIL), one("trust/a", Status.PASS)]))
    assert [part.name for part in parts][-2:] == ["trust", "odd"]
    assert parts[-1].word == "fail" and Report([one("odd/a", Status.FAIL)]).verdicts() == {"odd": Status.FAIL}


def test_actions_come_by_severity_then_by_rank_then_by_number() -> None:
    report = Report([
        one("trust/a", Status.NOT_RUN), one("trust/b", Status.WARN, SIGN), one("robustness/a", Status.FAIL, TRAIN, LIMIT),
        one("robustness/b", Status.FAIL, LIMIT), one("robustness/c", Status.WARN, LIMIT), one("privacy/a", Status.PASS, SIGN),
        one("robustness/d", Status.FAIL, TRAIN),
    ])
    found = [(action.text, action.status, [item.id for item in action.findings]) for action in actions(report)]
    assert found == [
        # TRAIN and LIMIT both answer two failing findings; LIMIT answers a warning too.
        ("limit", Status.FAIL, ["robustness/a", "robustness/b", "robustness/c"]),
        ("train", Status.FAIL, ["robustness/a", "robustness/d"]),
        ("sign", Status.WARN, ["trust/b"]), ("To let it run, change this: because", Status.NOT_RUN, ["trust/a"]),
    ]
    assert [action.text for action in next_three(report)] == ["limit", "train", "sign"]


def test_what_is_asked_for_second_waits() -> None:
    report = Report([one("a/a", Status.FAIL, TRAIN, LIMIT), one("a/b", Status.FAIL, SIGN, LIMIT), one("a/c", Status.WARN, LIMIT)])
    assert [action.text for action in actions(report)] == ["train", "sign", "limit"]


def test_errors_make_one_action_and_come_first() -> None:
    report = Report([one("a/a", Status.FAIL), one("a/b", Status.ERROR), one("a/c", Status.ERROR)])
    first, second = actions(report)
    assert [item.id for item in first.findings] == ["a/b", "a/c"]
    assert second.text == "Look at a/a: a/a?"


def test_headlines() -> None:
    assert headline(Report([]))[0] == "Nothing was assessed"
    assert headline(Report([one("trust/a", Status.NOT_RUN)])) == (
        "Nothing was measured", "1 was not run: there the report says nothing."
    )
    title, said = headline(Report([one("trust/a", Status.PASS), one("trust/b", Status.NOT_RUN), one("trust/c", Status.NOT_RUN)]))
    assert title == "Nothing was found" and said.endswith("2 were not run: there the report says nothing.")
    assert headline(Report([one("a/a", Status.PASS), one("a/b", Status.ERROR)]))[0] == "The assessment is incomplete"
    assert headline(sample_report.report()) == (
        "Fix before release",
        "3 checks of 24 that ran fail, in robustness and privacy. "
        "1 check broke and 5 were not run: there the report says nothing.",
    )


def test_the_matrix_has_21_cells_in_7_columns() -> None:
    assert [len(cells) for cells in COLUMNS.values()] == [4, 2, 5, 2, 4, 2, 2]
    assert len({slug for cells in COLUMNS.values() for slug in cells}) == 21


def test_cells_have_five_states() -> None:
    tag = "aisec:{}".format
    report = Report([
        one("a/a", Status.PASS, tags=tuple(map(tag, ("data-poisoning", "code-attack", "model-stealing", "supply-chain-attack")))),
        one("a/b", Status.FAIL, tags=(tag("data-poisoning"),)), one("a/c", Status.ERROR, tags=(tag("data-poisoning"),)),
        one("a/d", Status.ERROR, tags=(tag("code-attack"),)), one("a/e", Status.NOT_RUN, tags=(tag("model-stealing"),)),
        one("a/f", Status.WARN, tags=(tag("model-stealing"),)), one("a/g", Status.NOT_RUN, tags=(tag("model-file-attack"),)),
    ])
    cells = {cell.slug: cell for column in matrix(report).values() for cell in column}
    assert {slug: cells[slug].state for slug in cells if cells[slug].findings} == {
        "data-poisoning": "fail", "code-attack": "not run", "model-stealing": "warn", "supply-chain-attack": "pass",
        "model-file-attack": "not run",
    }
    assert cells["code-attack"].words == "1 error, 1 pass"
    assert sum(cell.state == "not covered" for cell in cells.values()) == 16


def test_mitigations_have_their_atlas_names() -> None:
    assert mitigation("AML.M0015") == "AML.M0015 Adversarial Input Detection"
    assert mitigation("ours") == "ours"


def test_every_mitigation_and_cell_that_a_check_names_is_known() -> None:
    from hauberk.methods import load_methods
    from hauberk.report.taxonomy import MITIGATIONS

    slugs = {slug for cells in COLUMNS.values() for slug in cells}
    for card in load_methods().cards("check"):
        assert {tag[6:] for tag in card.tags if tag.startswith("aisec:")} <= slugs, card.name
        named = {advice.mitigation for advice in card.facts["advice"] if advice.mitigation}
        assert named <= set(MITIGATIONS), card.name


def test_the_renderers_know_nothing_of_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, json, sample_report, hauberk.report.folder, hauberk.report.text, hauberk.report.notebook as n;"
        "n.report_html(sample_report.report()); hauberk.report.folder.contents(sample_report.report());"
        "print(json.dumps([m for m in ('torch', 'numpy', 'scipy', 'rich') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert done.stdout.strip() == "[]"
