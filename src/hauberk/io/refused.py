"""A table in TOML that does not fit its model, in words: which key, what it should be, which key was meant."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel, ValidationError

from hauberk.core.errors import UsageError, nearest

_TYPES = {
    "string_type": "text in quotes", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list in [ ]", "dict_type": "a table", "model_type": "a table", "model_attributes_type": "a table",
    "int_from_float": "a whole number",
}


def refused(error: ValidationError, table: type[BaseModel], name: str, *, fix: str) -> UsageError:
    """Return the error for a table that does not fit: its first wrong key, what it should be, and the other keys that are wrong.

    Arguments:
        error: from pydantic.
        table: the model of the whole file.
        name: what errors call the file.
        fix: the next step where a key is missing.
    """
    faults = error.errors(include_url=False)
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")  # a key misspelt also makes another one missing
    first, others = faults[0], [_key(one["loc"]) for one in faults[1:] if one["type"] != "missing"]
    key, kind, value = _key(first["loc"]), first["type"], first["input"]
    more = f"Also wrong: {', '.join(others)}" if others else ""
    if kind == "extra_forbidden":
        hint = nearest(str(first["loc"][-1]), _known(table, first["loc"][:-1]))
        return UsageError(f"{name}: {key} is unknown. {hint}", fix=more)
    if kind == "missing":
        return UsageError(f"{name}: {key} is missing", fix=more or fix)
    context = first.get("ctx", {})
    if kind == "literal_error":
        known = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        hint = nearest(value, known) if isinstance(value, str) and value else ""
        return UsageError(
            f"{name}: {key} is {_shown(value)}", want=" | ".join(one for one in known if one),
            fix=hint if hint.startswith("Did") else more,
        )
    want = str(context["error"]) if kind == "value_error" else _TYPES.get(kind, "")
    if kind == "string_pattern_mismatch":
        want = {"device": "cpu, cuda, cuda:1, mps or xpu", "url": "an address that begins with http:// or https://"}.get(
            str(first["loc"][-1]), ""
        )
    if kind == "string_too_short":
        want = "text that is not empty"
    want = want or first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return UsageError(f"{name}: {key or 'the file'} is {_shown(value)}", want=want, fix=more)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table with " + (", ".join(map(str, list(value)[:6])) or "nothing in it")
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _key(place: tuple[int | str, ...]) -> str:
    names = [f"[{part}]" if isinstance(part, int) else f".{part}" if part.isidentifier() else f'."{part}"' for part in place]
    return "".join(names).lstrip(".")


def _known(table: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the table at `place` may have."""
    for part in place:
        if isinstance(part, int) or part not in table.model_fields:
            continue  # an item of a list, or a gate, whose table is found already
        found = _table_in(table.model_fields[part].annotation)
        table = found if found is not None else table
    return list(table.model_fields)


def _table_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _table_in(one)) is not None), None)
