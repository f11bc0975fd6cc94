"""One paragraph on what the data of a study support, made from the intervals alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from hauberk.study.statistics import cell, mean_interval, paired_interval, spearman
from hauberk.study.tables import Row, radius


def on_two(standard: Row, robust: Row, colour: bool) -> str:
    """Return what the first table supports."""
    difference, span = paired_interval(robust.psnr, standard.psnr)
    means = [cell(*mean_interval(row.psnr), 1) for row in (robust, standard)]
    where = f"where training was at ε = {radius(robust.eps, colour)}"
    figures = f"mean PSNR {means[0]} dB {where}, {means[1]} dB where it was ordinary"
    if span.low > 0:
        more = f"{difference:.1f} dB more on the same {len(robust.psnr)} images"
        told = f"the robust model's gradients give away more: {figures}, {more}"
    elif span.high < 0:
        told = f"the standard model's gradients give away more: {figures}"
    else:
        told = f"the images do not decide which model gives away more: {figures}"
    logits = [statistics.fmean(row.figures["fmse"]) for row in (standard, robust)]
    ratio = logits[0] / max(logits[1], 1e-300)
    return f"{told}. The logits of the reconstructions are {ratio:.3g} times as far off on the standard model"


def on_radii(rows: Sequence[Row], colour: bool) -> str:
    """Return what the second table supports, with the size of the gradients as the rival explanation."""
    means = [statistics.fmean(row.psnr) for row in rows]
    low = [row for row in rows if row.eps <= (16 / 255 if colour else 0.6) + 1e-9]
    risen = []
    for before, after in itertools.pairwise(low):
        span = paired_interval(after.psnr, before.psnr)[1]
        step = f"from {radius(before.eps, colour)} to {radius(after.eps, colour)}"
        risen.append(f"{step} it {'rises' if span.low > 0 else 'falls' if span.high < 0 else 'does not surely change'}")
    all_psnr = [value for row in rows for value in row.figures["psnr"]]
    norms = [value for row in rows for value in row.figures["gradient_norm"]]
    within = spearman(all_psnr, norms)
    by_radius = spearman([row.eps for row in rows], means)
    idle = [row for row in rows if row.clean[0] / max(row.clean[1], 1) < 0.2]
    told = f"mean PSNR: {'; '.join(risen)}. Rank correlation of mean PSNR with the radius {by_radius:.2f} over {len(rows)} models"
    told += f", and of each image's PSNR with the norm of its gradient {within:.2f} over {len(norms)} images"
    if within > 0.5:
        told += ": the leak goes with the size of the gradient, which whatever keeps a model unsure keeps large"
    elif within == within:
        told += ": the size of the gradient alone does not explain the leak"
    if idle:
        radii = ", ".join(radius(row.eps, colour) for row in idle)
        told += f". At {radii} training failed, and the gradients are those of a constant answer: from one half on every image "
        told += "can be turned into the same gray one, so that no answer but a constant one resists"
    return told
