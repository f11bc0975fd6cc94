"""Adversarial examples: what is left of the accuracy under each attack."""

from __future__ import annotations

from hauberk.checks.context import Context
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Finding
from hauberk.core.kinds import check
from hauberk.robustness.attack.pgd import pgd


@check(
    "robustness/pgd-linf", pillar="robustness", unit="accuracy", access=Access.GRADIENT, warn=0.5, fail=0.2,
    question="What accuracy is left when every pixel may move a little along the gradient?",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    advice=(Advice("Train on adversarial examples", "hauberk.recipes: adversarial(threat)", "AML.M0003"),),
)
def pgd_linf(context: Context) -> Finding:
    """Accuracy under PGD in the Linf ball."""
    context.need_classes()
    threat = context.threat_in("linf")
    x, y = context.sample()
    z = pgd(context.target, x, y, threat, seed=context.seed)
    figure = context.rate(context.target.labels(z) == y)
    return context.finding(f"{figure['value']:.1%} of {figure['n']} samples resist", threat=threat, **figure)
