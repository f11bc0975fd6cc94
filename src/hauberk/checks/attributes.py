"""Privacy of single columns: does the model say more of a record's sensitive attribute than the record's other columns do?"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.data import Data
from hauberk.core.errors import DataError
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check
from hauberk.core.overlap import overlap
from hauberk.core.rng import generator
from hauberk.core.stats import holm
from hauberk.privacy.inference import Sensitive, csmia, imputation, judge_attributes, learned_attribute, likelihood_attribute
from hauberk.privacy.inference.attributes import TAGS
from hauberk.privacy.inference.judge import AttributeVerdict

THREAT = (
    "an adversary who knows all of a record but one attribute, some other records whole, and asks the model for its scores"
)
ADVICE = (
    Advice("Leave the attribute, and columns that stand for it, out of what the model is trained on"),
    Advice("Train with more regularisation, or stop earlier: when the loss on held-out records no longer falls",
           "hauberk.fit(model, data.train, schedule=hauberk.Schedule(epochs=10, validation=data.test, patience=2))"),
    Advice("Round the scores, or answer with the label alone",
           "from hauberk.privacy.defence import rounded; served = rounded(model, digits=1)", "AML.M0002"),
)
MOST = 20  # values an attribute may have


@dataclasses.dataclass(frozen=True)
class Tried:
    """One attack on one attribute, on training records and on records that were not trained on."""

    attribute: str
    attack: str
    members: AttributeVerdict
    others: AttributeVerdict


@check(
    "privacy/attribute-inference", pillar="privacy", unit="accuracy gap", better="lower", access=Access.SCORE, preset="standard",
    warn=0.02, fail=0.1, tags=TAGS, advice=ADVICE,
    question="Do the model's answers tell more of a training record's sensitive attribute than its other columns do?",
    paper="Jayaraman and Evans 2022, arXiv:2209.01292; Mehnaz et al. 2022, USENIX Security",
)
def attribute_inference(context: Context) -> Finding:
    """Largest advantage, over the group columns, of an attack over an imputation that never sees the model."""
    context.need_classes()
    if context.data.modality != "tabular":
        raise NotRun(f"the data is {context.data.modality}, not a table")
    if not context.data.test.groups:
        raise NotRun("no sensitive columns are named (plan: data.groups)")
    context.split("train")
    tried = _run(context)
    if not tried:
        named = ", ".join(context.data.test.groups)
        raise NotRun(f"none of the groups {named} is a feature of the model with 2 to {MOST} values")
    chances = [float(p) for p in holm([one.members.p for one in tried])]
    best = max(range(len(tried)), key=lambda k: tried[k].members.advantage)
    main, chance = tried[best], chances[best]
    context.note("the baseline is a forest on the other columns and the label: what anybody can tell without the model")
    status = None
    if chance >= 0.05 and "privacy/attribute-inference" not in context.settings.gates:
        status = Status.PASS
        context.note(f"of {len(tried)} attacks one does so well by chance with p = {chance:.2g} (Holm): no advantage is shown")
    rows = [
        (one.attribute, one.attack, f"{one.members.accuracy:.1%}", f"{one.members.baseline:.1%}", _span(one.members),
         _span(one.others), f"{one.members.ppv:.0%} against {one.members.baseline_ppv:.0%} ({one.members.share:.0%} hold it)",
         f"{p:.2g}")
        for one, p in zip(tried, chances, strict=True)
    ]
    columns = ("attribute", "attack", "accuracy", "imputation", "advantage on training records", "on others",
               f"right among the surest {main.members.top}", "p (Holm)")
    verdict = main.members
    return context.finding(
        f"{main.attack} tells '{main.attribute}' of {verdict.n} training records with {verdict.accuracy:.1%}, "
        f"{100 * verdict.advantage:+.1f} points against guessing it from the other columns",
        value=verdict.advantage, n=verdict.n, interval=verdict.advantage_interval, threat=THREAT, status=status,
        evidence=(Table("Sensitive attributes told", columns, rows),),
    )


def sensitive_columns(data: Data) -> dict[str, Sensitive]:
    """Return the groups that are features of the model, by name: one column of that name, or those of its one-hot code."""
    found = {}
    x = data.test.first(5000)[0]
    for name in data.test.groups:
        places = [k for k, feature in enumerate(data.feature_names) if feature == name or feature.startswith(f"{name}=")]
        try:
            found[name] = Sensitive.of(x, places, most=MOST)
        except DataError:
            continue
    return found


def _run(context: Context) -> list[Tried]:
    data, train = context.data, context.split("train")
    attributes = sensitive_columns(data)
    if not attributes:
        return []
    fresh = (~overlap(data).copies).nonzero()[:, 0]
    fresh = fresh[torch.randperm(len(fresh), generator=generator(context.seed, "attribute inference", "others"))]
    n = min(context.settings.scaled(300, 1000, 5000), len(train), len(fresh) // 2)
    if n < 20:
        raise NotRun(f"there are {len(train)} training and {len(fresh)} other records; at least 20 and 40 are needed")
    members, others = train.sample(n, context.seed, "attribute inference"), data.test.take(fresh[:n])
    known = data.test.take(fresh[n : n + context.settings.scaled(300, 2000, 10_000)])
    tried = []
    for name, sensitive in attributes.items():
        try:
            tried += _attacks(context, name, sensitive, members, others, known)
        except DataError as reason:
            context.note(f"'{name}' was left out: {reason.problem}")
    return tried


def _attacks(
    context: Context, name: str, sensitive: Sensitive, members: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor],
    known: tuple[Tensor, Tensor],
) -> list[Tried]:
    target, sides = context.target, (members, others)
    found: dict[str, list[AttributeVerdict]] = {}
    for x, y in sides:
        base = imputation(x, y, sensitive=sensitive, known=known, seed=context.seed)
        guesses = {
            "csmia": csmia(target, x, y, sensitive=sensitive),
            "likelihood with the imputation": likelihood_attribute(target, x, y, sensitive=sensitive, prior=base.scores.exp()),
            "a forest that sees the scores": learned_attribute(
                target, x, y, sensitive=sensitive, known=known, seed=context.seed
            ),
        }
        truth = sensitive.codes(x)
        for attack, one in guesses.items():
            found.setdefault(attack, []).append(judge_attributes(one, base, truth, top=min(100, max(1, len(y) // 5))))
    return [Tried(name, attack, *verdicts) for attack, verdicts in found.items()]


def _span(one: AttributeVerdict) -> str:
    span = one.advantage_interval
    return f"{100 * one.advantage:+.1f} points [{100 * span.low:+.1f}, {100 * span.high:+.1f}]"
