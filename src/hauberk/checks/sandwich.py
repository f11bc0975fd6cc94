"""Between proof and attack: where the true robust accuracy lies."""

from __future__ import annotations

import dataclasses

import torch

from hauberk.checks.blackbox import square_run
from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import TRAIN_ON_EXAMPLES, AttackRun, evasion_run, untargeted
from hauberk.core.access import Access
from hauberk.core.errors import DataError, ModelError
from hauberk.core.finding import Finding, Status, Table
from hauberk.core.kinds import check
from hauberk.core.stats import wilson
from hauberk.robustness.evaluate.sandwich import between
from hauberk.robustness.verify import certified, ibp


@check(
    "robustness/sandwich", pillar="robustness", unit="share", better="lower", access=Access.GRADIENT, warn=0.5,
    question="How wide is the gap between what is proven and what attacks leave?",
    paper="Gowal et al. 2018, arXiv:1810.12715; Croce and Hein 2020, arXiv:2003.01690",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    advice=(TRAIN_ON_EXAMPLES,),
)
def gap(context: Context) -> Finding:
    """Share of samples neither proven nor broken; a sample that is both ends the check with an error."""
    context.need_classes()
    norm = context.threat.norm
    context.need_radius(context.threat)
    x, y = context.sample()
    context.target.probe(x[:64])
    if context.target.outputs != "logits":
        raise NotRun(f"the model's outputs are {context.target.outputs}; interval bounds need logits")
    # A threat with a radius or a mask for each sample is that of the test data: the runs and the proof would disagree on it.
    if isinstance(context.threat.eps, torch.Tensor) and context.threat.eps.ndim:
        raise NotRun("the threat has a radius for each sample: state one for all")
    module = context.target.module
    try:
        proven = certified(ibp(module, x, untargeted(context, norm), labels=y), y)
    except (DataError, ModelError) as reason:
        raise NotRun(str(reason)) from reason
    runs = _runs(context, norm)
    held = torch.stack([run.held for run in runs]).all(0)
    found = between(proven, held)
    n = len(y)
    unknown = found.open
    low, high = found.lower.value or 0.0, found.upper.value or 0.0
    rows = [
        ("proven (interval bounds)", f"{low:.1%}", int(proven.sum())),
        ("neither proven nor broken", f"{unknown / max(n, 1):.1%}", unknown),
        (f"broken by {' or '.join(run.name for run in runs)}, or wrong undisturbed", f"{1 - high:.1%}", n - int(held.sum())),
    ]
    # A narrow gap is good to know and no good news where next to nothing holds.
    status = Status.WARN if high < 0.5 else None
    context.note("the gap closes from both ends: tighter bounds prove more, stronger attacks break more")
    return context.finding(
        f"true robust accuracy lies between {low:.1%} (proven) and {high:.1%} (left by attacks): {unknown} of {n} samples "
        "are open",
        value=unknown / max(n, 1), n=n, interval=wilson(unknown, n), threat=runs[0].threat, status=status,
        evidence=(Table(f"Where {n} samples stand", ("standing", "share", "samples"), rows),),
    )


def _runs(context: Context, norm: str) -> list[AttackRun]:
    runs = [evasion_run(context, "pgd", norm)]
    runs.append(dataclasses.replace(evasion_run(context, "pgd", norm, loss="margin"), name="pgd (margin loss)"))
    return [*runs, square_run(context)] if norm in ("linf", "l2") else runs
