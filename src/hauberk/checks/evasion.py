"""Adversarial examples: what is left of the accuracy under noise and under attacks that follow the gradient."""

from __future__ import annotations

from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import TRAIN_ON_EXAMPLES, answer, evasion_run
from hauberk.core.access import Access
from hauberk.core.finding import Finding
from hauberk.core.kinds import check

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")


@check(
    "robustness/random-noise", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.8, fail=0.5,
    question="What accuracy is left under the worst of a few random changes of the assumed size?",
    tags=("aisec:model-misjudgment", "owasp:ML01", "nist:NISTAML.02"), advice=(TRAIN_ON_EXAMPLES,),
)
def random_noise(context: Context) -> Finding:
    """The baseline of all attacks: the worst of 16 uniform draws in the ball."""
    return answer(context, evasion_run(context, "random-noise", context.threat.norm))


@check(
    "robustness/fgsm", pillar="robustness", unit="accuracy", access=Access.GRADIENT, warn=0.5, fail=0.2,
    question="What accuracy is left after one step along the gradient?", paper="Goodfellow et al. 2015, arXiv:1412.6572",
    tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
)
def fgsm(context: Context) -> Finding:
    """Accuracy after one step to the best point of the ball, as the gradient predicts it."""
    return answer(context, evasion_run(context, "fgm", context.threat.norm))


@check(
    "robustness/pgd-linf", pillar="robustness", unit="accuracy", access=Access.GRADIENT, warn=0.5, fail=0.2,
    question="What accuracy is left when every feature may move a little along the gradient?",
    paper="Madry et al. 2018, arXiv:1706.06083", tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
)
def pgd_linf(context: Context) -> Finding:
    """Accuracy under PGD in the Linf ball."""
    return answer(context, evasion_run(context, "pgd", "linf"), pairs=4)


@check(
    "robustness/pgd-l2", pillar="robustness", unit="accuracy", access=Access.GRADIENT, warn=0.5, fail=0.2,
    question="What accuracy is left when the whole change has a bounded length?",
    paper="Madry et al. 2018, arXiv:1706.06083", tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
)
def pgd_l2(context: Context) -> Finding:
    """Accuracy under PGD in the L2 ball."""
    return answer(context, evasion_run(context, "pgd", "l2"), pairs=2)


@check(
    "robustness/pgd-targeted", pillar="robustness", unit="rate", better="lower", access=Access.GRADIENT, warn=0.3, fail=0.6,
    question="How often can an adversary choose which wrong label the model gives?",
    paper="Madry et al. 2018, arXiv:1706.06083", tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
)
def pgd_targeted(context: Context) -> Finding:
    """Share of correctly classified samples that PGD drives to a random other label."""
    run = evasion_run(context, "pgd", context.threat.norm, targeted=True)
    if not bool(run.clean.any()):
        raise NotRun("no sample is classified correctly, so there is nothing to turn")
    figure = context.rate(run.broken[run.clean])
    summary = f"{figure['value']:.1%} of {figure['n']} correctly classified samples are driven to a label chosen at random"
    return context.finding(summary, threat=run.threat, evidence=[run.table(), *run.gallery(context)], **figure)
