"""Where the gradient is lost: the part of a model behind which it no longer says what a step does, found by bisection."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.data import Split
from hauberk.core.taps import first_input, with_first
from hauberk.core.train import Schedule, fit
from hauberk.robustness.attack.adaptive.bpda import bpda
from hauberk.robustness.diagnose.case import Case

Spot = tuple[str, str, int]  # the module, "in" or "out", and which of its calls
_SAMPLES, _PROBES, _TRUE = 32, 8, 0.5


@dataclasses.dataclass(frozen=True)
class Fault:
    """A part that hides the gradient.

    Arguments:
        start, end: the last place where gradients are true, and the first from which they can be passed on to it.
        shapes: of a sample there.
    """

    start: Spot
    end: Spot
    shapes: tuple[torch.Size, torch.Size]

    @property
    def module(self) -> str:
        """The module that is the whole part; empty where it is code between modules."""
        whole = self.start[0] == self.end[0] and self.start[1:] == ("in", 0) and self.end[1:] == ("out", 0)
        return self.start[0] if whole else ""

    def describe(self) -> str:
        """Return the part in words."""
        if self.module:
            return f"'{self.module}'"
        after = f"'{self.start[0]}'" if self.start[0] else "the input"
        return f"the code between {after} and '{self.end[0]}'" if self.end[0] else f"the code behind {after}"


class _Trail:
    """Every tensor that modules are given and return in one pass, in the order in which they arise."""

    def __init__(self, case: Case, base: Spot | None = None) -> None:
        self.case, self.base = case, base
        self.leaf: Tensor | None = None  # the tensor at the base, that gradients are then taken towards
        self.found: dict[Spot, Tensor] = {}

    def walk(self, z: Tensor) -> dict[Spot, Tensor]:
        """Return the tensors, shape (n, ...) each, of one pass over z."""
        self.found, handles = {}, []
        for name, module in self.case.view.module.named_modules():
            # The last word of the hooks: a part that is bridged is seen with its bridge.
            handles.append(module.register_forward_pre_hook(self._keep_input(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._keep_output(name)))
        try:
            with rng.isolated(rng.derive_seed(self.case.seed, "trail"), z.device):
                self.case.view.logits(z)
        finally:
            for handle in handles:
                handle.remove()
        return self.found

    def _note(self, name: str, side: str, value: object) -> Tensor | None:
        """Keep a tensor; return what the model goes on with in its place, None for itself."""
        if not (isinstance(value, Tensor) and value.is_floating_point() and value.ndim and len(value) == len(self.case)):
            return None
        spot = (name, side, sum(one[:2] == (name, side) for one in self.found))
        if spot == self.base:
            self.leaf = value.detach().clone().requires_grad_()
            self.found[spot] = self.leaf
            return self.leaf.clone()
        self.found[spot] = value.clone()  # the next layer may write on it
        return None

    def _keep_input(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            word, value = first_input(module, inputs, named)
            other = self._note(name, "in", value)
            return None if other is None else with_first(other, word, inputs, named)

        return hook

    def _keep_output(self, name: str) -> Any:
        return lambda _, inputs, output: self._note(name, "out", output)


def locate(case: Case, after: Spot | None = None) -> Fault | None:
    """Return a part behind which gradients are not true, None where they are true throughout; `after` looks behind a place.

    A gradient is true at a place when it foretells how the tensor there changes with a short step of the input: the cosine
    between foretold and real changes, over samples and random directions, is above one half.
    """
    # No more than the model is asked at once: a pass must not be cut into parts.
    few = min(_SAMPLES, case.view.batch_size)
    order = torch.randperm(len(case), generator=rng.generator(case.seed, "fault"))[:few].to(case.x.device)
    case = case.at(order)
    noise = rng.generator(case.seed, "fault step", device=case.x.device)
    # A short step; behind a place that rounds it would change nothing, and the whole radius is taken.
    step = (case.threat.around(case.x).maximise(rng.normal(case.x, noise)) - case.x) / (4 if after is None else 1)
    trail, z = _Trail(case, after), case.x.clone().requires_grad_()
    with torch.enable_grad():
        here = trail.walk(z)
    there = _Trail(case).walk(case.x + step)
    spots = [spot for spot in here if spot in there and there[spot].shape == here[spot].shape]
    base = z
    if after is not None:
        if trail.leaf is None or after not in there:
            return None
        base, step = trail.leaf, there[after] - trail.leaf.detach()
        if not bool(step.any()):
            return None

    def true(place: int) -> bool:
        now, then = here[spots[place]], there[spots[place]]
        foretold, real = [], []
        for _ in range(_PROBES):
            probe = rng.normal(now.detach(), noise)
            slope = _slope((now * probe).flatten(1).sum(1), base)
            foretold.append((slope * step).flatten(1).sum(1).double())
            real.append(((then - now.detach()) * probe).flatten(1).sum(1).double())
        cosine = functional.cosine_similarity(torch.cat(foretold), torch.cat(real), dim=0, eps=1e-30)
        return bool(cosine > _TRUE)

    low, high = spots.index(after) if after in spots else 0, len(spots) - 1
    if high <= low or true(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if true(middle) else (low, middle)
    start, end = spots[low], spots[high]
    shape = here[start].shape[1:]
    if here[end].shape[1:] != shape:
        start, end = _passable(spots, low, high, {spot: value.shape[1:] for spot, value in here.items()})
    return Fault(start, end, (here[start].shape[1:], here[end].shape[1:]))


def _slope(value: Tensor, z: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(z)
    (slope,) = torch.autograd.grad(value.sum(), z, retain_graph=True, materialize_grads=True)
    return slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _passable(spots: list[Spot], low: int, high: int, shapes: dict[Spot, torch.Size]) -> tuple[Spot, Spot]:
    """Return the ends of the smallest part around a fault that returns the shape it is given; the fault where there is none."""
    for first in range(low, 0, -1):  # the modules around it, the innermost first
        name, side, count = spots[first]
        end = (name, "out", count)
        if side == "in" and name and end in shapes and spots.index(end) >= high and shapes[end] == shapes[spots[first]]:
            return spots[first], end
    same = [spot for spot in spots[high:] if shapes[spot] == shapes[spots[low]]]
    return spots[low], same[0] if same else spots[high]


@contextlib.contextmanager
def passed_by(case: Case, fault: Fault) -> Iterator[str]:
    """Let gradients pass the part for the block: straight through, or by a net fitted to it where its shape changes.

    Yields how, in words.
    """
    stand_in = None if fault.shapes[0] == fault.shapes[1] else _fitted(case, fault)
    how = "straight through" if stand_in is None else "by a net fitted to it"
    if fault.module:
        with bpda(case.view.module, fault.module, backward=stand_in if stand_in is not None else "identity"):
            yield f"{fault.describe()}, {how}"
        return
    modules, kept = dict(case.view.module.named_modules()), list[Tensor]()

    def take(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept[:] = [cast(Tensor, first_input(module, inputs, named)[1])]

    def lend_input(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        word, value = first_input(module, inputs, named)
        return with_first(lend(cast(Tensor, value)), word, inputs, named)

    def lend(value: Tensor) -> Tensor:
        smooth = kept[0] if stand_in is None else stand_in(kept[0])
        return value.detach() + (smooth - smooth.detach())

    start, end = modules[fault.start[0]], modules[fault.end[0]]
    handles = [
        start.register_forward_pre_hook(take, with_kwargs=True) if fault.start[1] == "in"
        else start.register_forward_hook(lambda _, inputs, output: kept.__setitem__(slice(None), [output])),
        end.register_forward_pre_hook(lend_input, with_kwargs=True) if fault.end[1] == "in"
        else end.register_forward_hook(lambda _, inputs, output: lend(output)),
    ]
    try:
        yield f"{fault.describe()}, {how}"
    finally:
        for handle in handles:
            handle.remove()


def _fitted(case: Case, fault: Fault) -> nn.Module:
    """Return a small smooth net that does what the part does, fitted to what it answers around the samples."""
    noise, pairs = rng.generator(case.seed, "stand-in", device=case.x.device), []
    for index in torch.arange(len(case), device=case.x.device).split(case.view.batch_size):
        part = case.at(index)
        ball = part.threat.around(part.x)
        for z in (part.x, *(ball.random_start(noise) for _ in range(4))):
            trail = _Trail(part).walk(z)
            pairs.append((trail[fault.start].detach(), trail[fault.end].detach()))
    given, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.derive_seed(case.seed, "stand-in"))
        net = _Pointwise(*fault.shapes).to(given.device, given.dtype)

    def imitate(model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        return functional.mse_loss(model(x), wanted[index.to(wanted.device)])

    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    data = Split(given, torch.arange(len(given)))
    fit(net, data, loss=imitate, optimizer=optimizer, schedule=Schedule(epochs=15, batch_size=64, seed=case.seed))
    return net.requires_grad_(False)


class _Pointwise(nn.Module):
    """A small net applied where the part itself works: feature by feature, pixel by pixel, or on all features at once."""

    def __init__(self, given: torch.Size, wanted: torch.Size) -> None:
        super().__init__()
        self.wanted = wanted
        self.features = wanted[:-1] == given
        self.pixels = not self.features and len(given) == len(wanted) > 1 and given[1:] == wanted[1:]
        widths = (1, wanted[-1]) if self.features else (given[0], wanted[0]) if self.pixels else (given.numel(), wanted.numel())
        self.net = nn.Sequential(nn.Linear(widths[0], 64), nn.Tanh(), nn.Linear(64, widths[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stand-in's answer, shape (n, *wanted)."""
        if self.features:
            return self.net(x[..., None])
        if self.pixels:
            return self.net(x.movedim(1, -1)).movedim(-1, 1)
        return self.net(x.flatten(1)).view(len(x), *self.wanted)
