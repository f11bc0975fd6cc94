from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
import sample_report

from hauberk.core.finding import Curve, Finding, Heatmap, Interval, Series, Status, Table
from hauberk.report.axis import axis, tick_label
from hauberk.report.figures import evidence_html, png_size
from hauberk.report.svg import curve_svg, interval_bar, legend


def points(svg: str, series: int) -> list[tuple[float, float]]:
    """The places of the line of a series."""
    group = re.findall(r'<g class="s\d"><path class="line" d="([^"]*)"', svg)[series]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", group)]


def test_linear_axis_places_values_in_proportion() -> None:
    found = axis([0.0, 0.31, 0.97])
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.ticks == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert found.place(0.25) == pytest.approx(0.25) and found.place(-1) == 0 and found.place(2) == 1


def test_axis_of_large_values_starts_at_zero_and_has_round_ticks() -> None:
    found = axis([3.0, 47.0])
    assert found.ticks == (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
    assert axis([-3.0, 4.0]).ticks == (-4.0, -2.0, 0.0, 2.0, 4.0)


def test_axis_of_one_value_and_of_none() -> None:
    for values in ([7.0], [0.0], [], [float("nan")], [1e-300], [1e300]):
        found = axis(values)
        assert found.low < found.high and len(found.ticks) >= 2


def test_log_axis_places_ratios_and_puts_zero_on_the_edge() -> None:
    found = axis([0.0, 0.001, 1.0], log=True)
    assert (found.low, found.high) == (0.001, 1.0) and found.ticks == (0.001, 0.01, 0.1, 1.0)
    assert found.place(0.01) == pytest.approx(1 / 3) and found.place(0.0) == 0 and found.place(-5.0) == 0
    assert len(axis([1e-30, 1e10], log=True).ticks) <= 8
    assert axis([0.0, -1.0], log=True).ticks[-1] == 1.0


def test_tick_labels() -> None:
    values = (0.0, 0.001, 0.25, 1000.0, 20_000.0, 1e6, 1e-4, 2.5e-7)
    assert [tick_label(one) for one in values] == ["0", "0.001", "0.25", "1000", "20,000", "10⁶", "10⁻⁴", "2.5·10⁻⁷"]


def test_points_of_a_curve_lie_where_the_axes_say() -> None:
    svg = curve_svg(Curve("t", "x", "y", [Series("a", [0.0, 0.5, 1.0], [0.0, 0.25, 1.0])]), "c")
    assert points(svg, 0) == [(52.0, 190.0), (220.0, 145.0), (388.0, 10.0)]  # the plane is 52..388 by 190..10
    ET.fromstring(svg)


def test_points_of_a_log_curve_and_its_diagonal() -> None:
    svg = curve_svg(sample_report.roc(), "c")
    placed = points(svg, 0)
    assert placed[0][0] == 52.0 and placed[-1] == (388.0, 10.0)
    # y = x**.72, x = 1e-3: log10 y = -2.16, of a plane from -3 to 0.
    assert placed[0][1] == pytest.approx(190 - 180 * (3 - 2.16) / 3, abs=0.06)
    assert 'class="diagonal" x1="52" y1="190" x2="388" y2="10"' in svg


def test_a_missing_value_leaves_a_gap() -> None:
    ys: list[float] = [0.1, 0.2, None, float("nan"), 0.5, 0.6]  # type: ignore[list-item]
    svg = curve_svg(Curve("t", "x", "y", [Series("a", [0, 1, 2, 3, 4, 5], ys)]), "c")
    assert re.findall(r'class="line" d="([^"]*)"', svg)[0].count("M") == 2
    assert "nan" not in svg.lower() and "none" not in svg.lower()


def test_bands_enclose_their_line() -> None:
    svg = curve_svg(sample_report.curve(), "c")
    band = re.findall(r'class="s1 fill" d="M([^"]*)Z"', svg)[0]
    ends = [tuple(map(float, place.split())) for place in band.split("L")]
    top, bottom = ends[:5], ends[5:][::-1]
    for (x, y), (_, high), (_, low) in zip(points(svg, 0), top, bottom, strict=True):
        assert high <= y <= low and (x, high) in ends


def test_series_differ_without_colour() -> None:
    curve = Curve("t", "x", "y", [Series(f"line {at}", [0, 1], [at / 10, 1]) for at in range(6)])
    svg, names = curve_svg(curve, "c"), legend(curve)
    dashes = re.findall(r'class="s\d"><path class="line" d="[^"]*"( stroke-dasharray="[^"]*")?/>', svg)
    assert len(dashes) == len(set(dashes)) == 6
    assert all(f"line {at}" in names for at in range(6))


def test_a_figure_tells_its_data_and_describes_itself() -> None:
    html = evidence_html(sample_report.curve(), "f-1")
    assert 'role="img"' in html and 'aria-labelledby="f-1-t f-1-d"' in html and "<title id" in html and "<desc id" in html
    assert "PGD: 98.8" not in html and "PGD: 0.988 at 0, 0.035 at 0.2" in html
    assert html.count("<table>") == 3 and "<details class=data>" in html and ">0.661<" in html
    assert "24 of 121 points" in evidence_html(sample_report.roc(), "f-2")


def test_heat_map_prints_every_value_and_tints_the_bad_ones() -> None:
    html = evidence_html(Heatmap("t", ["a", "b"], ["1", "2"], [[1.0, 0.5], [0.25, 0.0]]), "h")
    cells = re.findall(r'<td style="--t:([\d.]+)">([\d.]+)</td>', html)
    assert cells == [("0.00", "1.00"), ("0.50", "0.50"), ("0.75", "0.25"), ("1.00", "0.00")]
    lower = evidence_html(Heatmap("t", ["a"], ["1", "2"], [[10.0, 30.0]], better="lower"), "h")
    assert re.findall(r"--t:([\d.]+)", lower) == ["0.00", "1.00"]
    assert evidence_html(Heatmap("t", [], [], []), "h")


def test_a_long_table_says_what_it_leaves_out() -> None:
    html = evidence_html(sample_report.inventory(), "t")
    assert html.count("<tr>") == 41 and "… and 20 rows more, in report.json" in html


def test_columns_of_figures_line_up() -> None:
    html = evidence_html(Table("t", ["a", "n", "x"], [["p", 31_000, 12.0], ["q", 500, 0.1], ["r", None, 3.9]]), "t")
    assert re.findall(r"<td class=n>([^<]*)", html) == ["31,000", "12.0", "500", "0.1", "–", "3.9"]


def test_columns_of_percentages_are_figures() -> None:
    html = evidence_html(Table("t", ["a", "x", "version"], [["p", "71.4%", "1.0"], ["q", "< 0.1 %", "2.0"]]), "t")
    assert re.findall(r"<td class=n>([^<]*)", html) == ["71.4%", "&lt; 0.1 %"]


def test_interval_bar_places_value_and_interval() -> None:
    bar = interval_bar(Finding("a/b", "a", "?", Status.PASS, 0.5, "accuracy", 10, Interval(0.25, 0.75)))
    assert 'cx="48.0"' in bar and 'x="25.5" y="2" width="45.0"' in bar and "25.0% to 75.0%" in bar
    assert interval_bar(Finding("a/b", "a", "?", Status.PASS, 0.5, "nats")) == ""


def test_only_pngs_are_pictures() -> None:
    assert png_size(sample_report.png(1, 32)) == (32, 32)
    assert png_size('iVBORw0K" onerror="alert(1)') is None
    assert png_size("PHN2Zz48L3N2Zz4=") is None and png_size("") is None
