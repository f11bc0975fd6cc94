"""Evidence as HTML: each figure with its data as a table, each table in a box of its own that scrolls."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from hauberk.core.finding import Curve, Evidence, Gallery, Heatmap, Picture, Radar, Table
from hauberk.report.markup import trusted
from hauberk.report.radar import names, radar_svg
from hauberk.report.svg import curve_svg, legend
from hauberk.report.words import clean, is_number, line, number, plural

ROWS_SHOWN = 40
POINTS_SHOWN = 24
COLUMNS_SHOWN = 24
CAPTIONS_SHOWN = 64
_PERCENT = re.compile(r"[-+−<>~≈ ]*\d[\d,]*(\.\d+)? ?%")


def evidence_html(evidence: Evidence, anchor: str) -> Markup:
    """Return one piece of evidence as an HTML fragment; `anchor` is unique in the page."""
    if isinstance(evidence, Curve):
        return _curve(evidence, anchor)
    if isinstance(evidence, Heatmap):
        return _heatmap(evidence)
    if isinstance(evidence, Gallery):
        return _gallery(evidence, anchor)
    if isinstance(evidence, Radar):
        return _radar(evidence, anchor)
    return _table(evidence)


def _curve(curve: Curve, anchor: str) -> Markup:
    data = ""
    for one in curve.series:
        points = list(zip(one.x, one.y, strict=False))
        kept = _spread(len(points), POINTS_SHOWN)
        band = len(one.low) == len(one.high) == len(one.x) and len(one.low) > 0
        head = [curve.x_label or "x", curve.y_label or "y", *(("low", "high") if band else ())]
        rows = [
            [points[at][0], points[at][1], *((one.low[at], one.high[at]) if band else ())] for at in kept
        ]
        short = f"; {len(kept)} of {len(points)} points" if len(kept) < len(points) else ""
        data += _grid(f"{one.name}{short}", head, rows)
    folded = f"<details class=data><summary>Data of this figure</summary>{data}</details>" if data else ""
    return trusted(
        f'<figure class="figure"><figcaption>{escape(line(curve.title, 200))}</figcaption>'
        f"{curve_svg(curve, anchor)}{legend(curve)}{folded}</figure>"
    )


def _heatmap(heat: Heatmap) -> Markup:
    # A table, not a drawing: values stay legible at any width, scroll in their box, and are read out cell by cell.
    flat = [float(value) for row in heat.values for value in row if is_number(value)]
    low, high = (min(flat), max(flat)) if flat else (0.0, 1.0)
    if low >= 0 and 0.2 < high <= 1:
        low, high = 0.0, 1.0
    best, worst = (high, low) if heat.better == "higher" else (low, high)
    head = "".join(f'<th scope="col">{escape(line(one, 60))}</th>' for one in list(heat.columns)[:COLUMNS_SHOWN])
    rows = []
    for name, values in list(zip(heat.rows, heat.values, strict=False))[:ROWS_SHOWN]:
        cells = "".join(_warm(value, best, worst) for value in list(values)[:COLUMNS_SHOWN])
        rows.append(f'<tr><th scope="row">{escape(line(name, 60))}</th>{cells}</tr>')
    left = _left_out(len(heat.rows) - ROWS_SHOWN, "row") + _left_out(len(heat.columns) - COLUMNS_SHOWN, "column")
    title = escape(line(heat.title, 200))
    return trusted(
        f'<div class="figure wide"><div class="scroll" tabindex="0" role="group" aria-label="{title}"><table class="heat">'
        f'<caption>{title}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="key"><span class="ramp" aria-hidden="true"></span>the stronger the tint, the worse: '
        f"none at {number(best)}, full at {number(worst)}</p>{left}</div>"
    )


def _radar(radar: Radar, anchor: str) -> Markup:
    outlines = list(radar.outlines)
    rows = [
        [axis, *(one.values[at] if at < len(one.values) else None for one in outlines)] for at, axis in enumerate(radar.axes)
    ]
    data = _grid("Values by axis", ["axis", *(one.name for one in outlines)], rows)
    return trusted(
        f'<figure class="figure"><figcaption>{escape(line(radar.title, 200))}</figcaption>{radar_svg(radar, anchor)}'
        f"{names(radar)}<details class=data><summary>Data of this figure</summary>{data}</details></figure>"
    )


def _warm(value: Any, best: float, worst: float) -> str:
    if not is_number(value):
        return "<td>–</td>"
    share = 0.0 if best == worst else min(1.0, max(0.0, (value - best) / (worst - best)))
    return f'<td style="--t:{share:.2f}">{_short(value)}</td>'


def _short(value: float) -> str:
    if isinstance(value, int):
        return number(value)
    return f"{value:.2f}" if 0.01 <= abs(value) < 100 or value == 0 else number(value)


def _table(table: Table) -> Markup:
    return trusted(f'<div class="figure wide">{_grid(table.title, table.columns, table.rows)}</div>')


def _grid(title: str, columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    rows = list(rows)
    shown = [list(row)[:COLUMNS_SHOWN] for row in rows[:ROWS_SHOWN]]
    figures = [all(_is_figure(row[at]) for row in shown if at < len(row)) for at in range(COLUMNS_SHOWN)]
    head = "".join(
        f'<th scope="col"{_right(figures[at])}>{escape(line(one, 80))}</th>'
        for at, one in enumerate(list(columns)[:COLUMNS_SHOWN])
    )
    body = []
    decimals = [_decimals([row[at] for row in shown if at < len(row)]) if figures[at] else None for at in range(COLUMNS_SHOWN)]
    for row in shown:
        cells = [f"<td{_right(figures[at])}>{_cell(value, decimals[at])}</td>" for at, value in enumerate(row)]
        if row and not figures[0]:
            cells[0] = f'<th scope="row">{_cell(row[0])}</th>'
        body.append(f"<tr>{''.join(cells)}</tr>")
    name = escape(line(title, 200))
    left = _left_out(len(rows) - ROWS_SHOWN, "row") + _left_out(len(columns) - COLUMNS_SHOWN, "column")
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{left}"
    )


def _is_figure(value: Any) -> bool:
    return value is None or is_number(value) or (isinstance(value, str) and _PERCENT.fullmatch(value) is not None)


def _decimals(values: Sequence[Any]) -> int | None:
    """Return how many decimals line a column of figures up, or None where they are too far apart for that."""
    sizes = [abs(float(one)) for one in values if is_number(one) and one]
    if not sizes or any(isinstance(one, str) for one in values) or all(isinstance(one, int) for one in values):
        return None
    if max(sizes) >= 1e4 or min(sizes) < 1e-4 or max(sizes) / min(sizes) > 1e3:
        return None
    shown = [number(one) for one in values if is_number(one)]
    return max(len(one.partition(".")[2]) for one in shown)


def _cell(value: Any, decimals: int | None = None) -> str:
    if decimals is not None and is_number(value):
        return f"{value:,.{decimals}f}"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, (int, float)):
        return number(value)
    return str(escape(clean(value, 300)))


def _gallery(gallery: Gallery, anchor: str) -> Markup:
    title = escape(line(gallery.title, 200))
    shown = [_picture(one) for one in list(gallery.pictures)[:CAPTIONS_SHOWN]]
    left = _left_out(len(gallery.pictures) - CAPTIONS_SHOWN, "picture")
    return trusted(
        f'<div class="figure wide gallery" role="group" aria-labelledby="{anchor}-t">'
        f'<p class="caption" id="{anchor}-t">{title}</p><ul>{"".join(shown)}</ul>{left}</div>'
    )


def _picture(picture: Picture) -> str:
    caption, size = escape(line(picture.caption, 160)), png_size(picture.png)
    if size is None:
        return f'<li><p class="lost">not a PNG: left out</p><p>{caption}</p></li>'
    return (
        f'<li><img src="data:image/png;base64,{picture.png}" width="{size[0]}" height="{size[1]}" alt="{caption}">'
        f'<p aria-hidden="true">{caption}</p></li>'
    )


def png_size(encoded: str) -> tuple[int, int] | None:
    """Return width and height of a base64 PNG, at most 640 wide as shown; None for anything else."""
    try:
        head = base64.b64decode(encoded, validate=True)[:24]
    except (binascii.Error, ValueError, TypeError):
        return None
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        return None
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    scale = min(1.0, 640 / max(width, 1), 640 / max(height, 1))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _spread(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted({round(at * (count - 1) / (most - 1)) for at in range(most)})


def _right(is_figure: bool) -> str:
    return " class=n" if is_figure else ""


def _left_out(count: int, word: str) -> str:
    return f'<p class="left">… and {plural(count, word)} more, in report.json</p>' if count > 0 else ""
