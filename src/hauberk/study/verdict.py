"""One paragraph on what the data of a study support, made from the intervals alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from hauberk.core.stats import wilson
from hauberk.study.statistics import cell, mean_interval, paired_interval, rank_interval
from hauberk.study.tables import Row, radius

HALF = 0.5  # from this radius on one gray image is near every other
IDLE = 0.9  # share of one and the same answer
GRAY = "; from one half on every image can be turned into the same gray one, and none but a constant answer resists"


def on_two(standard: Row, robust: Row, guess: Sequence[float], colour: bool) -> str:
    """Return what the first table supports.

    Arguments:
        standard, robust: the two models.
        guess: PSNR of each image's guess without any gradient.
        colour: whether radii are told in units of 1/255.
    """
    difference, span = paired_interval(robust.psnr, standard.psnr)
    n = len(robust.psnr)
    means = [cell(*mean_interval(row.psnr), 1) for row in (robust, standard)]
    where = f"where training was at ε = {radius(robust.eps, colour)}"
    figures = f"mean PSNR {means[0]} dB {where}, {means[1]} dB where it was ordinary"
    apart = f"a difference of {cell(difference, span, 1)} dB on the same {n} images"
    if not standard.learnt or not robust.learnt:
        lost = " and ".join(_lost(row, colour) for row in (standard, robust) if not row.learnt)
        return f"nothing is decided, for a model did not learn: {lost}; {figures}, {apart}"
    if span.low > 0:
        told = f"these two models differ, and the robust one's gradients give away more: {figures}, {apart}"
    elif span.high < 0:
        told = f"these two models differ, and the standard one's gradients give away more: {figures}, {apart}"
    else:
        told = f"the images do not decide which model gives away more: {figures}, {apart}"
    if not robust.stands:
        told += f". The robust model hardly stands: {_share(robust.robust)} under PGD"
    left, right = ([math.log10(max(one, 1e-30)) for one in row.figures["fmse"]] for row in (standard, robust))
    ratio, around = paired_interval(left, right)
    ends = f"[{_times(around.low)}, {_times(around.high)}]" if math.isfinite(around.low) else "[-, -]"
    told += _floor(standard, robust, guess)
    far = f"{_times(ratio)} {ends} times as far off (geometric mean)"
    return f"{told}. The logits of the standard model's reconstructions are {far}"


def _floor(standard: Row, robust: Row, guess: Sequence[float]) -> str:
    near = [paired_interval(row.psnr, guess, together=2)[1].low > 0 for row in (standard, robust)]
    if all(near):
        return ""
    which = "neither model's" if not any(near) else "the standard model's" if near[1] else "the robust model's"
    verb = "come surely" if not any(near) else "do not come surely"
    return f"; {which} reconstructions {verb} nearer than the mean training image ({mean_interval(guess)[0]:.1f} dB)"


def on_radii(rows: Sequence[Row], guess: Sequence[float], colour: bool) -> tuple[str, list[str]]:
    """Return what the second table supports in a sentence or two, and the rest of it, with the size of the gradients as rival.

    Arguments:
        rows: one a model.
        guess: PSNR of each image's guess without any gradient.
        colour: whether radii are told in units of 1/255.
    """
    kept, lost = [row for row in rows if row.learnt], [row for row in rows if not row.learnt]
    told, rest = _steps(kept, colour), [_beyond(kept, guess, colour)] if kept else []
    if len(kept) > 1:
        rest += [_by_radius(kept), _by_norm(kept)]
    if lost:
        told += f". Set aside, for the model did not learn: {', '.join(radius(row.eps, colour) for row in lost)}"
        gray = GRAY if any(row.eps >= HALF for row in lost) else ""
        rest.append(f"what did not learn: {'; '.join(_lost(row, colour) for row in lost)}{gray}")
    return told, rest


def _steps(kept: Sequence[Row], colour: bool) -> str:
    pairs = list(itertools.pairwise(kept))
    if not pairs:
        return "fewer than two models learnt, so that there is no order of rows to speak of"
    told = []
    for before, after in pairs:
        change, span = paired_interval(after.psnr, before.psnr, together=len(pairs))
        word = "rises" if span.low > 0 else "falls" if span.high < 0 else "does not surely change"
        told.append(f"from {radius(before.eps, colour)} to {radius(after.eps, colour)} it {word} ({cell(change, span, 1)} dB)")
    return f"mean PSNR: {'; '.join(told)}; these intervals hold together in 95 %"


def _beyond(kept: Sequence[Row], guess: Sequence[float], colour: bool) -> str:
    sure, unsure = list[str](), list[str]()
    for row in kept:
        span = paired_interval(row.psnr, guess, together=max(1, len(kept)))[1]
        (sure if span.low > 0 else unsure).append(radius(row.eps, colour))
    base = f"{mean_interval(guess)[0]:.1f} dB, what the mean training image reaches without any gradient"
    if not unsure:
        return f"every row is surely above {base}"
    return f"not surely above {base}: {', '.join(unsure)}" + (f"; surely above: {', '.join(sure)}" if sure else "")


def _by_radius(kept: Sequence[Row]) -> str:
    n = len(kept[0].psnr)
    value, span = rank_interval([[row.eps] * n for row in kept], [row.psnr for row in kept], over="models")
    return f"rank correlation of PSNR with the radius, image by image, {cell(value, span)} over {len(kept)} models and {n} images"


def _by_norm(kept: Sequence[Row]) -> str:
    norms, psnr = [row.figures["gradient_norm"] for row in kept], [row.figures["psnr"] for row in kept]
    models, images = (rank_interval(norms, psnr, over=over) for over in ("models", "images"))
    told = (
        f"rank correlation of PSNR with the norm of the gradient {cell(*models)} over the models that see one image, "
        f"{cell(*images)} over the images that one model sees ({len(kept) * len(norms[0])} gradients): "
    )
    if models[1].low > 0:
        return told + "models whose gradients are larger leak more, so that the size of the gradient explains the rows as well " \
            "as the radius may, and these data do not tell the two apart"
    if models[1].high < 0:
        return told + "models whose gradients are larger leak less: their size does not explain the leak"
    return told + "whether the size of the gradient explains the rows is not decided"


def _times(power: float) -> str:
    """Return a power of ten as people write a ratio."""
    value = 10**power
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.2g}"


def _share(count: tuple[int, int]) -> str:
    hits, n = count
    span = wilson(hits, n)
    return f"{hits / max(n, 1):.2f} [{span.low:.2f}, {span.high:.2f}]"


def _lost(row: Row, colour: bool) -> str:
    base = row.guess[0] / max(row.guess[1], 1)
    told = f"ε = {radius(row.eps, colour)} (clean accuracy {_share(row.clean)}, guessing {base:.2f}"
    hits, n = row.commonest
    same = f", {hits / max(n, 1):.0%} of all answers one and the same class" if hits >= IDLE * n > 0 else ""
    return told + same + ")"
