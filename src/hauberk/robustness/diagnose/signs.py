"""The signs that need no contest of attacks: what the model answers, and what its gradients are worth."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.gradients import input_gradient
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.robustness.attack.pgd import pgd
from hauberk.robustness.diagnose.alarm import Alarm
from hauberk.robustness.diagnose.case import Case

_WIDER = (2.0, 4.0, math.inf)


def repeats(view: Target, x: Tensor, first: Tensor) -> Alarm:
    """Ask twice, the second time in another order and in two halves: answers must depend on the sample alone.

    Arguments:
        view: with SCORE access.
        x: samples, shape (n, ...).
        first: logits that it gave to x before, shape (n, classes).
    """
    order = torch.arange(len(x) - 1, -1, -1, device=x.device)
    half = (len(x) + 1) // 2
    second = torch.cat([view.logits(part) for part in x[order].split(half)])[order]
    spread = (first - first.mean(1, keepdim=True)).norm(dim=1).clamp(min=1e-12)
    value = float(((first - second).norm(dim=1) / spread).max())
    return Alarm(
        "answers differ on repetition", value, 1e-4, "raised" if value > 1e-4 else "quiet",
        "the model answers at random, or by what else is in the batch: a gradient of one answer is not the gradient of the mean",
        "Call model.eval(); where chance is meant, average gradients over draws (EOT) and report the mean over repetitions",
        len(x),
    )


def outputs(case: Case) -> Alarm:
    """Look whether the model returns probabilities."""
    case.view.probe(case.x[:8])
    probable = case.view.outputs == "probabilities"
    return Alarm(
        "outputs are probabilities", float(probable), 0.5, "warn" if probable else "quiet",
        "a saturated softmax passes no gradient on", "Attack the logits", len(case),
    )


def silent(case: Case) -> Alarm:
    """Count the samples at which the cross-entropy has a gradient of exactly zero."""
    gradients = []
    for part, label in zip(case.x.split(case.view.batch_size), case.y.split(case.view.batch_size), strict=True):
        z = part.clone().requires_grad_()
        loss = functional.cross_entropy(case.view.logits(z), label, reduction="none")
        gradients.append(input_gradient(loss, z).flatten(1).abs().amax(1))
    zero = torch.cat(gradients) == 0
    interval = wilson(int(zero.sum()), len(case))
    value = float(zero.double().mean())
    # A sound loss has none but by underflow: a share clearly above the limit is an alarm, however small.
    level = "raised" if interval.low > 0.01 else "warn" if value > 0.01 else "quiet"
    return Alarm(
        "gradients are exactly zero", value, 0.01, level, "the loss is flat, saturated or cut off where the samples are",
        "Use the margin loss, rescale the logits, or put a smooth stand-in for the part without a derivative (BPDA)",
        len(case), interval,
    )


def linearity(case: Case) -> Alarm:
    """A short step should gain what the gradient promises: a shattered or missing gradient does not keep its word."""
    ratios = []
    view, threat, ball = case.view, case.threat, case.threat.around(case.x)
    for index in torch.arange(len(case), device=case.x.device).split(view.batch_size):
        part = ball.subset(index)
        z = part.x.clone().requires_grad_()
        margin = threat.margin(view.logits(z), case.y[index])
        gradient = input_gradient(margin, z)
        # A quarter of the way to the point that is best for a linear model stays inside every ball.
        step = (part.maximise(-gradient) - part.x) / 4
        promised = (gradient * step).flatten(1).sum(1)
        real = threat.margin(view.logits(part.x + step), case.y[index]) - margin.detach()
        ratios.append(torch.where(promised != 0, real / promised, torch.full_like(real, math.nan)))
    found = torch.cat(ratios)
    kept = found[~found.isnan()]
    # A sample without a gradient promises nothing. Where that is the rule, gradients promise nothing at all.
    value = float(kept.median()) if 2 * len(kept) >= len(found) else 0.0
    return Alarm(
        "a step gains what the gradient promises", value, 0.5, "quiet" if 0.5 <= value <= 2 else "raised",
        "gained over promised margin lies outside [0.5, 2]: gradients are shattered, absent or of another function",
        "Use black-box attacks, or put a smooth stand-in for the part at fault (BPDA)", len(case),
    )


def unbounded(case: Case, plain: Tensor) -> Alarm:
    """With the radius doubled, and doubled again, success must not fall; over the whole range it must be all but complete.

    Arguments:
        case: the samples to try it on.
        plain: which of them the plain attack breaks, shape (n,).
    """
    n, times = len(case), len(_WIDER)
    eps = torch.as_tensor(case.threat.eps, dtype=torch.float64, device=case.x.device).expand(n)
    radii = torch.cat([eps * factor for factor in _WIDER])
    mask = case.threat.mask
    if mask is not None:  # over the whole range everything may change, the masked features as well
        mask = mask.to(case.x.device).bool().expand(case.x.shape)
        mask = torch.cat([mask] * (times - 1) + [torch.ones_like(mask)])
    many = case.repeated(times)
    wider = dataclasses.replace(case.threat, eps=radii, mask=mask)
    seed = rng.derive_seed(case.seed, "unbounded")
    z = pgd(case.view, many.x, many.y, wider, steps=case.steps(), loss="margin", seed=seed)
    won = many.broken(z).view(times, n)
    shares = [float(plain.double().mean()), *won.double().mean(1).tolist()]
    falls = max(before - after for before, after in itertools.pairwise(shares))
    level = "raised" if falls > 0.05 or shares[-1] < 0.90 else "warn" if shares[-1] < 0.98 else "quiet"
    return Alarm(
        "success with an unbounded radius", shares[-1], 0.98, level,
        f"success at 1, 2, 4 times the radius and over the whole range is {', '.join(f'{one:.0%}' for one in shares)}: an attack "
        "that may change everything must succeed",
        "The attack is broken for this model: choose another loss or attack", n, wilson(int(won[-1].sum()), n),
    )
