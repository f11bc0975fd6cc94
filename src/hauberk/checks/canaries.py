"""Canaries: whether the model learnt records by heart that its maker planted to find out."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.checks.membership import PRIVATE
from hauberk.core.access import Access
from hauberk.core.data import Data, Split
from hauberk.core.finding import Advice, Finding, Interval, Status, Table
from hauberk.core.kinds import check
from hauberk.core.overlap import overlap
from hauberk.core.rng import numpy_generator
from hauberk.core.stats import Floats, clopper_pearson
from hauberk.privacy.inference.exposure import expected_exposure
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.signals import cross_entropy

THREAT = "an adversary who knows how a secret record was drawn, holds the candidates, and asks the model for its scores"
HOW = (
    "no canaries are named. Before training: planting = hauberk.privacy.inference.plant_canaries(data.train), train on "
    'planting.train, planting.save("canaries.npz"), and name the file in the plan (data.canaries)'
)
FEW = 5  # planted canaries below which nothing is said
FAR = 2.0  # bits above chance: on average a quarter as far down the list


@check(
    "privacy/canary-exposure", pillar="privacy", unit="bits", better="lower", access=Access.SCORE, tags=TAGS,
    question="Does the model know by heart what was planted in its training data once?",
    paper="Carlini et al. 2019, arXiv:1802.08232",
    advice=(
        PRIVATE,
        Advice("Train with more regularisation, or stop earlier: when the loss on held-out records no longer falls",
               "hauberk.fit(model, data.train, schedule=hauberk.Schedule(epochs=10, validation=data.test, patience=2))"),
    ),
)
def canary_exposure(context: Context) -> Finding:
    """Mean exposure of the planted canaries in bits: how far up each stands, by its loss, among candidates drawn alike."""
    if context.data.canaries is None or not len(context.data.canaries):
        raise NotRun(HOW)
    context.need_classes()
    canaries = context.data.canaries
    x, y = canaries.tensors()
    planted = canaries.groups.get("planted", torch.ones_like(y)).bool()
    _look_in_train(context, canaries, planted)
    logits = context.target.logits(x).double().cpu()
    told = ~logits.isnan().any(1)
    if not bool(told.all()):  # one of them would make a number of no comparison
        context.note(f"{int((~told).sum())} canaries that the model answers with NaN are left out")
    place, logits, y, planted = told.nonzero()[:, 0], logits[told], y.cpu()[told], planted.cpu()[told]
    count, spare = int(planted.sum()), int((~planted).sum())
    if count < FEW:
        raise NotRun(f"{count} canaries are marked as planted and answered; at least {FEW} are needed")
    losses = cross_entropy(logits, y)
    by_label = label_exposures(logits, y)
    if spare >= FEW:
        bits = exposures(losses[planted], losses[~planted])
        size, among = spare + 1, f"{spare} spare canaries drawn alike"
        p = float(stats.mannwhitneyu(losses[planted].numpy(), losses[~planted].numpy(), alternative="less").pvalue)
        interval = _interval(context.seed, losses[planted].numpy(), losses[~planted].numpy(), bits)
    else:
        bits, size = by_label[planted].numpy(), logits.shape[1]
        among = f"the {size} labels that its input could have had"
        p = _by_labels(context.seed, bits, size)
        interval = _interval(context.seed, None, None, bits)
        context.note(
            "there are no spare canaries: each is ranked among the labels of its own input, which says no more than "
            f"{np.log2(size):.2f} bits and is right only where labels were drawn at random"
        )
    chance, value = expected_exposure(size), float(bits.mean())
    status = Status.FAIL if interval.low > chance + FAR and p < 1e-3 else Status.WARN if p < 0.01 else Status.PASS
    context.note(
        f"exposure is log2 of the candidates less log2 of the rank; {chance:.2f} bits are expected of a canary that was never "
        f"seen, {np.log2(size):.2f} are the most. Warns when p < .01, fails when p < .001 and surely {FAR:g} bits above chance"
    )
    context.note("canaries that are trained on more often than a record, or stranger than one, are exposed more than records are")
    order = np.argsort(-bits, kind="stable")[:8]
    places = planted.nonzero()[:, 0]
    rows = [(int(place[places[k]]), int(y[places[k]]), f"{float(losses[places[k]]):.3g}", f"{bits[k]:.2f}") for k in order]
    return context.finding(
        f"the {count} canaries planted have {value:.2f} bits of exposure among {among}; {chance:.2f} are chance (p = {p:.2g})",
        value=value, n=count, interval=interval, threat=THREAT, status=status,
        evidence=(
            _sides(losses, by_label, planted, logits.shape[1]),
            Table("Most exposed canaries", ("position in the file", "label", "loss", "bits"), rows),
        ),
    )


def exposures(planted: Tensor, spares: Tensor) -> Floats:
    """Return the exposure of each planted canary in bits, shape (n,), from its own loss and those of the spares.

    As `rank_exposure` of each among the spares and itself: spares of the same loss stand before it.
    """
    return _bits(planted.numpy(), spares.numpy())


def label_exposures(logits: Tensor, y: Tensor) -> Tensor:
    """Return the exposure in bits of each label among all labels of the same input, shape (n,); labels that tie stand before."""
    own = logits.gather(1, y[:, None])
    return np.log2(logits.shape[1]) - (logits >= own).sum(1).double().log2()


def _bits(planted: Floats, spares: Floats) -> Floats:
    before = np.searchsorted(np.sort(spares), planted, side="right")
    made: Floats = np.log2(len(spares) + 1) - np.log2(before + 1.0)
    return made


def _interval(seed: int, planted: Floats | None, spares: Floats | None, bits: Floats) -> Interval:
    """Return the interval of the mean: bootstrap over the planted, and over the spares where they rank them."""
    draw, means = numpy_generator(seed, "canary exposure"), []
    for _ in range(500):
        own = draw.integers(0, len(bits), len(bits))
        if planted is None or spares is None:
            means.append(bits[own].mean())
        else:
            means.append(_bits(planted[own], spares[draw.integers(0, len(spares), len(spares))]).mean())
    value = float(bits.mean())
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    if float(np.ptp(bits)) == 0:  # all alike: so are at least so many of those that could have been planted
        low = min(low, value * clopper_pearson(len(bits), len(bits)).low)
    return Interval(min(low, value), max(high, value), "bootstrap")


def _by_labels(seed: int, bits: Floats, size: int) -> float:
    """Return how likely random labels reach so many bits: their ranks are even on 1 to size."""
    ranks = numpy_generator(seed, "canary labels").integers(1, size + 1, (4999, len(bits)))
    beyond = (np.log2(size) - np.log2(ranks)).mean(1) >= bits.mean() - 1e-12
    return float((1 + beyond.sum()) / 5000)


def _sides(losses: Tensor, by_label: Tensor, planted: Tensor, classes: int) -> Table:
    rows = []
    for name, side in (("planted", planted), ("spare", ~planted)):
        if bool(side.any()):
            rows.append((
                name, int(side.sum()), f"{float(losses[side].median()):.3g}", f"{float(by_label[side].mean()):.2f}",
                f"{float((by_label[side] >= np.log2(classes) - 1e-9).double().mean()):.0%}",
            ))
    return Table(
        "Planted canaries beside spare ones",
        ("canaries", "n", "median loss", f"bits among {classes} labels (chance {expected_exposure(classes):.2f})",
         "the model answers their label"), rows,
    )


def _look_in_train(context: Context, canaries: Split, planted: Tensor) -> None:
    """End the check, or note, where the training data does not hold what was planted, or holds what was spared."""
    if context.data.train is None:
        return
    there = overlap(Data(canaries, context.data.train, bounds=context.data.bounds, classes=context.data.classes)).copies
    held, kept = int((there & planted).sum()), int((there & ~planted).sum())
    if bool(planted.any()) and not held:
        raise NotRun(
            "none of the canaries marked as planted is in the training data that the plan names: name the data with them in it, "
            "as plant_canaries returns it, or leave data.train out"
        )
    if held < int(planted.sum()):
        context.note(f"{int(planted.sum()) - held} of {int(planted.sum())} planted canaries are not in the training data named")
    if kept:
        context.note(f"the inputs of {kept} spare canaries are in the training data too: that makes the figure smaller")
