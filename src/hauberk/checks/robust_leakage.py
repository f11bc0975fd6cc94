"""Robustness against leakage: what standing firm under attack gives away of the training records."""

from __future__ import annotations

import dataclasses
import functools

from torch import Tensor

from hauberk.checks.context import Context
from hauberk.checks.evasion_runs import main_norm, untargeted
from hauberk.checks.membership import PRIVATE
from hauberk.checks.privacy import both_sides, explained
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Curve, Finding, Series, Status, Table
from hauberk.core.kinds import MembershipScores, check
from hauberk.core.rng import derive_seed
from hauberk.core.roc import auc_gain, auc_interval
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.measure import Exposure, exposure
from hauberk.privacy.membership.signals import Records, answers, cross_entropy
from hauberk.privacy.membership.signals import both_sides as scored
from hauberk.robustness.attack import pgd

SHARES = (0.0, 0.25, 0.5, 1.0)  # of the main radius


@check(
    "privacy/robustness-leakage", pillar="privacy", better="lower", access=Access.GRADIENT, preset="standard", tags=TAGS,
    question="Does the model stand firm around its training records more than around others, and give them away by it?",
    paper="Song et al. 2019, arXiv:1905.10291",
    advice=(
        Advice("Mix clean images into adversarial training, or stop it earlier, and look at this figure again",
               "hauberk study robustness-privacy --data DATA"),
        PRIVATE,
    ),
)
def robustness_leakage(context: Context) -> Finding:
    """Membership by the worst loss in balls of growing radius, beside the accuracy left there on both sides."""
    sides = both_sides(context)
    threat = untargeted(context, main_norm(context, ("linf", "l2")))
    main = context.need_radius(threat)
    count = min(context.settings.scaled(100, 200, 1000), len(sides.members[1]))
    records = [(x[:count], y[:count]) for x, y in (sides.members, sides.non_members)]
    steps = context.settings.scaled(5, 10, 40)
    rows = []
    found: list[tuple[float, Exposure, MembershipScores, list[tuple[int, int]]]] = []
    for share in SHARES:
        worst = context.shared(
            ("worst losses", threat.norm, share, count, steps),
            functools.partial(_worst, records=records, threat=threat, share=share, steps=steps, seed=context.seed),
        )
        scores = scored(*(-loss for loss, _ in worst))
        found.append((share * main, exposure(scores), scores, [(int(right.sum()), len(right)) for _, right in worst]))
    for eps, exposed, _, hits in found:
        area = exposed.auc_interval
        left = [f"{k / n:.1%} [{wilson(k, n).low:.1%}, {wilson(k, n).high:.1%}]" for k, n in hits]
        rows.append((f"{eps:.4g}", f"{exposed.roc.auc:.3f}", f"{area.low:.3f} to {area.high:.3f}", *left))
    radii = [eps for eps, *_ in found]
    series = [
        Series("membership AUC", radii, [one.roc.auc for _, one, *_ in found], [one.auc_interval.low for _, one, *_ in found],
               [one.auc_interval.high for _, one, *_ in found]),
        Series("accuracy left, training records", radii, [hits[0][0] / hits[0][1] for *_, hits in found]),
        Series("accuracy left, others", radii, [hits[1][0] / hits[1][1] for *_, hits in found]),
    ]
    clean, (eps, worst_case, scores, _) = found[0], max(found[1:], key=lambda one: one[1].roc.auc)
    pairs = [(one.members.numpy(), one.non_members.numpy()) for one in (scores, clean[2])]
    # The largest of several areas is shown: each interval is as wide as makes all of them hold together (Bonferroni).
    tried = len(found) - 1
    gain, span = auc_gain([pairs[0]], [pairs[1]], confidence=1 - 0.05 / tried)
    area = auc_interval(*pairs[0], confidence=1 - 0.05 / tried)
    status = Status.FAIL if area.low > 0.7 else Status.WARN if area.low > 0.55 or span.low > 0 else Status.PASS
    if status is Status.FAIL and explained(dataclasses.replace(worst_case, auc_interval=area), *sides.blind):
        status = Status.WARN
        context.note("not attributable to the model, so that it warns at most: the inputs alone separate the two splits as well")
    context.note(
        f"{count} records a side, PGD of {steps} steps; warns when the area is surely above .55, or surely above that of the "
        "clean loss; fails when it is surely above .7"
    )
    context.note(
        f"the area shown is the largest of {tried} radii: its interval, and that of the difference to the clean loss, are at "
        f"{1 - 0.05 / tried:.1%}, so that all {tried} hold together at 95 % (Bonferroni)"
    )
    more = f"{gain:+.3f} [{span.low:+.3f}, {span.high:+.3f}]"
    context.note(f"the worst loss tells more than the clean one by {more} of area, paired")
    return context.finding(
        f"the worst loss within ε = {eps:.3g} tells training records from others with an area of {worst_case.roc.auc:.3f}; "
        f"the clean loss with {clean[1].roc.auc:.3f}",
        value=worst_case.roc.auc, n=2 * count, interval=area, threat=dataclasses.replace(threat, eps=eps), status=status,
        evidence=(
            Curve("Robustness against leakage", f"ε ({threat.norm})", "share", series),
            Table("By radius", ("ε", "membership AUC", "95 % interval", "left, training records", "left, others"), rows),
        ),
    )


def _worst(
    target: Target, records: list[Records], threat: Threat, share: float, steps: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return for each side the greatest loss found in the ball, (n,), and whether the answer held, (n,)."""
    made = []
    for side, (x, y) in enumerate(records):
        z = x
        if share:
            ball = dataclasses.replace(threat, eps=threat.eps * share)
            z = pgd(target, x, y, ball, steps=steps, early_stop=False, seed=derive_seed(seed, "robustness leakage", side))
        logits, labels = answers(target, (z, y))
        made.append((cross_entropy(logits, labels).cpu(), (logits.argmax(1) == labels).cpu()))
    return made
