"""The headline of robustness: accuracy against every attack at once, and against the radius."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.checks.blackbox import square_run, transfer_run
from hauberk.checks.context import Context, NotRun
from hauberk.checks.evasion_runs import COLUMNS, TRAIN_ON_EXAMPLES, AttackRun, clean_labels, evasion_run, untargeted
from hauberk.core.access import Access
from hauberk.core.finding import Curve, Evidence, Finding, Series, Table
from hauberk.core.kinds import check
from hauberk.core.rng import derive_seed
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.pgd import pgd
from hauberk.robustness.attack.square import square

TAGS = ("aisec:digital-adversarial-attacks", "aisec:model-misjudgment", "atlas:AML.T0015", "owasp:ML01", "nist:NISTAML.022")


@check(
    "robustness/worst-case", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.5, fail=0.2,
    question="What accuracy is left when each sample meets the attack that is worst for it?",
    paper="Croce and Hein 2020, arXiv:2003.01690 (worst case per sample)", tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
)
def worst_case(context: Context) -> Finding:
    """Accuracy against the union of all attacks that the access granted allows, within the main threat."""
    runs = _portfolio(context)
    held = torch.stack([run.held for run in runs]).all(0)
    figure = context.rate(held)
    rows = []
    for run in runs:
        others = [other.held for other in runs if other is not run]
        alone = run.broken & (torch.stack(others).all(0) if others else torch.ones_like(run.held))
        rows.append((*run.row(), int(alone.sum())))
    strongest = min(runs, key=lambda run: int(run.held.sum()))
    summary = (
        f"{figure['value']:.1%} of {figure['n']} samples hold against all {len(runs)} attacks; the strongest alone, "
        f"{strongest.name}, leaves {int(strongest.held.sum()) / max(figure['n'], 1):.1%}"
    )
    if context.target.access < Access.GRADIENT:
        context.note(f"with {context.target.access.name} access; an adversary with gradients would come farther")
    table = Table("Each attack, and what it alone breaks", (*COLUMNS, "broken by it alone"), rows)
    return context.finding(summary, threat=runs[0].threat, evidence=[table], **figure)


@check(
    "robustness/accuracy-vs-eps", pillar="robustness", unit="accuracy", access=Access.SCORE, warn=0.5, fail=0.2,
    question="How does the accuracy fall as the adversary may change more?", tags=TAGS, advice=(TRAIN_ON_EXAMPLES,),
)
def accuracy_vs_eps(context: Context) -> Finding:
    """Accuracy at rising radii of the main threat, from one run with a radius per sample; the value is at the main one."""
    context.need_classes()
    threat = untargeted(context, context.threat.norm)
    main = float(torch.as_tensor(threat.eps, dtype=torch.float64).mean())
    if not math.isfinite(main) or main == 0:
        raise NotRun(f"the main threat has the radius {main:g}, so there is nothing to vary")
    white = context.target.access >= Access.GRADIENT
    if not white and threat.norm not in ("linf", "l2"):
        raise NotRun(f"without gradients the curve needs a threat in linf or l2, not {threat.norm}")
    radii = _radii(context, threat.norm, main)
    # A search without gradients asks hundreds of times per sample and radius.
    count = context.settings.scaled(128, 500, 2000) if white else context.settings.scaled(48, 150, 500)
    x, y = (part[:count] for part in context.sample())
    clean = clean_labels(context)[: len(y)] == y
    held = context.shared(
        ("accuracy-vs-eps", count, tuple(radii)), lambda target: _held(context, target, threat, x, y, clean, radii)
    )  # (radii, n)
    n, counts = len(y), held.sum(1).tolist()
    bands = [wilson(hits, n) for hits in counts]
    shares = [hits / max(n, 1) for hits in counts]
    series = Series("accuracy left", radii, shares, [one.low for one in bands], [one.high for one in bands])
    half = next((radius for radius, share in zip(radii, shares, strict=True) if share < shares[0] / 2), None)
    at = radii.index(main)
    fall = f"it is below half of the clean accuracy from ε = {half:.3g}" if half is not None else "it never falls to half"
    summary = f"{shares[at]:.1%} of {n} samples hold at ε = {main:.3g} (clean {shares[0]:.1%}); {fall}"
    rows = [
        (f"{radius:.4g}", f"{share:.1%}", f"{band.low:.1%} to {band.high:.1%}")
        for radius, share, band in zip(radii, shares, bands, strict=True)
    ]
    evidence: list[Evidence] = [
        Curve(f"Accuracy against the radius, n = {n}", f"ε ({threat.norm})", "accuracy left", [series]),
        Table("Accuracy by radius", ("ε", "accuracy left", "95 % interval"), rows),
    ]
    return context.finding(
        summary, value=shares[at], n=n, interval=bands[at], threat=dataclasses.replace(threat, eps=main), evidence=evidence
    )


def _portfolio(context: Context) -> Sequence[AttackRun]:
    """Return the runs of all attacks that the access allows, in the norm of the main threat."""
    norm, access = context.threat.norm, context.target.access
    runs = []
    if access >= Access.GRADIENT:
        runs += [evasion_run(context, "pgd", norm), evasion_run(context, "fgm", norm)]
        runs.append(dataclasses.replace(evasion_run(context, "pgd", norm, loss="margin"), name="pgd (margin loss)"))
    if access >= Access.SCORE and norm in ("linf", "l2"):
        runs.append(square_run(context))
    return [*runs, transfer_run(context), evasion_run(context, "random-noise", norm)]


def _radii(context: Context, norm: str, main: float) -> list[float]:
    """Return the radii of the curve in rising order: zero, the main one, and those named or a grid around it."""
    named = context.settings.radii or tuple(main * part for part in (0.25, 0.5, 0.75, 1.5, 2.0, 3.0))
    if norm == "l0" and not context.settings.radii:
        named = tuple(float(round(radius)) for radius in named)
    return sorted({0.0, main, *map(float, named)})


def _held(
    context: Context, target: Target, threat: Threat, x: Tensor, y: Tensor, clean: Tensor, radii: Sequence[float]
) -> Tensor:
    """Return which samples hold at each radius, shape (radii, n): all radii in one run, a radius per sample."""
    positive = [radius for radius in radii if radius > 0]
    eps = torch.tensor(positive, dtype=torch.float64, device=x.device).repeat_interleave(len(x))
    many = x.repeat(len(positive), *[1] * (x.ndim - 1))
    seed = derive_seed(context.seed, "evasion", "accuracy-vs-eps")
    if target.access >= Access.GRADIENT:
        z = pgd(target, many, y.repeat(len(positive)), threat.with_eps(eps), steps=20, seed=seed)
    else:
        queries = min(context.settings.queries or 300, 300)
        z = square(target, many, y.repeat(len(positive)), threat.with_eps(eps), queries=queries, seed=seed)
    right = (target.labels(z) == y.repeat(len(positive))).reshape(len(positive), len(x))
    # An example within one radius lies within every larger one.
    return torch.cat([clean[None], right & clean]).cummin(0).values
