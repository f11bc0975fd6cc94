"""Adversarial examples without a look inside: by scores, by labels, and through a substitute."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from hauberk.checks.context import Context
from hauberk.checks.evasion_runs import (
    RESTRICT_QUERIES,
    TRAIN_ON_EXAMPLES,
    AttackRun,
    answer,
    clean_labels,
    evasion_run,
    main_norm,
    untargeted,
)
from hauberk.core.access import Access
from hauberk.core.finding import Curve, Evidence, Finding, Series, Table
from hauberk.core.kinds import check
from hauberk.core.rng import derive_seed
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.robustness.attack.hop_skip_jump import hop_skip_jump as nearest_by_labels

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025")


def square_run(context: Context) -> AttackRun:
    """Return the run of the Square attack at the preset's budget of queries."""
    queries = context.settings.queries or context.settings.scaled(500, 1000, 5000)
    return evasion_run(context, "square", main_norm(context, ("linf", "l2")), queries=queries)


def transfer_run(context: Context) -> AttackRun:
    """Return the run of the attack through a substitute, in the main norm."""
    return evasion_run(context, "transfer", context.threat.norm, rounds=context.settings.scaled(1, 2, 3))


@check(
    "robustness/square", pillar="robustness", unit="accuracy", access=Access.SCORE, warn=0.5, fail=0.2,
    question="What accuracy is left against an adversary that sees scores alone?",
    paper="Andriushchenko et al. 2020, arXiv:1912.00049", tags=TAGS, advice=(RESTRICT_QUERIES, TRAIN_ON_EXAMPLES),
)
def square(context: Context) -> Finding:
    """Accuracy under random search over square-shaped changes."""
    run = square_run(context)
    context.note(f"at most {context.settings.queries or context.settings.scaled(500, 1000, 5000)} queries per sample")
    return answer(context, run)


@check(
    "robustness/transfer", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.5, fail=0.2,
    question="What accuracy is left against examples made on a substitute that was trained on the model's labels?",
    paper="Papernot et al. 2017, arXiv:1602.02697",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.025"),
    advice=(RESTRICT_QUERIES, TRAIN_ON_EXAMPLES),
)
def transfer(context: Context) -> Finding:
    """Accuracy under PGD examples that were made on a substitute."""
    run = transfer_run(context)
    context.note(f"the substitute was trained on {run.cost.queries} labels of the evaluation inputs and of their neighbours")
    return answer(context, run)


@check(
    "robustness/hop-skip-jump", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.5, fail=0.2,
    question="What accuracy is left against an adversary that sees labels alone?", paper="Chen et al. 2020, arXiv:1904.02144",
    tags=TAGS, advice=(RESTRICT_QUERIES, TRAIN_ON_EXAMPLES),
)
def hop_skip_jump(context: Context) -> Finding:
    """Accuracy left within the L2 radius, and how near the attack comes to each sample."""
    context.need_classes()
    threat = untargeted(context, "l2")
    count = context.settings.scaled(64, 128, 512)
    queries = context.settings.queries or context.settings.scaled(1000, 2500, 5000)
    clean = clean_labels(context)
    run = context.shared(("hop-skip-jump", count, queries), lambda target: _nearest(context, target, clean, count, queries))
    radius = float(torch.as_tensor(threat.eps, dtype=torch.float64).mean())
    held = run.clean & (run.distance > radius)
    figure, reached = context.rate(held), run.distance[run.broken]
    median = float(reached.median()) if len(reached) else math.inf
    summary = (
        f"{figure['value']:.1%} of {figure['n']} samples resist {queries} label queries each within {radius:.3g}; the median "
        f"distance of the examples found is {median:.3g} ({len(reached)} of {int(run.clean.sum())})"
    )
    within = f"{float((run.broken & ~held).sum()) / max(int(run.clean.sum()), 1):.1%}"
    table = Table(
        f"HopSkipJump, {queries} queries per sample, n = {len(run.y)}",
        ("accuracy left", "success within the radius", "success at any distance", "median distance", "queries per sample"),
        [(
            f"{figure['value']:.1%}", within, f"{len(reached) / max(int(run.clean.sum()), 1):.1%}",
            f"{median:.4g}" if len(reached) else "–", round(run.cost.queries / max(len(run.y), 1), 1),
        )],
    )
    curves = [_curve(run.distance[run.clean])] if len(reached) else []
    evidence: list[Evidence] = [table, *curves, *run.gallery(context)]
    return context.finding(summary, threat=threat, evidence=evidence, **figure)


def _nearest(context: Context, target: Target, clean: Tensor, count: int, queries: int) -> AttackRun:
    """Run the attack without a radius: the distances then answer for every radius at once."""
    free = dataclasses.replace(untargeted(context, "l2"), eps=math.inf)
    x, y = context.sample()
    x, y, view = x[:count], y[:count], target.fresh()
    z = nearest_by_labels(view, x, y, free, queries=queries, seed=derive_seed(context.seed, "evasion", "hop-skip-jump"))
    cost, labels, right = view.ledger.copy(), target.labels(z), clean[: len(y)] == y
    distance = torch.where(labels != y, free.distance(z, x), torch.full(y.shape, math.inf, dtype=torch.float64, device=y.device))
    return AttackRun("hop-skip-jump", free, x, z, y, right, right & (labels == y), labels, distance, cost)


def _curve(distance: Tensor) -> Curve:
    """Return the share of correct samples with an example within each radius, with its 95 % band."""
    n, finite = len(distance), distance[distance.isfinite()]
    radii = torch.linspace(0, float(finite.max()) * 1.02, 30, dtype=torch.float64)
    counts = [int((distance <= radius).sum()) for radius in radii]
    bands = [wilson(hits, n) for hits in counts]
    series = Series(
        "HopSkipJump", radii.tolist(), [hits / n for hits in counts], [one.low for one in bands], [one.high for one in bands]
    )
    return Curve(f"Success against distance, n = {n}", "L2 distance", "share of correct samples broken", [series])
