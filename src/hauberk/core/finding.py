"""Finding: one question answered about a model, with its evidence. Knows nothing of torch."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

PILLARS = ("robustness", "integrity", "privacy", "assets", "trust")


class Status(enum.Enum):
    """How a question was answered, from best to worst; `NOT_RUN` is never green."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    ERROR = "error"
    NOT_RUN = "not run"

    @property
    def severity(self) -> int:
        """Rank for "the worst of": pass 0, not run 1, warn 2, fail 3, error 4."""
        return {"pass": 0, "not run": 1, "warn": 2, "fail": 3, "error": 4}[self.value]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval and how it was made."""

    low: float
    high: float
    method: str = "wilson"
    confidence: float = 0.95


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of figures or words under named columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    kind: str = "table"


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a curve; `low` and `high` are the ends of its band, when it has one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Curve:
    """Lines over one horizontal axis. A log axis shows values at or below zero on its left or lower edge."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    kind: str = "curve"


@dataclasses.dataclass(frozen=True)
class Heatmap:
    """One figure per row and column; `better` says which end is good."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    better: str = "higher"
    kind: str = "heatmap"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A small PNG, base64, with its caption."""

    png: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    title: str
    pictures: Sequence[Picture]
    kind: str = "gallery"


@dataclasses.dataclass(frozen=True)
class Outline:
    """One shape of a radar chart: a value per axis, None where it was not measured."""

    name: str
    values: Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class Radar:
    """Shapes over axes that leave one centre and share one scale, from `low` at the centre to `high` at the rim."""

    title: str
    axes: Sequence[str]
    outlines: Sequence[Outline]
    low: float = 0.0
    high: float = 1.0
    kind: str = "radar"


Evidence = Table | Curve | Heatmap | Gallery | Radar
_EVIDENCE: dict[str, type[Table | Curve | Heatmap | Gallery | Radar]] = {
    "table": Table, "curve": Curve, "heatmap": Heatmap, "gallery": Gallery, "radar": Radar,
}


@dataclasses.dataclass(frozen=True)
class Advice:
    """What mitigates a finding: in words, as an ATLAS mitigation, and as a command or call of ours."""

    text: str
    command: str = ""
    mitigation: str = ""


@dataclasses.dataclass
class Finding:
    """One question answered.

    Arguments:
        id: the check that made it, such as `robustness/pgd-linf`; stable across runs.
        pillar: robustness, integrity, privacy, assets or trust.
        question: what was asked, in one line.
        status: how it was answered.
        value: the figure, in `unit`; None where there is none.
        n: samples (or trials) behind the figure.
        interval: its confidence interval.
        better: whether a `higher` or a `lower` value is good.
        threat: the threat it was measured under, in words.
        access: the access the method had.
        queries, gradients, seconds: what was spent.
        summary: the answer in one sentence, with the figure.
        evidence: tables, curves, heat maps, radar charts, pictures.
        tags: taxonomy entries.
        advice: what to do next.
        notes: what limits the answer.
        reason: why it did not run, or how it failed.
    """

    id: str
    pillar: str
    question: str
    status: Status
    value: float | None = None
    unit: str = ""
    n: int | None = None
    interval: Interval | None = None
    better: str = "higher"
    threat: str = ""
    access: str = ""
    queries: int = 0
    gradients: int = 0
    seconds: float = 0.0
    summary: str = ""
    evidence: Sequence[Evidence] = ()
    tags: Sequence[str] = ()
    advice: Sequence[Advice] = ()
    notes: Sequence[str] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain JSON values; figures that are not finite become None."""
        plain = plain_values({**dataclasses.asdict(self), "status": self.status.value})
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Finding:
        """Return the finding that `to_dict` wrote. Raises UsageError for anything else."""
        from hauberk.core.errors import UsageError

        try:
            known = {field.name for field in dataclasses.fields(cls)}
            made = {key: value for key, value in plain.items() if key in known}
            made["status"] = Status(made["status"])
            made["interval"] = _interval(made["interval"]) if made.get("interval") else None
            made["advice"] = [Advice(**one) for one in made.get("advice", ())]
            made["evidence"] = [_evidence(one) for one in made.get("evidence", ())]
            return cls(**made)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"a finding cannot be read ({type(error).__name__}: {error})", want="a report written by hauberk",
                fix="Give a report.json or findings.jsonl of this version",
            ) from error

    def _repr_html_(self) -> str:
        from hauberk.report.notebook import finding_html

        return finding_html(self)


def _interval(plain: dict[str, Any]) -> Interval:
    # An end that was not finite was written as None; as NaN it is again a number that separates from nothing.
    ends = {end: math.nan if plain[end] is None else plain[end] for end in ("low", "high")}
    return Interval(**{**plain, **ends})


def _evidence(plain: dict[str, Any]) -> Evidence:
    kind = _EVIDENCE[plain["kind"]]
    made = dict(plain)
    if "series" in made:
        made["series"] = [Series(**one) for one in made["series"]]
    if "outlines" in made:
        made["outlines"] = [Outline(**one) for one in made["outlines"]]
    if "pictures" in made:
        made["pictures"] = [Picture(**one) for one in made["pictures"]]
    return kind(**made)


def plain_values(value: Any) -> Any:
    """Return a value as JSON knows it: tuples as lists, figures that are not finite as None, anything odd as text."""
    if isinstance(value, dict):
        return {str(key): plain_values(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and torch
        return plain_values(value.tolist())
    return str(value)
