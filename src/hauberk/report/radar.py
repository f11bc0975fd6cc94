"""Radar charts as inline SVG, in the colours, dashes and markers of the other figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from hauberk.core.finding import Outline, Radar
from hauberk.report.markup import trusted
from hauberk.report.svg import SERIES_SHOWN, dash, marker, sample
from hauberk.report.words import is_number, line, number, plural

_WIDTH, _HEIGHT = 400, 276
_MIDDLE, _CENTRE, _RADIUS = 200.0, 138.0, 96.0
_RINGS = 4
AXES_SHOWN = 16
_LONGEST = 12  # letters of a line beside the chart


def radar_svg(radar: Radar, anchor: str) -> Markup:
    """Return a radar chart as SVG with a title and a description; `anchor` keeps its ids apart from those of others."""
    axes = list(radar.axes)[:AXES_SHOWN]
    outlines = list(radar.outlines)[:SERIES_SHOWN]
    drawn = [*_frame(radar, axes), *(_shape(one, index, radar, len(axes)) for index, one in enumerate(outlines))]
    return trusted(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{anchor}-t {anchor}-d">'
        f'<title id="{anchor}-t">{escape(line(radar.title, 200))}</title>'
        f'<desc id="{anchor}-d">{escape(describe(radar))}</desc>{"".join(drawn)}</svg>'
    )


def names(radar: Radar) -> Markup:
    """Return the names of the outlines, each with a sample of its line, as a list; nothing for one alone."""
    rows = [sample(index, one.name) for index, one in enumerate(list(radar.outlines)[:SERIES_SHOWN])]
    more = len(radar.outlines) - SERIES_SHOWN
    if more > 0:
        rows.append(f"<li>and {plural(more, 'outline')} more, in the data below</li>")
    return trusted('<ul class="legend">' + "".join(rows) + "</ul>") if len(rows) > 1 else Markup("")


def describe(radar: Radar) -> str:
    """Return a radar chart in words: its scale, and the value of each outline on each axis."""
    told = []
    for one in list(radar.outlines)[:SERIES_SHOWN]:
        pairs = zip(list(radar.axes)[:AXES_SHOWN], one.values, strict=False)
        values = (f"{line(axis, 40)} {number(value) if is_number(value) else 'not measured'}" for axis, value in pairs)
        told.append(f"{line(one.name, 80)}: {', '.join(values)}")
    return f"From {number(radar.low)} at the centre to {number(radar.high)} at the rim. {'; '.join(told)}."


def _frame(radar: Radar, axes: list[str]) -> Iterable[str]:
    count = len(axes)
    for ring in range(1, _RINGS + 1):
        share = ring / _RINGS
        corners = [_place(at, share, count) for at in range(count)]
        kind = "edge" if ring == _RINGS else "grid"
        yield f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in corners)}Z"/>' if count > 2 else ""
    for at, name in enumerate(axes):
        x, y = _place(at, 1.0, count)
        yield f'<path class="grid" d="M{_MIDDLE:.1f} {_CENTRE:.1f}L{x:.1f} {y:.1f}"/>'
        x, y = _place(at, 1.1, count)
        side = "middle" if abs(x - _MIDDLE) < 12 else "start" if x > _MIDDLE else "end"
        told = _lines(name)
        spans = "".join(f'<tspan x="{x:.1f}" dy="{14 if row else 0}">{escape(one)}</tspan>' for row, one in enumerate(told))
        # Two lines above the chart end where one would, those below begin there, those beside it are centred.
        rise = 7 * (len(told) - 1) * (1 - math.copysign(1, y - _CENTRE) if side == "middle" else 1)
        yield f'<text class="label" x="{x:.1f}" y="{y + 4 - rise:.1f}" text-anchor="{side}">{spans}</text>'
    for share in (0.5, 1.0):
        value = radar.low + share * (radar.high - radar.low)
        yield f'<text class="tick" x="{_MIDDLE + 4:.1f}" y="{_CENTRE - share * _RADIUS + 11:.1f}">{number(value)}</text>'


def _lines(name: str) -> list[str]:
    """Return a name on at most two lines, each of which fits beside the chart."""
    words, told = line(name, 2 * _LONGEST).split(" "), [""]
    for word in words:
        longer = f"{told[-1]} {word}".strip()
        if len(longer) <= _LONGEST or not told[-1]:
            told[-1] = longer
        elif len(told) == 1:
            told.append(word)
        else:
            told[-1] = longer
    return [line(one, _LONGEST) for one in told]


def _shape(one: Outline, index: int, radar: Radar, count: int) -> str:
    places: list[tuple[float, float] | None] = []
    for at, value in enumerate(list(one.values)[:count]):
        places.append(_place(at, _share(radar, float(value)), count) if value is not None and is_number(value) else None)
    known = [place for place in places if place is not None]
    if not known:
        return ""
    if len(known) == count:
        closed = "L".join(f"{x:.1f} {y:.1f}" for x, y in known)
        drawn = f'<path class="fill" d="M{closed}Z"/><path class="line" d="M{closed}Z"{dash(index)}/>'
    else:  # a value that is missing leaves a gap between its neighbours
        around = zip(places, [*places[1:], *([None] * (count - len(places))), places[0]], strict=False)
        sides = [(a, b) for a, b in around if a is not None and b is not None]
        path = "".join(f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in sides)
        drawn = f'<path class="line" d="{path}"{dash(index)}/>' if path else ""
    marks = "".join(marker(index, round(x, 1), round(y, 1)) for x, y in known)
    return f'<g class="s{index % 6 + 1}">{drawn}{marks}</g>'


def _share(radar: Radar, value: float) -> float:
    span = radar.high - radar.low
    return min(1.0, max(0.0, (value - radar.low) / span)) if span > 0 else 0.0


def _place(at: int, share: float, count: int) -> tuple[float, float]:
    """Return where a share of an axis lies: the first axis points up, the others follow clockwise."""
    angle = 2 * math.pi * at / max(count, 1)
    return _MIDDLE + share * _RADIUS * math.sin(angle), _CENTRE - share * _RADIUS * math.cos(angle)
