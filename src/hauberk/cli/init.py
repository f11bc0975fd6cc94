"""hauberk init: looks at a model and data, and writes a plan that works as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command, remark

if TYPE_CHECKING:
    from hauberk.core.data import Data
    from hauberk.core.target import Target
    from hauberk.io.plan_schema import Plan


@command
def init(
    model: Annotated[str, typer.Argument(
        metavar="MODEL", show_default=False,
        help="package.module:attr, file.py:attr, a .pt2, .pt, .onnx or .skops file, or an http address.")] = "",
    data: Annotated[str, typer.Argument(
        metavar="DATA", show_default=False,
        help="Test data: .npz, .csv, .parquet, IDX, an image folder, or sklearn:digits.")] = "",
    *,
    weights: options.Weights = "", train: options.Train = "", label: options.Label = "",
    classes: options.Classes = None,
    template: Annotated[str, typer.Option(
        help='JSON of a request to an endpoint; "$INPUT" stands for a batch, "$SAMPLE" for one sample.',
        rich_help_panel="Endpoint",
    )] = "",
    response: Annotated[str, typer.Option(
        help="Where the scores or labels are in its answer, such as outputs.0.scores.", rich_help_panel="Endpoint")] = "",
    output: Annotated[Path, typer.Option(help="Where to write the plan.")] = Path("plan.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a plan that is there.")] = False,
    trust: options.Trust = False, verbose: options.Verbose = False,
) -> None:
    """Look at a model and data, and write a commented plan that works as it is."""
    from hauberk.core.errors import UsageError
    from hauberk.core.files import refuse_unwritable, write_whole

    if not model or not data:
        raise UsageError(
            "the data is missing" if model else "model and data are missing", want="hauberk init MODEL DATA",
            fix=f"For example: hauberk init {model or 'shop.py:build'} test.npz, or sklearn:digits for the data",
        )
    if output.exists() and not force:
        raise UsageError(f"{output} exists already", want="a new file", fix="Use --force, or choose another --output")
    refuse_unwritable(output)
    plan = options.choose_plan(
        None, model={"path": model, "weights": weights, "template": template, "response": response},
        data={"test": data, "train": train, "label": label, "classes": classes}, threats=None, run={},
    )
    text = _look(plan, output, trust=trust)
    write_whole(output, text)
    typer.echo(f"{output} is written. Next: hauberk assess{'' if output == Path('plan.toml') else f' {output}'}")


@command
def schema() -> None:
    """Print the JSON schema of a plan, for editors."""
    from hauberk.io.plan import plan_schema

    typer.echo(json.dumps(plan_schema(), indent=1))


def _look(plan: Plan, output: Path, *, trust: bool) -> str:
    """Return the text of the plan after a look at what it names; a model and data that do not fit are refused here."""
    import torch

    from hauberk.core.validate import validate
    from hauberk.planned import load_plan_data, load_plan_model, naming_the_call

    data = load_plan_data(plan)
    target = load_plan_model(plan, data, trust=trust)
    with naming_the_call(plan):
        notices = validate(target, data)
    for notice in dict.fromkeys((*notices, *target.notices)):
        remark(f"noticed: {notice}")
    x, y = data.test.first(256)
    right = float((target.labels(x) == y).double().mean()) if data.is_classification else None
    low, high = (torch.as_tensor(end).double() for end in data.bounds)
    ends = [_plain(end) for end in (low, high)]
    return _write(plan, data, target, output=output, ends=ends, width=float((high - low).mean()), right=right)


def _write(
    plan: Plan, data: Data, target: Target, *, output: Path, ends: list[Any], width: float, right: float | None
) -> str:
    from hauberk.io.plan import rebased

    here, splits = output.parent, data.splits()
    shape = " x ".join(map(str, data.test.shape))
    sizes = ", ".join(f"{len(split)} {role}" for role, split in splits.items())
    kinds = f"{data.classes} classes" if data.is_classification else "numbers to predict"
    source = f"url = {_text(plan.model.url)}" if plan.model.url else f"path = {_text(rebased(plan.model.path, here))}"
    weights = f"weights = {_text(rebased(plan.model.weights, here))}" if plan.model.weights else (
        '# weights = "weights.safetensors"   # safetensors or state dict for the module that path builds'
    )
    measured = "" if right is None else f"; {right:.1%} of the first {min(len(data.test), 256)} test samples are right"
    train = f"train = {_text(rebased(plan.data.train, here))}" if plan.data.train else (
        '# train = "train.npz"                # what the model was trained on: privacy checks need it'
        if "train" not in splits else "# train comes with the test data"
    )
    label = [f"label = {_text(plan.data.label)}"] if plan.data.label else []
    if plan.data.classes is not None:
        label.append(f"classes = {plan.data.classes}")
    asked = [
        f"{key} = {_text(value)}" for key, value in (("template", plan.model.template), ("response", plan.model.response))
        if value is not None
    ]
    checks = "quick"
    return "\n".join([
        "# A plan for hauberk assess. Every table but [model] and [data] may be left out; hauberk schema lists all keys.",
        "",
        f"[model]                              # {target.name}{measured}",
        source,
        *asked,
        weights,
        f'access = "{target.access.name.lower()}"'.ljust(37) + "# what the adversary is granted: label, score or gradient",
        "",
        f"[data]                               # {data.modality}, {sizes}; {shape} each, {kinds}",
        f"test = {_text(rebased(plan.data.test, here))}",
        train,
        *label,
        f"bounds = {ends}".ljust(37) + "# lowest and highest input",
        '# groups = ["sex"]                   # columns that name groups of people: fairness checks need them',
        '# canaries = "canaries.npz"          # planted before training: hauberk.privacy.inference.plant_canaries',
        "",
        "[threat]                             # what the adversary may change; write [[threat]] for several",
        'norm = "linf"'.ljust(37) + "# linf, l2, l1 or l0",
        f"eps = {_radii(data, width)}".ljust(37) + "# input units; the last is the radius of the verdict, all make the curve",
        "# queries = 5000                     # per sample, for a black-box adversary",
        "",
        "[run]",
        f'preset = "{checks}"'.ljust(37) + "# quick, standard or thorough",
        "seed = 0",
        "# minutes = 10                       # checks whose turn comes later are reported as not run",
        '# select = ["robustness", "privacy/*"]',
        '# ignore = ["robustness/transfer"]',
        '# workers = 2                        # processes',
        '# device = "cuda"',
        "",
        "# [gate]                             # what makes the exit code 1; hauberk gate --from report makes one from a report",
        '# "robustness/clean-accuracy" = { min = 0.9, run = true }',
        "",
    ])


def _radii(data: Data, width: float) -> str:
    if data.modality == "image" and min(data.test.shape[-2:]) >= 24:
        if abs(width - 1) < 1e-9:
            return '["2/255", "4/255", "8/255"]'
        return json.dumps([round(width * step / 255, 6) for step in (2, 4, 8)])
    return json.dumps([round(width * share, 6) for share in (0.02, 0.05, 0.1)])


def _plain(end: Any) -> Any:
    return float(f"{float(end):.6g}") if end.ndim == 0 else [float(f"{value:.9g}") for value in end.flatten().tolist()]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
