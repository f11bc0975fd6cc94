"""Integrity: the labels the model was trained on, the weights it runs with, and what a fault in them costs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hauberk.checks.context import Context
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.finding import Advice, Curve, Finding, Gallery, Interval, Series, Status, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import Floats, bootstrap
from hauberk.integrity.faults import PARTS, flipped_bits
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

    def accuracy(count: int, part: str, trial: int) -> float:
        draws = rng.generator(context.seed, "bit flips", count, part, trial)
        with flipped_bits(module, count, generator=draws, part=part):
            logits = context.target.logits(x)
        # An answer that is not finite is no answer, whatever label its arg max names.
        return float(((logits.argmax(1) == y) & logits.isfinite().all(1)).double().mean())

    clean = float((context.target.labels(x) == y).double().mean())
    bits = sum(value.numel() * value.element_size() * 8 for value in module.parameters() if value.is_floating_point())
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
        seen = runs[headline] if part == "any" else np.array([accuracy(headline, part, trial) for trial in range(trials)])
        band = _mean_band(context, seen, headline, part)
        rows.append([part, f"{seen.mean():.1%}", f"{band.low:.1%} to {band.high:.1%}", f"{seen.min():.1%}"])
    table = Table(f"Accuracy after {headline} flips by part of the number", ("part", "mean", "95 % interval", "worst"), rows)
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
    tags=("aisec:data-poisoning", "aisec:data-backdoor-attack", "atlas:AML.T0020", "owasp:ML02", "nist:NISTAML.013"),
    advice=(
        Advice(
            "Look at the samples named, correct or drop them, and train again",
            "hauberk.integrity.poison.knn_disagreement(data.train)", "AML.M0007",
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
    return context.finding(
        f"{figure['value']:.1%} of {figure['n']} training labels contradict those of their 10 nearest neighbours",
        threat="poisoned or careless labels", evidence=evidence, **figure,
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


def _class(context: Context, label: Tensor) -> str:
    names = context.data.class_names
    return names[int(label)] if int(label) < len(names) else str(int(label))
