"""Fuzzing: failures found by mutating samples that the model handles, beside as much random mutation."""

from __future__ import annotations

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.finding import Advice, Curve, Evidence, Finding, Gallery, Series, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import wilson
from hauberk.core.target import MULTI_LABEL, Target
from hauberk.robustness.fuzz import Campaign, Options, fuzz
from hauberk.robustness.fuzz.results import mutator_row

TAGS = ("aisec:model-misjudgment", "atlas:AML.T0043", "owasp:ML01", "nist:NISTAML.022")
SHOWN = 8
ADVICE = (
    Advice("Keep the failures as regression tests, and look at each: they are the smallest found", "hauberk fuzz"),
    Advice(
        "Train on corrupted images, and fuzz again with other seeds",
        "from hauberk.robustness.defend import corrupted; hauberk.fit(model, data.train, loss=corrupted())", "AML.M0003",
    ),
)


@check(
    "robustness/fuzzing", pillar="robustness", unit="rate", better="lower", access=Access.LABEL, warn=0.25, preset="standard",
    tags=TAGS, advice=ADVICE, question="Of how many samples does a search find a valid mutation on which the model fails?",
    paper="Xie et al. 2019, arXiv:1809.01266",
)
def fuzzing(context: Context) -> Finding:
    """Share of clean seeds that a coverage-guided search breaks within its budget, with the faults found and the control."""
    context.need_images()
    if context.target.outputs in MULTI_LABEL:
        raise NotRun("the model answers several labels per sample")
    budget = context.settings.scaled(500, 1000, 10_000)
    seeds = context.settings.scaled(50, 100, 500)
    # Gradient attacks have findings of their own: here natural mutations are asked about.
    names = _natural()

    def make(target: Target) -> Campaign:
        options = Options(budget=budget, seed=context.seed)
        return fuzz(target, context.data, seeds=seeds, options=options, with_mutators=names)

    try:
        seen = context.shared(("fuzzing", budget, seeds), make)
    except DataError as error:
        raise NotRun(error.problem) from error
    guided, control = seen.guided, seen.control
    broken, n = guided.seeds_broken, len(guided.broken)
    for text in seen.notes:
        context.note(text)
    span = seen.ratio_interval
    times = f": the search found {seen.ratio:.2f} [{span.low:.2f} to {span.high:.2f}] times as many" if control.distinct else ""
    context.note(f"the random control found {control.distinct} distinct failures with the same budget{times}")
    return context.finding(
        f"{guided.distinct} distinct failures in {guided.mutants} valid mutants, on {broken} of {n} samples; random mutation "
        f"finds {control.distinct}", value=broken / n, n=n, interval=wilson(broken, n),
        threat=f"natural changes within {Options().rule.beta:g} of the input range, or of {Options().rule.alpha:.0%} of the "
        "pixels, after at most one change of geometry",
        evidence=_evidence(context, seen),
    )


def _natural() -> list[str]:
    from hauberk.core.card import registry

    return [card.name for card in registry.cards("corruption")]


def _evidence(context: Context, seen: Campaign) -> list[Evidence]:
    both = (seen.guided, seen.control)
    figures = Table("What was found, beside random mutation of the same budget", ("figure", "guided", "random"), [
        ("valid mutants", *(one.mutants for one in both)), ("failing", *(f"{one.success:.1%}" for one in both)),
        ("distinct failures", *(one.distinct for one in both)), ("samples broken", *(one.seeds_broken for one in both)),
        *((f"{name} (diversity)", *(f"{one.after[name]:.4g}" for one in both)) for name in seen.guided.after),
    ])
    rows = []
    for name, one in sorted(seen.guided.mutators.items(), key=lambda item: -item[1].fresh):
        row = mutator_row(one)
        if one.valid:
            rows.append((name, int(one.valid), f"{row['success']:.1%}", int(one.fresh), f"{row['coverage_gain']:.4g}",
                         f"{row['mean_change']:.3f}"))
    by_mutator = Table(
        "Mutators", ("mutator", "valid", "failing", "new failures", "coverage gain", "mean change, of the range"), rows
    )
    curve = Curve("Coverage against mutants: how varied they are", "valid mutants", Options().steering, [
        Series(one.name, [float(at) for at, _ in one.curve], [value for _, value in one.curve]) for one in both
    ])
    pictures = [
        picture(one.image, f"{', '.join(step.mutator for step in one.steps)}: {one.label} read as {one.answer}",
                bounds=context.data.bounds)
        for one in seen.minimal[:SHOWN]
    ]
    return [figures, by_mutator, curve, *([Gallery("Failures, as small as they could be made", pictures)] if pictures else [])]
