"""Groups: whether the model serves those it is used on alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hauberk.checks.answers import Answers, answers, rng_of
from hauberk.checks.context import Context, NotRun, grade
from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.finding import Advice, Finding, Interval, Status, Table
from hauberk.core.kinds import check
from hauberk.core.stats import holm
from hauberk.trust import fairness
from hauberk.trust.arrays import Ints

_TAGS = ("trust:fairness",)
_ADVICE = (
    Advice(
        "Give the group served worst more training samples, and look at its labels before anything else",
        "from hauberk.trust.fairness import group_rates; group_rates(y, model(x).argmax(1), groups)", "AML.M0008",
    ),
)
Measure = Callable[[Answers, Ints, np.random.Generator], fairness.Gap]


@check(
    "trust/group-disparity", pillar="trust", unit="accuracy gap", better="lower", access=Access.LABEL, warn=0.05, fail=0.15,
    question="Is the model less accurate for one group than for another?", tags=_TAGS, advice=_ADVICE,
)
def group_disparity(context: Context) -> Finding:
    """Largest difference in accuracy between two groups."""
    return _disparity(context, "accuracy", lambda found, groups, rng: fairness.accuracy_gap(
        found.y, found.labels, groups, rng=rng))


@check(
    "trust/equalised-odds", pillar="trust", unit="difference in rate", better="lower", access=Access.LABEL, warn=0.1, fail=0.25,
    question="Does one group meet other rates of right and wrong decisions than another?",
    paper="Hardt et al. 2016, arXiv:1610.02413", tags=_TAGS, advice=_ADVICE,
)
def equalised_odds(context: Context) -> Finding:
    """Largest difference between two groups in the true- or false-positive rate of a class."""
    classes = context.need_classes()
    return _disparity(context, "true- or false-positive rate", lambda found, groups, rng: fairness.equalised_odds(
        found.y, found.labels, groups, rng=rng, classes=classes))


@check(
    "trust/demographic-parity", pillar="trust", unit="difference in rate", better="lower", access=Access.LABEL, warn=0.1,
    question="Is a class given more often to one group than to another?", tags=_TAGS, advice=_ADVICE,
)
def demographic_parity(context: Context) -> Finding:
    """Largest difference between two groups in how often a class is given."""
    classes = context.need_classes()
    context.note("groups may differ in truth: a difference here is a question to ask, not a fault by itself")
    return _disparity(context, "share of answers", lambda found, groups, rng: fairness.demographic_parity(
        found.labels, groups, rng=rng, classes=classes))


def _disparity(context: Context, rate: str, measure: Measure) -> Finding:
    classes = context.need_classes()
    if not context.data.test.groups:
        raise NotRun("no groups are named in the test data (plan: data.groups)")
    found = answers(context)
    gaps: dict[str, fairness.Gap] = {}
    tables, refused = [], []
    for name, all_groups in context.data.test.groups.items():
        # Groups by any whole numbers become 0, 1, ...: -1 often stands for "unknown".
        known, groups = np.unique(all_groups[found.positions].cpu().numpy(), return_inverse=True)
        try:
            gaps[name] = measure(found, groups, rng_of(context, name))
        except DataError as reason:
            refused.append(f"{name}: {reason.problem}")
            continue
        tables.append(_table(found, name, groups, known, classes))
        gap = gaps[name]
        if classes == 2:
            ratio, span = fairness.demographic_parity_ratio(found.labels, groups)
            context.note(
                f"{name}: the lowest rate of class 1 is {ratio:.2f} of the highest (95 % {_words(span)}); "
                "the four-fifths rule asks 0.80"
            )
        gaps[name] = fairness.Gap(gap.value, gap.interval, gap.p, int(known[gap.high]), int(known[gap.low]), gap.positive)
    for reason_text in refused:
        context.note(f"not compared: {reason_text}")
    if not gaps:
        raise NotRun("; ".join(refused))
    chances = dict(zip(gaps, holm([gap.p for gap in gaps.values()]), strict=True))
    worst = max(gaps, key=lambda name: gaps[name].value)
    gap, chance = gaps[worst], float(chances[worst])
    gate = context.settings.gates.get(context.card.name, {})
    status = None
    if not gate and chance >= 0.05 and grade(gap.value, gap.interval, context.card.facts, gate)[0] is Status.FAIL:
        status = Status.WARN
        context.note("the gap is beyond the limit, but chance could make it so large: more samples would decide it")
    of = f" of class {gap.positive}" if gap.positive >= 0 else ""
    summary = (
        f"by {worst}, the {rate}{of} differs by {gap.value:.1%} between group {gap.high} (higher) and group {gap.low}; "
        f"chance makes a gap so large with p = {chance:.3f}"
    )
    finding = context.finding(summary, value=gap.value, n=len(found.y), interval=gap.interval, evidence=tables)
    if status is not None:
        finding.status = status
    return finding


def _table(found: Answers, name: str, groups: Ints, known: Ints, classes: int) -> Table:
    rates = sorted(fairness.group_rates(found.y, found.labels, groups), key=lambda one: one.accuracy.value)
    columns = ["group", "n", "accuracy", "95 % interval"]
    if classes == 2:
        for title in ("selected", "true-positive rate", "false-positive rate"):
            columns += [title, "95 % interval"]
    rows = []
    for one in rates[:30]:
        row: list[object] = [int(known[one.group]), one.n]
        for share in (one.accuracy, one.selection, one.tpr, one.fpr)[: 4 if classes == 2 else 1]:
            row += [share.value, _words(share.interval())]
        rows.append(row)
    return Table(f"Groups by {name}, worst accuracy first", columns, rows)


def _words(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"
