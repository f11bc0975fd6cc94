"""Axes of figures: where values lie on the page, and the ticks a reader expects."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from hauberk.report.words import is_number


@dataclasses.dataclass(frozen=True)
class Axis:
    """A scale from values to a share of the page, 0 at its beginning and 1 at its end.

    Arguments:
        low, high: the values at both ends, low < high.
        ticks: the values to label.
        log: whether equal ratios have equal lengths; values at or below `low` lie on the beginning.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, between 0 and 1; what is outside lies on the edge."""
        if self.log:
            if value <= self.low:
                return 0.0
            share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


def axis(values: Sequence[float], *, log: bool = False) -> Axis:
    """Return an axis that holds all the values.

    A linear axis of shares (all in [0, 1] and some above a fifth) runs from 0 to 1, so that figures can be compared by eye.
    """
    finite = [float(one) for one in values if is_number(one)]
    return _log(finite) if log else _linear(finite)


def _linear(values: list[float]) -> Axis:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low >= 0 and 0.2 < high <= 1:
        low, high = 0.0, 1.0
    elif low > 0 and low < 0.5 * high:
        low = 0.0
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        room = abs(low) / 2 or 0.5
        low, high = low - room, high + room
    step = _nice((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _log(values: list[float]) -> Axis:
    above = [one for one in values if one > 0]
    bottom = math.floor(math.log10(min(above)) + 1e-9) if above else -3
    top = math.ceil(math.log10(max(above)) - 1e-9) if above else 0
    if top <= bottom:
        bottom = top - 1
    stride = max(1, math.ceil((top - bottom) / 6))
    ticks = tuple(float(f"1e{power}") for power in range(bottom, top + 1, stride))
    return Axis(float(f"1e{bottom}"), float(f"1e{top}"), ticks, log=True)


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    for factor in (1, 2, 2.5, 5):
        if step <= factor * power * (1 + 1e-9):
            return factor * power
    return 10 * power


def tick_label(value: float) -> str:
    """Return the text of a tick."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.6g}" if abs(value) >= 10_000 else f"{value:.6g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    factor = value / 10.0**power
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if abs(factor - 1) < 1e-6 else f"{factor:.3g}·10{raised}"
