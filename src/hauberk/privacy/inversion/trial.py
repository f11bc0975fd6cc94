"""One attack on what several clients send, with or without a defence, judged against the truth."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import generator
from hauberk.privacy.inversion.client import ClientUpdate, LocalSteps, client_update
from hauberk.privacy.inversion.defences import DEFENCES, private, soteria
from hauberk.privacy.inversion.metrics import Closeness, closeness

NAMES = (*DEFENCES, "soteria")


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What an attack won back.

    Arguments:
        x, y: the clients' samples, shape (n, ...), and labels, shape (n,).
        found: the reconstructions, in the order of the attack.
        close: each sample beside its reconstruction.
    """

    x: Tensor
    y: Tensor
    found: Reconstruction
    close: Closeness

    @property
    def matched(self) -> Tensor:
        """The reconstructions in the order of the samples, shape (n, ...)."""
        return self.found.x.reshape(self.x.shape)[self.close.order]


def attempt(
    module: nn.Module, x: Tensor, y: Tensor, attack: Callable[..., Reconstruction], *, defence: str = "", group: int = 1,
    local: LocalSteps | None = None, options: Mapping[str, Any] | None = None,
) -> Trial:
    """Let every `group` samples be one client's, defend what each sends, attack it, and compare. Works on a copy of the module.

    Arguments:
        module: the model; returns one logit per class.
        x, y: samples (n, ...) within [0, 1] or any bounds given in `options`, and labels (n,).
        attack: of those that take a `ClientUpdate`.
        defence: `NAME` or `NAME=STRENGTH`; empty for none.
        group: samples of one client.
        local: how clients train before they send.
        options: of the attack; `seed` is the defence's too, and `bounds` that of the data.

    Raises:
        UsageError: for a defence that is not known, or a group that does not divide n.
        ModelError: for a model whose parameters cannot be differentiated.
    """
    given = dict(options or {})
    bounds = given.pop("bounds", (0.0, 1.0))
    seed = int(given.pop("seed", 0))
    if group < 1 or len(x) % group:
        raise UsageError(f"{len(x)} samples are shared out by {group}", want="a batch size that divides the number of samples")
    twin = copy.deepcopy(module)
    if not any(one.is_floating_point() for one in twin.parameters()):
        raise ModelError("the model has no parameters of floating point", want="a model that can be trained")
    twin.requires_grad_(True)
    sent = []
    for client, first in enumerate(range(0, len(x), group)):
        part = slice(first, first + group)
        plain = client_update(twin, x[part], y[part], local=local, bounds=bounds)
        sent.append(_defended(twin, (x[part], y[part]), plain, defence, seed, client))
    found = _found(twin, x, y, sent, group, attack, {**given, "seed": seed})
    return Trial(x, y, found, closeness(twin, x, found, y=y, bounds=bounds or (0.0, 1.0), group=group))


def _found(
    module: nn.Module, x: Tensor, y: Tensor, sent: list[ClientUpdate], group: int, attack: Callable[..., Reconstruction],
    given: dict[str, Any],
) -> Reconstruction:
    """Return what the attack makes of the updates; one that is zero to the last bit tells nothing, and counts as gray."""
    told = [any(bool(one.any()) for one in update.gradients.values()) for update in sent]
    if all(told):
        return attack(module, sent, **given)
    bounds = sent[0].bounds
    found = torch.full_like(x, 0.0 if bounds is None else (bounds[0] + bounds[1]) / 2)
    loss = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    if any(told):
        made = attack(module, [update for update, live in zip(sent, told, strict=True) if live], **given)
        rows = torch.tensor(told, device=x.device).repeat_interleave(group)
        found[rows] = made.x.reshape(-1, *x.shape[1:]).to(found)
        loss[rows] = loss[rows] if made.loss is None else made.loss.to(loss)
    return Reconstruction(found, y, loss)


def _defended(
    module: nn.Module, samples: tuple[Tensor, Tensor], update: ClientUpdate, defence: str, seed: int, client: int
) -> ClientUpdate:
    if not defence:
        return update
    name, given, text = defence.partition("=")
    if name not in NAMES:
        raise UsageError(f"there is no defence '{name}'", fix=nearest(name, list(NAMES)))
    try:
        strength = float(text) if given else (0.5 if name == "soteria" else DEFENCES[name][2])
    except ValueError as error:
        raise UsageError(f"the strength of the defence is '{text}'", want="a number, as in prune=0.9") from error
    if name == "soteria":
        changed = soteria(update.gradients, strength, module=module, x=samples[0])
    elif name == "private" and update.local is None:
        # The samples of a batch are clipped one by one; an update of several steps as one, which protects the client.
        rows = [client_update(module, *(one[k : k + 1] for one in samples)).gradients for k in range(update.n)]
        changed = private(rows, strength, generator=generator(seed, "defence", client))
    else:
        changed = DEFENCES[name][0](update.gradients, strength, generator=generator(seed, "defence", client))
    return dataclasses.replace(update, gradients=changed)


def scalar_bounds(bounds: tuple[Any, Any]) -> tuple[float, float]:
    """Return the lowest and the highest of bounds that may be one per feature."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in bounds)
    return float(low.min()), float(high.max())
