"""The case before us: model, samples that are right, threat, and how to search; every sign and remedy works on it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.target import ModulePredictor, Target
from hauberk.core.threat import Threat, labels_of
from hauberk.robustness.attack.pgd import pgd

_UNLED = 2
Finder = Callable[[Target, Tensor, Tensor, Threat], Tensor]


@dataclasses.dataclass(frozen=True)
class Search:
    """How the diagnosis searches.

    Arguments:
        attack: the attack whose figure is in question, `(target, x, y, threat) -> x_adv`; None: PGD on the cross-entropy.
        steps: of every gradient attack.
        queries: per sample, of the black-box attack.
        sister: adversarial examples for x made on another model, shape of x; None trains a substitute on the model's labels.
    """

    attack: Finder | None = None
    steps: int = 20
    queries: int = 100
    sister: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Samples that the model classifies correctly, under one threat.

    Arguments:
        view: the model, with GRADIENT access.
        x, y: samples (n, ...) and their labels (n,).
        threat: with bounds, cut to the samples.
        search: how to search.
        seed: of everything drawn.
        asks: how often a label is asked for; the majority counts. 1 where answers repeat.
        blind: no sample has a gradient of any loss, so that more than a first step from a random start has nothing to follow.
    """

    view: Target
    x: Tensor
    y: Tensor
    threat: Threat
    search: Search
    seed: int
    asks: int = 1
    blind: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def at(self, index: Tensor) -> Case:
        """Return the case of the samples at these positions."""
        threat = self.threat.subset(index, self.x)
        return dataclasses.replace(self, x=self.x[index], y=self.y[index], threat=threat)

    def repeated(self, times: int) -> Case:
        """Return the case with all samples several times over, one whole round after the other."""
        return self.at(torch.arange(len(self), device=self.x.device).repeat(times))

    def broken(self, z: Tensor) -> Tensor:
        """Return which points z, shape (n, ...), get another label than y, shape (n,), bool."""
        wrong = torch.stack([self.view.labels(z) != self.y for _ in range(self.asks)])
        return wrong.double().mean(0) > 0.5

    def plain(self, name: str = "plain") -> Tensor:
        """Return what the attack in question finds, shape (n, ...)."""
        if self.search.attack is not None:
            return self.search.attack(self.view, self.x, self.y, self.threat)
        return self.climb("ce", 1, name)

    def climb(self, loss: str, times: int, name: str) -> Tensor:
        """Return what PGD finds with that loss in `times` the usual steps, shape (n, ...)."""
        seed = rng.derive_seed(self.seed, name)
        return pgd(self.view, self.x, self.y, self.threat, steps=self.steps(times), loss=loss, seed=seed)

    def steps(self, times: int = 1) -> int:
        """Return so many times the usual steps; where there is no gradient, the few that try a random start or two."""
        return _UNLED if self.blind else times * self.search.steps

    def tried(self, index: Tensor, attack: Callable[[Case], Tensor]) -> Tensor:
        """Return which samples of the whole case the attack breaks when it is sent against those at `index` alone, (n,)."""
        hits = torch.zeros(len(self), dtype=torch.bool, device=self.x.device)
        if len(index):
            part = self.at(index)
            hits[index] = part.broken(attack(part))
        return hits


class _Shell(nn.Module):
    """A module in whose place one that refuses hooks answers."""

    def __init__(self, answers: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answers = (answers,)  # in a tuple, so that its modules are not found through this one
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers to x, shape (n, classes)."""
        return self.answers[0](x)


def hookable(view: Target) -> Target:
    """Return the view, over a module that takes hooks: compiled scripts do not, and are seen as one part."""
    if isinstance(view.module, torch.jit.ScriptModule):
        view = view.fresh()
        view.__dict__["_predictor"] = ModulePredictor(_Shell(view.predictor), view.predictor.outputs)
    return view


def owners(z: Tensor, x: Tensor) -> Tensor:
    """Return for each point z, shape (m, ...), the position of the sample of x, shape (n, ...), that it lies nearest to."""
    return torch.cdist(z.flatten(1).float(), x.flatten(1).float()).argmin(1)


class Passed:
    """Which samples an attack has passed an adversarial point of; filled by `watching`."""

    def __init__(self, case: Case) -> None:
        self.case, self.ball = case, case.threat.around(case.x)
        self.seen = torch.zeros(len(case), dtype=torch.bool, device=case.x.device)

    def note(self, z: Tensor, raw: Tensor) -> None:
        """Take note of one answer of the model to points z."""
        z, rows = z.detach().to(self.case.x), raw.detach().to(self.case.x.device)
        if rows.ndim == 1 or rows.shape[1] == 1:
            labels = (rows.flatten() > (0.5 if self.case.view.outputs == "probabilities" else 0.0)).long()
        else:
            labels = labels_of(rows)
        index = owners(z, self.case.x)
        hits = (labels != self.case.y[index]).nonzero()[:, 0]
        if len(hits):
            inside = self.ball.subset(index[hits]).contains(z[hits])
            self.seen[index[hits[inside]]] = True


@contextlib.contextmanager
def watching(case: Case) -> Iterator[Passed]:
    """Watch every answer of the model in the block."""
    passed = Passed(case)
    handle = case.view.module.register_forward_hook(lambda _, inputs, output: passed.note(inputs[0], output))
    try:
        yield passed
    finally:
        handle.remove()
