"""The tables of a plan, as pydantic sees them. Knows nothing of torch, so that a wrong plan is refused at once."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, WithJsonSchema, model_validator


def number(value: object) -> float:
    """Return a number, or the value of a fraction in text such as `8/255`. Raises ValueError in plain words."""
    try:
        if isinstance(value, str):
            return math.inf if value.strip() == "inf" else float(Fraction(value.replace(" ", "")))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError("a number, or a fraction such as '8/255'")


def _radii(value: object) -> list[float]:
    found = [number(one) for one in value] if isinstance(value, list) else [number(value)]
    if not found or any(one < 0 for one in found) or found != sorted(found):
        raise ValueError("a radius of 0 or more, or a rising list of them")
    return found


def _ends(value: object) -> list[Any]:
    wrong = ValueError("[lowest, highest], each a number or one number per feature")
    if not isinstance(value, list) or len(value) != 2:
        raise wrong
    try:
        low, high = ([number(one) for one in end] if isinstance(end, list) else number(end) for end in value)
    except ValueError:
        raise wrong from None
    lows, highs = (end if isinstance(end, list) else [end] for end in (low, high))
    width = max(len(lows), len(highs))
    if {len(lows), len(highs)} - {1, width} or any(
        a >= b for a, b in zip(lows * (width // len(lows)), highs * (width // len(highs)), strict=True)
    ):
        raise ValueError("[lowest, highest], the lowest first")
    return [low, high]


def _statistic(value: object) -> list[float]:
    found = [number(one) for one in value] if isinstance(value, list) else [number(value)]
    if not found:
        raise ValueError("a number, or one number per channel")
    return found


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


_NUMBER = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(/\s*\d+\s*)?$|^inf$"}]}
_NUMBERS = {"anyOf": [*_NUMBER["anyOf"], {"type": "array", "items": _NUMBER, "minItems": 1}]}
Radii = Annotated[list[float], BeforeValidator(_radii), WithJsonSchema(_NUMBERS)]
Statistic = Annotated[list[float], BeforeValidator(_statistic), WithJsonSchema(_NUMBERS)]
Ends = Annotated[
    list[Any], BeforeValidator(_ends), WithJsonSchema({"type": "array", "items": _NUMBERS, "minItems": 2, "maxItems": 2})
]


class Table(BaseModel):
    """A table of a plan: unknown keys are refused, and a number in quotes is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class NormalizeTable(Table):
    """The normalisation that belongs to the model; attacks then live in input space."""

    mean: Statistic = Field(description="subtracted; a number, or one per channel")
    std: Statistic = Field(description="divided by; a number, or one per channel")

    @property
    def pair(self) -> tuple[float | list[float], float | list[float]]:
        """(mean, std), one number where there is one."""
        mean, std = (one if len(one) > 1 else one[0] for one in (self.mean, self.std))
        return mean, std


class ModelTable(Table):
    """What is assessed: a file, an attribute of a module, or an endpoint."""

    path: str = Field(default="", description="package.module:attr, file.py:attr, or a .pt2, .pt, .onnx or .skops file")
    weights: str = Field(default="", description="safetensors or state dict for the module that `path` builds")
    key: str = Field(default="", description="env:NAME or file:PATH: the key of encrypted weights, or of an encrypted .onnx")
    access: Literal["label", "score", "gradient"] | None = Field(default=None, description="what the adversary is granted")
    outputs: Literal["auto", "logits", "probabilities", "labels"] = Field(default="auto", description="what the model returns")
    normalize: NormalizeTable | None = None
    batch_size: int = Field(default=256, ge=1, description="samples sent to the model at once: what bounds memory")
    url: str = Field(default="", pattern=r"^(https?://.+)?$", description="address of an endpoint, in place of `path`")
    template: str | None = Field(
        default=None, description='JSON of a request; "$INPUT" stands for a batch as nested lists, "$SAMPLE" for one sample'
    )
    response: str | None = Field(default=None, description="where the scores or labels are in the answer: outputs.0.scores")
    headers: dict[str, str] = Field(default_factory=dict, description="by header, the environment variable that holds it")
    classes: list[str] = Field(default_factory=list, description="the labels in order, for an endpoint that answers words")
    name: str = Field(default="", description="what the report is headed with; left out, the name of the model's file or class")
    timeout: float = Field(default=30.0, gt=0, description="seconds that one request to an endpoint may take")

    @model_validator(mode="after")
    def _one_source(self) -> ModelTable:
        if bool(self.path) == bool(self.url):
            raise ValueError("either path or url")
        if self.path and (self.template is not None or self.response is not None or self.headers or self.classes):
            raise ValueError("template, response, headers and classes with a url alone")
        return self


class DataTable(Table):
    """What it is assessed on."""

    test: str = Field(min_length=1, description="held-out samples: .npz, .csv, .parquet, IDX, an image folder, sklearn:digits …")
    train: str = Field(default="", description="the samples the model was trained on: what privacy checks need")
    trusted: str = Field(default="", description="a small clean split for filters and repairs")
    canaries: str = Field(default="", description="an .npz of canaries, planted in training and spare: plant_canaries writes it")
    bounds: Ends | None = Field(default=None, description="lowest and highest input; left out, they are read from the data")
    label: str = Field(default="", description="the column of the labels, for tables")
    groups: list[str] = Field(default_factory=list, description="columns that name groups of people: what fairness checks need")
    classes: int | None = Field(default=None, ge=2, description="number of classes, where some have no sample; else read from it")
    modality: Literal["", "image", "tabular", "other"] = ""
    name: str = ""


Positions = list[Annotated[int, Field(ge=0)]]


class ThreatTable(Table):
    """What the adversary may change."""

    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps: Radii = Field(description="radius in input units; of several the last is the main one, and all make the curve")
    queries: int | None = Field(default=None, ge=1, description="queries per sample that a black-box adversary may spend")
    frozen: Positions = Field(default_factory=list, description="features that cannot change: positions in the flattened sample")
    whole: Positions = Field(default_factory=list, description="features that hold whole numbers")
    one_hot: list[Positions] = Field(default_factory=list, description="groups of features of which exactly one is 1")
    rising: Positions = Field(default_factory=list, description="features that can only grow")
    falling: Positions = Field(default_factory=list, description="features that can only fall")


class RunTable(Table):
    """How it is assessed."""

    preset: Literal["quick", "standard", "thorough"] = "quick"
    seed: int = Field(default=0, ge=0)
    minutes: float | None = Field(default=None, gt=0, description="checks whose turn comes later are reported as not run")
    select: list[str] = Field(default_factory=list, description="checks by name, pillar or glob; empty: those of the preset")
    ignore: list[str] = Field(default_factory=list, description="checks to leave out, by name, pillar or glob")
    workers: int = Field(default=1, ge=1, description="processes")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?|mps|xpu)$", description="cpu, cuda, cuda:1, mps")


class GateTable(Table):
    """The limits of one check, in place of its own."""

    min: float | None = Field(default=None, description="fails below")
    max: float | None = Field(default=None, description="fails above")
    run: bool | None = Field(default=None, description="fails where it does not run")

    @model_validator(mode="after")
    def _says_something(self) -> GateTable:
        if self.min is None and self.max is None and self.run is None:
            raise ValueError("at least one of min, max and run")
        return self


class PrivacyTable(Table):
    """What is claimed of the model's privacy."""

    statement: str = Field(min_length=1, description="the privacy statement of its training: hauberk account --output")


class AssetsTable(Table):
    """What is asked of the model's files: whose signature, and which software is known to be unsafe."""

    keys: list[str] = Field(default_factory=list, description="public keys that may have signed the model: hauberk keygen")
    policy: str = Field(default="", description="a policy of who may sign what, in place of keys")
    signed: str = Field(default="", description="the file or folder that the signature covers; left out, the model's own files")
    signature: str = Field(default="", description="the signature; left out, the one beside what is signed")
    unsafe: str = Field(default="", description="versions known to be unsafe: lines of package, versions, id")

    @model_validator(mode="after")
    def _one_trust(self) -> AssetsTable:
        if self.keys and self.policy:
            raise ValueError("either keys or a policy")
        return self


Threats = Annotated[list[ThreatTable], BeforeValidator(_listed)]


class Plan(Table):
    """An assessment, written down: what, on what, against whom, how, and what fails it."""

    model: ModelTable
    data: DataTable
    threat: Threats = Field(default_factory=list)
    run: RunTable = Field(default_factory=RunTable)
    privacy: PrivacyTable | None = None
    assets: AssetsTable | None = None
    gate: dict[str, GateTable] = Field(default_factory=dict)
    folder: str = Field(default="", description="where relative paths start, seen from the plan; written to plan.lock.toml")
    hauberk: str = Field(default="", description="the version that wrote this plan; information only")
    versions: dict[str, str] = Field(default_factory=dict, description="of the libraries of the run; information only")
    hashes: dict[str, str] = Field(default_factory=dict, description="SHA-256 of model and data; others are noticed")

    _source: Path = PrivateAttr(default=Path("plan.toml"))

    @property
    def source(self) -> Path:
        """The file the plan was read from; `plan.toml` of the current folder for one made of options."""
        return self._source

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self._source.parent / self.folder

    def placed(self, source: Path) -> Plan:
        """Return the plan as one that is kept in the file `source`."""
        made = self.model_copy()
        made._source = source
        return made
