"""Natural perturbations: noise, blur, light, geometry and compression, which nobody has to plan."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from hauberk.checks.context import Context
from hauberk.core import progress, rng
from hauberk.core.access import Access
from hauberk.core.card import Card, registry
from hauberk.core.finding import Advice, Curve, Finding, Gallery, Heatmap, Interval, Series, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import Floats, bootstrap, mean_interval, wilson
from hauberk.core.target import Target
from hauberk.robustness import natural

SEVERITIES = (1, 2, 3, 4, 5)
FEW = 30  # samples below which a bootstrap is not to be trusted
TAGS = ("aisec:model-misjudgment", "atlas:AML.T0031", "owasp:ML09", "nist:NISTAML.02")
PAPER = "Hendrycks and Dietterich 2019, arXiv:1903.12261"
ADVICE = (
    Advice(
        "Train on corrupted images, and measure on corruptions left out of training",
        "from hauberk.robustness.defend import corrupted; hauberk.fit(model, data.train, loss=corrupted())", "AML.M0003",
    ),
    Advice("Send inputs that look degraded to a person, or to a second model", mitigation="AML.M0015"),
)


@dataclasses.dataclass
class Outcome:
    """What became of the samples: `right` of shape (corruptions, 6, n), severity 0 first, and the labels answered, alike."""

    cards: list[Card]
    right: Tensor
    answers: Tensor
    x: Tensor
    y: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Accuracy by corruption and severity 1 to 5, shape (corruptions, 5)."""
        return self.right[:, 1:].double().mean(2)


@check(
    "robustness/corruptions", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.8, fail=0.5, tags=TAGS,
    question="How often is the model right on images that are noisy, blurred, overexposed, tilted or compressed?", paper=PAPER,
    advice=ADVICE,
)
def corruptions(context: Context) -> Finding:
    """Mean accuracy over corruptions and the severities 1 to 5, the plain mean of the ImageNet-C protocol."""
    seen = _corrupted(context)
    per_sample = seen.right[:, 1:].double().mean((0, 1))  # (n,)
    interval = _mean_band(per_sample.numpy(), context.seed, "corruptions")
    if interval.method != "bootstrap":
        context.note(f"{len(per_sample)} samples are few or all alike: the interval is the widest of Student's and Wilson's")
    value, clean, n = float(per_sample.mean()), float(seen.right[0, 0].double().mean()), len(seen.y)
    never = wilson(int(seen.right.all(1).all(0).sum()), n)
    heat = Heatmap(
        "Accuracy by corruption and severity", [card.name for card in seen.cards], ["clean", *map(str, SEVERITIES)],
        [[clean, *row] for row in seen.accuracy.tolist()],
    )
    rows = [_family(seen, name) for name in _families(seen)]
    families = Table("Accuracy by family", ("family", "corruptions", "accuracy", "95 % interval"), rows)
    context.note(f"{never.low:.0%} to {never.high:.0%} of the samples (95 %) are classified correctly under every one of them")
    return context.finding(
        f"{value:.1%} of answers are right over {len(seen.cards)} corruptions at 5 severities; {clean:.1%} on clean images",
        value=value, n=n, interval=interval, threat=_threat(seen), evidence=[heat, families, *_gallery(context, seen)],
    )


@check(
    "robustness/worst-corruption", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.5, fail=0.2, tags=TAGS,
    question="Which natural corruption hurts the model most, and what accuracy is left?", paper=PAPER, advice=ADVICE,
)
def worst_corruption(context: Context) -> Finding:
    """The lowest accuracy over all corruptions and severities, named."""
    seen = _corrupted(context)
    n, cells = len(seen.y), seen.accuracy.numel()
    counts = seen.right[:, 1:].sum(2)  # (corruptions, 5)
    row, column = divmod(int(counts.flatten().argmin()), len(SEVERITIES))
    hits = int(counts[row, column])
    # The lowest of many is low by luck as well: the interval holds for all cells at once (Bonferroni).
    wide = wilson(hits, n, 1 - 0.05 / cells)
    interval = Interval(wide.low, wide.high, f"wilson, for all {cells} at once", 0.95)
    order = counts.sum(1).argsort(stable=True)[:4].tolist()
    lines = []
    for index in order:
        bands = [wilson(int(count), n) for count in seen.right[index].sum(1)]
        lines.append(
            Series(
                seen.cards[index].name, [0, *SEVERITIES], seen.right[index].double().mean(1).tolist(),
                [band.low for band in bands], [band.high for band in bands],
            )
        )
    name = seen.cards[row].name
    return context.finding(
        f"{name} at severity {SEVERITIES[column]} leaves {hits / n:.1%} of {n} samples right", value=hits / n, n=n,
        interval=interval, threat=_threat(seen),
        evidence=[Curve("The corruptions that hurt most", "severity", "accuracy", lines)],
    )


def _corrupted(context: Context) -> Outcome:
    """Return the outcome of all corruptions of the preset on the evaluation sample; computed once for all checks."""
    context.need_classes()
    context.need_images()
    x, y = context.sample()
    preset, bounds = context.settings.preset, context.data.bounds
    assert natural  # its import fills the registry
    cards = [card for card in registry.cards("corruption") if card.runs_at(preset)]

    def make(target: Target) -> tuple[Tensor, Tensor]:
        clean = target.labels(x)
        answers = clean.expand(len(cards), len(SEVERITIES) + 1, len(x)).clone()
        for row, card in enumerate(progress.track(cards, "corruptions")):
            for severity in SEVERITIES:
                # The same draws at every severity: one picture gets worse, and no luck makes a stronger corruption look milder.
                draws = rng.generator(context.seed, "corruption", card.name)
                answers[row, severity] = target.labels(card.function(x, severity, generator=draws, bounds=bounds))
        return answers == y, answers

    right, answers = context.shared(("corruptions", preset), make)
    return Outcome(cards, right, answers, x, y)


def _families(seen: Outcome) -> list[str]:
    return list(dict.fromkeys(str(card.facts["family"]) for card in seen.cards))


def _family(seen: Outcome, name: str) -> list[object]:
    rows = [row for row, card in enumerate(seen.cards) if card.facts["family"] == name]
    values = seen.right[rows, 1:].double().mean((0, 1)).numpy()  # (n,)
    interval = _mean_band(values, 0, "family", name)
    listed = ", ".join(seen.cards[row].name for row in rows)
    return [name, listed, f"{values.mean():.1%}", f"{interval.low:.1%} to {interval.high:.1%}"]


def _mean_band(values: Floats, seed: int, *names: object) -> Interval:
    """Return the interval of a mean of values in [0, 1], one per sample.

    The bootstrap of a few samples is far too narrow, and that of samples all alike has no width: then it is the hull of Student's
    interval and of Wilson's, which no law on [0, 1] with that mean asks to be wider.
    """
    n, total = len(values), float(values.sum())
    if n >= FEW and values.std() > 0:
        return bootstrap(values, lambda rows: float(rows.mean()), rng=rng.numpy_generator(seed, *names))
    student = mean_interval(values)
    low, high = wilson(math.floor(total + 1e-9), n).low, wilson(math.ceil(total - 1e-9), n).high
    return Interval(max(0.0, min(low, student.low)), min(1.0, max(high, student.high)), "student and wilson", 0.95)


def _gallery(context: Context, seen: Outcome) -> list[Gallery]:
    """Return for each corruption the image that gives way at the lowest severity."""
    pictures = []
    for row, card in enumerate(seen.cards):
        broken = ~seen.right[row, 1:] & seen.right[row, 0]  # (5, n)
        if not bool(broken.any()):
            continue
        severity, index = divmod(int(broken.flatten().int().argmax()), broken.shape[1])
        draws = rng.generator(context.seed, "corruption", card.name)
        image = card.function(seen.x, severity + 1, generator=draws, bounds=context.data.bounds)[index]
        was, now = _name(context, seen.y[index]), _name(context, seen.answers[row, severity + 1, index])
        pictures.append(picture(image, f"{card.name} {severity + 1}: {was} read as {now}", bounds=context.data.bounds))
    return [Gallery("The mildest corruption of each kind that changes a right answer", pictures)] if pictures else []


def _name(context: Context, label: Tensor) -> str:
    names = context.data.class_names
    return "no label" if int(label) < 0 else names[int(label)] if int(label) < len(names) else str(int(label))


def _threat(seen: Outcome) -> str:
    table = "small" if min(seen.x.shape[2:]) <= natural.SMALL_SIDE else "large"
    return f"{len(seen.cards)} natural corruptions, severities 1 to 5 (levels for {table} images)"
