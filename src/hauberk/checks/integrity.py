"""Integrity: the labels the model was trained on, the weights it runs with, and what a fault in them costs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.finding import Advice, Curve, Finding, Gallery, Interval, Series, Status, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import Floats, bootstrap, newcombe
from hauberk.integrity.faults import PARTS, bit_count, flipped_bits, right_answers
from hauberk.integrity.poison.neighbours import neighbour_votes
from hauberk.integrity.weights import dead_units, layer_states, non_finite

FLIPS = (1, 3, 10, 30, 100)
HEADLINE = 10


@check(
    "integrity/bit-flips", pillar="integrity", unit="accuracy", access=Access.GRADIENT, warn=0.9,
    question=f"What accuracy is left, on average, after {HEADLINE} random bits of the weights flip?",
    paper="Hong et al. 2019, arXiv:1906.01017",
    tags=(
        "aisec:hardware-backdoor-attack", "aisec:overflow-destruction", "atlas:AML.T0010.000", "owasp:ML10", "nist:NISTAML.026",
    ),
    advice=(
        Advice("Serve from memory with error correction, and hash the weights before and while serving", "", "AML.M0014"),
        Advice("Refuse answers that are not finite: most harmful flips are high bits of an exponent"),
    ),
)
def bit_flips(context: Context) -> Finding:
    """Mean accuracy over trials of random faults, by number of flipped bits and by the part of the number they strike."""
    context.need_classes()
    x, y = context.sample()
    module, trials = context.target.module, context.settings.scaled(20, 50, 200)
    if not bit_count(module):
        raise NotRun("the model has no floating-point weights of its own, whose bits could flip")

    def accuracy(count: int, part: str, trial: int) -> float:
        draws = rng.generator(context.seed, "bit flips", count, part, trial)
        with flipped_bits(module, count, generator=draws, part=part):
            logits = context.target.logits(x)
        return float(right_answers(logits, y).double().mean())

    clean = float((context.target.labels(x) == y).double().mean())
    bits = bit_count(module)
    counts = [count for count in FLIPS if count <= bits]
    runs = {count: np.array([accuracy(count, "any", trial) for trial in range(trials)]) for count in counts}
    headline = min(HEADLINE, counts[-1])
    bands = {count: _mean_band(context, runs[count], count, "any") for count in counts}
    curve = Curve(
        "Accuracy after random bit flips", "bits flipped", "accuracy",
        [
            Series(
                f"mean of {trials} trials", counts, [float(runs[count].mean()) for count in counts],
                [bands[count].low for count in counts], [bands[count].high for count in counts],
            ),
            Series("worst trial", counts, [float(runs[count].min()) for count in counts]),
            Series("without faults", counts, [clean] * len(counts)),
        ],
        log_x=True,
    )
    rows = []
    for part in PARTS:
        count = min(headline, bit_count(module, part))
        seen = runs[count] if part == "any" else np.array([accuracy(count, part, trial) for trial in range(trials)])
        band = _mean_band(context, seen, count, part)
        rows.append([part, count, f"{seen.mean():.1%}", f"{band.low:.1%} to {band.high:.1%}", f"{seen.min():.1%}"])
    table = Table("Accuracy by part of the number", ("part", "flips", "mean", "95 % interval", "worst"), rows)
    value = float(runs[headline].mean())
    return context.finding(
        f"{value:.1%} accuracy on average after {headline} of {bits:,} bits flip ({trials} trials); {clean:.1%} without faults",
        value=value, n=trials, interval=bands[headline], threat=f"{headline} random bits of the weights flipped",
        evidence=[curve, table],
    )


@check(
    "integrity/label-noise", pillar="integrity", unit="rate", better="lower", warn=0.03, fail=0.1,
    question="What share of the training labels contradicts those of the most similar samples?",
    paper="Northcutt et al. 2021, arXiv:1911.00068",
    tags=("aisec:data-poisoning", "atlas:AML.T0020", "owasp:ML02", "nist:NISTAML.013"),
    advice=(
        Advice(
            "Look at the samples named, correct or drop them, and train again",
            "from hauberk.integrity.poison import knn_disagreement; knn_disagreement(data.train)", "AML.M0007",
        ),
    ),
)
def label_noise(context: Context) -> Finding:
    """Share of training samples whose neighbours agree on another label, with the most suspicious shown."""
    context.need_classes()
    train = context.split("train")
    index = train.pick(context.settings.scaled(2000, 10_000, 50_000), context.seed, "label noise")
    x, y = train.take(index)
    votes = neighbour_votes(Split(x, y))
    own = votes.gather(1, y[:, None])[:, 0]
    best, label = votes.scatter(1, y[:, None], -1.0).max(1)
    # More than half of the votes for one other label: disagreement alone is common where classes meet.
    figure = context.rate(best > 0.5)
    beyond, chance = _beyond_chance(context, votes, y)
    worst = own.sub(best).argsort(stable=True)[:12]
    worst = worst[best[worst] > 0.5]
    rows = [[int(index[i]), _class(context, y[i]), _class(context, label[i]), f"{float(best[i]):.0%}"] for i in worst.tolist()]
    evidence: list[Table | Gallery] = []
    if rows:
        evidence.append(Table("Most suspicious labels", ("training sample", "label", "its neighbours say", "votes"), rows))
        if context.data.modality == "image":
            shown = [
                picture(x[i], f"{_class(context, y[i])}, like {_class(context, label[i])}", bounds=context.data.bounds)
                for i in worst[:8].tolist()
            ]
            evidence.append(Gallery("Labelled one thing, looking like another", shown))
    context.note("samples between two classes look the same as wrong labels; a share far above that of clean data is the sign")
    context.note(f"neighbours agree on the label by {beyond:.0%} of the way from chance to certainty")
    summary = f"{figure['value']:.1%} of {figure['n']} training labels contradict those of their 10 nearest neighbours"
    status = None
    if chance > 0.05:
        # Random labels find no majority to contradict them: the share alone would call them clean.
        status = Status.FAIL if len(y) >= 100 else Status.WARN
        summary = f"the labels are no better than random given the neighbours (permutation test: p = {chance:.2f})"
    elif beyond < 0.3 and figure["value"] <= 0.1:
        status = Status.WARN
        summary += f"; yet neighbours say little of the label ({beyond:.0%} beyond chance): wrong labels would not stand out"
    return context.finding(summary, threat="poisoned or careless labels", evidence=evidence, status=status, **figure)


@check(
    "integrity/backdoor-labels", pillar="integrity", unit="rate", better="lower", warn=0.045,
    question="Do samples that look like many other classes pile up under one training label, as those of a backdoor do?",
    paper="Gu et al. 2017, arXiv:1708.06733; Paudice et al. 2018, arXiv:1803.00992",
    tags=("aisec:data-backdoor-attack", "atlas:AML.T0020", "owasp:ML02", "nist:NISTAML.023"),
    advice=(
        Advice(
            "Look at the samples named for a mark they share, drop them, and train again",
            "from hauberk.integrity.poison import knn_disagreement; knn_disagreement(data.train)", "AML.M0007",
        ),
    ),
)
def backdoor_labels(context: Context) -> Finding:
    """The largest share of a class whose neighbours vote for other classes of many kinds, beyond the share in all the others.

    Confusion of nature goes to a few like classes, so the third of the classes that a label is taken for most often counts
    nothing; careless labels strike all classes, so what the rest of the data shows is taken off.
    """
    context.need_classes()
    train = context.split("train")
    index = train.pick(context.settings.scaled(2000, 10_000, 50_000), context.seed, "label noise")
    x, y = train.take(index)
    sizes = torch.bincount(y)
    classes = len(sizes)
    if classes < 5 or int(sizes.min()) < 80:
        raise NotRun(f"{classes} classes, the smallest of {int(sizes.min())} samples drawn: at least 5 of 80 are needed")
    votes = neighbour_votes(Split(x, y))
    right = float((votes.argmax(1) == y).double().mean())
    if right < 0.7:
        raise NotRun(f"neighbours name the label of only {right:.0%} of the samples: a wrong one would not stand out")
    best, label = votes.scatter(1, y[:, None], -1.0).max(1)
    contrary = best > 0.5
    taken = torch.zeros(classes, classes, dtype=torch.long)
    taken.index_put_((y[contrary], label[contrary]), torch.ones_like(y[contrary]), accumulate=True)
    kept = taken.sort(1, descending=True).values[:, (classes - 1) // 3 :].sum(1)  # (classes,)
    worst = int((kept / sizes).argmax())
    hits, others = int(kept[worst]), int(kept.sum() - kept[worst])
    size, rest = int(sizes[worst]), int(sizes.sum() - sizes[worst])
    value = hits / size - others / rest
    # The worst of several classes is high by luck as well: the interval holds for all of them at once (Bonferroni).
    wide = newcombe(hits, size, others, rest, 1 - 0.05 / classes)
    interval = Interval(wide.low, wide.high, f"newcombe, for all {classes} at once", 0.95)
    rows = [
        [_class(context, torch.tensor(one)), int(sizes[one]), int(taken[one].sum()), int(kept[one]), int((taken[one] > 0).sum())]
        for one in (kept / sizes).argsort(descending=True, stable=True).tolist()
    ]
    heads = ("label", "samples", "look like another class", "of which not like the usual few", "classes they look like")
    evidence: list[Table | Gallery] = [Table("Samples that look like another class, by label", heads, rows)]
    found = (contrary & (y == worst)).nonzero()[:8, 0].tolist()
    if value > 0.045 and context.data.modality == "image":
        shown = [picture(x[i], f"{int(index[i])}: like {_class(context, label[i])}", bounds=context.data.bounds) for i in found]
        evidence.append(Gallery(f"Labelled {_class(context, y[found[0]])}", shown))
    context.note(
        "sees patches whose labels were changed, from many classes to one, at some 5 % of the data; of 2 % it misses some, and "
        "clean-label poison, one source class, or triggers that change the whole image stay hidden"
    )
    status = Status.FAIL if value > 0.045 and interval.low > 0.01 else Status.PASS
    usual, most = float(sizes.double().median()), int(sizes.max())
    if status is Status.PASS and most > 2 * usual:
        raise NotRun(
            f"label {_class(context, sizes.argmax())} has {most} samples, others some {usual:.0f}: where poison makes up so much "
            "of a class, its samples vouch for each other and stay hidden"
        )
    if value > 0.045 and status is Status.PASS:
        context.note("the worst of so many classes can be this high by luck: more samples would decide it")
    return context.finding(
        f"under label {_class(context, torch.tensor(worst))}, {hits} of {size} samples look like a mixture of other classes, "
        f"{value:.1%} more than elsewhere", value=value, n=size, interval=interval, evidence=evidence,
        threat="patched and relabelled training samples", status=status,
    )


@check(
    "integrity/weights-sane", pillar="integrity", unit="rate", better="lower", access=Access.GRADIENT, warn=0.25,
    question="Are all weights finite, and do the units of the network work?",
    tags=("aisec:initial-weight-modification", "atlas:AML.T0018", "owasp:ML10", "nist:NISTAML.026"),
    advice=(
        Advice("Compare the weights with those of the training run; draw the first ones yourself", "", "AML.M0014"),
        Advice("Lower the learning rate, or normalise the inputs of layers whose units are dead"),
    ),
)
def weights_sane(context: Context) -> Finding:
    """Non-finite weights, units that never fire, the gain of each layer, and units whose weights stand out."""
    module, (x, _) = context.target.module, context.sample()
    if not any(value.is_floating_point() and value.numel() for value in module.parameters()):
        raise NotRun("the model has no weights of its own to look at")
    broken, states, dead = non_finite(module), layer_states(module, x), dead_units(module, x)
    rows = [[one.name, one.kind, one.weights, f"{one.gain:.3g}", f"{one.outlier:.1f}"] for one in states]
    evidence = [Table("Layers", ("layer", "type", "weights", "gain", "most unusual unit (robust z)"), rows)]
    if dead:
        listed = [[name, len(units), int(units.sum())] for name, units in dead.items()]
        evidence.append(Table("Units behind a ReLU that no sample switches on", ("layer", "units", "dead"), listed))
    else:
        context.note("the model has no ReLU modules, so that dead units cannot be counted")
    odd = [one.name for one in states if not one.outlier < 20]
    if odd:
        context.note(f"a unit of {', '.join(odd)} has weights far out of line: an implanted one looks like that")
    wild = [one.name for one in states if not 1e-2 < one.gain < 1e2]
    if wild:
        context.note(f"the signal shrinks or grows more than a hundredfold in {', '.join(wild)}")
    units = torch.cat(list(dead.values())) if dead else torch.zeros(0, dtype=torch.bool)
    figure = context.rate(units) if len(units) else {}
    share = f"{int(units.sum())} of {len(units)} units are dead" if len(units) else "no unit can be judged"
    return context.finding(
        f"{broken} weights are not finite; {share}", threat="weights changed before or during training", evidence=evidence,
        status=Status.FAIL if broken else Status.WARN if odd or wild else None, **figure,
    )


def _mean_band(context: Context, values: Floats, *names: object) -> Interval:
    return bootstrap(values, lambda rows: float(rows.mean()), rng=rng.numpy_generator(context.seed, "bit flips", *names))


def _beyond_chance(context: Context, votes: Tensor, y: Tensor) -> tuple[float, float]:
    """Return how far the votes for a sample's own label lie from chance towards certainty, and the p-value of chance alone.

    Chance is what the same votes give to labels dealt out anew.
    """
    if len(y.unique()) < 2:
        raise NotRun("the training samples have one label: nothing can contradict it")
    own, dealt = float(votes.gather(1, y[:, None]).mean()), []
    for trial in range(199):
        order = torch.randperm(len(y), generator=rng.generator(context.seed, "label noise", "dealt", trial))
        dealt.append(float(votes.gather(1, y[order][:, None]).mean()))
    mean = float(np.mean(dealt))
    return (own - mean) / max(1 - mean, 1e-12), (1 + sum(one >= own for one in dealt)) / 200


def _class(context: Context, label: Tensor) -> str:
    names = context.data.class_names
    return names[int(label)] if int(label) < len(names) else str(int(label))
