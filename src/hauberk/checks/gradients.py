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
from hauberk.privacy.inversion.capture import as_input, called_linear, sample_gradient
from hauberk.privacy.inversion.first_linear import TAGS, first_linear, linear_layers

THREAT = "an adversary who sees the exact gradient of a batch of one, as in federated learning without aggregation"
WHERE = (
    "speaks of models whose gradients leave the machine; a model trained in one place shares none. Where yours do, a limit in "
    "the plan's [gate] makes this fail"
)
ADVICE = (
    Advice(
        "Where gradients are shared, send sums over many samples, clipped and with noise, or aggregate them securely",
        "hauberk invert --defence private=0.1",
    ),
)


@dataclasses.dataclass
class Leak:
    """What the gradient of one sample gave away."""

    x: Tensor
    label: int
    guess: int | None
    error: float
    psnr: float
    shown: Tensor | None


@dataclasses.dataclass
class Attacked:
    """The samples' leaks, and the layers that were read: the first called, and the one that answers (None: none can be told)."""

    leaks: Sequence[Leak]
    layer: str
    output: str | None

    @property
    def pixels(self) -> bool:
        """Whether the layer that was solved sees the sample itself."""
        return all(leak.shown is not None for leak in self.leaks)


@check(
    "privacy/gradient-leakage", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, tags=TAGS, advice=ADVICE,
    question="Does the gradient of one sample hand over the sample, or what its first linear layer saw of it?",
    paper="Phong et al. 2018, IEEE TIFS 13(5); Geiping et al. 2020, arXiv:2003.14053",
)
def gradient_leakage(context: Context) -> Finding:
    """Share of samples whose first linear layer's input is solved for, to a relative error of 1e-3."""
    context.need_classes()
    found = _leaks(context)
    layer, leaks, pixels = found.layer, found.leaks, found.pixels
    if linear_layers(context.target.module)[layer].bias is None:
        raise NotRun(f"the first linear layer '{layer}' has no bias: its input is known up to a factor alone")
    width = linear_layers(context.target.module)[layer].in_features
    figure = context.rate(torch.tensor([leak.error <= 1e-3 for leak in leaks]))
    what = "the whole input" if pixels else f"the {width} features before layer '{layer}'"
    if not pixels:
        context.note(f"the first linear layer does not see the input: what leaks are {what}, from which inputs can be searched")
    context.note("gradients are taken in evaluation mode, without dropout")
    context.note(WHERE)
    errors = sorted(leak.error for leak in leaks)
    middle = errors[len(errors) // 2]
    rows = [("samples", len(leaks)), ("layer", layer or "(the model)"), ("what is recovered", what),
            ("median relative error", f"{middle:.2e}"), ("largest relative error", f"{errors[-1]:.2e}")]
    finite = [leak.psnr for leak in leaks if math.isfinite(leak.psnr)]
    if finite:
        rows.append(("mean PSNR in dB", f"{sum(finite) / len(finite):.1f}"))
    leaked = figure["interval"].low > 0.01
    # Nearly every network leaks to this adversary, and most models never meet it: a warning, which a limit makes a failure.
    status = Status.WARN if leaked else Status.PASS
    evidence: list[Evidence] = [Table("Recovery", ("figure", "value"), rows), *_gallery(context, leaks)]
    return context.finding(
        f"who sees the gradient of one sample gets {what} exactly, for {figure['value']:.1%} of {figure['n']} samples",
        threat=THREAT, status=status, evidence=evidence, **figure,
    )


@check(
    "privacy/label-leakage", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, tags=TAGS, advice=ADVICE,
    question="Does the gradient of one sample hand over its label?", paper="Zhao et al. 2020, arXiv:2001.02610",
)
def label_leakage(context: Context) -> Finding:
    """Share of labels read off the sign of the last bias gradient; chance is the share of the largest class."""
    context.need_classes()
    found = _leaks(context)
    if found.output is None:
        raise NotRun("no linear layer answers with one score per class: there is no bias gradient to read the label off")
    labels = torch.tensor([leak.label for leak in found.leaks])
    guesses = torch.tensor([-1 if leak.guess is None else leak.guess for leak in found.leaks])
    figure = context.rate(labels == guesses)
    chance = float(labels.bincount().max()) / len(labels)
    if chance == 1:
        raise NotRun(f"all {len(labels)} samples have one label: nothing can be learnt from it")
    # Who always names the commonest label needs no gradient.
    status = Status.WARN if figure["interval"].low > chance else Status.PASS
    context.note(WHERE)
    if status is Status.PASS and figure["value"] > chance:
        context.note("not surely more often than the commonest label would be right: more samples would decide it")
    by_class = [
        (int(k), int((labels == k).sum()), int(((labels == k) & (guesses == k)).sum())) for k in labels.unique().tolist()
    ]
    return context.finding(
        f"who sees the gradient of one sample reads off its label, for {figure['value']:.1%} of {figure['n']} samples; the "
        f"commonest label would be right for {chance:.1%}",
        threat=THREAT, status=status, evidence=(Table("Labels recovered", ("label", "samples", "recovered"), by_class[:20]),),
        **figure,
    )


def _leaks(context: Context) -> Attacked:
    """Attack the gradient of each sample once for both checks."""
    try:
        first_linear(context.target.module)
    except ModelError as error:
        raise NotRun(error.problem) from error
    found = context.shared("gradient leaks", lambda target: _attack(target, context))
    if found is None:
        raise NotRun("none of the model's nn.Linear layers, called as a module, takes part in its answer")
    return found


def _attack(target: Target, context: Context) -> Attacked | None:
    split = context.data.train if context.data.train is not None and len(context.data.train) else context.data.test
    x, y = split.sample(context.settings.scaled(64, 256, 1000), context.seed, "gradient leakage")
    called, known = called_linear(target, x[:1], y[:1]), linear_layers(target.module)
    if not called:
        return None
    layer, last = called[0], called[-1]
    # One output stands for two classes.
    widths = (context.data.classes, 1) if context.data.classes == 2 else (context.data.classes,)
    answers = known[last].out_features in widths
    wanted = [
        ".".join(part for part in (name, kind) if part)
        for name in sorted({layer, last}) for kind in ("weight", "bias") if getattr(known[name], kind) is not None
    ]
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in context.data.bounds)
    found = []
    for index in range(len(x)):
        one, label = x[index : index + 1], y[index : index + 1]
        gradients, truth = sample_gradient(target, one, label, layer=layer, wanted=wanted)
        kind = "weight" if known[last].bias is None else "bias"
        told = bool(gradients[f"{last}.{kind}" if last else kind].any())  # one that is zero to the last bit names no label
        guess = idlg(target.module, gradients, layer=last).y if answers and told else None
        leak = Leak(one[0], int(label), None if guess is None else int(guess), math.inf, math.nan, None)
        found.append(leak)
        if known[layer].bias is None:
            continue
        solved = first_linear_layer(target.module, gradients, layer=layer).x
        if truth.numel() != solved.numel():  # the layer was called for many positions at once: their gradients are one sum
            continue
        if bool(solved.isfinite().all()):
            true = truth.reshape(1, -1).to(solved)
            leak.error = float((solved - true).norm() / true.norm().clamp(min=1e-30))
        back = as_input(target.module, truth, one)
        if back is not None:
            image = solved.reshape(one.shape).to(one) * back[0] + back[1]
            leak.shown = torch.nan_to_num(image[0])
            square = float((((leak.shown.double() - one[0].double()) / (high - low).clamp(min=1e-12)) ** 2).mean())
            leak.psnr = min(200.0, -10 * math.log10(max(square, 1e-20)))
    return Attacked(found, layer, last if answers else None)


def _gallery(context: Context, leaks: Sequence[Leak]) -> Sequence[Gallery]:
    if context.data.modality != "image" or any(leak.shown is None for leak in leaks[:4]):
        return ()
    pictures = []
    for leak in leaks[:4]:
        assert leak.shown is not None
        pictures.append(picture(leak.x, f"sample, label {leak.label}", bounds=context.data.bounds))
        read = "not read" if leak.guess is None else leak.guess
        caption = f"from its gradient: {leak.psnr:.0f} dB, label {read}"
        pictures.append(picture(leak.shown, caption, bounds=context.data.bounds))
    return (Gallery("Samples and what their gradients gave away", pictures),)
