"""Inline SVG of our own: curves with interval bands, and the small bar that shows a share with its interval.

Colours come from the style sheet (`--s1` ...), so that one drawing serves light, dark and print. Series differ by dash pattern
and marker too, so that none is known by its colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from hauberk.core.finding import Curve, Finding, Series
from hauberk.report.axis import Axis, axis, tick_label
from hauberk.report.markup import trusted
from hauberk.report.words import interval_words, is_number, is_share, line, number, plural

_WIDTH, _HEIGHT = 400, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 388, 10, 190
_DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2 1 2")
_MARKERS = ("dot", "square", "triangle", "diamond", "cross", "ring")
SERIES_SHOWN = 8
_POINTS_MARKED = 16


def curve_svg(curve: Curve, anchor: str) -> Markup:
    """Return a curve as SVG with a title and a description; `anchor` keeps its ids apart from those of others."""
    series = list(curve.series)[:SERIES_SHOWN]
    x_axis = axis([x for one in series for x in one.x], log=curve.log_x)
    heights = [y for one in series for y in (*one.y, *one.low, *one.high)]
    y_axis = axis(heights, log=curve.log_y)
    if curve.diagonal:
        x_axis = y_axis = axis([*heights, *(x for one in series for x in one.x)], log=curve.log_x and curve.log_y)
    parts = [*_frame(curve, x_axis, y_axis)]
    if curve.diagonal:
        parts.append(f'<line class="diagonal" x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_TOP}"/>')
    parts.extend(_band(one, index, x_axis, y_axis) for index, one in enumerate(series))
    parts.extend(_path(one, index, x_axis, y_axis) for index, one in enumerate(series))
    return trusted(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{anchor}-t {anchor}-d">'
        f'<title id="{anchor}-t">{escape(line(curve.title, 200))}</title>'
        f'<desc id="{anchor}-d">{escape(describe(curve))}</desc>{"".join(parts)}</svg>'
    )


def legend(curve: Curve) -> Markup:
    """Return the names of the series, each with a sample of its line, as a list."""
    rows = [sample(index, one.name) for index, one in enumerate(list(curve.series)[:SERIES_SHOWN])]
    if curve.diagonal:
        rows.append(
            '<li><svg class="sample" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true">'
            '<path class="diagonal" d="M1 9L33 1"/></svg>equal on both axes</li>'
        )
    more = len(curve.series) - SERIES_SHOWN
    if more > 0:
        rows.append(f"<li>and {plural(more, 'line')} more, in the data below</li>")
    return trusted('<ul class="legend">' + "".join(rows) + "</ul>") if len(rows) > 1 else Markup("")


def sample(index: int, name: str) -> str:
    """Return a row of a legend: the colour, dashes and marker of the line at that place, and its name."""
    return (
        f'<li><svg class="sample" viewBox="0 0 34 10" width="34" height="10" aria-hidden="true"><g class="s{index % 6 + 1}">'
        f'<path class="line" d="M1 5H33"{dash(index)}/>{marker(index, 17, 5)}</g></svg>{escape(line(name, 80))}</li>'
    )


def describe(curve: Curve) -> str:
    """Return a curve in words: the axes, and where each series begins and ends."""
    told = []
    for one in list(curve.series)[:SERIES_SHOWN]:
        points = _points(one.x, one.y)
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            told.append(f"{line(one.name, 80)}: {number(y0)} at {number(x0)}, {number(y1)} at {number(x1)}")
    scales = " (log)" if curve.log_x else "", " (log)" if curve.log_y else ""
    return f"{line(curve.y_label, 80)}{scales[1]} over {line(curve.x_label, 80)}{scales[0]}. {'; '.join(told)}."


def interval_bar(finding: Finding) -> Markup:
    """Return a small bar from 0 to 1 with the value and its interval; nothing where the value is not a share."""
    if not is_share(finding.unit) or not is_number(finding.value) or not 0 <= (finding.value or 0.0) <= 1:
        return Markup("")
    value, band = float(finding.value or 0.0), ""
    words = f"{number(value, finding.unit)} on a scale from 0 to 100%"
    if finding.interval is not None and interval_words(finding.interval):
        low, high = (min(1.0, max(0.0, end)) for end in (finding.interval.low, finding.interval.high))
        band = f'<rect class="band" x="{3 + 90 * low:.1f}" y="2" width="{max(1.0, 90 * (high - low)):.1f}" height="8" rx="2"/>'
        words += f", interval {interval_words(finding.interval, finding.unit)}"
    return trusted(
        f'<svg class="bar" viewBox="0 0 96 12" width="96" height="12" role="img" aria-label="{escape(words)}">'
        f'<path class="track" d="M3 6H93M3 3V9M93 3V9"/>{band}<circle class="dot" cx="{3 + 90 * value:.1f}" cy="6" r="3"/></svg>'
    )


def _frame(curve: Curve, x_axis: Axis, y_axis: Axis) -> Iterable[str]:
    for tick in y_axis.ticks:
        y = _y(tick, y_axis)
        yield f'<path class="grid" d="M{_LEFT} {y}H{_RIGHT}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick_label(tick)}</text>'
    for index, tick in enumerate(x_axis.ticks):
        x = _x(tick, x_axis)
        yield f'<path class="mark" d="M{x} {_BOTTOM}v4"/>'
        side = "end" if index == len(x_axis.ticks) - 1 and float(x) > _RIGHT - 2 and len(tick_label(tick)) > 4 else "middle"
        yield f'<text class="tick" x="{x}" y="{_BOTTOM + 17}" text-anchor="{side}">{tick_label(tick)}</text>'
    yield f'<path class="edge" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(line(curve.x_label, 60))}</text>'
    height = (_TOP + _BOTTOM) / 2
    yield (
        f'<text class="label" transform="rotate(-90 11 {height})" x="11" y="{height}" text-anchor="middle">'
        f"{escape(line(curve.y_label, 32))}</text>"
    )


def _band(one: Series, index: int, x_axis: Axis, y_axis: Axis) -> str:
    if not len(one.low) or len(one.low) != len(one.high):
        return ""
    ends = [
        (x, low, high) for x, low, high in zip(one.x, one.low, one.high, strict=False)
        if is_number(x) and is_number(low) and is_number(high)
    ]
    if len(ends) < 2:
        return ""
    there = [f"{_x(x, x_axis)} {_y(high, y_axis)}" for x, _, high in ends]
    back = [f"{_x(x, x_axis)} {_y(low, y_axis)}" for x, low, _ in reversed(ends)]
    return f'<path class="s{index % 6 + 1} fill" d="M{"L".join([*there, *back])}Z"/>'


def _path(one: Series, index: int, x_axis: Axis, y_axis: Axis) -> str:
    pieces: list[list[str]] = [[]]
    for x, y in zip(one.x, one.y, strict=False):
        if is_number(x) and is_number(y):
            pieces[-1].append(f"{_x(x, x_axis)} {_y(y, y_axis)}")
        elif pieces[-1]:
            pieces.append([])  # a value that is missing leaves a gap
    drawn = "".join(f"M{'L'.join(piece)}" for piece in pieces if piece)
    points = [place for piece in pieces for place in piece]
    stride = max(1, -(-len(points) // _POINTS_MARKED))
    marks = ""
    if len(points) <= _POINTS_MARKED or index:
        marks = "".join(marker(index, *map(float, place.split())) for place in points[::stride])
    return f'<g class="s{index % 6 + 1}"><path class="line" d="{drawn}"{dash(index)}/>{marks}</g>' if drawn else ""


def marker(index: int, x: float, y: float) -> str:
    """Return the marker of the line at that place in a figure."""
    kind = _MARKERS[index % len(_MARKERS)]
    if kind in ("dot", "ring"):
        return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="2.6"/>'
    shapes = {
        "square": f"M{x - 2.5:g} {y - 2.5:g}h5v5h-5Z", "triangle": f"M{x:g} {y - 3.2:g}l3.2 5.6h-6.4Z",
        "diamond": f"M{x:g} {y - 3.4:g}l3.4 3.4l-3.4 3.4l-3.4 -3.4Z", "cross": f"M{x - 2.5:g} {y - 2.5:g}l5 5m0 -5l-5 5",
    }
    return f'<path class="{"ring" if kind == "cross" else "dot"}" d="{shapes[kind]}"/>'


def dash(index: int) -> str:
    """Return the dash pattern of the line at that place in a figure, as an attribute."""
    pattern = _DASHES[index % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _points(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(xs, ys, strict=False) if is_number(x) and is_number(y)]


def _x(value: float, scale: Axis) -> str:
    return f"{_LEFT + (_RIGHT - _LEFT) * scale.place(value):.1f}"


def _y(value: float, scale: Axis) -> str:
    return f"{_BOTTOM - (_BOTTOM - _TOP) * scale.place(value):.1f}"
