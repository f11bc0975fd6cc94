"""The scope of a report as a reader wants it: named groups of labels and values, whatever keys the assessment wrote."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from hauberk.report.report import Report
from hauberk.report.words import clean, is_number, line, number, seconds

Row = tuple[str, str, bool]
_LABELS = {
    "n": "samples", "eps": "ε", "sha256": "SHA-256", "hash": "SHA-256", "url": "URL",
    "seconds": "time", "n_test": "test samples", "n_train": "training samples",
}
_LONGEST = 500


def groups(scope: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return titled groups of rows (label, value, whether it is code); versions and notices are left to others."""
    plain: list[Row] = []
    made = []
    for key, value in scope.items():
        if key in ("versions", "notices", "command") or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            made.append((_title(key), _rows(value)))
        elif isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            rows = [_row(str(at + 1), one) for at, one in enumerate(value)]
            made.append((_title(key), rows))
        else:
            plain.append(_row(key, value))
    # Model and data first, then how they were assessed, then the rest.
    return [*made[:2], *([("Run", plain)] if plain else []), *made[2:]]


def notices(scope: Mapping[str, Any]) -> list[str]:
    """Return what the reader must know of the run, such as probabilities found where logits were expected."""
    given = scope.get("notices", ())
    return [line(one, _LONGEST) for one in ([given] if isinstance(given, str) else given or ())]


def versions(scope: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the packages of the run with their versions."""
    given = scope.get("versions")
    return [(line(name, 80), line(one, 80)) for name, one in given.items()] if isinstance(given, Mapping) else []


def model_name(report: Report) -> str:
    """Return how to call the model: its name, else where it comes from."""
    planned = report.plan.get("model")
    # The name that the writer of the plan gave comes first.
    named: Any = {"name": planned.get("name")} if isinstance(planned, Mapping) else None
    for table in (named, report.scope.get("model"), planned, report.scope.get("study")):
        if isinstance(table, str) and table.strip():
            return line(table, 120)
        if isinstance(table, Mapping):
            for key in ("name", "title", "path", "url", "type", "class"):
                if isinstance(table.get(key), str) and table[key].strip():
                    return line(table[key], 120)
    return "model"


def model_place(report: Report) -> str:
    """Return the model's file as a URI reference: what a finding is about; the locked plan where there is no file."""
    for table in (report.plan.get("model"), report.scope.get("model")):
        if isinstance(table, Mapping):
            for key in ("weights", "file", "path", "url"):
                place = table.get(key)
                if isinstance(place, str) and place.strip():
                    return _uri(place.strip())
    files = scope_files(report.scope)
    return _uri(files[0]) if files else "plan.lock.toml"


def scope_files(scope: Mapping[str, Any]) -> list[str]:
    """Return the files of the model that the scope names."""
    model = scope.get("model")
    files = model.get("files") if isinstance(model, Mapping) else None
    return [one for one in files if isinstance(one, str) and one] if isinstance(files, (list, tuple)) else []


def about(report: Report) -> str:
    """Return one line on what was assessed: data, access, preset."""
    scope, told = report.scope, []
    data = scope.get("data")
    if isinstance(data, Mapping):
        told.append(" ".join(line(data[key], 80) for key in ("name",) if data.get(key)))
    elif isinstance(data, str):
        told.append(line(data, 80))
    for key, word in (("access", "access"), ("preset", "preset")):
        if isinstance(scope.get(key), str):
            told.append(f"{line(scope[key], 40).lower()} {word}")
    for key in ("date", "time", "started", "finished"):
        if isinstance(scope.get(key), str):
            told.append(_moment(line(scope[key], 40)))
            break
    if is_number(scope.get("seconds")):
        told.append(seconds(scope["seconds"]))
    return " · ".join(one for one in told if one)


def _rows(table: Mapping[str, Any], prefix: str = "") -> list[Row]:
    rows: list[Row] = []
    for key, value in table.items():
        if value in (None, "", [], {}):
            continue
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping) and len(name) < 60:
            rows.extend(_rows(value, name))
        else:
            rows.append(_row(name, value))
    return rows


def _row(key: str, value: Any) -> Row:
    words = [_LABELS.get(word, word) for word in str(key).replace("_", " ").split()]
    label = _LABELS.get(str(key)) or " ".join(words)
    return line(label[:1].upper() + label[1:], 60), _value(str(key), value), _is_hash(value)


def _value(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_LABELS.get(str(inner), inner)} {_value(str(inner), one)}" for inner, one in value.items())[:_LONGEST]
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_value(key, one) for one in list(value)[:12])
        return shown + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "seconds":
        return seconds(value)
    if isinstance(value, int) and key.split()[-1] in ("seed", "port", "pid"):
        return str(value)
    if key == "access" and isinstance(value, str):
        return line(value, 40).lower()
    if key == "date" and isinstance(value, str):
        return _moment(value)
    return number(value) if isinstance(value, (int, float)) else clean(value, _LONGEST)


def _moment(text: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment.strftime("%Y-%m-%d %H:%M") + (" UTC" if moment.utcoffset() == datetime.timedelta(0) else "")


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("(sha256:)?[0-9a-fA-F]{32,128}", value) is not None


def _title(key: str) -> str:
    title = line(str(key).replace("_", " "), 60)
    return title[:1].upper() + title[1:]


def _uri(place: str) -> str:
    if place.startswith(("http://", "https://")):
        return quote(line(place), safe="/:?&=%")
    return quote(place.replace("\\", "/").removeprefix("./").encode("utf-8", "replace"), safe="/")
