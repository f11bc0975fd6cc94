"""What the diagnosis says: one alarm per sign, one treatment per remedy, and a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hauberk.core.finding import Interval, plain_values
from hauberk.core.stats import wilson

LEAST = 10  # samples below which no sign can speak


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One sign that an evaluation is fooled.

    Arguments:
        name: what was looked at.
        value: the figure; NaN where the sign could not be looked at.
        limit: where it begins to speak.
        level: `quiet`, `warn`, `raised`, or `not run`.
        meaning: what a raised alarm says; for `not run`, why.
        remedy: what to do about it.
        n: samples behind the figure.
        interval: of a share; None for other figures.
    """

    name: str
    value: float
    limit: float
    level: str
    meaning: str
    remedy: str
    n: int
    interval: Interval | None = None


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What one remedy brought to light.

    Arguments:
        name: of the remedy.
        detail: how it was set: the number of draws, the part bridged.
        held: accuracy left under this remedy and the plain attack together, a share of all samples.
        interval: of `held`.
        gained: samples that it breaks and the plain attack does not.
        n: all samples, those misclassified undisturbed included.
    """

    name: str
    detail: str
    held: float
    interval: Interval
    gained: int
    n: int


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Whether a figure of robustness can be believed.

    Arguments:
        alarms: all signs in a fixed order; empty where no sample is classified correctly.
        n: all samples given.
        clean: how many are classified correctly.
        before: how many hold under the plain attack.
        after: how many hold under all that was tried, remedies included: the worst case per sample.
        treatments: the remedies that were applied, empty where none was asked for or called for.
        queries, gradients: what was spent.
    """

    alarms: Sequence[Alarm]
    n: int
    clean: int
    before: int
    after: int
    treatments: Sequence[Treatment] = ()
    queries: int = 0
    gradients: int = 0

    @property
    def raised(self) -> list[Alarm]:
        """The signs that are clear."""
        return [alarm for alarm in self.alarms if alarm.level == "raised"]

    @property
    def warned(self) -> list[Alarm]:
        """The signs that show faintly."""
        return [alarm for alarm in self.alarms if alarm.level == "warn"]

    @property
    def told(self) -> bool:
        """Whether there were samples enough to say anything."""
        return bool(self.alarms) and self.clean >= LEAST

    @property
    def believed(self) -> bool:
        """Whether no sign is clear, and there were samples enough to say so."""
        return self.told and not self.raised

    @property
    def verdict(self) -> str:
        """The answer in plain words."""
        if not self.told:
            return f"nothing to say: {self.clean} of {self.n} samples are classified correctly, and {LEAST} are the least"
        shown, left = f"{self.before / self.n:.1%}", f"{self.after / self.n:.1%}"
        if self.believed:
            faint = f" ({'; '.join(alarm.name for alarm in self.warned)}: faintly)" if self.warned else ""
            looked = sum(alarm.level != "not run" for alarm in self.alarms)
            missed = wilson(0, self.clean).high
            return (
                f"this figure can be believed: {shown} hold, and none of {looked} signs is clear{faint}. On {self.clean} "
                f"samples, what shows in fewer than {missed:.0%} can go unseen"
            )
        names = "; ".join(alarm.name for alarm in self.raised)
        return f"this figure cannot be believed: {names}. The plain attack leaves {shown}, all that was tried at most {left}"

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON values; figures that are not finite become None."""
        plain = plain_values({**dataclasses.asdict(self), "believed": self.believed, "verdict": self.verdict})
        assert isinstance(plain, dict)
        return plain


def share(
    name: str, hits: Tensor, limit: float, meaning: str, remedy: str, against: Tensor | None = None
) -> Alarm:
    """Return the alarm of a share: raised when its interval lies above the limit, a warning when the share alone does.

    `against` marks the samples that speak the other way: the alarm is then about the difference, by McNemar's count.
    """
    count, n = int(hits.sum()), len(hits)
    other = int(against.sum()) if against is not None else 0
    interval = wilson(count, n)
    value = count / n
    # One sample proves nothing, two only where none is expected; and significantly more must speak than speak against it.
    loud = count >= 3 and interval.low > limit and count > other + 2 * math.sqrt(count + other)
    soft = count > other and ((count >= 2 and interval.low > limit) or (count >= 3 and value > limit))
    level = "raised" if loud else "warn" if soft else "quiet"
    return Alarm(name, value, limit, level, meaning, remedy, n, interval)


def not_run(name: str, limit: float, reason: str, remedy: str) -> Alarm:
    """Return the alarm of a sign that could not be looked at: never quiet."""
    return Alarm(name, math.nan, limit, "not run", reason, remedy, 0)
