"""Natural perturbations: noise, blur, light, geometry and compression, which nobody has to plan."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from hauberk.checks.context import Context
from hauberk.core.access import Access
from hauberk.core.card import Card, registry
from hauberk.core.finding import Advice, Curve, Evidence, Finding, Gallery, Heatmap, Interval, Series, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.robustness import natural
from hauberk.robustness.evaluate import CorruptedRun, CorruptionMetrics, corrupted_images, corrupted_run, corruption_metrics
from hauberk.robustness.evaluate.corruption_metrics import SEVERITIES
from hauberk.robustness.evaluate.corruption_metrics import mean_band as _mean_band
from hauberk.robustness.evaluate.figure import Figure

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
    """What became of the samples: the run of the corruptions, severity 0 first, its metrics, the images."""

    cards: list[Card]
    run: CorruptedRun
    metrics: CorruptionMetrics
    x: Tensor

    @property
    def right(self) -> Tensor:
        """Which answers are right, shape (corruptions, 6, n)."""
        return self.run.right


@check(
    "robustness/corruptions", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.8, fail=0.5, tags=TAGS,
    question="How often is the model right on images that are noisy, blurred, overexposed, tilted or compressed?", paper=PAPER,
    advice=ADVICE,
)
def corruptions(context: Context) -> Finding:
    """Mean accuracy over corruptions and the severities 1 to 5, the plain mean of the ImageNet-C protocol."""
    seen = _corrupted(context)
    clean, n = seen.metrics.clean.value or 0.0, seen.metrics.mean.n
    never = wilson(int(seen.right.all(1).all(0).sum()), n)
    rows = [_family(seen, name) for name in _families(seen)]
    families = Table("Accuracy by family", ("family", "corruptions", "accuracy", "95 % interval"), rows)
    context.note(f"{never.low:.0%} to {never.high:.0%} of the samples (95 %) are classified correctly under every one of them")
    value = mean_accuracy(context, seen.metrics)
    return context.finding(
        f"{value:.1%} of answers are right over {len(seen.cards)} corruptions at 5 severities; {clean:.1%} on clean images",
        value=value, n=n, interval=seen.metrics.mean.interval, threat=_threat(seen),
        evidence=[*evidence_of(seen.metrics), families, *_gallery(context, seen)],
    )


@check(
    "robustness/corruption-flips", pillar="robustness", unit="rate", better="lower", access=Access.LABEL, warn=0.15, tags=TAGS,
    question="How often does the answer change when a natural disturbance grows by one step?", paper=PAPER, advice=ADVICE,
)
def corruption_flips(context: Context) -> Finding:
    """Share of samples whose answer differs between neighbouring severities, whether it was right or not."""
    seen = _corrupted(context)
    figure = seen.metrics.flip_rate
    value = figure.value or 0.0
    means = [sum(one.value or 0.0 for one in row) / len(row) for row in seen.metrics.flips]
    shakiest = max(range(len(means)), key=means.__getitem__)
    heat = Heatmap(
        "Answers that change from one severity to the next", list(seen.metrics.names),
        [f"{step - 1} to {step}" for step in SEVERITIES],
        [[one.value or 0.0 for one in row] for row in seen.metrics.flips], better="lower",
    )
    return context.finding(
        f"{value:.1%} of the answers change at a step of one severity; most often, {means[shakiest]:.1%}, under "
        f"{seen.metrics.names[shakiest]}",
        value=value, n=figure.n, interval=figure.interval, threat=_threat(seen), evidence=[heat],
    )


@check(
    "robustness/worst-corruption", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.5, fail=0.2, tags=TAGS,
    question="Which natural corruption hurts the model most, and what accuracy is left?", paper=PAPER, advice=ADVICE,
)
def worst_corruption(context: Context) -> Finding:
    """The lowest accuracy over all corruptions and severities, named."""
    seen = _corrupted(context)
    n, cells = len(seen.run.y), len(seen.cards) * len(SEVERITIES)
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


def mean_accuracy(context: Context, metrics: CorruptionMetrics) -> float:
    """Return the mean accuracy over corruptions and severities, with a note where its interval rests on few samples."""
    figure = metrics.mean
    if figure.interval is not None and figure.interval.method != "bootstrap":
        context.note(f"{figure.n} samples are few or all alike: the interval is the widest of Student's and Wilson's")
    return figure.value or 0.0


def evidence_of(metrics: CorruptionMetrics) -> list[Evidence]:
    """Return the heat map of corruptions by severities, the table of the corruptions, and that of the overall metrics."""
    clean = metrics.clean.value or 0.0
    heat = Heatmap(
        "Accuracy by corruption and severity", list(metrics.names), ["clean", *map(str, SEVERITIES)],
        [[clean, *(one.value or 0.0 for one in row)] for row in metrics.cells],
    )
    rows = []
    for name, figure, flips in zip(metrics.names, metrics.each, metrics.flips, strict=True):
        flipped = sum(one.value or 0.0 for one in flips) / len(flips)
        rows.append([name, f"{figure.value or 0.0:.1%}", _band(figure), f"{flipped:.1%}"])
    columns = ("corruption", "accuracy over its severities", "95 % interval", "flips from one severity to the next")
    figures = (metrics.clean, metrics.mean, metrics.mce, metrics.relative_mce, metrics.flip_rate)
    overall = [[name, value, _band(one), n] for (name, value, n), one in zip(metrics.rows(), figures, strict=True)]
    summed = Table("Over all corruptions", ("metric", "value", "95 % interval", "n"), overall)
    return [heat, Table("Each corruption", columns, rows), summed]


def _band(figure: Figure) -> str:
    return "" if figure.interval is None else f"{figure.interval.low:.1%} to {figure.interval.high:.1%}"


def _corrupted(context: Context) -> Outcome:
    """Return the outcome of all corruptions of the preset on the evaluation sample; computed once for all checks."""
    context.need_classes()
    context.need_images()
    x, y = context.sample()
    preset, bounds, seed = context.settings.preset, context.data.bounds, context.seed
    assert natural  # its import fills the registry
    cards = [card for card in registry.cards("corruption") if card.runs_at(preset)]

    def make(target: Target) -> tuple[CorruptedRun, CorruptionMetrics]:
        run = corrupted_run(target, x, y, names=[card.name for card in cards], bounds=bounds, seed=seed)
        return run, corruption_metrics(run, seed=seed)

    run, metrics = context.shared(("corruptions", preset), make)
    return Outcome(cards, run, metrics, x)


def _families(seen: Outcome) -> list[str]:
    return list(dict.fromkeys(str(card.facts["family"]) for card in seen.cards))


def _family(seen: Outcome, name: str) -> list[object]:
    rows = [row for row, card in enumerate(seen.cards) if card.facts["family"] == name]
    values = seen.right[rows, 1:].double().mean((0, 1)).numpy()  # (n,)
    interval = _mean_band(values, 0, "family", name)
    listed = ", ".join(seen.cards[row].name for row in rows)
    return [name, listed, f"{values.mean():.1%}", f"{interval.low:.1%} to {interval.high:.1%}"]


def _gallery(context: Context, seen: Outcome) -> list[Gallery]:
    """Return for each corruption the image that gives way at the lowest severity."""
    pictures = []
    for row, card in enumerate(seen.cards):
        broken = ~seen.right[row, 1:] & seen.right[row, 0]  # (5, n)
        if not bool(broken.any()):
            continue
        severity, index = divmod(int(broken.flatten().int().argmax()), broken.shape[1])
        # Images before it only set the draws; those after it need not be made.
        x, bounds = seen.x[: index + 1], context.data.bounds
        image = corrupted_images(card.name, severity + 1, x, bounds=bounds, seed=context.seed)[index]
        was, now = _name(context, seen.run.y[index]), _name(context, seen.run.answers[row, severity + 1, index])
        pictures.append(picture(image, f"{card.name} {severity + 1}: {was} read as {now}", bounds=bounds))
    return [Gallery("The mildest corruption of each kind that changes a right answer", pictures)] if pictures else []


def _name(context: Context, label: Tensor) -> str:
    names = context.data.class_names
    return "no label" if int(label) < 0 else names[int(label)] if int(label) < len(names) else str(int(label))


def _threat(seen: Outcome) -> str:
    table = "small" if min(seen.x.shape[2:]) <= natural.SMALL_SIDE else "large"
    return f"{len(seen.cards)} natural corruptions, severities 1 to 5 (levels for {table} images)"
