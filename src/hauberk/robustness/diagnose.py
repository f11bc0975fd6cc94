"""Diagnosis: can an evaluation be believed, or do the gradients, the loss or the model's own noise fool it?"""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.card import registry
from hauberk.core.errors import UsageError
from hauberk.core.finding import Interval
from hauberk.core.gradients import input_gradient
from hauberk.core.stats import wilson
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.fgm import fgm
from hauberk.robustness.attack.pgd import pgd
from hauberk.robustness.attack.random_noise import random_noise
from hauberk.robustness.attack.square import square


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One sign that an evaluation is fooled.

    Arguments:
        name: what was looked at.
        value: the figure.
        limit: where it begins to speak.
        level: `quiet`, `warn` or `raised`.
        meaning: what a raised alarm says.
        remedy: what to do about it.
        n: samples behind the figure.
        interval: of a share; None for other figures.
    """

    name: str
    value: float
    limit: float
    level: str
    meaning: str
    remedy: str
    n: int
    interval: Interval | None = None


def diagnose(
    target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 20, queries: int = 300, seed: int = 0,
    sister: Tensor | None = None,
) -> list[Alarm]:
    """Look for the signs of gradient masking and of attacks that fail for reasons of their own.

    Arguments:
        target: with GRADIENT access.
        x, y: samples and true labels; those misclassified already are left out.
        threat: the ball under which robustness was measured; its radius is above zero.
        steps: of every gradient attack.
        queries: per sample, of the black-box attack.
        seed: of all attacks.
        sister: adversarial examples for x made on another model (transfer), shape of x; None leaves that alarm out.

    Raises:
        UsageError: for a radius of zero: there is nothing to attack.

    Returns:
        The alarms, raised or quiet, in a fixed order; empty where no sample is classified correctly. Signs after Athalye et al.
        2018 (arXiv:1802.00420), Carlini et al. 2019 (arXiv:1902.06705), Croce and Hein 2020 (arXiv:2003.01690) and Pintor et al.
        2022 (arXiv:2106.09947).
    """
    view = as_target(target).seen_at(Access.GRADIENT)
    threat = threat.within(view.bounds if view.bounds is not None else (0.0, 1.0))
    if not bool((torch.as_tensor(threat.eps) > 0).all()):
        raise UsageError(f"the radius is {threat.eps}", want="a radius above zero", fix="Give the radius the model should hold")
    right = torch.cat([view.labels(part) for part in x.split(view.batch_size)]) == y
    threat, x, y = threat.subset(right, x), x[right], y[right]
    sister = sister[right] if sister is not None else None
    if not len(x):
        return []

    def broken(z: Tensor) -> Tensor:
        return view.labels(z) != y

    fast = broken(fgm(view, x, y, threat))
    plain = broken(pgd(view, x, y, threat, steps=steps, seed=seed))
    margin = broken(pgd(view, x, y, threat, steps=steps, loss="margin", seed=seed))
    again = [broken(pgd(view, x, y, threat, steps=steps, seed=rng.derive_seed(seed, "restart", k))) for k in range(2)]
    longer = broken(pgd(view, x, y, threat, steps=10 * steps, step_size=None, seed=seed))
    white = plain | margin
    known = white | again[0] | again[1] | longer

    def beyond(hits: Tensor) -> Tensor:
        """Which of these broken samples gradients do not break, also when they try as hard as they can on these alone."""
        left = hits & ~known
        for k in range(2):
            index = left.nonzero()[:, 0]
            if len(index):
                here, hard = threat.subset(index, x), rng.derive_seed(seed, "hard", k)
                z = pgd(view, x[index], y[index], here, steps=10 * steps, loss="margin", seed=hard)
                left[index] = view.labels(z) == y[index]
        return left

    alarms = [
        _repeats(view, x), _outputs(view, x), _silent(view, x, y), _linearity(view, x, y, threat),
        _share(
            "one step beats many", fast & ~plain, 0.0, "FGSM breaks samples that PGD does not: the loss surface misleads it",
            "Use a margin loss, more restarts, or a black-box attack", against=plain & ~fast,
        ),
        _unbounded(view, x, y, threat, plain, steps, seed),
        _share(
            "margin loss beats cross-entropy", margin & ~plain & ~again[0] & ~again[1], 0.10,
            "cross-entropy is blinded by the scale of the logits", "Use the margin loss, or rescale the logits",
        ),
        _share(
            "restarts gain", (again[0] | again[1]) & ~white, 0.01,
            "more random starts break more samples: the search is not done", "Use more restarts and steps",
        ),
        _share(
            "ten times the steps gain", longer & ~white & ~again[0] & ~again[1], 0.01,
            "the attack had not converged", "Use more steps, or an attack that adapts its step size",
        ),
        _share(
            "noise beats gradients", broken(random_noise(view, x, y, threat, draws=20, seed=seed)) & ~white, 0.0,
            "random noise of the same size breaks samples that gradients do not", "Do not believe this evaluation",
        ),
    ]
    if threat.norm in registry.get("square", "attack").facts["norms"]:
        alarms.append(_share(
            "black box beats white box", beyond(broken(square(view, x, y, threat, queries=queries, seed=seed))), 0.002,
            "random search breaks samples that gradients do not: the gradients are masked",
            "Report the worst case over black-box attacks; attack through the masking part (BPDA)",
        ))
    if sister is not None:
        alarms.append(_share(
            "transfer beats white box", beyond(broken(sister)), 0.01,
            "examples made on another model break samples that this model's own gradients do not",
            "Report the worst case over transfer attacks; attack through the masking part (BPDA)",
        ))
    return alarms


def _share(
    name: str, hits: Tensor, limit: float, meaning: str, remedy: str, against: Tensor | None = None
) -> Alarm:
    """Return the alarm of a share: raised when its interval lies above the limit, a warning when the share alone does.

    `against` marks the samples that speak the other way: the alarm is then about the difference, by McNemar's count.
    """
    count, n = int(hits.sum()), len(hits)
    other = int(against.sum()) if against is not None else 0
    interval = wilson(count, n)
    value = count / n
    # One sample proves nothing, two only where none is expected; and significantly more must speak than speak against it.
    loud = count >= 3 and interval.low > limit and count > other + 2 * math.sqrt(count + other)
    soft = count > other and ((count >= 2 and interval.low > limit) or (count >= 3 and value > limit))
    level = "raised" if loud else "warn" if soft else "quiet"
    return Alarm(name, value, limit, level, meaning, remedy, n, interval)


def _repeats(view: Target, x: Tensor) -> Alarm:
    first, second = view.logits(x), view.logits(x)
    spread = (first - first.mean(1, keepdim=True)).norm(dim=1).clamp(min=1e-12)
    value = float(((first - second).norm(dim=1) / spread).max())
    return Alarm(
        "answers differ on repetition", value, 1e-4, "raised" if value > 1e-4 else "quiet",
        "the model answers at random: a gradient of one draw is not the gradient of the mean",
        "Average gradients over draws (EOT) and report the mean over repetitions", len(x),
    )


def _outputs(view: Target, x: Tensor) -> Alarm:
    view.probe(x[:8])
    probable = view.outputs == "probabilities"
    return Alarm(
        "outputs are probabilities", float(probable), 0.5, "warn" if probable else "quiet",
        "a saturated softmax passes no gradient on", "Attack the logits", len(x),
    )


def _silent(view: Target, x: Tensor, y: Tensor) -> Alarm:
    gradients = []
    for part, label in zip(x.split(view.batch_size), y.split(view.batch_size), strict=True):
        z = part.clone().requires_grad_()
        loss = functional.cross_entropy(view.logits(z), label, reduction="none")
        gradients.append(input_gradient(loss, z).flatten(1).abs().amax(1))
    zero = torch.cat(gradients) == 0
    interval = wilson(int(zero.sum()), len(x))
    value = float(zero.double().mean())
    level = "raised" if value > 0.10 else "warn" if value > 0.01 else "quiet"
    return Alarm(
        "gradients are exactly zero", value, 0.01, level, "the loss is flat, saturated or cut off where the samples are",
        "Use the margin loss, rescale the logits, or put a smooth stand-in for the part without a derivative (BPDA)",
        len(x), interval,
    )


def _linearity(view: Target, x: Tensor, y: Tensor, threat: Threat) -> Alarm:
    """A short step should gain what the gradient promises: a shattered or missing gradient does not keep its word."""
    ratios = []
    ball = threat.around(x)
    for index in torch.arange(len(x), device=x.device).split(view.batch_size):
        part = ball.subset(index)
        z = part.x.clone().requires_grad_()
        margin = threat.margin(view.logits(z), y[index])
        gradient = input_gradient(margin, z)
        # A quarter of the way to the point that is best for a linear model stays inside every ball.
        step = (part.maximise(-gradient) - part.x) / 4
        promised = (gradient * step).flatten(1).sum(1)
        real = threat.margin(view.logits(part.x + step), y[index]) - margin.detach()
        ratios.append(torch.where(promised != 0, real / promised, torch.full_like(real, math.nan)))
    found = torch.cat(ratios)
    kept = found[~found.isnan()]
    # A sample without a gradient promises nothing. Where that is the rule, gradients promise nothing at all.
    value = float(kept.median()) if 2 * len(kept) >= len(found) else 0.0
    return Alarm(
        "a step gains what the gradient promises", value, 0.5, "quiet" if 0.5 <= value <= 2 else "raised",
        "gained over promised margin lies outside [0.5, 2]: gradients are shattered, absent or of another function",
        "Use black-box attacks, or put a smooth stand-in for the part at fault (BPDA)", len(x),
    )


def _unbounded(
    view: Target, x: Tensor, y: Tensor, threat: Threat, plain: Tensor, steps: int, seed: int
) -> Alarm:
    """With the radius doubled, and doubled again, success must not fall; over the whole range it must be all but complete."""
    shares = [float(plain.double().mean())]
    for factor in (2.0, 4.0, math.inf):
        eps = torch.as_tensor(threat.eps, dtype=torch.float64)
        wider = threat.with_eps(eps * factor)
        if math.isinf(factor):
            wider = dataclasses.replace(threat, eps=math.inf, mask=None)  # everything may change, the masked features as well
        z = pgd(view, x, y, wider, steps=steps, loss="margin", seed=seed)
        shares.append(float((view.labels(z) != y).double().mean()))
    falls = max((before - after for before, after in itertools.pairwise(shares)), default=0.0)
    count = round(shares[-1] * len(x))
    level = "raised" if falls > 0.05 or shares[-1] < 0.90 else "warn" if shares[-1] < 0.98 else "quiet"
    return Alarm(
        "success with an unbounded radius", shares[-1], 0.98, level,
        f"success at 1, 2, 4 times the radius and over the whole range is {', '.join(f'{one:.0%}' for one in shares)}: an attack "
        "that may change everything must succeed",
        "The attack is broken for this model: choose another loss or attack", len(x), wilson(count, len(x)),
    )
