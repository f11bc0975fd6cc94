"""What a campaign found, beside what random mutation found with the same budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hauberk.core import rng
from hauberk.core.finding import Interval
from hauberk.core.stats import bootstrap, wilson
from hauberk.robustness.fuzz.cluster import leaders_of
from hauberk.robustness.fuzz.corpus import Failure
from hauberk.robustness.fuzz.loop import Search
from hauberk.robustness.fuzz.schedule import Tally

CRITIQUE = (
    "coverage is reported as diversity of the tests, never as security: tests of higher coverage were found to show fewer faults "
    "and to be less natural (Harel-Canada et al. 2020)"
)


@dataclasses.dataclass
class Outcome:
    """What one search found.

    Arguments:
        name: `guided` or `control`.
        mutants: valid ones, which the model was asked about.
        made: all that were made.
        failing: mutants on which the model fails.
        distinct: faults among them, by features.
        broken: for each seed, how many of its mutants fail, shape (seeds,).
        accuracy, precision, recall: over the mutants; precision and recall are means over classes; NaN for regression.
        before, after: coverage of the clean seeds, and with the mutants, by criterion.
        mutators: by mutator, its counts and sums over all levels.
        curve: mutants and steering coverage after every round.
        failures: all, sorted into faults.
    """

    name: str
    mutants: int
    made: int
    failing: int
    distinct: int
    broken: Tensor
    accuracy: float
    precision: float
    recall: float
    before: dict[str, float]
    after: dict[str, float]
    mutators: dict[str, Tally]
    curve: list[tuple[int, float]]
    failures: list[Failure]

    @property
    def success(self) -> float:
        """Attack success: the share of valid mutants on which the model fails."""
        return self.failing / self.mutants if self.mutants else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's interval of that share."""
        return wilson(self.failing, self.mutants)

    @property
    def seeds_broken(self) -> int:
        """Seeds of which at least one mutant fails."""
        return int((self.broken > 0).sum())

    def per_seed(self) -> list[int]:
        """Return for each seed how many faults were first met on its mutants."""
        counts = [0] * len(self.broken)
        for one in leaders_of(self.failures):
            counts[one.origin] += 1
        return counts

    def table(self) -> dict[str, Any]:
        """Return it as JSON."""
        span = self.interval
        return {
            "mutants": self.mutants, "made": self.made, "failing": self.failing, "distinct": self.distinct,
            "attack_success": self.success, "attack_success_interval": [span.low, span.high],
            "seeds": len(self.broken), "seeds_broken": self.seeds_broken,
            "accuracy": _number(self.accuracy), "precision": _number(self.precision), "recall": _number(self.recall),
            "coverage": {name: {"before": self.before[name], "after": self.after[name]} for name in self.before},
            "mutators": {name: mutator_row(one) for name, one in self.mutators.items()}, "curve": self.curve,
        }


def outcome(search: Search) -> Outcome:
    """Return what a finished search found."""
    accuracy, precision, recall = scores(search.confusion) if search.bench.seeds.classes else (math.nan,) * 3
    by_name: dict[str, Tally] = {}
    for (name, _level), one in search.tallies.items():
        total = by_name.setdefault(name, Tally())
        for field in dataclasses.fields(Tally):
            setattr(total, field.name, getattr(total, field.name) + getattr(one, field.name))
    after = {name: one.value for name, one in search.criteria.items()}
    return Outcome(
        search.name, search.done, search.made, len(search.failures), search.faults.count, search.broken.clone(), accuracy,
        precision, recall, search.before, after, by_name, search.curve, search.failures,
    )


def scores(confusion: Tensor) -> tuple[float, float, float]:
    """Return accuracy, and mean precision and recall over the classes that were there to be found.

    Arguments:
        confusion: counts, true by answered, shape (classes, classes + 1); the last column counts no answer.
    """
    counts = confusion.double().numpy()
    right, total = np.diag(counts), counts.sum(1)
    if not total.sum():
        return math.nan, math.nan, math.nan
    answered = counts[:, :-1].sum(0)
    there = total > 0
    precision = np.divide(right, answered, out=np.zeros_like(right), where=answered > 0)
    recall = np.divide(right, total, out=np.zeros_like(right), where=there)
    return float(right.sum() / total.sum()), float(precision[there].mean()), float(recall[there].mean())


def mutator_row(one: Tally) -> dict[str, float]:
    """Return what a mutator did: rates, its mean change as shares of the input range, and the mean fall of the margin."""
    valid = max(one.valid, 1)
    return {
        "made": one.made, "valid": one.valid, "failing": one.failing, "success": one.failing / valid, "new": one.fresh,
        "coverage_gain": one.gain, "mean_change": one.rms / valid, "mean_largest_change": one.linf / valid,
        "margin_drop": one.drop / valid,
    }


@dataclasses.dataclass
class Campaign:
    """What a campaign found.

    Arguments:
        guided, control: the search, and random mutation of the same seeds with the same mutators, rule and budget.
        minimal: one failure of every fault of the guided search, as small as it could be made.
        radius: within which two failures of the same labels are one fault, in units of the features.
        seed: of all draws.
        notes: what a reader has to know.
    """

    guided: Outcome
    control: Outcome
    minimal: list[Failure]
    radius: float
    seed: int
    notes: list[str]

    @property
    def ratio(self) -> float:
        """Distinct failures of the guided search over those of the control; infinite where the control found none."""
        return _ratio(self.guided.distinct, self.control.distinct)

    @property
    def ratio_interval(self) -> Interval:
        """The paired bootstrap interval of that ratio over the seeds; NaN where the control found nothing."""
        if not self.control.distinct:
            return Interval(math.nan, math.nan, "bootstrap")
        rows = np.array(list(zip(self.guided.per_seed(), self.control.per_seed(), strict=True)), dtype=float)
        return bootstrap(rows, _ratio_of_rows, rng=rng.numpy_generator(self.seed, "fuzz ratio"))

    def table(self) -> dict[str, Any]:
        """Return all figures as JSON; pictures stay in the folder."""
        span = self.ratio_interval
        return {
            "guided": self.guided.table(), "control": self.control.table(),
            "distinct_ratio": _number(self.ratio), "distinct_ratio_interval": [_number(span.low), _number(span.high)],
            "radius": self.radius, "seed": self.seed, "notes": self.notes, "failures": [failure_row(one) for one in self.minimal],
        }

    def describe(self) -> str:
        """Return the figures in words, one line each."""
        guided, control, span = self.guided, self.control, self.ratio_interval
        each = 1000 / max(guided.mutants, 1), 1000 / max(control.mutants, 1)
        ratio = "–" if not math.isfinite(self.ratio) else f"{self.ratio:.2f} [{span.low:.2f} to {span.high:.2f}]"
        again = sum(one.replays is True for one in self.minimal)
        lines = [
            ("distinct", f"{guided.distinct} failures ({guided.distinct * each[0]:.1f} per 1,000 mutants); random control "
             f"{control.distinct} ({control.distinct * each[1]:.1f}); ratio {ratio}"),
            ("failing", f"{_rate(guided)} of {guided.mutants} valid mutants; control {_rate(control)} of {control.mutants}"),
            ("seeds", f"{guided.seeds_broken} of {len(guided.broken)} broken; control {control.seeds_broken}"),
        ]
        if math.isfinite(guided.accuracy):
            lines.append(("on mutants", f"accuracy {guided.accuracy:.1%}, precision {guided.precision:.1%}, recall "
                          f"{guided.recall:.1%}; control {control.accuracy:.1%}, {control.precision:.1%}, {control.recall:.1%}"))
        for name in guided.before:
            lines.append((name, f"{guided.before[name]:.4g} before, {guided.after[name]:.4g} after; control "
                          f"{control.after[name]:.4g}"))
        lines.append(("minimised", f"{len(self.minimal)} failures, {again} of them made again from their seed"))
        rows = sorted(guided.mutators.items(), key=lambda item: -item[1].fresh)
        for name, one in rows[:8]:
            row = mutator_row(one)
            lines.append((name, f"{row['failing']:.0f} of {row['valid']:.0f} fail, {row['new']:.0f} new; coverage "
                          f"+{row['coverage_gain']:.4g}; change {row['mean_change']:.3f} of the range; margin "
                          f"{-row['margin_drop']:+.2f}"))
        lines += [("note", text) for text in self.notes]
        return "\n".join(f"{key:<18} {value}" for key, value in lines)


def failure_row(one: Failure) -> dict[str, Any]:
    """Return a failure as JSON, without its picture."""
    return {
        "origin": one.origin, "kind": one.kind, "label": one.label, "answer": one.answer, "cluster": one.cluster,
        "steps": [step.row() for step in one.steps], "blend": one.blend, "replays": one.replays,
    }


def _rate(one: Outcome) -> str:
    return f"{one.success:.1%} [{one.interval.low:.1%} to {one.interval.high:.1%}]"


def _ratio(a: float, b: float) -> float:
    return a / b if b else (math.inf if a else math.nan)


def _ratio_of_rows(rows: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    a, b = rows.sum(0)
    return float(a / b) if b else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def notes_of(searches: Sequence[Search]) -> list[str]:
    """Return what a reader has to know of the searches."""
    notes = [CRITIQUE]
    for one in searches:
        if one.done < one.bench.options.budget:
            notes.append(
                f"the {one.name} search found {one.done} valid mutants among {one.made}, fewer than the budget: the mutators are "
                "too strong for the rule of validity"
            )
    return notes
