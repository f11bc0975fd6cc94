"""Privacy of gradients: what a participant of joint training gives away by sharing the gradient of one sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.errors import ModelError
from hauberk.core.finding import Advice, Evidence, Finding, Gallery, Status, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.target import Target
from hauberk.privacy.inversion import first_linear_layer, idlg
from hauberk.privacy.inversion.capture import as_input, sample_gradient
from hauberk.privacy.inversion.first_linear import TAGS, first_linear, linear_layers

THREAT = "an adversary who sees the exact gradient of a batch of one, as in federated learning without aggregation"
ADVICE = (
    Advice("Never send the gradient of one sample: send sums over many, clipped and with noise, or aggregate them securely"),
)


@dataclasses.dataclass
class Leak:
    """What the gradient of one sample gave away."""

    x: Tensor
    label: int
    guess: int
    error: float
    psnr: float
    shown: Tensor | None


@check(
    "privacy/gradient-leakage", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, tags=TAGS, advice=ADVICE,
    question="Does the gradient of one sample hand over the sample, or what its first linear layer saw of it?",
    paper="Phong et al. 2018, IEEE TIFS 13(5); Geiping et al. 2020, arXiv:2003.14053",
)
def gradient_leakage(context: Context) -> Finding:
    """Share of samples whose first linear layer's input is solved for, to a relative error of 1e-3."""
    context.need_classes()
    layer, leaks, pixels = _leaks(context)
    width = linear_layers(context.target.module)[layer].in_features
    figure = context.rate(torch.tensor([leak.error <= 1e-3 for leak in leaks]))
    what = "the whole input" if pixels else f"the {width} features before layer '{layer}'"
    if not pixels:
        context.note(f"the first linear layer does not see the input: what leaks are {what}, from which inputs can be searched")
    context.note("gradients are taken in evaluation mode, without dropout; a model trained in one place shares none")
    errors = sorted(leak.error for leak in leaks)
    middle = errors[len(errors) // 2]
    rows = [("samples", len(leaks)), ("layer", layer or "(the model)"), ("what is recovered", what),
            ("median relative error", f"{middle:.2e}"), ("largest relative error", f"{errors[-1]:.2e}")]
    finite = [leak.psnr for leak in leaks if math.isfinite(leak.psnr)]
    if finite:
        rows.append(("mean PSNR in dB", f"{sum(finite) / len(finite):.1f}"))
    leaked = figure["interval"].low > 0.01
    status = Status.PASS if not leaked else Status.FAIL if pixels else Status.WARN
    evidence: list[Evidence] = [Table("Recovery", ("figure", "value"), rows), *_gallery(context, leaks)]
    return context.finding(
        f"for {figure['value']:.1%} of {figure['n']} samples the gradient hands over {what} exactly",
        threat=THREAT, status=status, evidence=evidence, **figure,
    )


@check(
    "privacy/label-leakage", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, tags=TAGS, advice=ADVICE,
    question="Does the gradient of one sample hand over its label?", paper="Zhao et al. 2020, arXiv:2001.02610",
)
def label_leakage(context: Context) -> Finding:
    """Share of labels read off the sign of the last bias gradient; chance is the share of the largest class."""
    classes = context.need_classes()
    _, leaks, _ = _leaks(context)
    labels = torch.tensor([leak.label for leak in leaks])
    guesses = torch.tensor([leak.guess for leak in leaks])
    figure = context.rate(labels == guesses)
    chance = float(labels.bincount().max()) / len(labels)
    status = Status.FAIL if figure["interval"].low > max(chance, 2 / classes) else Status.PASS
    by_class = [
        (int(k), int((labels == k).sum()), int(((labels == k) & (guesses == k)).sum())) for k in labels.unique().tolist()
    ]
    return context.finding(
        f"the label of {figure['value']:.1%} of {figure['n']} samples is read off the gradient; the commonest is {chance:.1%}",
        threat=THREAT, status=status, evidence=(Table("Labels recovered", ("label", "samples", "recovered"), by_class[:20]),),
        **figure,
    )


def _leaks(context: Context) -> tuple[str, Sequence[Leak], bool]:
    """Attack the gradient of each sample once for both checks."""
    try:
        layer = first_linear(context.target.module)
    except ModelError as error:
        raise NotRun(error.problem) from error
    if linear_layers(context.target.module)[layer].bias is None:
        raise NotRun(f"the first linear layer '{layer}' has no bias: its input is known up to a factor alone")
    leaks = context.shared("gradient leaks", lambda target: _attack(target, context, layer))
    return layer, leaks, all(leak.shown is not None for leak in leaks)


def _attack(target: Target, context: Context, layer: str) -> Sequence[Leak]:
    split = context.data.train if context.data.train is not None and len(context.data.train) else context.data.test
    x, y = split.sample(context.settings.scaled(64, 256, 1000), context.seed, "gradient leakage")
    last = list(linear_layers(target.module))[-1]
    wanted = [
        ".".join(part for part in (name, kind) if part)
        for name, kind in {(layer, "weight"), (layer, "bias"), (last, "weight"), (last, "bias")}
        if getattr(linear_layers(target.module)[name], kind) is not None
    ]
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in context.data.bounds)
    found = []
    for index in range(len(x)):
        one, label = x[index : index + 1], y[index : index + 1]
        gradients, truth = sample_gradient(target, one, label, layer=layer, wanted=sorted(wanted))
        solved = first_linear_layer(target.module, gradients, layer=layer)
        guess = idlg(target.module, gradients, layer=last).y
        assert guess is not None
        error, psnr, shown = math.inf, math.nan, None
        if truth.numel() == solved.x.numel() and bool(solved.x.isfinite().all()):
            true = truth.reshape(1, -1).double()
            error = float((solved.x - true).norm() / true.norm().clamp(min=1e-30))
        back = as_input(target.module, truth, one)
        if back is not None:
            image = solved.x.reshape(one.shape).to(one) * back[0] + back[1]
            shown = torch.nan_to_num(image[0])
            square = float((((shown.double() - one[0].double()) / (high - low).clamp(min=1e-12)) ** 2).mean())
            psnr = min(200.0, -10 * math.log10(max(square, 1e-20)))
        found.append(Leak(one[0], int(label), int(guess), error, psnr, shown))
    return found


def _gallery(context: Context, leaks: Sequence[Leak]) -> Sequence[Gallery]:
    if context.data.modality != "image" or any(leak.shown is None for leak in leaks[:4]):
        return ()
    pictures = []
    for leak in leaks[:4]:
        assert leak.shown is not None
        pictures.append(picture(leak.x, f"sample, label {leak.label}", bounds=context.data.bounds))
        caption = f"from its gradient: {leak.psnr:.0f} dB, label {leak.guess}"
        pictures.append(picture(leak.shown, caption, bounds=context.data.bounds))
    return (Gallery("Samples and what their gradients gave away", pictures),)
