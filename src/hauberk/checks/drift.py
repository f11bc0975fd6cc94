"""Drift: whether the test data still looks like the data the model was trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from hauberk.checks.context import Context, NotRun
from hauberk.core import rng
from hauberk.core.finding import Advice, Curve, Finding, Series, Table
from hauberk.core.kinds import check
from hauberk.trust.arrays import Floats
from hauberk.trust.drift import FeatureDrift, feature_drift
from hauberk.trust.summary import fit_summary
from hauberk.trust.two_sample import classifier_test, mmd

_TAGS = ("trust:drift",)
_ADVICE = (
    Advice(
        "Look at the features that moved most, find out since when, and train again on recent data if they matter",
        "from hauberk.trust.drift import feature_drift; feature_drift(data.train.tensors()[0].flatten(1), x.flatten(1))",
        "AML.M0025",
    ),
)
_SHIFT = 0.1
_FITTED = 500


@dataclasses.dataclass(frozen=True)
class Samples:
    """Two samples as quantities, (n, quantities) and (m, quantities), the names of these, and how they were made."""

    reference: Floats
    current: Floats
    names: tuple[str, ...]
    how: str


@check(
    "trust/drift-features", pillar="trust", unit="share", better="lower", warn=0.0, fail=0.5,
    question="Which features of the test data are distributed otherwise than in training?",
    paper="Rabanser et al. 2019, arXiv:1810.11953; Benjamini and Hochberg 1995", tags=_TAGS, advice=_ADVICE,
)
def drift_features(context: Context) -> Finding:
    """Tests per feature with correction for many tests; a feature counts when its change is both significant and noticeable."""
    samples = _samples(context)
    found = feature_drift(samples.reference, samples.current, names=samples.names)
    moved = [one for one in found if _drifted(one)]
    ranked = sorted(found, key=lambda one: (one.adjusted, -one.wasserstein))
    rows = [
        (one.name, one.test, one.statistic, one.adjusted, one.psi, one.jensen_shannon, one.wasserstein, _drifted(one))
        for one in ranked[:12]
    ]
    n, m, worst = len(samples.reference), len(samples.current), ranked[0]
    context.note("no interval: the features are all there are; what chance could do is in the corrected p-values")
    context.note(
        f"a feature has drifted when its corrected p-value is below 0.05 and it moved by {_SHIFT:g} standard deviations or by a "
        f"Jensen-Shannon distance of {_SHIFT:g} at least"
    )
    tail = f"; the first is {worst.name}, corrected p = {worst.adjusted:.2g}" if moved else ""
    return context.finding(
        f"{len(moved)} of {len(found)} features have drifted from {n} training to {m} test samples{tail}",
        value=len(moved) / len(found), n=m,
        evidence=(
            Table(
                f"Features, most suspect first ({n} training, {m} test samples)",
                ("feature", "test", "statistic", "corrected p", "PSI", "Jensen-Shannon", "Wasserstein (sd)", "drifted"), rows,
            ),
            _distributions(samples, samples.names.index(worst.name)),
        ),
    )


@check(
    "trust/drift-mmd", pillar="trust", unit="p-value", warn=0.01,
    question="Could the training and the test data come from one distribution?",
    paper="Gretton et al. 2012, JMLR 13:723", tags=_TAGS, advice=_ADVICE,
)
def drift_mmd(context: Context) -> Finding:
    """Maximum mean discrepancy with a permutation test; the interval is that of the p-value."""
    samples = _samples(context)
    reference, current = _standardised(samples)
    most = context.settings.scaled(500, 1000, 2000)
    reference, current = reference[:most], current[:most]
    result = mmd(reference, current, permutations=context.settings.scaled(500, 1000, 2000), seed=context.seed)
    bar = float(np.quantile(result.null, 0.95))
    null = np.sort(result.null)
    picked = np.unique(np.linspace(0, len(null) - 1, 60).astype(int))
    context.note("the interval is that of the p-value: the error of finitely many permutations")
    return context.finding(
        f"MMD² is {result.statistic:.2e}, where chance alone stays below {bar:.2e} in 95 of 100 permutations: p = {result.p:.3f}",
        value=result.p, n=len(reference) + len(current), interval=result.interval,
        evidence=(
            Curve(
                f"MMD² if training and test samples were exchanged ({len(null)} permutations)", "MMD²",
                "share of permutations that reach it", [
                    Series("permutations", null[picked].tolist(), (1 - picked / len(null)).tolist()),
                    Series("observed", [result.statistic, result.statistic], [0.0, 1.0]),
                ],
            ),
        ),
    )


@check(
    "trust/drift-classifier", pillar="trust", unit="accuracy", better="lower", warn=0.6, fail=0.8, preset="standard",
    question="How well can a classifier tell training from test samples?", paper="Lopez-Paz and Oquab 2017, arXiv:1610.06545",
    tags=_TAGS, advice=_ADVICE,
)
def drift_classifier(context: Context) -> Finding:
    """Held-out accuracy of a random forest that tells the two splits apart; one half means that it cannot."""
    samples = _samples(context)
    result = classifier_test(samples.reference, samples.current, seed=context.seed)
    n = 2 * (min(len(samples.reference), len(samples.current)) - min(len(samples.reference), len(samples.current)) // 2)
    return context.finding(
        f"a random forest tells training from test samples with {result.statistic:.1%} accuracy "
        f"(guessing: 50.0%, p = {result.p:.2g})",
        value=result.statistic, n=n, interval=result.interval,
        evidence=(Table("Classifier two-sample test", ("figure", "value"), [
            ("held-out accuracy", result.statistic), ("guessing", 0.5), ("p-value", result.p)]),),
    )


def _samples(context: Context) -> Samples:
    """Training and test samples as quantities, drawn and summarised once."""
    train = context.split("train")
    n = context.settings.scaled(500, 2000, 5000)
    if min(len(train), len(context.data.test)) < 20:
        raise NotRun("drift needs at least 20 training and 20 test samples")

    def make(_: object) -> Samples:
        image = context.data.modality == "image" and len(context.data.test.shape) == 3
        order = torch.randperm(len(train), generator=rng.generator(context.seed, "drift", "train"))
        fitted = min(_FITTED, len(train) // 2)
        summary = fit_summary(train.x.take(order[:fitted]), image=image, names=context.data.feature_names)
        whole = summary.mean is None
        reference = order[:n] if whole else order[fitted : fitted + n]
        current = context.positions(n, n, n)
        # In parts, so that large images never lie in memory together.
        old = torch.cat([summary(train.x.take(part)) for part in reference.split(256)])
        new = torch.cat([summary(context.data.test.x.take(part)) for part in current.split(256)])
        how = "features as they are" if whole else (
            f"{len(summary.names)} quantities per sample, made without the model; principal components are fitted on "
            f"{fitted} training samples that are not compared"
        )
        return Samples(old.numpy(), new.numpy(), summary.names, how)

    samples = context.shared(("drift samples", n), make)
    if not (np.isfinite(samples.reference).all() and np.isfinite(samples.current).all()):
        raise NotRun("the data holds values that are not finite")
    context.note(f"compared are {samples.how}")
    return samples


def _standardised(samples: Samples) -> tuple[Floats, Floats]:
    both = np.concatenate([samples.reference, samples.current])
    scale = np.where(both.std(0) > 0, both.std(0), 1.0)
    return samples.reference / scale, samples.current / scale


def _drifted(one: FeatureDrift) -> bool:
    return one.adjusted < 0.05 and (one.wasserstein >= _SHIFT or one.jensen_shannon >= _SHIFT)


def _distributions(samples: Samples, column: int) -> Curve:
    series = []
    for name, part in (("training", samples.reference), ("test", samples.current)):
        values = np.sort(part[:, column])
        picked = np.unique(np.linspace(0, len(values) - 1, 80).astype(int))
        series.append(Series(name, values[picked].tolist(), ((picked + 1) / len(values)).tolist()))
    return Curve(
        f"Distribution of {samples.names[column]}", samples.names[column], "share of samples at or below", series
    )
