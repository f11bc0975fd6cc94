"""The signs that are contests: what one attack breaks and another does not, on the same samples."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.card import registry
from hauberk.core.predictors import Normalize
from hauberk.robustness.attack.fgm import fgm
from hauberk.robustness.attack.random_noise import random_noise
from hauberk.robustness.attack.square import square
from hauberk.robustness.attack.transfer import transfer
from hauberk.robustness.diagnose.active import missed
from hauberk.robustness.diagnose.alarm import Alarm, not_run, share
from hauberk.robustness.diagnose.case import Case, watching
from hauberk.robustness.diagnose.signs import linearity, outputs, silent, unbounded

_TASKS, _WIDE, _CHECKED, _FEWEST = 32, 48, 12, 16
_THROUGH = "Report the worst case over {}; attack through the masking part (BPDA)"


@dataclasses.dataclass(frozen=True)
class Contest:
    """What came of it.

    Arguments:
        alarms: all signs but the first, in their order.
        plain: which samples the attack in question breaks, shape (n,), bool.
        known: which any attack breaks, shape (n,), bool.
    """

    alarms: list[Alarm]
    plain: Tensor
    known: Tensor


def contest(case: Case) -> Contest:
    """Run the attacks against each other and read the signs.

    What the plain attack breaks needs no second attack: the others are sent against what it left, and the costly ones against
    what is nearest to the boundary there. Those shares are at least so large.
    """
    search, n = case.search, len(case)
    with watching(case) as passed:
        z = case.plain()
    silence, promise = silent(case), linearity(case)
    # What asks whether more gradients would find more is answered where there are none.
    case = dataclasses.replace(case, blind=silence.value == 1 and promise.value == 0)
    plain = case.broken(z)
    fast = case.broken(fgm(case.view, case.x, case.y, case.threat))
    near = _nearest(case, z, ~plain)
    margin = case.tried(near, lambda part: part.climb("margin", 1, "margin"))
    half, eighth = near[: (len(near) + 1) // 2], near[: max(n // 8, _FEWEST)]
    again = torch.zeros_like(plain)
    twice = half.repeat(2)  # two starts for each, in one run
    if len(half):
        part = case.at(twice)
        hits = part.broken(part.climb("ce", 1, "restart"))
        again[half] = hits.view(2, -1).any(0)
    white = plain | margin
    left = eighth[~(white | again)[eighth]]
    longer = case.tried(left, lambda part: part.climb("ce", 10, "longer"))
    known = white | again | longer
    noise = case.tried(near, lambda part: random_noise(part.view, part.x, part.y, part.threat, draws=10, seed=part.seed)) & ~white
    order = torch.randperm(n, generator=rng.generator(case.seed, "order")).to(case.x.device)
    some, few = order[:_WIDE].sort().values, _distinct(case, order)[:_TASKS].sort().values
    alarms = [
        outputs(case), silence, promise,
        share(
            "one step beats many", fast & ~plain, 0.0,
            "FGSM breaks samples that the attack does not: the loss surface misleads it",
            "Use a margin loss, more restarts, or a black-box attack", against=plain & ~fast,
        ),
        unbounded(case.at(some), plain[some]),
        share(
            "margin loss beats cross-entropy", margin & ~plain & ~again, 0.10,
            "cross-entropy is blinded by the scale of the logits", "Use the margin loss, or rescale the logits",
        ),
        share(
            "restarts gain", again & ~white, 0.01,
            "more random starts break more samples: the search is not done", "Use more restarts and steps",
        ),
        share(
            "ten times the steps gain", longer, 0.01,
            "the attack had not converged", "Use more steps, or an attack that adapts its step size",
        ),
        share(
            "success is passed and not returned", passed.seen & ~plain, 0.0,
            "the attack saw adversarial points inside the ball and returned others, or points that are none when asked again",
            "Keep the best point seen, not the last; for a model that answers at random, average (EOT)",
        ),
        share(
            "noise beats gradients", noise, 0.0,
            "random noise of the same size breaks samples that gradients do not", "Do not believe this evaluation",
        ),
    ]
    searchable = case.threat.norm in registry.get("square", "attack").facts["norms"]
    black, twin, unbroken = torch.zeros_like(plain), search.sister, (~known).nonzero()[:, 0]
    if searchable:
        black = case.tried(half[~known[half]], lambda part: square(
            part.view, part.x, part.y, part.threat, queries=search.queries, seed=rng.derive_seed(case.seed, "square")))
    if twin is not None:
        sister = case.broken(twin) & ~known
    else:
        sister = case.tried(unbroken, lambda part: transfer(
            part.view, part.x, part.y, part.threat, data=case.x, substitute=_substitute(case), rounds=0, epochs=6, steps=10,
            seed=rng.derive_seed(case.seed, "sister"),
        ))
    beyond = _beyond(case, black | sister)
    black, sister = black & beyond, sister & beyond
    alarms.append(share(
        "black box beats white box", black, 0.002,
        "random search breaks samples that gradients do not: the gradients are masked", _THROUGH.format("black-box attacks"),
    ) if searchable else not_run(
        "black box beats white box", 0.002, f"there is no search by scores for {case.threat.norm}",
        "Try the figure in Linf or L2 as well",
    ))
    alarms.append(share(
        "transfer beats white box", sister, 0.01,
        "examples made on another model break samples that this model's own gradients do not",
        _THROUGH.format("transfer attacks"),
    ))
    alarms.append(missed(dataclasses.replace(case.at(few), blind=False)))  # there it is the attack itself that is tried
    return Contest(alarms, plain, known | fast | noise | black | sister)


def _nearest(case: Case, z: Tensor, among: Tensor) -> Tensor:
    """Return the positions of the samples `among`, shape (n,), those first that z brings nearest to the boundary."""
    index = among.nonzero()[:, 0]
    if not len(index):
        return index
    part = case.at(index)
    return index[part.threat.margin(case.view.logits(z[index]), part.y).argsort(stable=True)]


def _substitute(case: Case) -> nn.Module | None:
    """Return an untrained model like the one diagnosed, and no dearer; None, the usual one, for what is no image."""
    if case.x.ndim != 4:
        return None
    convolves = any(isinstance(part, nn.modules.conv._ConvNd) for part in case.view.module.modules())
    width, classes = case.x.shape[1], int(case.view.probe(case.x[:1]) or 2)
    scale = Normalize(float(case.x.mean()), max(float(case.x.std(correction=0)), 1e-6))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.derive_seed(case.seed, "weights"))
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(case.x[0].numel(), 64)]
        if convolves:  # coarse strides: half the cost of a step is in the first layer
            layers = [
                nn.Conv2d(width, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64),
            ]
        net = nn.Sequential(scale, *layers, nn.ReLU(), nn.Linear(64, max(classes, 2)))
    return net.to(case.x.device, case.x.dtype if case.x.dtype is torch.float64 else torch.float32)


def _beyond(case: Case, hits: Tensor) -> Tensor:
    """Return which of these broken samples, shape (n,), gradients do not break when they try as hard as they can."""
    left, index = hits.clone(), hits.nonzero()[:, 0]
    first, rest = index[:_CHECKED], index[_CHECKED:]

    def hard(part: Case) -> Tensor:
        return part.climb("margin", 10, "hard")

    found = case.tried(first, hard)
    left &= ~found
    if 2 * int(found.sum()) > len(first):  # a weak attack and no masking: then it is worth looking at all of them
        left &= ~case.tried(rest, hard)
    return left


def _distinct(case: Case, order: Tensor) -> Tensor:
    """Return the order without samples that stand in it before."""
    flat = case.x[order].flatten(1)
    _, first = torch.unique(flat, dim=0, return_inverse=True)
    keep = torch.ones(len(order), dtype=torch.bool, device=order.device)
    seen: set[int] = set()
    for place, kind in enumerate(first.tolist()):
        keep[place] = kind not in seen
        seen.add(kind)
    return order[keep]
