"""Options that several commands share, and how they become a plan."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from hauberk.io.plan_schema import Plan


class AccessName(enum.StrEnum):
    """What an adversary is granted."""

    LABEL = "label"
    SCORE = "score"
    GRADIENT = "gradient"


class Preset(enum.StrEnum):
    """How thoroughly a model is assessed."""

    QUICK = "quick"
    STANDARD = "standard"
    THOROUGH = "thorough"


class Format(enum.StrEnum):
    """What is written on stdout."""

    TEXT = "text"
    JSON = "json"


_WHAT, _HOW = "What is assessed", "How"
Model = Annotated[str, typer.Option(
    "--model", help="package.module:attr, file.py:attr, a .pt2, .pt, .onnx or .skops file, or an http address.",
    rich_help_panel=_WHAT,
)]
Weights = Annotated[str, typer.Option(help="Safetensors or state dict for the module.", rich_help_panel=_WHAT)]
TestData = Annotated[str, typer.Option(
    "--data", help="Test data: .npz, .csv, .parquet, IDX, an image folder, or sklearn:digits.", rich_help_panel=_WHAT,
)]
Train = Annotated[str, typer.Option(help="The data that the model was trained on.", rich_help_panel=_WHAT)]
Label = Annotated[str, typer.Option(help="Column of the labels, for tables.", rich_help_panel=_WHAT)]
Groups = Annotated[list[str] | None, typer.Option(
    "--groups", help="Columns that name groups of people; repeatable, or a comma list.", rich_help_panel=_WHAT,
)]
Classes = Annotated[int | None, typer.Option(
    "--classes", help="Number of classes, where some have no sample.", rich_help_panel=_WHAT, min=2,
)]
Bounds = Annotated[str, typer.Option(help="Lowest and highest input, such as 0,1.", rich_help_panel=_WHAT)]
Threats = Annotated[list[str] | None, typer.Option(
    "--threat", help="norm:eps such as linf:8/255 or l2:0.5,1,2; repeatable, the first is the main one.", rich_help_panel=_WHAT,
)]
Grant = Annotated[AccessName | None, typer.Option("--access", help="What the adversary is granted.", rich_help_panel=_WHAT)]
Seed = Annotated[int | None, typer.Option(help="All randomness is derived from it.", rich_help_panel=_HOW, min=0)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", rich_help_panel=_HOW)]
Trust = Annotated[bool, typer.Option("--trust", help="Open files that can run code, such as pickles.", rich_help_panel=_HOW)]
Output = Annotated[Format, typer.Option("--output-format", "--format", help="What to write on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more, and show tracebacks.")]


def new_file(path: Path, force: bool) -> Path:
    """Return a path to write to. Raises UsageError where a file is there already, but for `force`, and where a folder is."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", want="the name of a file", fix="Choose another --output")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", want="a new file", fix="Use --force, or choose another --output")
    return path


def not_folder(path: Path, want: str) -> Path:
    """Return a path that is no folder. Raises UsageError for one."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", want=want)
    return path


def words(given: Sequence[str] | None) -> list[str] | None:
    """Return the words of a repeatable option that also takes comma lists; None when it was not used."""
    if not given:
        return None
    return [word.strip() for part in given for word in part.split(",") if word.strip()]


def seconds(text: str) -> float:
    """Return the seconds of a duration such as `90s`, `10m` or `1h`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if not found or float(found[1]) == 0:
        raise UsageError(f"--budget is '{text}'", want="a duration such as 90s, 10m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def choose_plan(
    plan: Path | None, *, model: dict[str, Any], data: dict[str, Any], threats: Sequence[str] | None, run: dict[str, Any]
) -> Plan:
    """Return the plan of a command: the file's, with what the options say in its place.

    Arguments:
        plan: the file or folder named; None takes plan.toml or pyproject.toml here, unless model and data are named.
        model, data, run: tables made of options; empty text and None mean that the option was not used.
        threats: as written, `norm:eps`.
    """
    from hauberk.io.plan import changed, parse_plan, parse_threat, plan_table, read_plan, rebased

    model, data, run = ({key: value for key, value in table.items() if value not in ("", None)} for table in (model, data, run))
    alone = plan is None and "path" in model
    if alone and "test" not in data:
        raise UsageError("--model is given without --data", want="both, or a plan", fix="Add --data, e.g. --data test.npz")
    base = Path() if alone else read_plan(plan or Path())
    folder = base if isinstance(base, Path) else base.base
    model = {key: rebased(value, folder) if key in ("path", "weights") else value for key, value in model.items()}
    data = {key: rebased(value, folder) if key in ("test", "train") else value for key, value in data.items()}
    if "bounds" in data:
        data["bounds"] = [_number_or_text(end) for end in data["bounds"].split(",")]
    if "://" in model.get("path", ""):
        model["url"] = model.pop("path")
    changes = {"model": model, "data": data, "run": run, "threat": [parse_threat(text) for text in threats] if threats else None}
    if isinstance(base, Path):
        return parse_plan({key: value for key, value in changes.items() if value}, name="command line")
    if "path" in model or "url" in model:
        # Weights, templates and headers belong to the model of the plan, not to another one.
        kept = {key: value for key, value in {"access": base.model.access}.items() if value is not None}
        base = parse_plan({**plan_table(base), "model": {**kept, **model}}, source=base.source, name="command line")
    return changed(base, changes, name="command line")


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip()
