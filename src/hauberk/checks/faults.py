"""Faults of hardware: what every kind of fault costs, and the fewest bits that ruin the model."""

from __future__ import annotations

import dataclasses

from hauberk.checks.context import Context, NotRun
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Curve, Finding, Series, Status, Table
from hauberk.core.kinds import check
from hauberk.core.stats import bootstrap
from hauberk.integrity.faults import applied, bit_count, fault_campaign, fewest_flips, right_answers

SHARE = 0.001
_TAGS = ("aisec:hardware-backdoor-attack", "atlas:AML.T0010.000", "owasp:ML10", "nist:NISTAML.026")


@check(
    "integrity/fault-kinds", pillar="integrity", unit="rate", better="lower", access=Access.GRADIENT, warn=0.1, preset="standard",
    question="Which kind of fault turns most right answers wrong without anybody noticing?",
    paper="Li et al. 2017, doi:10.1145/3126908.3126964", tags=_TAGS,
    advice=(
        Advice(
            "Hold activations in the range they have on clean data",
            "from hauberk.integrity.faults import activation_ranges, clipped_ranges; "
            "guard = clipped_ranges(model, activation_ranges(model, x))", "AML.M0014",
        ),
        Advice(
            "Compare checksums of the layers with those of the release while serving",
            "from hauberk.integrity.faults import changed_layers, layer_checksums; "
            "released = layer_checksums(model); changed_layers(model, released)",
            "AML.M0014",
        ),
    ),
)
def fault_kinds(context: Context) -> Finding:
    """Accuracy, silent corruption and noticed failures by kind and place of the fault; the worst is the value."""
    context.need_classes()
    module = context.target.module
    if not bit_count(module):
        raise NotRun("the model has no weights of its own that a fault could strike")
    x, y = context.sample()
    trials = context.settings.scaled(3, 10, 30)
    outcomes = fault_campaign(context.target, x, y, share=SHARE, trials=trials, seed=context.seed)
    worst = max(outcomes, key=lambda one: float(one.silent.mean()))
    rows = [
        [
            one.place, one.kind, f"{one.accuracy.mean():.1%}", f"{one.accuracy.min():.1%}", f"{one.silent.mean():.1%}",
            f"{one.noticed.mean():.1%}",
        ]
        for one in outcomes
    ]
    draws = rng.numpy_generator(context.seed, "fault kinds", "interval")
    band = bootstrap(worst.silent, lambda rows: float(rows.mean()), rng=draws)
    value = float(worst.silent.mean())
    return context.finding(
        f"{value:.1%} of the answers turn silently wrong, on average, under '{worst.kind}' faults in the {worst.place}",
        value=value, n=trials, interval=band,
        threat=f"{SHARE:.1%} of the values of every layer, one at least, or of every sample's features",
        evidence=[Table(
            "Faults by place and kind", ("place", "kind", "accuracy", "worst trial", "silently wrong", "not finite"), rows,
        )],
    )


@check(
    "integrity/fewest-flips", pillar="integrity", unit="", access=Access.GRADIENT, warn=10, preset="standard",
    question="How few flipped bits, well chosen, bring the model down to guessing?",
    paper="Rakin et al. 2019, arXiv:1903.12269", tags=_TAGS,
    advice=(
        Advice("Serve from memory with error correction, and compare checksums of the layers while serving", "", "AML.M0014"),
        Advice("Store the weights as whole numbers: without exponents no single bit is worth a leap of many powers of ten"),
    ),
)
def fewest_flips_found(context: Context) -> Finding:
    """Flips found by progressive bit search on one half of the samples, counted and judged on the other half."""
    context.need_classes()
    module = context.target.module
    if not bit_count(module):
        raise NotRun("the model has no weights of its own whose bits could flip")
    x, y = context.sample()
    half = len(x) // 2
    if half < 20:
        raise NotRun(f"there are {len(x)} samples; at least 40 are needed: one half to search on, one to judge by")
    guess = float(y.bincount().max()) / len(y)
    most, bar = context.settings.scaled(10, 20, 40), 1.1 * guess
    # The search goes on a little below the bar, since the other half need not reach it with the same flip.
    search = fewest_flips(context.target, x[:half], y[:half], until=guess, flips=most)
    held = []
    for place in range(len(search.flips) + 1):
        with applied(module, dataclasses.replace(search, flips=search.flips[:place])):
            held.append(float(right_answers(context.target.logits(x[half:]), y[half:]).double().mean()))
    down = [place for place, value in enumerate(held) if value <= bar]
    reached, count = bool(down), down[0] if down else len(search.flips)
    table = Table(
        "The bits, in the order they were chosen",
        ("weight", "position", "bit", "before", "after", "accuracy then", "on the samples searched"),
        [
            [flip.parameter, flip.position, flip.bit, f"{flip.before:.4g}", f"{flip.after:.4g}", f"{other:.1%}", f"{own:.1%}"]
            for flip, own, other in zip(search.flips, search.accuracy[1:], held[1:], strict=True)
        ],
    )
    counts: list[float] = list(range(len(held)))
    curve = Curve(
        "Accuracy while the worst bits flip", "bits flipped", "accuracy",
        [
            Series("on samples that the search did not see", counts, held),
            Series("on the samples searched", counts, list(search.accuracy)), Series("guessing", counts, [guess] * len(held)),
        ],
    )
    context.note("the count is that of one search on these weights: it has no interval")
    context.note(
        "a search finds an upper limit: fewer flips may do as well" if reached
        else f"{count} flips did not bring the model down to guessing; more than these are needed by this search"
    )
    return context.finding(
        f"{count} chosen bits of {bit_count(module):,} leave {held[count]:.1%} accuracy on samples that the search did not see "
        f"(guessing: {guess:.1%})",
        value=float(count if reached else count + 1), n=len(x) - half,
        interval=None, threat="an adversary who writes chosen bits of the weights", evidence=[curve, table],
        status=None if reached or search.reached else Status.PASS,
    )
