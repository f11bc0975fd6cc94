"""Words and figures as every renderer prints them. Knows nothing of torch."""

from __future__ import annotations

import math
import re
from typing import Any

from hauberk.core.finding import Finding, Interval

# Units whose values are shares: printed in per cent.
_SHARES = frozenset({
    "accuracy", "rate", "share", "fraction", "fidelity", "agreement", "precision", "recall", "coverage", "tpr", "fpr",
    "success", "error",
})
# What XML 1.0 forbids, what a terminal would obey, and what reverses the order of text.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
LONGEST = 4000


def clean(text: Any, longest: int = LONGEST) -> str:
    """Return the text without control characters (each becomes U+FFFD) and at most `longest` characters long."""
    made = _UNSAFE.sub("\ufffd", str(text).replace("\r\n", "\n").replace("\r", "\n"))
    return made if len(made) <= longest else made[: longest - 1] + "…"


def line(text: Any, longest: int = LONGEST) -> str:
    """Return the text on one line: white space of any kind becomes one blank."""
    return clean(" ".join(str(text).split()), longest)


def is_number(value: Any) -> bool:
    """Whether the value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, unit: str = "") -> str:
    """Return a figure with about four digits; shares (`unit` such as `accuracy`) in per cent, none as a dash."""
    if not is_number(value):
        return "–"
    if is_share(unit) and -1 <= value <= 1:
        return percent(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"
    return f"{value:.4g}" if size >= 1e-4 else f"{value:.2e}"


def percent(share: float) -> str:
    """Return a share in per cent; neither 0% nor 100% is printed for a share that only comes near."""
    size = abs(share)
    if 0 < size < 0.0005:
        return f"{share * 100:.2g}%"
    if 0.9995 <= size < 1:
        return f"{math.copysign(math.floor(size * 10000) / 100, share):.2f}%"
    return f"{share:.1%}"


def is_share(unit: str) -> bool:
    """Whether values of the unit are shares of a whole."""
    words = unit.lower().replace("-", " ").split()
    return bool(words) and (words[-1] in _SHARES or words[0] in ("tpr", "accuracy"))


def unit_word(finding: Finding) -> str:
    """Return the unit to print after the value."""
    return "" if finding.value is None else finding.unit


def interval_words(interval: Interval | None, unit: str = "") -> str:
    """Return `52.1% to 62.0%`, or nothing without an interval."""
    if interval is None or not (is_number(interval.low) and is_number(interval.high)):
        return ""
    return f"{number(interval.low, unit)} to {number(interval.high, unit)}"


def figure(finding: Finding) -> str:
    """Return the value with unit, interval and n on one line; nothing when there is no value."""
    if not is_number(finding.value):
        return ""
    parts = [" ".join(part for part in (number(finding.value, finding.unit), finding.unit) if part)]
    span = interval_words(finding.interval, finding.unit)
    if span:
        parts.append(f"[{span}]")
    if finding.n is not None:
        parts.append(f"n={number(finding.n)}")
    return " ".join(parts)


def seconds(value: Any) -> str:
    """Return a duration in the unit one would say."""
    if not is_number(value):
        return "–"
    if value < 0.1:
        return "< 0.1 s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def plural(count: int, word: str, many: str = "") -> str:
    """Return `1 check` or `3 checks`."""
    return f"{count:,} {word if count == 1 else many or word + 's'}"


def listed(words: list[str]) -> str:
    """Return `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def slug(text: str) -> str:
    """Return the text as part of an anchor: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
