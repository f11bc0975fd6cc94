"""Suppression training: weights are pruned while a model trains, so that less of single records stays in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import generator, uniform
from hauberk.core.train import Callback, State


@dataclasses.dataclass(frozen=True)
class Suppression:
    """How far and how fast weights are suppressed.

    Arguments:
        start, end: sparsity before the first step and from `steps` on: the share of a layer's weights held at zero.
        begin: steps of ordinary training before the first.
        steps: steps over which the sparsity grows, s_t = s_e + (s_s - s_e) (1 - t/T)³ (Zhu and Gupta 2017, arXiv:1710.01878).
        every: steps between two choices of the weights.
        lower: weights smaller than this are zero as well, once suppression has begun; None has no such clip.
        upper: weights are clipped to this size; None has no such clip.
        noise: half-width of the uniform noise added, at each choice, to weights larger than `large`.
        large: the size from which a weight gets noise.
    """

    start: float = 0.0
    end: float = 0.9
    begin: int = 0
    steps: int = 1000
    every: int = 10
    lower: float | None = None
    upper: float | None = None
    noise: float = 0.0
    large: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < 1:
            raise UsageError(f"the sparsity goes from {self.start} to {self.end}", want="0 ≤ start ≤ end < 1")
        for name, least in (("begin", 0), ("steps", 1), ("every", 1), ("noise", 0), ("large", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}", want=f"a finite number, at least {least}")
        if not 0 <= (self.lower or 0.0) < (float("inf") if self.upper is None else self.upper):
            raise UsageError(f"the clips are {self.lower} and {self.upper}", want="0 ≤ lower < upper")

    def sparsity(self, step: int) -> float:
        """Return the share of weights that are zero after `step` steps."""
        done = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        return self.end + (self.start - self.end) * (1 - done) ** 3


class SuppressTraining(Callback):
    """Holds the smallest weights of each layer at zero while any optimizer trains it.

    Inside `fit` it is a callback. In a loop of one's own: `suppress = SuppressTraining(model, optimizer)`, then
    `suppress.mask_gradients()` before `optimizer.step()` and `suppress.step()` after it. With `make_private` the second alone
    is needed: what is done to private weights costs no privacy.

    Weights that are zero stay exactly zero under momentum, weight decay and Adam: their gradients and the optimizer's memory of
    them are cleared, and they are set again after each step. A weight once suppressed stays so.

    Arguments:
        model: its floating point weights of two axes or more are suppressed, each layer for itself.
        optimizer: over the model's parameters.
        plan: how far and how fast.
        layers: names of modules whose weights are suppressed; None takes all but the last, whose few weights make the answer.
        seed: of the noise.

    Raises:
        UsageError: for a layer that the model does not have, or without such a weight.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Suppression | None = None, *,
        layers: Sequence[str] | None = None, seed: int = 0,
    ) -> None:
        self.plan, self.optimizer, self.seed, self.steps = plan or Suppression(), optimizer, seed, 0
        found = {
            name: module.weight for name, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim > 1
            and module.weight.is_floating_point()
        }
        for name in layers or ():
            if name not in found:
                raise UsageError(f"there is no layer '{name}' with a weight to suppress", fix=nearest(name, list(found)))
        chosen = list(found)[: max(len(found) - 1, 1)] if layers is None else list(layers)
        # A tied weight is one weight.
        self.weights: dict[str, nn.Parameter] = {}
        for name in chosen:
            if not any(one is found[name] for one in self.weights.values()):
                self.weights[name] = found[name]
        if not self.weights:
            raise UsageError("the model has no weight to suppress", want="a layer with a weight of two axes or more")
        self.masks: dict[str, Tensor] = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()
        }

    @property
    def sparsity(self) -> dict[str, float]:
        """The share of weights held at zero, by layer."""
        return {name: 1.0 - float(mask.double().mean()) for name, mask in self.masks.items()}

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Clear the gradients of suppressed weights, before the optimizer's step."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0.0)

    @torch.no_grad()
    def step(self) -> None:
        """Choose weights anew if it is time, and set all that are suppressed to zero, after the optimizer's step."""
        self.steps += 1
        plan, past = self.plan, self.steps - self.plan.begin
        due = past >= 0 and past % plan.every == 0 and past <= plan.steps + plan.every
        for name, weight in self.weights.items():
            if due:
                self._choose(name, weight)
            if past >= 0 and plan.upper is not None:
                weight.clamp_(-plan.upper, plan.upper)
            gone = ~self.masks[name]
            weight.masked_fill_(gone, 0.0)
            for held in self.optimizer.state.get(weight, {}).values():
                if isinstance(held, Tensor) and held.shape == weight.shape:
                    held.masked_fill_(gone, 0.0)

    def before_step(self, state: State) -> None:
        """Clear gradients: `fit` calls it; a run that goes on from a checkpoint finds its masks in the weights."""
        if self.steps == 0 and state.step > 0:
            self.resume(state.step)
        self.mask_gradients()

    def after_step(self, state: State) -> None:
        """Suppress weights: `fit` calls it."""
        self.step()

    @torch.no_grad()
    def resume(self, steps: int) -> None:
        """Go on after so many steps of an earlier run: the weights that are zero in the model are those suppressed."""
        self.steps = steps
        if self.plan.sparsity(steps) > 0 or self.plan.lower is not None:
            self.masks = {name: weight != 0 for name, weight in self.weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the masks."""
        return {"steps": self.steps, "masks": {name: mask.clone() for name, mask in self.masks.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises:
            UsageError: for the state of other layers.
        """
        masks = state["masks"]
        if {name: mask.shape for name, mask in masks.items()} != {name: mask.shape for name, mask in self.masks.items()}:
            raise UsageError(f"the state is of the layers {', '.join(masks)}", want=f"that of {', '.join(self.masks)}")
        self.steps = int(state["steps"])
        self.masks = {name: mask.to(self.masks[name].device).clone() for name, mask in masks.items()}

    def _choose(self, name: str, weight: Tensor) -> None:
        mask, sizes = self.masks[name], weight.abs()
        # Those suppressed already come first, then the smallest: exactly as many as the schedule says.
        wanted = round(self.plan.sparsity(self.steps) * weight.numel())
        if wanted:
            order = sizes.masked_fill(~mask, -1.0).flatten().argsort(stable=True)
            mask.view(-1)[order[:wanted]] = False
        if self.plan.lower is not None:
            mask &= sizes >= self.plan.lower
        if self.plan.noise > 0:
            noise = (2 * uniform(weight, generator(self.seed, "suppress", name, self.steps)) - 1) * self.plan.noise
            weight.add_(noise * (mask & (sizes > self.plan.large)))
