from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from importlib import resources

import pytest

from hauberk.core.errors import UsageError
from hauberk.core.finding import Finding, Outline, Radar, Status
from hauberk.report.figures import evidence_html
from hauberk.report.html import render
from hauberk.report.notebook import finding_html
from hauberk.report.radar import describe, names, radar_svg
from hauberk.report.report import Report

AXES = ["success", "confidence", "likeness", "survives blur"]
RADAR = Radar("Attacks side by side", AXES, [Outline("pgd", [1.0, 0.5, 0.25, 0.0]), Outline("fgm", [0.5, None, 1.0, 0.75])])


def finding(radar: Radar) -> Finding:
    return Finding("robustness/attack-metrics", "robustness", "How?", Status.PASS, summary="so", evidence=[radar])


def lines(svg: str) -> list[str]:
    return re.findall(r'<path class="line" d="([^"]*)"', svg)


def test_the_corners_lie_where_the_values_say() -> None:
    svg = radar_svg(RADAR, "r")
    places = [tuple(map(float, one.split())) for one in lines(svg)[0].strip("MZ").split("L")]
    # The centre is (200, 138), the rim 96 away; the axes point up, right, down and left.
    assert places == [(200.0, 42.0), (248.0, 138.0), (200.0, 162.0), (200.0, 138.0)]
    ET.fromstring(svg)


def test_a_missing_value_leaves_a_gap_and_is_told() -> None:
    svg = radar_svg(RADAR, "r")
    second = lines(svg)[1]
    # Three values of four: two sides remain, and the outline is not filled.
    assert second.count("M") == 2 and "Z" not in second
    assert svg.count('class="fill"') == 1
    assert "confidence not measured" in describe(RADAR)
    for bad in (None, math.nan, math.inf):
        alone = radar_svg(Radar("t", AXES, [Outline("a", [bad, bad, bad, bad])]), "r")
        assert lines(alone) == [] and "nan" not in alone.lower() and "none" not in alone.lower()


def test_a_short_outline_leaves_its_last_axes_open() -> None:
    svg = radar_svg(Radar("t", AXES, [Outline("a", [1.0, 1.0])]), "r")
    assert lines(svg) == ["M200.0 42.0L296.0 138.0"]


def test_values_beyond_the_scale_lie_on_its_ends() -> None:
    svg = radar_svg(Radar("t", ["a", "b", "c", "d"], [Outline("one", [50.0, -3.0, 5.0, 10.0])], 0.0, 10.0), "r")
    assert lines(svg)[0] == "M200.0 42.0L200.0 138.0L200.0 186.0L104.0 138.0Z"
    assert "to 10 at the rim" in svg


def test_it_describes_itself_and_tells_its_data_as_a_table() -> None:
    html = evidence_html(RADAR, "f-1")
    assert 'role="img"' in html and 'aria-labelledby="f-1-t f-1-d"' in html and "<title id" in html and "<desc id" in html
    assert "pgd: success 1, confidence 0.5" in html
    assert "<details class=data>" in html and html.count("<table>") == 1
    for axis in AXES:
        assert f'<th scope="row">{axis}</th>' in html
    assert ">0.75<" in html and ">–<" in html


def test_outlines_differ_without_colour_and_take_their_colour_from_the_style_sheet() -> None:
    radar = Radar("t", AXES, [Outline(f"line {at}", [at / 6, 1, 1, 1]) for at in range(6)])
    svg, legend = radar_svg(radar, "c"), names(radar)
    dashes = re.findall(r'<path class="line" d="[^"]*"( stroke-dasharray="[^"]*")?/>', svg)
    assert len(dashes) == len(set(dashes)) == 6
    assert all(f'class="s{at + 1}"' in svg and f"line {at}" in legend for at in range(6))
    assert "#" not in re.sub(r'aria-labelledby="[^"]*"', "", svg) and "style=" not in svg
    assert names(Radar("t", AXES, [Outline("one", [1, 1, 1, 1])])) == ""


def test_it_survives_json_with_values_that_are_not_finite() -> None:
    made = finding(Radar("t", ("a", "b", "c"), (Outline("one", (1.0, math.nan, None)),)))
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    again = Finding.from_dict(plain)
    assert again.to_dict() == made.to_dict()
    (radar,) = again.evidence
    assert isinstance(radar, Radar) and isinstance(radar.outlines[0], Outline)
    assert list(radar.outlines[0].values) == [1.0, None, None]
    with pytest.raises(UsageError, match="cannot be read"):
        Finding.from_dict({**plain, "evidence": [{"kind": "radar", "title": "t", "axes": [], "outlines": [{"n": 1}]}]})


def test_the_schema_of_the_report_knows_it() -> None:
    schema = json.loads((resources.files("hauberk.report") / "report.schema.json").read_text(encoding="utf-8"))
    assert {"$ref": "#/$defs/radar"} in schema["$defs"]["evidence"]["oneOf"]
    rule, plain = schema["$defs"]["radar"], finding(RADAR).to_dict()["evidence"][0]
    assert set(rule["required"]) <= set(plain) <= set(rule["properties"])
    assert set(plain["outlines"][0]) == set(rule["properties"]["outlines"]["items"]["properties"])


@pytest.mark.parametrize("axes", [[], ["one"], ["one", "two"], [f"axis {at}" for at in range(40)]])
def test_any_number_of_axes_can_be_drawn(axes: list[str]) -> None:
    svg = radar_svg(Radar("t", axes, [Outline("a", [0.5] * len(axes))]), "r")
    ET.fromstring(svg)
    assert svg.count('class="label"') == min(len(axes), 16)


def test_long_names_of_axes_fit_beside_the_chart() -> None:
    svg = radar_svg(Radar("t", ["true class gone", "a", "one extraordinarilylongname"], [Outline("a", [1, 1, 1])]), "r")
    labels = [re.findall(r"<tspan[^>]*>([^<]*)", one) for one in re.findall(r'<text class="label".*?</text>', svg)]
    assert labels == [["true class", "gone"], ["a"], ["one", "extraordina…"]]
    assert all(len(part) <= 12 for one in labels for part in one)


def test_hostile_words_stay_words() -> None:
    bad = '"><script>alert(1)</script>'
    radar = Radar(bad, [bad, bad, bad], [Outline(bad, [1, 1, 1]), Outline(bad, [0, 0, 0])])
    for html in (evidence_html(radar, "x"), finding_html(finding(radar)), render(Report([finding(radar)]))):
        assert "<script>alert" not in html
