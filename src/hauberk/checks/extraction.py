"""Model stealing: how close a copy comes, and for how many queries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.assets.extraction import Fidelity, fidelity_curve, solve_linear
from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Curve, Finding, Series, Status, Table
from hauberk.core.kinds import check
from hauberk.core.rng import generator
from hauberk.core.stats import wilson

TAGS = ("aisec:model-stealing", "atlas:AML.T0024.002", "owasp:ML05", "nist:NISTAML.031")
ADVICE = (
    Advice("Limit how many queries one client may send", "", "AML.M0004"),
    Advice("Round the scores, or answer with the label alone", "", "AML.M0002"),
)


@check(
    "assets/extraction-linear", pillar="assets", unit="rate", better="lower", access=Access.SCORE, tags=TAGS, advice=ADVICE,
    question="Can the weights be solved from the scores, one query per input feature?",
    paper="Tramèr et al. 2016, arXiv:1609.02943",
)
def extraction_linear(context: Context) -> Finding:
    """Agreement with the model solved from d + 1 answers; fails where the target is linear, and so is known whole."""
    context.need_classes()
    shape = context.data.test.shape
    width, most = math.prod(shape), context.settings.scaled(4000, 20_000, 200_000)
    if width + 1 > most:
        raise NotRun(f"{width + 1} queries are needed, {most} are spent at this preset")
    if not all(bool(torch.as_tensor(end).isfinite().all()) for end in context.data.bounds):
        raise NotRun("the input range is infinite: there is no range to ask within")
    if context.target.outputs == "labels":
        raise NotRun("the model answers labels alone")
    solved = solve_linear(context.target, shape, bounds=context.data.bounds, seed=context.seed)
    if not bool(solved.weight.isfinite().all()):
        raise NotRun("some scores are not finite (a class that is ruled out?): equations with infinite terms cannot be solved")
    x, _ = context.sample()
    figure = context.rate(solved.labels(x).cpu() == context.target.labels(x).cpu())
    close = figure["interval"].low > 0.9
    status = Status.FAIL if solved.is_linear else Status.WARN if close else Status.PASS
    what = "not linear, and not solved"
    if solved.is_linear:
        what = "linear, and known whole"
    elif close:
        what = "not linear, but a linear copy comes close"
        context.note("a linear copy agrees on nearly all test data: the task is easy enough that any copy is good")
    rows = [
        ("queries", solved.queries), ("unknowns per class", width + 1),
        ("unexplained share of the log-odds", f"{solved.residual:.3g}"), ("agreement on test data", f"{figure['value']:.2%}"),
    ]
    return context.finding(
        f"the model is {what}: after {solved.queries} queries {figure['value']:.1%} of {figure['n']} labels agree", status=status,
        threat="an adversary who may send any input in the range and sees exact scores",
        evidence=(Table("Equation solving", ("figure", "value"), rows),), **figure,
    )


@check(
    "assets/extraction-fidelity", pillar="assets", unit="rate", better="lower", access=Access.LABEL, warn=0.9, fail=0.98,
    tags=TAGS, advice=ADVICE, question="How well does a substitute that was taught by the model's answers agree with it?",
    paper="Orekondy et al. 2019, arXiv:1812.02766",
)
def extraction_fidelity(context: Context) -> Finding:
    """Agreement of a small student with the target on test data, at a rising number of queries."""
    context.need_classes()
    soft = context.target.access >= Access.SCORE and context.target.outputs != "labels"
    x, y = context.sample(500, 2000, 10_000)
    pool, role = _pool(context)
    if pool is None:
        x, y, pool = x[: len(x) // 2], y[: len(x) // 2], x[len(x) // 2 :]
    if len(pool) < 16 or len(x) < 16:
        raise NotRun(f"{len(pool)} inputs to ask with and {len(x)} to compare on; at least 16 of each are needed")
    budgets = [size for size in (32, 128, 512, 2048, 8192) if size < len(pool)] + [len(pool)]
    epochs = context.settings.scaled(10, 20, 30)
    curve = fidelity_curve(context.target, pool, x, budgets=budgets, soft=soft, epochs=epochs, seed=context.seed)
    figure = context.rate(curve[-1].agreed)
    spans = [wilson(int(one.agreed.sum()), len(one.agreed)) for one in curve]
    rates = [float(one.agreed.double().mean()) for one in curve]
    series = Series(
        "substitute", [float(one.queries) for one in curve], rates, [span.low for span in spans], [span.high for span in spans]
    )
    rows = [
        (one.queries, f"{rate:.1%}", f"{span.low:.1%} to {span.high:.1%}", f"{_accuracy(one, x, y):.1%}")
        for one, rate, span in zip(curve, rates, spans, strict=True)
    ]
    own = float((context.target.labels(x).cpu() == y).double().mean())
    context.note(f"the adversary asks with {role}; the model itself is right on {own:.1%} of the inputs compared")
    return context.finding(
        f"after {curve[-1].queries} queries a substitute agrees on {figure['value']:.1%} of {figure['n']} inputs",
        threat=f"an adversary with inputs of the same kind, who sees {'scores' if soft else 'labels'}", evidence=(
            Curve("Agreement with the model against queries", "queries", "agreement", [series], log_x=True),
            Table("Substitutes", ("queries", "agreement", "95 % interval", "accuracy of the substitute"), rows),
        ), **figure,
    )


def _pool(context: Context) -> tuple[Tensor | None, str]:
    """Inputs that the adversary asks with: of the same kind, without labels; training inputs stand in where they are given."""
    train = context.data.train
    if train is None or not len(train):
        return None, "the other half of the test inputs"
    x, _labels = train.sample(context.settings.scaled(512, 4096, 16_384), context.seed, "extraction pool")
    # Drawn sorted: shuffled, so that the first few are not of one kind.
    order = torch.randperm(len(x), generator=generator(context.seed, "extraction pool order"))
    return x[order], "training inputs without their labels, in place of others of the same kind"


def _accuracy(one: Fidelity, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        guess = torch.cat([one.student(part.cpu().float()).argmax(1) for part in x.split(512)])
    return float((guess == y.cpu()).double().mean())
