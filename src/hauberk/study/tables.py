"""The tables, figures and findings of the study of robustness and leakage."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hauberk.core.finding import Advice, Curve, Finding, Gallery, Interval, Series, Status, Table
from hauberk.core.picture import picture
from hauberk.core.stats import wilson
from hauberk.privacy.inversion.metrics import psnr, ssim
from hauberk.study.statistics import cell, mean_interval, paired_interval

LEARNT = 0.1
THREAT = "an honest but curious server: sees one client's gradient of one image, knows its label and the model"
TAGS = ("aisec:information-leakage", "atlas:AML.T0024.001", "owasp:ML03", "nist:NISTAML.032")
ADVICE = (
    Advice("Train with differential privacy: a clipped and noised gradient shows no single image; find the noise",
           "hauberk calibrate --epsilon 3 --delta 1e-5 --n 60000 --batch 256 --epochs 20"),
    Advice("Send sums over many clients alone, by secure aggregation"),
)
COLUMNS = (
    "training ε", "clean accuracy", "accuracy under PGD", "PSNR in dB", "PSNR of the mean MSE", "MSE", "FMSE of the logits",
    "SSIM", "median loss", "median gradient norm",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured on one model.

    Arguments:
        eps: the radius it was trained at.
        clean, robust: hits and number, on clean test images and under attack.
        figures: per image, those of the first start.
        starts: PSNR per image, of every start.
        guess: test images of the commonest class, and of all: what an answer without a look is worth.
        commonest: how often the commonest answer was given, and how often any.
    """

    eps: float
    clean: tuple[int, int]
    robust: tuple[int, int]
    figures: dict[str, list[float]]
    starts: list[list[float]]
    guess: tuple[int, int]
    commonest: tuple[int, int]

    @property
    def psnr(self) -> list[float]:
        """PSNR of each image, the mean over starts."""
        return [statistics.fmean(each) for each in zip(*self.starts, strict=True)]

    @property
    def learnt(self) -> bool:
        """Whether the clean accuracy is surely better than guessing, and a tenth or more of the way from there to perfect."""
        base = self.guess[0] / max(self.guess[1], 1)
        return wilson(*self.clean).low > base and self.clean[0] / max(self.clean[1], 1) >= base + LEARNT * (1 - base)

    @property
    def stands(self) -> bool:
        """Whether the accuracy under attack surely lies above none at all, and above guessing."""
        return wilson(*self.robust).low > self.guess[0] / max(self.guess[1], 1)


@dataclasses.dataclass(frozen=True)
class Guess:
    """How near the mean training image comes to each image: what needs no gradient at all."""

    psnr: list[float]
    mse: list[float]
    ssim: list[float]


def guessed(train: Tensor, victims: Tensor) -> Guess:
    """Return what the mean of training images, (m, ...), reaches on each victim, (n, ...)."""
    mean = train.mean(0, keepdim=True).expand_as(victims)
    error = (mean.double() - victims.double()).square().flatten(1).mean(1)
    return Guess(psnr(error).tolist(), error.tolist(), ssim(victims, mean).tolist())


def table(title: str, rows: Sequence[Row], guess: Guess, colour: bool) -> Table:
    """Return rows as the talk showed them, with the figures that explain them beside, and last what needs no gradient."""
    means = {name: mean_interval(getattr(guess, name)) for name in ("psnr", "mse", "ssim")}
    without = (
        "none: the mean training image", "-", "-", cell(*means["psnr"]), f"{_of_mean(guess.mse):.2f}", cell(*means["mse"], 4),
        "-", cell(*means["ssim"]), "-", "-",
    )
    return Table(title, COLUMNS, [*(_line(row, colour) for row in rows), without])


def _of_mean(mse: Sequence[float]) -> float:
    return -10 * math.log10(max(statistics.fmean(mse), 1e-20))


def _line(row: Row, colour: bool) -> Sequence[str]:
    held = row.figures
    means = {name: mean_interval(held[name]) for name in ("mse", "fmse", "ssim")}
    return (
        radius(row.eps, colour), _rate(row.clean), _rate(row.robust), cell(*mean_interval(row.psnr)),
        f"{_of_mean(held['mse']):.2f}", cell(*means["mse"], 4), cell(*means["fmse"], 3), cell(*means["ssim"]),
        f"{statistics.median(held['loss']):.2g}", f"{statistics.median(held['gradient_norm']):.2g}",
    )


def radius(eps: float, colour: bool) -> str:
    """Return a radius as the talk writes it: in units of 1/255 for colour."""
    return f"{eps * 255:.0f}/255" if colour else f"{eps:.2f}"


def _rate(count: tuple[int, int]) -> str:
    hits, n = count
    span = wilson(hits, n)
    return f"{hits / max(n, 1):.3f} [{span.low:.3f}, {span.high:.3f}]"


def stability(rows: Sequence[Row], colour: bool) -> Table:
    """Return how far the starts of the search agree, image by image."""
    lines = []
    for row in rows:
        spread = [statistics.pstdev(each) for each in zip(*row.starts, strict=True)]
        lines.append((
            radius(row.eps, colour), len(row.starts), f"{min(map(min, row.starts)):.1f} to {max(map(max, row.starts)):.1f}",
            f"{statistics.fmean(spread):.2f}", f"{max(spread):.2f}",
        ))
    columns = ("training ε", "starts", "PSNR, least to greatest", "deviation over starts, mean", "greatest")
    return Table("Stability over starts of the search", columns, lines)


def over_epochs(points: dict[str, list[tuple[int, list[float]]]]) -> Curve:
    """Return the mean PSNR after each epoch that was inverted, by model."""
    series = []
    for name, found in points.items():
        means = [mean_interval(values) for _, values in found]
        series.append(Series(
            name, [epoch for epoch, _ in found], [mean for mean, _ in means], [span.low for _, span in means],
            [span.high for _, span in means],
        ))
    return Curve("Leakage over training", "epoch", "PSNR in dB", series)


def galleries(victims: Tensor, found: dict[str, Tensor], figures: dict[str, list[float]], most: int = 6) -> list[Gallery]:
    """Return the images, and below each what every model's gradients gave away of it: a row of pictures each.

    Arguments:
        victims: images (n, ...).
        found: reconstructions (n, ...) by the name of the model.
        figures: their PSNR, by the name of the model.
        most: pictures in a row.
    """
    shown = range(min(most, len(victims)))
    rows = [Gallery("The images", [picture(victims[at], f"image {at + 1}", width=84) for at in shown])]
    return rows + [
        Gallery(f"What the gradients of the {name} model gave away", [
            picture(images[at].clamp(0, 1), f"{figures[name][at]:.1f} dB", width=84) for at in shown
        ])
        for name, images in found.items()
    ]


def over_radii(rows: Sequence[Row], guess: Guess, colour: bool) -> Curve:
    """Return the mean PSNR by the radius trained at, beside what needs no gradient."""
    unit = 255 if colour else 1
    series = []
    for name, some in (
        ("models that learnt", [row for row in rows if row.learnt]), ("did not learn", [row for row in rows if not row.learnt])
    ):
        spans = [mean_interval(row.psnr) for row in some]
        if some:
            series.append(Series(
                name, [row.eps * unit for row in some], [mean for mean, _ in spans], [span.low for _, span in spans],
                [span.high for _, span in spans],
            ))
    ends = [min(row.eps for row in rows) * unit, max(row.eps for row in rows) * unit]
    series.append(Series("the mean training image, no gradient", ends, [statistics.fmean(guess.psnr)] * 2))
    return Curve("Leakage by radius", "training ε in 1/255" if colour else "training ε", "PSNR in dB", series)


def over_starts(rows: dict[str, Row]) -> Curve:
    """Return the PSNR of each image, mean, least and greatest over the starts of the search, by model."""
    series = []
    for name, row in rows.items():
        each = list(zip(*row.starts, strict=True))
        at = [float(image + 1) for image in range(len(each))]
        series.append(Series(name, at, row.psnr, [min(one) for one in each], [max(one) for one in each]))
    return Curve("Stability over starts: mean, least and greatest of each image", "image", "PSNR in dB", series)


def against(standard: Row, robust: Row, evidence: Sequence[Any], words: str, notes: Sequence[str]) -> Finding:
    """Return the finding of the first table: the robust model beside the standard one. What is not decided is no pass."""
    difference, span = paired_interval(robust.psnr, standard.psnr)
    decided = standard.learnt and robust.learnt
    status = Status.PASS if decided and span.high < 0 else Status.WARN
    return Finding(
        "privacy/robust-against-standard", "privacy",
        "Do the gradients of a robust model give away more than those of a standard one?", status, value=difference, unit="dB",
        n=len(standard.psnr), interval=span, better="lower", threat=THREAT, access="GRADIENT", summary=words, evidence=evidence,
        tags=TAGS, notes=notes, advice=ADVICE if span.low > 0 and decided else (),
    )


def by_radius(rows: Sequence[Row], evidence: Sequence[Any], words: str, notes: Sequence[str]) -> Finding:
    """Return the finding of the second table: leakage by the radius trained at."""
    worst = max([row for row in rows if row.learnt] or rows, key=lambda row: statistics.fmean(row.psnr))
    mean, span = mean_interval(worst.psnr)
    return Finding(
        "privacy/leakage-by-radius", "privacy",
        "How does what gradients give away depend on the radius of adversarial training?", Status.WARN, value=mean, unit="dB",
        n=len(worst.psnr), interval=Interval(span.low, span.high, "bootstrap"), better="lower",
        threat=THREAT, access="GRADIENT", summary=words, evidence=evidence, tags=TAGS, advice=ADVICE, notes=notes,
    )
